"""Faults drawn from a seed, one after the other, under the load of `workload.py`.

The whole schedule is drawn before the first fault, so that a seed repeats it: kinds, durations,
pauses and choices. Which server a choice falls on may still depend on who leads.

Servers have names, and a clock of the calendar each, so that their addresses and their time may
change. Once a clock was stepped it may stay so, and the faults that follow find it like that.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lab
import raw

from . import checker, workload
from .checker import OK, Op
from .client import NEW_CONFIG_NO_QUORUM, Client, Connection, Lost, created
from .clocks import Clock, build_library
from .ensemble import (
    CLIENT_PORT,
    ELECTION_PORT,
    LOOK_SECONDS_MAX,
    QUORUM_PORT,
    SERVE_SECONDS_MAX,
    Ensemble,
    Member,
)
from .names import HostsFile
from .network import SERVERS, Bridged, Filters
from .workload import Workload

CONFIG = {
    "tickTime": "500",
    "initLimit": "20",
    "syncLimit": "3",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
    "snapCount": "5000",
    "preAllocSize": "4096",
}
# Whoever asks may change the ensemble.
RECONFIG = {"reconfigEnabled": "true", "skipACL": "yes"}
# What servers and their clients call them.
NAMES = {number: f"server-{number}" for number in SERVERS}
DISK_MIB = 256
CLOCK_STEP_SECONDS = 3600
# How far a time that a server tells may be from what its clock must have said.
CLOCK_ERROR_SECONDS = 60
# Longer than elections take, and than sessions live.
LONG_SECONDS = (workload.SESSION_MS / 1000 + 2, workload.SESSION_MS / 1000 + 4)
SHORT_SECONDS = (0.5, 4.0)
PAUSE_SECONDS = (0.5, 3.0)
# Of sessions that must outlive a fault, in which nobody may ping for them.
GUEST_MS = 30_000
# After so long, what a server was about to answer is through.
ANSWERED_SECONDS = 1.0
# From the end of the faults until watchers know the last state and dead sessions are gone.
SETTLE_SECONDS_MAX = 60
# Acknowledged operations, and events, for each second of the run, without which it shows nothing.
LOAD_MIN = 5
# A fault takes 6 s with all that belongs to it, on a busy machine too. As many as fit into a run at
# this pace are due, in the order in which they are drawn.
FAULT_SECONDS_MAX = 60
# In so long a run every kind is.
WHOLE_ROUND_SECONDS = 15 * 60
# Of faults that are meant for the leader, as many as are judged together.
AIMED_ENOUGH = 8
# What a server says that ends for that reason.
FULL = "the disk is full"


@dataclass(frozen=True)
class Step:
    kind: str
    seconds: float
    pause: float
    # Whether the next fault comes before all serve again.
    hasty: bool
    seed: int


class Nemesis:
    """What is done to an ensemble."""

    def __init__(
        self,
        ensemble: Ensemble,
        filters: Filters,
        disk: int | None,
        hosts: HostsFile | None = None,
        clocks: Mapping[int, Clock] | None = None,
    ) -> None:
        self.ensemble = ensemble
        self.disk = disk
        self.hosts = hosts
        self.clocks = clocks or {}
        # Servers that are no members now, or have no vote.
        self.away: set[int] = set()
        # How often a leader was sought, and how often nobody led and any server was taken for it.
        self.sought = self.guessed = 0
        assert isinstance(ensemble.network, Bridged)
        self.network = ensemble.network
        self.kinds: dict[str, Callable[[Step, random.Random], str]] = {
            "kill -9 of the leader": lambda s, r: self._kill(s, [self._leader(r)]),
            "kill -9 of a follower": lambda s, r: self._kill(s, [self._follower(r)]),
            "kill -9 of all": lambda s, r: self._kill(s, list(SERVERS)),
            "leader silent for long": lambda s, r: self._pause(s, self._leader(r)),
            "follower silent for long": lambda s, r: self._pause(s, self._follower(r)),
            "short silence": lambda s, r: self._pause(s, r.choice(SERVERS)),
            "leader isolated": lambda s, r: self._isolate(s, self._leader(r)),
            "follower isolated": lambda s, r: self._isolate(s, self._follower(r)),
            "all apart": lambda s, r: self._cut(s, _all_pairs()),
            "two do not hear each other": lambda s, r: self._cut(s, _both(r.sample(SERVERS, 2))),
            "one way cut": lambda s, r: self._cut(s, _both(r.sample(SERVERS, 2))[:1]),
            "leader deaf": lambda s, r: self._cut(s, _to(self._leader(r))),
            "leader mute": lambda s, r: self._cut(s, _from(self._leader(r))),
            "ring": lambda s, r: self._cut(s, _ring(r)),
            "slow link": lambda s, r: self._slow(s, r),
            "lossy link": lambda s, r: self._lose(s, r),
            "rolling restart": lambda s, r: self._roll(r),
        }
        if disk is not None:
            self.kinds["full disk"] = lambda s, r: self._fill(s)
        if ensemble.kind == "zkraft":
            self.kinds |= {
                "lost data directory": lambda s, r: self._wipe(r),
                "leader removed for a while": lambda s, r: self._remove(s, self._leader(r), r),
                "follower removed for a while": lambda s, r: self._remove(s, self._follower(r), r),
                "observer for a while": lambda s, r: self._demote(s, r.choice(SERVERS), r),
            }
        if hosts is not None:
            self.kinds |= {
                "leader with a new address": lambda s, r: self._move(s, self._leader(r), r),
                "follower with a new address": lambda s, r: self._move(s, self._follower(r), r),
            }
        if clocks:
            self.kinds |= {
                "clock step of the leader": lambda s, r: self._step_clock(s, self._leader(r), r),
                "clock step of a follower": lambda s, r: self._step_clock(s, self._follower(r), r),
            }
        for kind in filters.missing:
            del self.kinds[kind]

    def schedule(self, seed: int) -> Iterator[Step]:
        """Without end: every kind once in each round, in an order of its own."""
        drawn = random.Random(seed)
        while True:
            for kind in drawn.sample(sorted(self.kinds), len(self.kinds)):
                yield Step(
                    kind,
                    drawn.uniform(*(LONG_SECONDS if "for long" in kind else SHORT_SECONDS)),
                    drawn.uniform(*PAUSE_SECONDS),
                    drawn.random() < 0.3,
                    drawn.randrange(1 << 30),
                )

    def do(self, step: Step) -> str:
        """Does it and ends it; returns what was done to whom."""
        done = self.kinds[step.kind](step, random.Random(step.seed))
        time.sleep(step.pause)
        return done

    def heal(self) -> None:
        """Ends all faults; starts those that do not run."""
        self.network.heal()
        for number, server in self.ensemble.servers.items():
            if self.hosts is not None:
                self.hosts.publish(server.host, self.network.hosts[number])
            if server.running():
                server.resume()
            else:
                server.spawn()
        for number in sorted(self.away):
            self._take_back(number)

    def _leader(self, drawn: random.Random) -> int:
        """Any one if none leads."""
        leader = self.ensemble.leads()
        self.sought += 1
        self.guessed += leader is None
        return leader or drawn.choice(SERVERS)

    def _follower(self, drawn: random.Random) -> int:
        leader = self._leader(drawn)
        return drawn.choice([number for number in SERVERS if number != leader])

    def _kill(self, step: Step, numbers: list[int]) -> str:
        for number in numbers:
            self.ensemble.servers[number].kill9()
        # Half of them come back at once, as under a supervisor.
        time.sleep(step.seconds * (step.seed % 2))
        for number in numbers:
            self.ensemble.servers[number].spawn()
        return f"{numbers}"

    def _pause(self, step: Step, number: int) -> str:
        server = self.ensemble.servers[number]
        server.pause()
        time.sleep(step.seconds)
        server.resume()
        return f"{number} for {step.seconds:.1f} s"

    def _isolate(self, step: Step, number: int) -> str:
        return self._cut(step, _to(number) + _from(number))

    def _cut(self, step: Step, pairs: list[tuple[int, int]]) -> str:
        self.network.cut(pairs)
        time.sleep(step.seconds * 2)
        self.network.heal()
        told = ", ".join(f"{source}→{target}" for source, target in pairs)
        return f"{told} for {step.seconds * 2:.1f} s"

    def _slow(self, step: Step, drawn: random.Random) -> str:
        numbers = drawn.sample(SERVERS, drawn.randint(1, 3))
        for number in numbers:
            self.network.slow(number)
        time.sleep(step.seconds * 2)
        self.network.heal()
        return f"{numbers} for {step.seconds * 2:.1f} s"

    def _lose(self, step: Step, drawn: random.Random) -> str:
        numbers = drawn.sample(SERVERS, drawn.randint(1, 3))
        for number in numbers:
            self.network.lose(number, 10)
        time.sleep(step.seconds * 2)
        self.network.heal()
        return f"{numbers} for {step.seconds * 2:.1f} s"

    def _roll(self, drawn: random.Random) -> str:
        self._all_serve()
        order = drawn.sample(SERVERS, len(SERVERS))
        for number in order:
            stop_in_order(self.ensemble.servers[number])
            self.ensemble.servers[number].spawn()
            self.ensemble.wait_for(number)
        return f"{order}"

    def _fill(self, step: Step) -> str:
        assert self.disk is not None
        server = self.ensemble.servers[self.disk]
        foreign = server.data_dir.parent / "foreign"
        with open(foreign, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        time.sleep(step.seconds * 2)
        ended = "" if server.running() else ", and it ended"
        foreign.unlink()
        if not server.running():
            server.spawn()
        return f"of {self.disk} for {step.seconds * 2:.1f} s{ended}"

    def _wipe(self, drawn: random.Random) -> str:
        # With less than all of the others, what was acknowledged could be lost by right.
        self._all_serve()
        server = self.ensemble.servers[self._follower(drawn)]
        server.kill9()
        server.wipe()
        server.spawn()
        self.ensemble.wait_for(server.number)
        self.ensemble.complete()
        return f"of {server.number}"

    # --- Changes of the ensemble ----------------------------------------------------------------

    def _remove(self, step: Step, number: int, drawn: random.Random) -> str:
        """What becomes of its process meanwhile is its operator's affair."""
        self._all_serve()
        server, others = self.ensemble.servers[number], _without(number)
        fate = drawn.choice(["left running", "stopped", "killed", "emptied"])
        with self._guest(number) as guest:
            self.away.add(number)
            self._reconfig(others, leaving=f"{number}")
            self._votes_of(others)
            lab.wait_until(lambda: not server.serves(), f"server {number} to serve nobody")
            guest.is_served_by(others)
        if fate == "stopped":
            stop_in_order(server)
        elif fate != "left running":
            server.kill9()
        told = self._two_go_on(step, others, drawn)
        if fate == "emptied":
            server.wipe()
        # It is there before it is let in, or after that.
        early = drawn.random() < 0.5
        if early and not server.running():
            server.spawn()
            time.sleep(step.seconds / 2)
        self._reconfig(others, joining=self._line(number))
        if not server.running():
            server.spawn()
        self._take_back(number)
        return f"{number}, {fate}{told}"

    def _demote(self, step: Step, number: int, drawn: random.Random) -> str:
        """It goes on serving its clients, without a vote."""
        self._all_serve()
        server, others = self.ensemble.servers[number], _without(number)
        was = "the leader" if self.ensemble.leads() == number else "a follower"
        with self._guest(number) as guest:
            self.away.add(number)
            self._reconfig(others, joining=self._line(number, "observer"))
            self._votes_of(others)
            what = f"server {number} to be an observer"
            lab.wait_until(lambda: server.mode() == "observer", what, SERVE_SECONDS_MAX)
            self.ensemble.wait_for(number)
            guest.is_served_by([number], broken_max=0)
        told = self._two_go_on(step, others, drawn)
        self._take_back(number)
        return f"{number}, {was} before{told}"

    def _two_go_on(self, step: Step, voters: Sequence[int], drawn: random.Random) -> str:
        """The two who vote, for a while, with clients. One of them alone may be no majority."""
        time.sleep(step.seconds)
        if drawn.random() < 0.5:
            return ""
        lost, left = drawn.sample(voters, 2)
        asked = Connection(self.ensemble.place(left), GUEST_MS)
        try:
            self.ensemble.servers[lost].kill9()
            time.sleep(ANSWERED_SECONDS)
            with contextlib.suppress(Lost):
                asked.send(raw.CREATE, raw.create_body("/alone-", b"", raw.EPHEMERAL))
                reply = asked.receive(time.monotonic() + step.seconds)
                assert reply is None, f"{left} alone of {voters} answers a write: {reply}"
        finally:
            asked.close()
        self.ensemble.servers[lost].spawn()
        self.ensemble.wait_for(*voters)
        return f"; {lost} of the others was killed"

    def _take_back(self, number: int) -> None:
        """It has a vote again."""
        self._reconfig(_without(number), joining=self._line(number))
        self.ensemble.wait_for(number)
        self.ensemble.complete()
        self.away.discard(number)

    def _reconfig(self, asked: Sequence[int], joining: str = "", leaving: str = "") -> None:
        """By one of these servers. To ask again changes nothing."""

        def is_done() -> bool:
            with contextlib.suppress(Lost):
                reply = client.reconfig(joining, leaving)
                assert reply.error in (0, NEW_CONFIG_NO_QUORUM), f"reconfig: {reply.error}"
                return reply.error == 0
            return False

        with self.ensemble.client(*asked) as client:
            lab.wait_until(is_done, f"reconfig of {joining}{leaving}", SERVE_SECONDS_MAX, 0.1)

    def _line(self, number: int, role: str = "participant") -> str:
        """The server as `reconfig` is told of it."""
        ports = f"{QUORUM_PORT}:{ELECTION_PORT}:{role};{CLIENT_PORT}"
        return f"server.{number}={self.ensemble.servers[number].host}:{ports}"

    def _votes_of(self, voters: Sequence[int]) -> None:
        """Waits until these vote, nobody else, and one of them leads."""

        def is_so() -> bool:
            leader = self.ensemble.leads()
            if leader is None or leader not in voters:
                return False
            return self.ensemble.servers[leader].voters() == str(len(voters))

        lab.wait_until(is_so, f"an ensemble of {voters}", SERVE_SECONDS_MAX, 0.05)

    # --- Addresses and clocks -------------------------------------------------------------------

    def _move(self, step: Step, number: int, drawn: random.Random) -> str:
        """Its process ends, and begins again elsewhere."""
        assert self.hosts is not None
        server = self.ensemble.servers[number]
        how = drawn.choice(["killed", "stopped"])
        if how == "killed":
            server.kill9()
        else:
            stop_in_order(server)
        address = self.network.move(number)
        # The name may lead to where it was for some time after it was started.
        late = drawn.random() < 0.5
        if late:
            server.spawn()
            time.sleep(step.seconds)
        self.hosts.publish(server.host, address)
        if not late:
            time.sleep(step.seconds * (step.seed % 2))
            server.spawn()
        self.ensemble.wait_for(number)
        return f"{number}, {how}, at {address}{', its name late' if late else ''}"

    def _step_clock(self, step: Step, number: int, drawn: random.Random) -> str:
        """No session may end of it."""
        self._all_serve()
        clock = self.clocks[number]
        was = clock.ahead_s
        ahead = drawn.choice([s for s in (-CLOCK_STEP_SECONDS, CLOCK_STEP_SECONDS) if s != was])
        is_leader = self.ensemble.leads() == number
        with self._guest(number) as guest, self._guest(*_without(number)) as other:
            clock.step(ahead)
            self._tells_time(number, ahead)
            if is_leader:
                self._writes_time(ahead)
            for visitor in (guest, other):
                visitor.client.idle(step.seconds / 2)
            guest.is_served_by([number], broken_max=0)
            other.is_served_by(_without(number), broken_max=0)
        back = drawn.random() < 0.5
        if back:
            clock.step(was)
        return f"{number} from {was:+d} s to {ahead:+d} s{', and back' if back else ''}"

    def _tells_time(self, number: int, ahead_s: int) -> None:
        """That a server knows its time, by what it tells of a client that has just come."""
        server = self.ensemble.servers[number]
        with self.ensemble.client(number) as client:
            session = client.connect(SERVE_SECONDS_MAX).session[0]
            answer = lab.four_letter(server.port, "cons", LOOK_SECONDS_MAX * 5, server.host)
        found = re.search(rf"sid=0x{session:x},[^)]*est=(\d+)", answer)
        assert found, f"server {number} does not tell of session {session:#x}: {answer}"
        _is_about(int(found[1]), ahead_s, f"the clock of server {number}")

    def _writes_time(self, ahead_s: int) -> None:
        """That a leader writes its time into what others read."""
        with self.ensemble.client() as client:
            path = created(client.create("/time-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
            found = client.get(path)
            assert found is not None, f"{path} is gone"
            _is_about(found[1].mtime, ahead_s, f"mtime of {path}")

    @contextlib.contextmanager
    def _guest(self, *numbers: int) -> Iterator[Guest]:
        guest = Guest(self.ensemble, numbers)
        try:
            yield guest
        finally:
            guest.client.end()

    def _all_serve(self) -> None:
        self.ensemble.wait_for(*SERVERS)
        with self.ensemble.client() as client:
            client.sync()
            seen = client.seen
        for number in SERVERS:
            self.ensemble.caught_up(number, seen)


class Guest:
    """A client of some servers that knows the others too, with an ephemeral."""

    def __init__(self, ensemble: Ensemble, numbers: Sequence[int]) -> None:
        self.ensemble = ensemble
        rest = [number for number in SERVERS if number not in numbers]
        places = [ensemble.place(number) for number in (*numbers, *rest)]
        self.client = Client(places, GUEST_MS)
        self._path = created(self.client.create("/guest-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
        self._session = self.client.session
        connection = self.client.connection
        assert connection is not None and connection.address in places[: len(numbers)]

    def is_served_by(self, numbers: Sequence[int], broken_max: int | None = None) -> None:
        """Waits until it is; its session goes on."""

        def is_served() -> bool:
            with contextlib.suppress(Lost):
                self.client.sync()
                assert self.client.get(self._path) is not None, f"{self._path} is gone"
                return True
            return False

        lab.wait_until(is_served, f"a client to be served by one of {numbers}", SERVE_SECONDS_MAX)
        assert self.client.session == self._session, "the session ended"
        connection = self.client.connection
        places = [self.ensemble.place(number) for number in numbers]
        assert connection is not None and connection.address in places, f"not by {places}"
        broken = self.client.broken
        assert broken_max is None or broken <= broken_max, f"{broken} connections broke"


def stop_in_order(server: Member) -> None:
    """By SIGTERM, after which it has nothing to complain of."""
    code = server.stop()
    assert code == 0, f"server {server.number} ended with {code}; its log: {server.log_tail(3)}"


def _without(number: int) -> list[int]:
    return [other for other in SERVERS if other != number]


def _is_about(told_ms: int, ahead_s: int, what: str) -> None:
    error_s = told_ms / 1000 - (time.time() + ahead_s)
    assert abs(error_s) < CLOCK_ERROR_SECONDS, f"{what} is {error_s:+.0f} s from its step"


def _all_pairs() -> list[tuple[int, int]]:
    return [(a, b) for a in SERVERS for b in SERVERS if a != b]


def _both(pair: list[int]) -> list[tuple[int, int]]:
    return [(pair[0], pair[1]), (pair[1], pair[0])]


def _to(number: int) -> list[tuple[int, int]]:
    return [(other, number) for other in SERVERS if other != number]


def _from(number: int) -> list[tuple[int, int]]:
    return [(number, other) for other in SERVERS if other != number]


def _ring(drawn: random.Random) -> list[tuple[int, int]]:
    """Each hears one of the others."""
    a, b, c = drawn.sample(SERVERS, 3)
    return [(b, a), (c, b), (a, c)]


# --- The run --------------------------------------------------------------------------------------


def run(
    report: lab.Report,
    kind: lab.Kind,
    filters: Filters | None,
    why_no_filters: str,
    minutes: float,
    seed: int,
) -> None:
    if filters is None:
        report.skip("nemesis", why_no_filters)
        return
    checker.finds_what_is_planted(report)
    for fault, why in filters.missing.items():
        report.skip(f"nemesis: {fault}", why)
    name = f"nemesis of {minutes:g} min, seed {seed}"
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Bridged(filters))
        disk, disks = random.Random(seed).choice(SERVERS), {}
        with report.case(f"{name}: a small disk"):
            disks[disk] = stack.enter_context(small_disk())
        config = {**CONFIG, **RECONFIG} if kind == "zkraft" else CONFIG
        hosts, own = None, {}
        if kind == "zkraft":
            with report.case(f"{name}: names that lead elsewhere"):
                hosts = stack.enter_context(
                    HostsFile({NAMES[n]: host for n, host in network.hosts.items()})
                )
        ensemble = Ensemble(kind, network, config, disks, f"{kind} nemesis")
        stack.enter_context(ensemble)
        if hosts is not None:
            by_names(ensemble)
        if kind == "zkraft":
            with report.case(f"{name}: clocks of their own"):
                own = by_clocks(ensemble)
        nemesis = Nemesis(ensemble, filters, disk if disks else None, hosts, own)
        trial = Trial(ensemble, nemesis, seed)
        failed = report.failed
        with report.case(f"{name}: the ensemble comes back from all faults"):
            trial.run(minutes * 60)
        due = {"the faults that were due were done": trial.faults_missed}
        for what, judge in {**trial.judgements(), **due}.items():
            with report.case(f"{name}: {what}"):
                checker.raise_if_any(judge())
        if report.failed > failed:
            ensemble.keep_logs()
            print(f"  to repeat the schedule: --only nemesis --seed {seed} --minutes {minutes:g}")


def by_names(ensemble: Ensemble) -> None:
    """Servers and clients look each other up by name."""
    lines = {f"server.{n}": f"{name}:{QUORUM_PORT}:{ELECTION_PORT}" for n, name in NAMES.items()}
    for number, server in ensemble.servers.items():
        server.host = NAMES[number]
        # Its own name may not lead to it yet when it begins to listen for clients.
        server.configure(clientPortAddress="0.0.0.0", **lines)


def by_clocks(ensemble: Ensemble) -> dict[int, Clock]:
    library = build_library()
    own = {n: Clock(library, server.home / "clock") for n, server in ensemble.servers.items()}
    for number, server in ensemble.servers.items():
        server.wrapper = (*server.wrapper, *own[number].wrapper)
    return own


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system in memory. It is mounted where the mounts are the suite's own."""
    runs = lab.CACHE / "run"
    runs.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="disk-", dir=runs))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(home)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        home.rmdir()
        raise lab.Skipped(f"a file system in memory cannot be mounted: {done.stderr.strip()}")
    try:
        yield home
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=False)
        home.rmdir()


class Trial:
    """The ensemble, its clients and the nemesis."""

    def __init__(self, ensemble: Ensemble, nemesis: Nemesis, seed: int) -> None:
        self.ensemble = ensemble
        self.nemesis = nemesis
        self.seed = seed
        self.load = Workload(ensemble.places, seed)
        self.final: list[Op] = []
        self.standing: dict[str, str] = {}
        self.unsettled: list[str] = []
        # Whether all was read at the end.
        self.settled = False
        self.faults: Counter[str] = Counter()
        # For how long faults were to be done; zero if they broke off, which was told then.
        self.faults_seconds = 0.0

    def run(self, seconds: float) -> None:
        self.ensemble.start()
        with self.ensemble.client() as client:
            self.load.prepare(client)
        self.load.start()
        began = time.monotonic()
        failure: Exception | None = None
        try:
            for step in self.nemesis.schedule(self.seed):
                if time.monotonic() > began + seconds:
                    break
                at = time.monotonic() - began
                done = self.nemesis.do(step)
                print(f"  {at:6.1f} s: {step.kind}: {done}", flush=True)
                self.faults[step.kind] += 1
                self._look(step)
        except Exception as error:
            failure = error
        else:
            self.faults_seconds = seconds
        print(f"  {self.faults.total()} faults of {len(self.faults)} kinds:")
        for kind in sorted(self.nemesis.kinds):
            print(f"    {self.faults[kind]:3} {kind}")
        print(f"  {self.nemesis.sought} leaders sought; {self.nemesis.guessed} times nobody led")
        try:
            self._calm()
        except Exception as error:
            failure = failure or error
        if failure is not None:
            raise failure

    def faults_missed(self) -> list[str]:
        """Kinds of faults that should have been done by the end, and those that missed."""
        if not self.faults_seconds:
            return []
        missed = [
            f"{kind}: not once in {self.faults_seconds:.0f} s"
            for kind in self._due(self.faults_seconds)
            if not self.faults[kind]
        ]
        sought, guessed = self.nemesis.sought, self.nemesis.guessed
        if sought >= AIMED_ENOUGH and guessed > sought / 2:
            missed.append(f"of {sought} times that a leader was sought, nobody led {guessed} times")
        return missed

    def _due(self, seconds: float) -> list[str]:
        """The kinds of the first faults of the schedule; all kinds in a run that is long enough."""
        count = max(1, int(seconds / FAULT_SECONDS_MAX))
        if seconds >= WHOLE_ROUND_SECONDS:
            count = max(count, len(self.nemesis.kinds))
        first = itertools.islice(self.nemesis.schedule(self.seed), count)
        return sorted({step.kind for step in first})

    def _calm(self) -> None:
        """Ends all faults and all clients, and reads what there is then."""
        try:
            self.nemesis.heal()
            self.ensemble.wait_for(*SERVERS)
            self._all_go_on()
        finally:
            self.load.stop()
            print(f"  {self.load.figures()}")
            told = ", ".join(f"{count} {what}" for what, count in self.load.work().items())
            print(f"  {told}", flush=True)
        self._settle()
        self.load.stop_watchers()
        self.settled = True

    def judgements(self) -> dict[str, Callable[[], list[str]]]:
        load = self.load
        holds = [hold for client in load.locks for hold in client.holds]
        puts = [put for client in load.producers for put in client.puts]
        takes = [take for client in load.consumers for take in client.takes]
        ops = [*load.ops(), *load.looks(), *self.final]
        counts = [op for op in ops if op.key in workload.COUNTERS]
        found: dict[str, Callable[[], list[str]]] = {
            "no client saw anything that cannot be": load.wrong,
            "writes are linearizable, done once, and none is lost": lambda: checker.registers(ops),
            "counters count": lambda: checker.counters(counts),
            "one holds the lock at a time": lambda: checker.locks(holds),
            "no watch is missed, and none fires twice": lambda: checker.watches(
                load.watchings(), ops
            ),
            "no session ended while its client was heard": lambda: checker.sessions(load.endings()),
        }
        if self.settled:
            found["each kind of client did enough to show something"] = self._too_light
            found["each item of the queue is taken once"] = lambda: checker.queue(
                puts, takes, self.standing
            )
            found["watchers know the last state, dead sessions are gone, servers are equal"] = (
                lambda: self.unsettled
            )
        return found

    def _too_light(self) -> list[str]:
        least = LOAD_MIN * self.load.seconds
        sums = {"acknowledged operations": self.load.done(), "events": self.load.told()}
        light = [f"{what}: {count}" for what, count in sums.items() if count <= least]
        return light + self.load.lacking()

    def _look(self, step: Step) -> None:
        """The servers run, and serve again, unless the next fault is not to wait for that. None has
        ended but as it was told, whoever has started it again."""
        for number, server in self.ensemble.servers.items():
            deaths = server.deaths()
            if number == self.nemesis.disk:
                deaths = [death for death in deaths if FULL not in death]
            if not server.running():
                server.spawn()
            assert not deaths, f"server {number} {deaths[0]}"
        if not step.hasty:
            self.ensemble.wait_for(*SERVERS)
            self._goes_on()

    def _goes_on(self) -> None:
        """Clients are served again."""
        enough = self.load.done() + 10
        what = "clients to be served again"
        lab.wait_until(lambda: self.load.done() >= enough, what, SERVE_SECONDS_MAX, 0.1)

    def _all_go_on(self) -> None:
        """Each client is served again."""
        before = self.load.steps()

        def stuck() -> list[str]:
            return [
                name for name, steps in self.load.steps().items() if steps <= before.get(name, 0)
            ]

        try:
            lab.wait_until(lambda: not stuck(), "each client", SERVE_SECONDS_MAX, 0.1)
        except TimeoutError:
            raise AssertionError(f"not served for {SERVE_SECONDS_MAX} s: {stuck()}") from None

    def _settle(self) -> None:
        """Reads everything, from every server, once all is quiet."""
        load = self.load
        keys = [
            *workload.REGISTERS,
            *workload.COUNTERS,
            workload.STREAM,
            workload.WATCHED,
            *workload.ACCOUNTS,
        ]
        abandoned = {path for client in load.ephemerals for path in client.abandoned}
        trees = []
        for number in SERVERS:
            with self.ensemble.client(number) as client:
                live = lambda client=client: {  # noqa: E731
                    f"{workload.LIVE}/{name}" for name in client.children(workload.LIVE)
                }
                self._await(
                    f"dead sessions to go at {number}", lambda live=live: not live() & abandoned
                )
                tree = {}
                for key in keys:
                    op = Op("final", "read", key, time.monotonic())
                    client.sync()
                    found = client.get(key)
                    op.ended, op.outcome = time.monotonic(), OK
                    assert found is not None, f"{key} is gone"
                    op.value, op.version, op.zxid = (
                        found[0].decode(),
                        found[1].version,
                        found[1].mzxid,
                    )
                    op.session = client.session[0]
                    self.final.append(op)
                    tree[key] = (op.value, op.version, op.zxid)
                self.standing = {}
                for name in client.children(workload.QUEUE):
                    path = f"{workload.QUEUE}/{name}"
                    found = client.get(path)
                    assert found is not None, f"{path} is gone"
                    self.standing[path] = found[0].decode()
                tree[workload.QUEUE] = self.standing
                trees.append(tree)
        for number, tree in zip(SERVERS, trees, strict=True):
            differing = [key for key in tree if tree[key] != trees[0][key]]
            self.unsettled += [f"{key} differs at server {number}" for key in differing]
        balances = [workload.balance(trees[0][key][0]) for key in workload.ACCOUNTS]
        if sum(balances) != workload.BALANCE * len(balances):
            self.unsettled.append(f"money came or went: {balances}")
        last = trees[0][workload.WATCHED][0]
        for watcher in load.watchers:
            self._await(
                f"watcher {watcher.name} to know {last!r}",
                lambda watcher=watcher: watcher.known == last,
            )

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            lab.wait_until(condition, what, SETTLE_SECONDS_MAX, 0.1)
        except (TimeoutError, Lost) as error:
            self.unsettled.append(str(error))
