"""Apache Flink with ZooKeeper high availability on three servers, which go one at a time.

    python3 tests/compat/flink_ensemble_suite.py --against zkraft|zookeeper
        [--version 2.3.0|1.20.5|both] [--scenario a,b,c,d] [--kills 10]

    a  kill -9 of the leading server, again and again, while Flink's clients are at the others, with
       Flink's default (tolerate-suspended-connections: false)
    b  kill -9 of the server at which the leading JobManager's client is, as a follower and as the
       leader, with suspended connections tolerated
    c  kill -9 of the leading JobManager while the servers elect a leader
    d  one server after the other is restarted by SIGTERM, with suspended connections tolerated

Where they are tolerated, Flink's high availability is configured by deploy/flink/config.yaml alone,
as users have it, with the quorum and the storageDir of the suite.

In a nothing may happen to Flink at all: no broken connection, no other leader, no failed
checkpoint, no restart. ZooKeeper's servers close all connections when they lose their leader: with
it a is counted, not judged, and the others are not run. Its leader has no clients
(leaderServes=no), as that of zkraft has none of Flink's, and both print the same table, to be
compared.

How long clients of a dead server are away (b) is told in full, and judged for what a server does of
it. The Java client waits before it asks another one: 0.1 s after it lost a connection, and then a
random time of up to 1 s, so that not all clients come at once. What must hold: the first server
that is asked takes the session, and has answered within 0.5 s, the election of a leader included;
and from the kill to that answer it takes no longer than what the client waits at most and 1 s.

The job and the ways to look at it are those of flink_suite.py. LAB_KEEP keeps all logs; those of
servers are kept after a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from pathlib import Path

import lab
from cluster.ensemble import Ensemble
from cluster.network import SERVERS, Loopback
from flink.cluster import (
    DEPLOYED,
    QUORUM_KEY,
    STORAGE_KEY,
    TIMEOUT_KEY,
    Cluster,
    JavaProcess,
    Options,
    configured,
)
from flink_suite import (
    ELECTION_SECONDS_MAX,
    SESSION_TIMEOUT_MS,
    START_SECONDS_MAX,
    TICK_MS,
    VERSIONS,
    Before,
    Steps,
    Suite,
    Trial,
    same,
    start,
)

SCENARIOS = "abcd"
CONFIG = {"tickTime": str(TICK_MS), "initLimit": "10", "syncLimit": "5"}
# Until a client that lost its server has asked another one, and `cons` there tells of it.
MOVE_SECONDS_MAX = SESSION_TIMEOUT_MS / 1000
# What the Java client waits at most before it asks (ClientCnxn, ClientCnxnSocketNIO).
CLIENT_WAIT_SECONDS = 1.1
# From its question for the session to the answer. A leader that was killed is replaced within
# 0.1 s; the rest is for a busy machine.
ANSWER_SECONDS_MAX = 0.5
# From the kill to the answer: the client's own longest wait, and the rest for a busy machine, on
# which a client learns late that its connection is gone.
MOVED_SECONDS_MAX = CLIENT_WAIT_SECONDS + 1
# How often the leading JobManager's server is killed as a follower, and as the leader.
MOVES = 3
# Until a client that was cut off says so in its log, and the metrics have been gathered again.
SETTLE_SECONDS = 2.0
# A silent leader is given up after half a second at the soonest (README).
SILENT_SECONDS = 0.3


def main() -> int:
    arguments = parse_arguments()
    lab.end_cleanly_on_sigterm()
    report = lab.Report("flink_ensemble", arguments.against)
    versions = VERSIONS if arguments.version == "both" else (arguments.version,)
    for version in versions:
        EnsembleSuite(report, arguments.against, version, arguments.kills).run(arguments.scenario)
    return report.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), default="zkraft")
    parser.add_argument("--version", choices=(*VERSIONS, "both"), default="both")
    parser.add_argument("--scenario", type=scenario_list, help="default: all; a for zookeeper")
    parser.add_argument("--kills", type=int, default=10, help="how many leaders scenario a kills")
    arguments = parser.parse_args()
    known = tuple(SCENARIOS) if arguments.against == "zkraft" else ("a",)
    arguments.scenario = arguments.scenario or known
    if not set(arguments.scenario) <= set(known):
        parser.error("with zookeeper there is scenario a alone")
    return arguments


def scenario_list(text: str) -> tuple[str, ...]:
    letters = tuple(text.split(","))
    if not set(letters) <= set(SCENARIOS):
        raise argparse.ArgumentTypeError(f"{text} is not a list of a,b,c,d")
    return letters


@dataclass(frozen=True)
class Toll:
    """What Flink paid for one server that went."""

    restarts: int
    # Components whose leader was recorded anew, the job's included.
    new_leaders: int
    # Lines of Flink's logs about a broken connection, of all processes.
    suspended: int
    failed_checkpoints: int

    def __add__(self, other: Toll) -> Toll:
        return Toll(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        named = zip(fields(self), astuple(self), strict=True)
        return ", ".join(f"{value} {field.name.replace('_', ' ')}" for field, value in named)


NOTHING = Toll(0, 0, 0, 0)


class EnsembleTrial(Trial):
    """A running job whose cluster is coordinated by three servers."""

    def __init__(self, ensemble: Ensemble, cluster: Cluster, job: str) -> None:
        super().__init__(ensemble.servers[1], cluster, job)
        self.ensemble = ensemble

    def places(self) -> dict[str, int]:
        """At which server the client of each of Flink's processes is, by `cons`; 0 for nowhere."""
        at = {n: server.sessions() for n, server in self.ensemble.servers.items()}
        sessions = {process.name: process.session() for process in self.cluster.running()}
        return {
            name: next((n for n in SERVERS if session and session in at[n]), 0)
            for name, session in sessions.items()
        }

    def suspensions(self) -> int:
        return sum(process.suspensions() for process in self.cluster.running())

    def observed(self, disturb: Callable[[], None]) -> tuple[Toll, float]:
        """What a disturbance costs, and the seconds from it to a checkpoint that began later."""
        before, suspended = self.look(), self.suspensions()
        began = time.monotonic()
        disturb()
        # The next one to complete may have been under way.
        self.completes(before.checkpoints.completed + 2)
        seconds = time.monotonic() - began
        self.checkpoints_go_on(before.checkpoints.completed)
        time.sleep(SETTLE_SECONDS)
        after = self.look()
        return toll(before, after, self.suspensions() - suspended), seconds

    def completes(self, checkpoint: int) -> None:
        self.cluster.wait_for(
            f"checkpoint {checkpoint}",
            START_SECONDS_MAX,
            lambda: self.cluster.rest().checkpoints(self.job).completed >= checkpoint,
        )

    def bring_back(self, number: int) -> None:
        """Starts a server again, and waits until it has what the others have."""
        server = self.ensemble.servers[number]
        if not server.running():
            server.spawn()
        self.ensemble.wait_for(number)
        self.ensemble.caught_up(number, self.ensemble.newest())


def toll(before: Before, after: Before, suspended: int) -> Toll:
    """What changed. Several restarts between two looks count as one, unless Flink counted them."""
    restarted = before.checkpoints.restored != after.checkpoints.restored
    new = [name for name, old in before.leaders.items() if after.leaders[name] != old]
    failed = after.checkpoints.failed - before.checkpoints.failed
    return Toll(
        max(after.restarts - before.restarts, int(restarted)),
        len(new),
        suspended,
        # A JobManager that restored the job counts from zero.
        failed if not restarted else after.checkpoints.failed,
    )


class EnsembleSuite(Suite):
    """All scenarios against one kind of ensemble with one release of Flink."""

    # c ends one of the JobManagers.
    ORDERS = ((False, "a"), (True, "bdc"))

    def __init__(self, report: lab.Report, against: lab.Kind, version: str, kills: int) -> None:
        super().__init__(report, against, version)
        self.kills = kills

    def _run_scenario(self, letter: str, trial: EnsembleTrial, steps: Steps) -> None:
        scenarios: dict[str, Callable[[EnsembleTrial, Steps], None]] = {
            "a": lambda trial, steps: leaders_are_killed(trial, steps, self.kills),
            "b": clients_move,
            "c": job_manager_dies_meanwhile,
            "d": rolling_restart,
        }
        scenarios[letter](trial, steps)
        if steps.failed:
            trial.ensemble.keep_logs()

    def _start(
        self, stack: contextlib.ExitStack, tolerate: bool, jar: Path, steps: Steps
    ) -> EnsembleTrial | None:
        name = f"{self.against} flink {self.version} {tolerate}"
        config = CONFIG if self.against == "zkraft" else {**CONFIG, "leaderServes": "no"}
        ensemble = stack.enter_context(Ensemble(self.against, Loopback(), config, name=name))
        deployed = DEPLOYED if tolerate else None
        options = Options(self.version, SESSION_TIMEOUT_MS, tolerate, deployed)
        cluster = stack.enter_context(Cluster(self.distribution, options, ensemble.places()))

        def start_all() -> str:
            if self.against == "zookeeper":
                for server in ensemble.servers.values():
                    server.spawn()
                ensemble.leader()
                return start(cluster, jar)
            # One server is down meanwhile, so that it has no client of Flink's.
            ensemble.start()
            vacant = ensemble.servers[ensemble.leader()]
            vacant.stop()
            job = start(cluster, jar)
            vacant.spawn()
            ensemble.wait_for(*SERVERS)
            return job

        job = steps.check(
            "three servers, two JobManagers and a TaskManager run the job, with checkpoints",
            start_all,
        )
        if job is not None and deployed:
            steps.check(
                "high availability is what deploy/flink/config.yaml says, and nothing else",
                lambda: as_deployed(cluster),
            )
        if steps.failed:
            ensemble.keep_logs()
            return None
        return EnsembleTrial(ensemble, cluster, job) if job else None


def as_deployed(cluster: Cluster) -> None:
    """Each of Flink's processes has read the file, and its client got the timeout of it."""
    deployed = configured(DEPLOYED)
    own = {QUORUM_KEY, STORAGE_KEY}
    for process in cluster.running():
        read = process.high_availability()
        same(f"keys that {process.name} reads", set(deployed), set(read))
        for key in set(deployed) - own:
            same(f"{key} of {process.name}", deployed[key], read[key])
        timeout = str(process.negotiated_timeout_ms())
        same(f"session timeout of {process.name}", deployed[TIMEOUT_KEY], timeout)


# --- The scenarios ------------------------------------------------------------------------------


def leaders_are_killed(trial: EnsembleTrial, steps: Steps, kills: int) -> None:
    """a: clients of the other servers do not notice that the leader is gone."""
    rows: list[tuple[str, ...]] = []
    total, times = NOTHING, []

    def kill() -> None:
        nonlocal total
        leader, at_leader, moves = prepare(trial)
        paid, seconds = trial.observed(trial.ensemble.servers[leader].kill9)
        total += paid
        times.append(seconds)
        rows.append((str(leader), str(at_leader), *map(str, astuple(paid)), f"{seconds:.1f}"))
        print(
            f"  server {leader} led, with {at_leader} of Flink's clients; {paid}; "
            f"the checkpoint after it came in {seconds:.1f} s (moved the leadership {moves} times)",
            flush=True,
        )
        trial.bring_back(leader)
        if trial.ensemble.kind == "zkraft":
            same("what Flink paid", NOTHING, paid)

    what = "nothing happens to Flink" if trial.ensemble.kind == "zkraft" else "Flink goes on"
    for number in range(1, kills + 1):
        steps.check(f"kill {number} of the leading server: {what}", kill)
    steps.check("no element is lost or counted twice", trial.state_is_exact)
    head = ("killed", "clients there", *(field.name for field in fields(Toll)), "s to checkpoint")
    print(f"  {trial.ensemble.kind}, Flink {trial.cluster.options.version}, in all: {total}")
    if times:
        median, worst = statistics.median(times), max(times)
        print(f"  a later checkpoint was done after {median:.1f} s, at the worst {worst:.1f} s")
    for row in (head, *rows):
        print("  | " + " | ".join(row) + " |", flush=True)


def prepare(trial: EnsembleTrial) -> tuple[int, int, int]:
    """Who is to be killed, how many of Flink's clients are there, and how often leaders changed."""
    ensemble = trial.ensemble
    places = trial.places()
    moves = 0
    if ensemble.kind == "zkraft":
        assert 0 not in places.values(), f"not every client is connected: {places}"
        vacant = [number for number in SERVERS if number not in places.values()]
        assert vacant, f"Flink's clients are everywhere: {places}"
        moves = ensemble.make_lead(vacant[0])
        same("where Flink's clients are", places, trial.places())
    leader = ensemble.leader()
    return leader, list(places.values()).count(leader), moves


def clients_move(trial: EnsembleTrial, steps: Steps) -> None:
    """b: the session goes on at another server."""

    def kill(as_leader: bool) -> None:
        ensemble, cluster = trial.ensemble, trial.cluster
        home = trial.places()[cluster.leading().name]
        if as_leader:
            ensemble.make_lead(home)
        elif ensemble.leader() == home:
            ensemble.make_lead(home % len(SERVERS) + 1)
        places = trial.places()
        there = [process for process in cluster.running() if places[process.name] == home]
        moves: list[Move] = []

        def disturb() -> None:
            since = datetime.now()
            ensemble.servers[home].kill9()
            moves.extend(moved(trial, there, home, since))

        paid, _ = trial.observed(disturb)
        role = "leader" if as_leader else "follower"
        print(f"  {role} {home} was killed with {len(there)} of Flink's clients; {paid}")
        for move in moves:
            print(f"    {move}", flush=True)
        all_moves.extend(moves)
        trial.bring_back(home)
        nothing_but_suspensions(paid)
        for move in moves:
            assert move.attempts == 1, f"the first server that it asked did not take it: {move}"
            assert move.answer_seconds <= ANSWER_SECONDS_MAX, f"an answer took too long: {move}"
            assert move.answered <= MOVED_SECONDS_MAX, f"the move took too long: {move}"

    all_moves: list[Move] = []
    what = (
        f"the first server that its clients ask takes them in {ANSWER_SECONDS_MAX} s, and they "
        f"are there {MOVED_SECONDS_MAX:g} s after the kill"
    )
    for as_leader, role in ((False, "a follower"), (True, "the leader")):
        for number in range(1, MOVES + 1):
            steps.check(
                f"kill {number} of the JobManager's server, {role}: no restart, and {what}",
                lambda as_leader=as_leader: kill(as_leader),
            )
    for name, times in (
        (f"waited by themselves (up to {CLIENT_WAIT_SECONDS} s)", [m.asked for m in all_moves]),
        ("were answered after", [m.answer_seconds for m in all_moves]),
        ("were at another server after", [m.answered for m in all_moves]),
    ):
        if times:
            median = statistics.median(times)
            values = ", ".join(f"{seconds:.3f}" for seconds in sorted(times))
            print(f"  clients {name}: median {median:.3f} s; {values}", flush=True)
    steps.check("no element is lost or counted twice", trial.state_is_exact)


@dataclass(frozen=True)
class Move:
    """How a client of a dead server came to another one: in seconds from the kill, when it asked
    first, when it was answered, and when `cons` of the other server told of it."""

    name: str
    asked: float
    answered: float
    told: float
    # How often it asked, and how long the one that answered took.
    attempts: int
    answer_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.name} asked after {self.asked:.3f} s, {self.attempts} times, was answered in "
            f"{self.answer_seconds:.3f} s, and was in `cons` after {self.told:.3f} s"
        )


def moved(
    trial: EnsembleTrial, clients: list[JavaProcess], dead: int, since: datetime
) -> list[Move]:
    """Waits until the sessions of these are at other servers."""
    told: dict[str, float] = {}
    sessions = {client.name: client.session() for client in clients}
    others = [server for number, server in trial.ensemble.servers.items() if number != dead]

    def all_there() -> bool:
        there = set().union(*(server.sessions() for server in others))
        for name, session in sessions.items():
            if session in there and name not in told:
                told[name] = (datetime.now() - since).total_seconds()
        return len(told) == len(sessions)

    lab.wait_until(all_there, "the clients to move", MOVE_SECONDS_MAX)
    moves = []
    for client in clients:
        # `cons` may tell of it before its log does.
        back = trial.cluster.wait_for(
            f"the log of {client.name}",
            MOVE_SECONDS_MAX,
            lambda client=client: client.reconnection(since),
        )
        moves.append(
            Move(
                client.name,
                back.asked[0],
                back.answered,
                told[client.name],
                len(back.asked),
                back.answered - back.asked[-1],
            )
        )
    return moves


def nothing_but_suspensions(paid: Toll) -> None:
    same("restarts", 0, paid.restarts)
    same("leaders", 0, paid.new_leaders)
    # Without this the check could not fail: the outage must have been seen.
    assert paid.suspended, "no client logged SUSPENDED"


def rolling_restart(trial: EnsembleTrial, steps: Steps) -> None:
    """d: what an upgrade of all servers costs."""
    total = NOTHING

    def restart(number: int) -> None:
        nonlocal total
        role = "leader" if trial.ensemble.leader() == number else "follower"
        there = list(trial.places().values()).count(number)
        code = 0

        def disturb() -> None:
            nonlocal code
            code = trial.ensemble.servers[number].stop()
            trial.bring_back(number)

        paid, _ = trial.observed(disturb)
        total += paid
        print(f"  {role} {number}, with {there} of Flink's clients; {paid}", flush=True)
        same("exit code", 0, code)
        same("restarts", 0, paid.restarts)
        same("leaders", 0, paid.new_leaders)

    for number in SERVERS:
        steps.check(
            f"server {number} is stopped by SIGTERM and started again: no restart",
            lambda number=number: restart(number),
        )
    # Every client had to move at least once.
    steps.check("in all: no restart", lambda: nothing_but_suspensions(total))
    steps.check("no element is lost or counted twice", trial.state_is_exact)


def job_manager_dies_meanwhile(trial: EnsembleTrial, steps: Steps) -> None:
    """c: two elections at once, of Flink's on the servers' own."""
    cluster, ensemble = trial.cluster, trial.ensemble

    def fail_over(how: str, disturb: Callable[[int], None]) -> None:
        before = steps.check("the job is healthy", trial.look)
        if before is None:
            return

        def both() -> tuple[int, float, int]:
            victim = cluster.leading()
            # Sessions get their full time from the next leader, which is there within a second or
            # two; the standby's own client may have to find another server first.
            allowed = (victim.negotiated_timeout_ms() + TICK_MS) / 1000 + 2 * ELECTION_SECONDS_MAX
            leader = ensemble.leader()
            disturb(leader)
            victim.kill9()
            newest = max(before.checkpoints.completed, trial.newest_checkpoint_znode())
            return newest, allowed, leader

        done = steps.check(f"the leading server {how}, and the leading JobManager is killed", both)
        if done is None:
            return
        newest, allowed, leader = done
        began = time.monotonic()
        steps.check(
            f"a standby leads within the session timeout, a tick and {2 * ELECTION_SECONDS_MAX} s",
            lambda: trial.new_leader(before, allowed),
        )
        print(f"  it led after {time.monotonic() - began:.1f} s", flush=True)
        if ensemble.servers[leader].running():
            ensemble.servers[leader].resume()
        steps.check("the server is back", lambda: trial.bring_back(leader))
        trial.resumes(steps, newest)

        def stand_by() -> None:
            cluster.start_job_manager()
            cluster.wait_for("a second JobManager", START_SECONDS_MAX, cluster.latched_twice)

        steps.check("a new JobManager stands by", stand_by)

    def fall_silent(leader: int) -> None:
        ensemble.servers[leader].pause()
        time.sleep(SILENT_SECONDS)

    fail_over("is killed -9", lambda leader: ensemble.servers[leader].kill9())
    fail_over("falls silent", fall_silent)


if __name__ == "__main__":
    sys.exit(main())
