"""Apache Flink with ZooKeeper high availability, through the failures it is kept for.

    python3 tests/compat/flink_suite.py --against zkraft|zookeeper
        [--version 2.3.0|1.20.5|both] [--scenario a,b,c,d,e]

    a  kill -9 of the leading JobManager
    b  kill -9 of the server and a restart within the session timeout, with
       tolerate-suspended-connections true and false
    c  the server is away for longer than the session timeout
    d  the job is cancelled: Flink leaves no znode of it, and no emptied container stays
    e  one JobManager alone, killed -9 and started again

A real cluster runs a real job (flink/ExactlyOnceJob.java). What is judged: leaders by their
`connection_info` znodes, the job by Flink's REST API, and its state by the files that it committed.
A check builds on those before it in its scenario; after a failure the others are SKIPPED, and the
next scenario gets a new cluster.

It must never call a slow machine a wrong server: all waits are deadlines, and an outage that was
meant to be short and was not is a failure that says so. LAB_KEEP keeps all logs.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import lab
from flink.cluster import Checkpoints, Cluster, Distribution, JobManager, Leader, Options

T = TypeVar("T")

VERSIONS = ("2.3.0", "1.20.5")
SCENARIOS = "abcde"
JOB_SOURCE = Path(__file__).parent / "flink" / "ExactlyOnceJob.java"

TICK_MS = 1_000
SESSION_TIMEOUT_MS = 10_000
CONTAINER_CHECK_MS = 1_000

# The job: how many keys, and the pause after each element (about 200 elements per second).
KEYS = 16
PAUSE_MS = 5

START_SECONDS_MAX = 90
# From the expiry of a dead leader's session to the record of its successor.
ELECTION_SECONDS_MAX = 5
RESTORE_SECONDS_MAX = 60
CLEAN_UP_SECONDS_MAX = 30
# Completed checkpoints that show that "checkpoints go on".
MORE_CHECKPOINTS = 3

COMPONENTS = ("rest_server", "dispatcher", "resource_manager")


def main() -> int:
    arguments = parse_arguments()
    # A plain SIGTERM would leave the JVMs behind; as an exception it unwinds like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = lab.Report("flink", arguments.against)
    versions = VERSIONS if arguments.version == "both" else (arguments.version,)
    for version in versions:
        Suite(report, arguments.against, version).run(arguments.scenario)
    return report.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Flink's ZooKeeper high availability, end to end.")
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), default="zkraft")
    parser.add_argument("--version", choices=(*VERSIONS, "both"), default="both")
    parser.add_argument(
        "--scenario",
        type=scenario_list,
        default=tuple(SCENARIOS),
        help="comma-separated letters out of a,b,c,d,e (default: all)",
    )
    return parser.parse_args()


def scenario_list(text: str) -> tuple[str, ...]:
    letters = tuple(text.split(","))
    if not letters or any(letter not in tuple(SCENARIOS) for letter in letters):
        raise argparse.ArgumentTypeError(f"{text} is not a list of a,b,c,d,e")
    return letters


class Suite:
    """All scenarios against one kind of server with one release of Flink."""

    # Which scenarios a cluster runs in which order, by whether it tolerates suspended connections.
    # d comes last on its cluster, as it ends the job; e stops the standby.
    ORDERS = ((True, "abd"), (False, "bce"))

    def __init__(self, report: lab.Report, against: lab.Kind, version: str) -> None:
        self.report = report
        self.against = against
        self.version = version
        self.distribution = Distribution(version)

    def run(self, letters: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory(prefix="flink-job-") as folder:
            steps = Steps(self.report, self.version)
            jar = steps.check(
                "the job compiles",
                lambda: self.distribution.compile_job(JOB_SOURCE, Path(folder)),
            )
            if jar is None:
                return
            for tolerate, order in self.ORDERS:
                wanted = [letter for letter in order if letter in letters]
                self._run_on_clusters(tolerate, jar, wanted)

    def _run_on_clusters(self, tolerate: bool, jar: Path, letters: list[str]) -> None:
        """Runs the scenarios in order on one cluster, or on a new one after each failure."""
        pending = list(letters)
        while pending:
            with contextlib.ExitStack() as stack:
                self._run_on_cluster(stack, tolerate, jar, pending)

    def _run_on_cluster(
        self, stack: contextlib.ExitStack, tolerate: bool, jar: Path, pending: list[str]
    ) -> None:
        """Takes scenarios off `pending` up to the first that fails; `stack` ends the processes."""
        prefix = f"{self.version} {'tolerant' if tolerate else 'default'}"
        trial = self._start(stack, tolerate, jar, Steps(self.report, f"{prefix}, start"))
        if trial is None:
            for letter in pending:
                self.report.skip(f"{prefix}, {letter}", "the cluster did not start")
            pending.clear()
            return
        while pending:
            letter = pending.pop(0)
            steps = Steps(self.report, f"{prefix}, {letter}")
            self._run_scenario(letter, trial, steps)
            if steps.failed:
                return

    def _run_scenario(self, letter: str, trial: Trial, steps: Steps) -> None:
        tolerate = trial.cluster.options.tolerate_suspended_connections
        scenarios = {
            "a": lead_job_manager_dies,
            "b": short_outage_tolerated if tolerate else short_outage,
            "c": long_outage,
            "d": job_is_cancelled,
            "e": lone_job_manager_restarts,
        }
        before = steps.check("the job is healthy", trial.look)
        if before is not None:
            scenarios[letter](trial, before, steps)

    def _start(
        self, stack: contextlib.ExitStack, tolerate: bool, jar: Path, steps: Steps
    ) -> Trial | None:
        config = {
            "tickTime": str(TICK_MS),
            "znode.container.checkIntervalMs": str(CONTAINER_CHECK_MS),
        }
        # ZooKeeper 3.8 takes this one from the JVM alone.
        jvm = [f"-Dznode.container.checkIntervalMs={CONTAINER_CHECK_MS}"]
        server = lab.Server(self.against, config, jvm_args=jvm)
        steps.check("the server starts", lambda: stack.enter_context(server))
        options = Options(self.version, SESSION_TIMEOUT_MS, tolerate)
        cluster = stack.enter_context(Cluster(self.distribution, options, server.places))
        job = steps.check(
            "two JobManagers and a TaskManager run the job, and it completes checkpoints",
            lambda: start(cluster, jar),
        )
        return Trial(server, cluster, job) if job else None


class Steps:
    """The checks of one scenario: each builds on those before it."""

    def __init__(self, report: lab.Report, prefix: str) -> None:
        self._report = report
        self._prefix = prefix
        self.failed: str | None = None

    def check(self, name: str, action: Callable[[], T]) -> T | None:
        """Runs one check and returns what it found out; None if it failed or was skipped."""
        full_name = f"{self._prefix}: {name}"
        if self.failed:
            self._report.skip(full_name, f"builds on '{self.failed}'")
            return None
        with self._report.case(full_name):
            return action()
        self.failed = name
        return None


@dataclass(frozen=True)
class Before:
    """How things stood right before a disturbance."""

    leaders: dict[str, Leader]
    checkpoints: Checkpoints
    attempts: dict[str, tuple[int, str]]
    restarts: int
    # Of the JobManagers: the owners of ephemeral nodes.
    sessions: frozenset[int]


class Trial:
    """A running job on its cluster, and the looks that several scenarios share."""

    def __init__(self, server: lab.Server, cluster: Cluster, job: str) -> None:
        self.server = server
        self.cluster = cluster
        self.job = job

    def look(self) -> Before:
        """Waits until the job is healthy and has passed a checkpoint, then notes how it stands."""
        healthy(self.cluster, self.job)
        rest = self.cluster.rest()
        return Before(
            self.leaders(),
            rest.checkpoints(self.job),
            rest.attempts(self.job),
            self.restarts(),
            frozenset(self.cluster.ephemerals().values()),
        )

    def restarts(self) -> int:
        """numRestarts of the job. The JobManager gathers it once a second."""
        # In a tuple, since zero is an answer.
        (value,) = self.cluster.wait_for(
            "the metric numRestarts",
            START_SECONDS_MAX,
            lambda: (self.cluster.rest().restarts(self.job),),
        )
        return value

    def leaders(self) -> dict[str, Leader]:
        """The record of every leader, the job's included."""
        names = (*COMPONENTS, f"job-{self.job}")
        return {name: self.cluster.leader(name) for name in names}

    def new_leader(self, before: Before, seconds_max: float) -> JobManager:
        """Waits until every component was led anew; returns the JobManager that leads."""

        def elected() -> JobManager | None:
            for name in COMPONENTS:
                if self.cluster.leader(name).fencing_token == before.leaders[name].fencing_token:
                    raise LookupError(f"{name} is recorded under the old fencing token")
            return self.cluster.leading()

        return self.cluster.wait_for("new connection_info", seconds_max, elected)

    def newest_checkpoint_znode(self) -> int:
        """The highest checkpoint id that Flink has recorded for the job."""
        path = f"{self.cluster.root}/jobs/{self.job}/checkpoints"
        return max((int(name) for name in self.cluster.children(path)), default=0)

    def restored(self, at_least: int) -> Checkpoints:
        """Waits until the job runs again from checkpoint `at_least` or a later one."""

        def back() -> Checkpoints | None:
            rest = self.cluster.rest()
            found = rest.checkpoints(self.job)
            if found.restored < at_least:
                raise LookupError(f"{found}, expected a restore of {at_least} or later")
            state = rest.job_state(self.job)
            if state != "RUNNING":
                raise LookupError(f"the job is {state}")
            return found

        return self.cluster.wait_for("the job to be restored", RESTORE_SECONDS_MAX, back)

    def checkpoints_go_on(self, beyond: int) -> Checkpoints:
        """Waits for more completed checkpoints than `beyond`."""

        def more() -> Checkpoints | None:
            found = self.cluster.rest().checkpoints(self.job)
            if found.completed < beyond + MORE_CHECKPOINTS:
                raise LookupError(f"{found}, expected {MORE_CHECKPOINTS} more than {beyond}")
            return found

        return self.cluster.wait_for("checkpoints to go on", RESTORE_SECONDS_MAX, more)

    def state_is_exact(self) -> None:
        """The committed output has no gap, each element was counted once, and more comes."""
        elements = self.cluster.wait_for(
            "committed output without a gap", RESTORE_SECONDS_MAX, lambda: committed(self.cluster)
        )
        self.cluster.wait_for(
            "the committed output to grow",
            RESTORE_SECONDS_MAX,
            lambda: committed(self.cluster) > elements,
        )

    def resumes(self, steps: Steps, at_least: int) -> None:
        """The checks after every restore."""
        back = steps.check(
            f"the job is restored within {RESTORE_SECONDS_MAX} s from its newest checkpoint",
            lambda: self.restored(at_least),
        )
        steps.check(
            "checkpoints go on",
            lambda: self.checkpoints_go_on(back.restored if back else 0),
        )
        steps.check("no element is lost or counted twice", self.state_is_exact)


# --- The scenarios ------------------------------------------------------------------------------


def lead_job_manager_dies(trial: Trial, before: Before, steps: Steps) -> None:
    """a: the standby takes over once the session of the dead leader has expired."""
    cluster = trial.cluster

    def kill() -> tuple[int, float]:
        """Returns the newest checkpoint that the victim left, and the seconds to a new leader."""
        victim = cluster.leading()
        allowed = (victim.negotiated_timeout_ms() + TICK_MS) / 1000 + ELECTION_SECONDS_MAX
        victim.kill9()
        return max(before.checkpoints.completed, trial.newest_checkpoint_znode()), allowed

    killed = steps.check("the leading JobManager is killed -9", kill)
    if killed is None:
        return
    newest, allowed = killed
    steps.check(
        f"a standby leads within the session timeout, a tick and {ELECTION_SECONDS_MAX} s",
        lambda: trial.new_leader(before, allowed),
    )
    trial.resumes(steps, newest)

    def stand_by() -> None:
        cluster.start_job_manager()
        cluster.wait_for("a second JobManager", START_SECONDS_MAX, cluster.latched_twice)

    steps.check("a new JobManager stands by", stand_by)


def short_outage_tolerated(trial: Trial, before: Before, steps: Steps) -> None:
    """b with tolerate-suspended-connections: the sessions live on, and so does everything."""
    cluster = trial.cluster
    suspensions = steps.check(
        "the server is killed -9 and is back within the session timeout",
        lambda: short_restart(trial),
    )
    steps.check(
        "checkpoints go on",
        lambda: trial.checkpoints_go_on(before.checkpoints.completed),
    )

    def nothing_happened() -> None:
        same("the leaders' records", before.leaders, trial.leaders())
        rest = cluster.rest()
        same("restores", before.checkpoints.restores, rest.checkpoints(trial.job).restores)
        same("attempts of the tasks", before.attempts, rest.attempts(trial.job))
        same("numRestarts", before.restarts, trial.restarts())
        # Without this the check could not fail: the outage must have been seen.
        if cluster.leading().suspensions() == suspensions:
            raise AssertionError("the leader's client logged no SUSPENDED")

    steps.check("same leaders, same sessions, same job, no restart", nothing_happened)
    steps.check("no element is lost or counted twice", trial.state_is_exact)


def short_outage(trial: Trial, before: Before, steps: Steps) -> None:
    """b with Flink's default: a broken connection costs the leadership, and it comes back."""
    steps.check(
        "the server is killed -9 and is back within the session timeout",
        lambda: short_restart(trial),
    )
    steps.check("leadership comes back", lambda: trial.new_leader(before, RESTORE_SECONDS_MAX))
    trial.resumes(steps, before.checkpoints.completed)


def long_outage(trial: Trial, before: Before, steps: Steps) -> None:
    """c: every session has expired on the clients' side before the server is back."""
    if trial.cluster.trusts_old_latches:
        steps.check("the standby is stopped (CURATOR-696)", trial.cluster.stop_standbys)

    def outage() -> None:
        trial.server.kill9()
        time.sleep((SESSION_TIMEOUT_MS + 3 * TICK_MS) / 1000)
        trial.server.start()

    def only_new_sessions() -> bool:
        owners = trial.cluster.ephemerals()
        left = [path for path, owner in owners.items() if owner in before.sessions]
        if left:
            raise LookupError(f"ephemeral nodes of old sessions: {left}")
        return True

    steps.check("the server is killed -9 and is back after the session timeout", outage)
    steps.check("leadership comes back", lambda: trial.new_leader(before, RESTORE_SECONDS_MAX))
    # The server cannot know since when its clients are gone: it lets the old sessions expire anew.
    steps.check(
        "the ephemeral nodes of the old sessions go",
        lambda: trial.cluster.wait_for(
            "the old sessions to expire",
            SESSION_TIMEOUT_MS / 1000 + CLEAN_UP_SECONDS_MAX,
            only_new_sessions,
        ),
    )
    trial.resumes(steps, before.checkpoints.completed)


def job_is_cancelled(trial: Trial, _before: Before, steps: Steps) -> None:
    """d: Flink removes what it keeps for the job, and the server removes emptied containers."""
    cluster = trial.cluster

    def owned() -> None:
        paths = cluster.paths_with(trial.job)
        for parent in (cluster.plans, "jobs", "leader"):
            if not any(path.startswith(f"{cluster.root}/{parent}/") for path in paths):
                raise AssertionError(f"no znode of the job below {parent}: {paths}")

    def cancelled() -> bool:
        state = cluster.rest().job_state(trial.job)
        if state != "CANCELED":
            raise LookupError(f"the job is {state}")
        return True

    def gone() -> bool:
        paths = cluster.paths_with(trial.job)
        if paths:
            raise LookupError(f"still there: {paths}")
        return True

    def cancel() -> None:
        cluster.rest().cancel(trial.job)
        cluster.wait_for("the job to be cancelled", RESTORE_SECONDS_MAX, cancelled)

    def containers_go() -> None:
        latch = f"{cluster.root}/leader/latch"
        if not cluster.znode_exists(latch):
            raise AssertionError(f"{latch} is gone while JobManagers run")
        for manager in cluster.job_managers:
            if manager.running():
                manager.stop()
        cluster.wait_for(
            f"the container {latch} to go",
            CLEAN_UP_SECONDS_MAX,
            lambda: not cluster.znode_exists(latch),
        )
        # And nobody has put anything back on the way out.
        same("the job's znodes", [], cluster.paths_with(trial.job))

    steps.check("the job has znodes for its plan, its checkpoints and its leader", owned)
    steps.check("the job is cancelled", cancel)
    steps.check(
        "every znode of the job is gone",
        lambda: cluster.wait_for("the znodes to go", CLEAN_UP_SECONDS_MAX, gone),
    )
    steps.check("no element is lost or counted twice", lambda: committed(cluster))
    steps.check("the election's container goes after the JobManagers", containers_go)


def lone_job_manager_restarts(trial: Trial, before: Before, steps: Steps) -> None:
    """e: what Kubernetes does with a deployment of one JobManager."""
    cluster = trial.cluster

    def kill() -> int:
        """Returns the newest checkpoint that the victim left."""
        cluster.stop_standbys()
        cluster.leading().kill9()
        newest = max(before.checkpoints.completed, trial.newest_checkpoint_znode())
        cluster.start_job_manager()
        return newest

    newest = steps.check("one JobManager alone is killed -9 and started again", kill)
    steps.check(
        "the new process leads",
        lambda: trial.new_leader(before, SESSION_TIMEOUT_MS / 1000 + START_SECONDS_MAX),
    )
    if newest is not None:
        trial.resumes(steps, newest)


# --- Parts of scenarios -------------------------------------------------------------------------


def start(cluster: Cluster, jar: Path) -> str:
    """Brings a cluster up with the job on it and returns the job's id."""
    for _ in range(2):
        cluster.start_job_manager()
    cluster.start_task_manager()
    cluster.wait_for("a leader", START_SECONDS_MAX, cluster.leading)
    cluster.wait_for("both JobManagers", START_SECONDS_MAX, cluster.latched_twice)
    cluster.wait_for(
        "the TaskManager's registration",
        START_SECONDS_MAX,
        lambda: cluster.rest().get("/taskmanagers")["taskmanagers"],
    )
    arguments = (f"file://{cluster.output}", str(KEYS), str(PAUSE_MS))
    job = cluster.submit(jar, JOB_SOURCE.stem, *arguments)
    cluster.wait_for(
        "the first checkpoints",
        START_SECONDS_MAX,
        lambda: cluster.rest().checkpoints(job).completed >= MORE_CHECKPOINTS,
    )
    return job


def healthy(cluster: Cluster, job: str) -> None:
    """Waits until the job and all its tasks run and it has committed output."""

    def running() -> bool:
        rest = cluster.rest()
        states = {rest.job_state(job)} | {state for _, state in rest.attempts(job).values()}
        if states != {"RUNNING"}:
            raise LookupError(f"states {states}")
        return committed(cluster) > 0

    cluster.wait_for("the job and all its tasks to run", RESTORE_SECONDS_MAX, running)


def short_restart(trial: Trial) -> int:
    """Kills the server and starts it again, surely within the session timeout.

    Returns how often the leader's client had reported a broken connection before.
    """
    suspensions = trial.cluster.leading().suspensions()
    began = time.monotonic()
    trial.server.kill9()
    trial.server.start()
    outage_ms = (time.monotonic() - began) * 1000
    # The clients need the rest of the time to come back.
    if outage_ms > 0.7 * SESSION_TIMEOUT_MS:
        raise AssertionError(
            f"the restart took {outage_ms:.0f} ms, too near to the session timeout "
            f"({SESSION_TIMEOUT_MS} ms): this machine is too slow to tell"
        )
    return suspensions


def same(what: str, before: object, after: object) -> None:
    if before != after:
        raise AssertionError(f"{what} changed: {before} before, {after} after")


class Gap(LookupError):
    """An element is missing between committed ones: not yet committed, or lost."""


def committed(cluster: Cluster) -> int:
    """Counts the elements in the committed files, having checked each of them.

    Element n belongs to key n mod KEYS and is the (n div KEYS + 1)th of it. A line that says
    otherwise, or an element that is there twice, is an AssertionError at once. A Gap is not, since
    files become visible one by one.
    """
    counts: dict[int, set[int]] = {key: set() for key in range(KEYS)}
    # Files that are not committed have names that start with a dot.
    for file in sorted(cluster.output.rglob("part-*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            key, n, count, total = map(int, line.split())
            due = n // KEYS + 1
            due_total = due * key + KEYS * due * (due - 1) // 2
            if (key, count, total) != (n % KEYS, due, due_total):
                raise AssertionError(
                    f"element {n}: state of key {key} says count {count}, sum {total}; "
                    f"due are {due} and {due_total} ({file.name})"
                )
            if count in counts[key]:
                raise AssertionError(f"element {n} was committed twice ({file.name})")
            counts[key].add(count)
    for key, seen in counts.items():
        if seen and len(seen) != max(seen):
            missing = min(set(range(1, max(seen))) - seen)
            raise Gap(f"key {key}: {max(seen)} elements due, {len(seen)} there, no {missing}th")
    return sum(map(len, counts.values()))


if __name__ == "__main__":
    sys.exit(main())
