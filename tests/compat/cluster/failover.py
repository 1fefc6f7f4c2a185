"""Leaders are taken away under load: how long nobody is served, and who is cut off.

Each server has a client that writes in a closed loop and one that is idle. The leader is taken
away, and comes back only after the others have served again; the next leader is not touched before
all have caught up. A gap of a client is the time from its last acknowledgement before the fault to
the first one after it. All values are kept.
"""

from __future__ import annotations

import bisect
import functools
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import lab

from .client import RETRY_SECONDS, Address, Client, Connection, Expired, Lost
from .ensemble import LOGS, SERVE_SECONDS_MAX, Ensemble
from .network import SERVERS, Bridged, Filters, Loopback

# What users run: the values of ZooKeeper's sample file.
CONFIG = {"tickTime": "2000", "initLimit": "10", "syncLimit": "5"}
SESSION_MS = 4_000
KINDS = {
    "kill": "kill -9 of the leader",
    "stop": "the leader falls silent (SIGSTOP)",
    "cut": "the leader is cut off from the others",
    "term": "the leader is told to stop (SIGTERM)",
}
# Median and worst gap, in ms, that a release may have.
LIMITS = {"kill": (150, 600), "stop": (1_000, 2_500), "cut": (1_000, 2_500)}
# Kinds whose victim is gone for its own clients at once: each has to find another server.
ENDED = ("kill", "term")
# Acknowledgements of each survivor that show that it serves again.
ENOUGH = 30
# A leader that fell silent stays so for longer than it takes others to elect another one.
SILENT_SECONDS_MIN = 3.0


@dataclass
class Fault:
    """One leader that was taken away."""

    leader: int
    successor: int
    # In ms: of the client of each survivor; until anyone was served; of the leader's own client.
    gaps: dict[int, float]
    anyone: float
    bereft: float
    # Connections of clients of survivors that broke, and sessions that were lost by anyone.
    broken: int
    expired: int
    # How often each client of the server that was taken away had to connect until it was served.
    reconnects: list[int]

    def paid_once(self) -> bool:
        return all(count == 1 for count in self.reconnects)


@dataclass
class Series:
    """All faults of one kind that one kind of server had."""

    server: str
    kind: str
    faults: list[Fault] = field(default_factory=list)

    def gaps(self) -> list[float]:
        return [gap for fault in self.faults for gap in fault.gaps.values()]

    def broken(self) -> int:
        return sum(fault.broken for fault in self.faults)

    def expired(self) -> int:
        return sum(fault.expired for fault in self.faults)

    def paid_once(self) -> bool:
        return all(fault.paid_once() for fault in self.faults)


class Patron(threading.Thread):
    """A client that stays with its server as long as that is there."""

    def __init__(self, home: Address) -> None:
        super().__init__(daemon=True)
        self.home = home
        # Where it may connect to now.
        self.route: Sequence[Address] = [home]
        self.client = Client([home], SESSION_MS)
        self.expired = 0
        self.wrong: str | None = None
        # Attempts to connect, also those that a server refused.
        self.attempts = 0
        self._taken: Sequence[Address] = self.route
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._taken is not self.route:
                    self._taken = self.route
                    self.client.addresses = list(self._taken)
                    connection = self.client.connection
                    if connection is not None and connection.address not in self._taken:
                        self.client.leave()
                self._connect()
                self.act()
            except Lost:
                continue
            except Expired:
                self.expired += 1
            except Exception as error:  # noqa: BLE001
                # Also what a garbled answer raises: a client that is gone must not look content.
                self.wrong = f"{type(error).__name__}: {error}"
                return
        self.client.end()

    def act(self) -> None:
        self.client.idle(0.2)

    def is_served(self) -> bool:
        return self.client.connection is not None

    def knows_route(self) -> bool:
        return self._taken is self.route

    def is_home(self) -> bool:
        connection = self.client.connection
        return connection is not None and connection.address == self.home

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)
        assert not self.is_alive(), "a client hangs"

    def _connect(self) -> Connection:
        before, last = list(self.client.addresses), self.client.connection
        try:
            # One attempt at each address.
            connection = self.client.connect(0)
        except Lost:
            self.attempts += len(before)
            time.sleep(RETRY_SECONDS)
            raise
        if connection is not last:
            self.attempts += before.index(connection.address) + 1
        return connection


class Writer(Patron):
    """Writes in a closed loop, and notes when each write was acknowledged."""

    def __init__(self, home: Address, path: str) -> None:
        super().__init__(home)
        self.path = path
        self.sent = self.acknowledged = 0
        self.times: list[float] = []

    def act(self) -> None:
        self.sent += 1
        value = self.sent
        reply = self.client.set(self.path, str(value).encode())
        assert reply.error == 0, f"set {self.path}: {reply.error}"
        self.acknowledged = value
        self.times.append(reply.came)

    def since(self, moment: float) -> int:
        return len(self.times) - bisect.bisect_right(self.times, moment)


class Trial:
    """One ensemble with its clients, and the faults it is put through."""

    def __init__(self, ensemble: Ensemble, kind: str, seed: int) -> None:
        self.ensemble = ensemble
        self.kind = kind
        self.random = random.Random(seed)
        self.writers = {n: Writer(ensemble.place(n), f"/writer-{n}") for n in SERVERS}
        self.idlers = {n: Patron(ensemble.place(n)) for n in SERVERS}

    def __enter__(self) -> Trial:
        with self.ensemble.client() as client:
            for writer in self.writers.values():
                assert client.create(writer.path).error == 0
        for patron in self._patrons():
            patron.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patron in self._patrons():
            patron.stop()

    def fault(self, leader: int | None = None) -> Fault:
        """Takes the leader, or another server, away, and lets it come back once others serve."""
        self._wait("all clients to be served at home", self._all_well)
        time.sleep(self.random.uniform(0.3, 0.8))
        leader = leader or self.ensemble.leader()
        survivors = [number for number in SERVERS if number != leader]
        theirs = [patrons[n] for n in survivors for patrons in (self.writers, self.idlers)]
        broken = sum(patron.client.broken for patron in theirs)
        expired = sum(patron.expired for patron in self._patrons())
        for patrons in (self.writers, self.idlers):
            # Its own clients are to find out by themselves, unless that takes them a while.
            patrons[leader].route = self.ensemble.places(leader)
            if self.kind == "stop":
                patrons[leader].route = [self.ensemble.place(number) for number in survivors]
        own = [self.writers[leader], self.idlers[leader]]
        self._wait("its clients to know of the others", lambda: all(p.knows_route() for p in own))
        attempts = [patron.attempts for patron in own]

        moment = self._take_away(leader)
        # Who is told to stop goes on for a while: what is answered until it is gone does not count.
        gone = time.monotonic()
        self._wait(
            "the survivors' clients to be served again",
            lambda: all(self.writers[n].since(gone) >= ENOUGH for n in survivors),
        )
        self._wait("the leader's client", lambda: self.writers[leader].since(gone) >= ENOUGH)
        if self.kind in ENDED:
            self._wait("its idle client", lambda: own[1].is_served() and not own[1].is_home())
        if self.kind in ("stop", "cut"):
            time.sleep(max(0.0, moment + SILENT_SECONDS_MIN - time.monotonic()))
        served = time.monotonic()
        successor = self.ensemble.leader()
        reconnects = [p.attempts - n for p, n in zip(own, attempts, strict=True)]
        self._bring_back(leader)
        broken = sum(patron.client.broken for patron in theirs) - broken
        times = {n: list(writer.times) for n, writer in self.writers.items()}
        gap = functools.partial(gap_ms, moment=moment, served=served)
        return Fault(
            leader,
            successor,
            {n: gap(times[n]) for n in survivors},
            gap(sorted(t for n in survivors for t in times[n])),
            gap(times[leader]),
            broken,
            sum(patron.expired for patron in self._patrons()) - expired,
            reconnects,
        )

    def check(self) -> None:
        """Nothing that was acknowledged is lost."""
        for patron in self._patrons():
            patron.stop()
            assert patron.wrong is None, patron.wrong
        with self.ensemble.client() as client:
            client.sync()
            for writer in self.writers.values():
                found = client.get(writer.path)
                assert found is not None, f"{writer.path} is gone"
                value = int(found[0])
                assert writer.acknowledged <= value <= writer.sent, (
                    f"{writer.path} is {value}, acknowledged {writer.acknowledged}, "
                    f"sent {writer.sent}"
                )
                # Each write counts, also one that a later one has overwritten.
                acknowledged, done = len(writer.times), found[1].version
                assert acknowledged <= done, (
                    f"{writer.path}: {acknowledged} writes were acknowledged and {done} done"
                )
                assert done <= value, f"{writer.path}: a write was done twice"

    def _take_away(self, leader: int) -> float:
        """Returns when it was done: for cables, when the last one was cut."""
        server = self.ensemble.servers[leader]
        moment = time.monotonic()
        if self.kind == "kill":
            server.kill9()
        elif self.kind == "stop":
            server.pause()
        elif self.kind == "term":
            code = server.stop()
            assert self.ensemble.kind == "zookeeper" or code == 0, f"exit code {code}"
        else:
            assert isinstance(self.ensemble.network, Bridged)
            self.ensemble.network.isolate(leader)
            moment = time.monotonic()
        return moment

    def _bring_back(self, leader: int) -> None:
        server = self.ensemble.servers[leader]
        if self.kind == "stop":
            server.resume()
        elif self.kind == "cut":
            assert isinstance(self.ensemble.network, Bridged)
            self.ensemble.network.heal()
        else:
            server.spawn()
        self.ensemble.wait_for(leader)
        seen = max(writer.client.seen for writer in self.writers.values())
        self.ensemble.caught_up(leader, seen)
        for patrons in (self.writers, self.idlers):
            patrons[leader].route = [patrons[leader].home]

    def _all_well(self) -> bool:
        moment = time.monotonic() - 0.2
        return all(patron.is_home() for patron in self._patrons()) and all(
            writer.since(moment) > 0 for writer in self.writers.values()
        )

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        def check() -> bool:
            wrong = [patron.wrong for patron in self._patrons() if patron.wrong]
            assert not wrong, wrong[0]
            return condition()

        lab.wait_until(check, what, SERVE_SECONDS_MAX)

    def _patrons(self) -> list[Patron]:
        return [*self.writers.values(), *self.idlers.values()]


def gap_ms(times: Sequence[float], moment: float, served: float) -> float:
    """The longest time between two acknowledgements, from the last one before the fault on.

    Answers that were on their way come after the fault, and a server that is told to stop goes on
    for a while: so it is not the first one after the fault that ends the gap."""
    first, last = bisect.bisect_right(times, moment), bisect.bisect_right(times, served)
    return max(times[n] - times[n - 1] for n in range(first, last)) * 1000


def run(
    report: lab.Report,
    kind: lab.Kind,
    filters: Filters | None,
    why_no_filters: str,
    faults: dict[str, int],
    judge: bool,
    seed: int,
) -> list[Series]:
    """Runs so many faults of each kind; only zkraft is judged."""
    # Threads that wait for answers are woken at once.
    sys.setswitchinterval(0.0005)
    done = []
    for name, count in faults.items():
        case = f"{kind}: {count} × {KINDS[name]}: all are served again, and nothing is lost"
        if name == "cut" and filters is None:
            report.skip(case, why_no_filters)
            continue
        series = Series(kind, name)
        with report.case(case):
            if name == "cut":
                assert filters is not None
                with Bridged(filters) as network:
                    _run_on(network, series, kind, count, seed)
            else:
                _run_on(Loopback(), series, kind, count, seed)
        if len(series.faults) == count:
            done.append(series)
            if kind == "zkraft":
                _judge(report, series, judge)
    return done


def _run_on(
    network: Loopback | Bridged, series: Series, kind: lab.Kind, count: int, seed: int
) -> None:
    name = f"{kind} failover {series.kind}"
    jvm = lab.JVM_OF_THREE if kind == "zookeeper" else ()
    with Ensemble(kind, network, CONFIG, name=name, jvm_args=jvm) as ensemble:
        ensemble.start()
        with Trial(ensemble, series.kind, seed) as trial:
            for number in range(1, count + 1):
                fault = trial.fault()
                series.faults.append(fault)
                gaps = ", ".join(f"{n}: {gap:.0f} ms" for n, gap in fault.gaps.items())
                print(
                    f"  {number}: leader {fault.leader}, then {fault.successor}; {gaps}; "
                    f"its own client {fault.bereft:.0f} ms; {fault.broken} disconnected",
                    flush=True,
                )
            trial.check()


def _judge(report: lab.Report, series: Series, with_times: bool) -> None:
    what = KINDS[series.kind]
    with report.case(f"{what}: clients of the other servers stay connected, no session ends"):
        assert series.broken() == 0, f"{series.broken()} connections broke"
        assert series.expired() == 0, f"{series.expired()} sessions were lost"
    if series.kind in ENDED:
        with report.case(f"{what}: each of its own clients has to connect once, and is served"):
            counts = [fault.reconnects for fault in series.faults]
            print(f"  attempts of its writer and of its idle client: {counts}")
            assert series.paid_once(), "more than once, or never"
    if with_times and series.kind in LIMITS:
        median_max, worst_max = LIMITS[series.kind]
        with report.case(f"{what}: gaps of at most {median_max} ms, the worst {worst_max} ms"):
            median, worst = statistics.median(series.gaps()), max(series.gaps())
            assert median <= median_max, f"the median is {median:.0f} ms"
            assert worst <= worst_max, f"the worst is {worst:.0f} ms"


def show(done: Sequence[Series]) -> None:
    """The table of all figures, and where all values are."""
    if not done:
        return
    head = ("fault", "server", "n", "median", "p90", "worst", "anyone", "own client", "broken")
    rows = [head]
    for series in sorted(done, key=lambda series: (list(KINDS).index(series.kind), series.server)):
        gaps = sorted(series.gaps())
        rows.append(
            (
                KINDS[series.kind],
                series.server,
                str(len(series.faults)),
                f"{statistics.median(gaps):.0f} ms",
                f"{gaps[int(len(gaps) * 0.9)]:.0f} ms",
                f"{gaps[-1]:.0f} ms",
                f"{statistics.median(fault.anyone for fault in series.faults):.0f} ms",
                f"{statistics.median(fault.bereft for fault in series.faults):.0f} ms",
                str(series.broken()),
            )
        )
    print("gaps of the survivors' clients; until anyone was served; of the leader's own client:")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / "failover.json"
    path.write_text(json.dumps([asdict(series) for series in done], indent=1), encoding="utf-8")
    print(f"all values: {path}", flush=True)
