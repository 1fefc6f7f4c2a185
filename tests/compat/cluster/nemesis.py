"""Faults drawn from a seed, one after the other, under the load of `workload.py`.

The whole schedule is drawn before the first fault, so that a seed repeats it: kinds, durations,
pauses and choices. Which server a choice falls on may still depend on who leads.

Not among the faults: steps of the clock. The clock of the calendar is the machine's, and namespaces
shift others only.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lab

from . import checker, workload
from .checker import OK, Op
from .client import Lost
from .ensemble import SERVE_SECONDS_MAX, Ensemble
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
DISK_MIB = 256
# Longer than elections take, and than sessions live.
LONG_SECONDS = (workload.SESSION_MS / 1000 + 2, workload.SESSION_MS / 1000 + 4)
SHORT_SECONDS = (0.5, 4.0)
PAUSE_SECONDS = (0.5, 3.0)
# From the end of the faults until watchers know the last state and dead sessions are gone.
SETTLE_SECONDS_MAX = 60
# Acknowledged operations, for each second of the run, without which it shows nothing.
LOAD_MIN = 5


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

    def __init__(self, ensemble: Ensemble, filters: Filters, disk: int | None) -> None:
        self.ensemble = ensemble
        self.disk = disk
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
            self.kinds["lost data directory"] = lambda s, r: self._wipe(r)
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
        for server in self.ensemble.servers.values():
            if server.running():
                server.resume()
            else:
                server.spawn()

    def _leader(self, drawn: random.Random) -> int:
        """Any one if none leads."""
        return self.ensemble.leads() or drawn.choice(SERVERS)

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
            server = self.ensemble.servers[number]
            server.stop()
            server.spawn()
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

    def _all_serve(self) -> None:
        self.ensemble.wait_for(*SERVERS)
        with self.ensemble.client() as client:
            client.sync()
            seen = client.seen
        for number in SERVERS:
            self.ensemble.caught_up(number, seen)


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
    checker.finds_what_is_planted(report)
    if filters is None:
        report.skip("nemesis", why_no_filters)
        return
    for fault, why in filters.missing.items():
        report.skip(f"nemesis: {fault}", why)
    name = f"nemesis of {minutes:g} min, seed {seed}"
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Bridged(filters))
        disk, disks = random.Random(seed).choice(SERVERS), {}
        with report.case(f"{name}: a small disk"):
            disks[disk] = stack.enter_context(small_disk())
        ensemble = Ensemble(kind, network, CONFIG, disks, f"{kind} nemesis")
        stack.enter_context(ensemble)
        trial = Trial(ensemble, Nemesis(ensemble, filters, disk if disks else None), seed)
        failed = report.failed
        with report.case(f"{name}: the ensemble comes back from all faults"):
            trial.run(minutes * 60)
        for what, judge in trial.judgements().items():
            with report.case(f"{name}: {what}"):
                checker.raise_if_any(judge())
        if report.failed > failed:
            ensemble.keep_logs()
            print(f"  to repeat the schedule: --only nemesis --seed {seed} --minutes {minutes:g}")


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

    def run(self, seconds: float) -> None:
        self.ensemble.start()
        with self.ensemble.client() as client:
            self.load.prepare(client)
        self.load.start()
        began = time.monotonic()
        kinds: Counter[str] = Counter()
        failure: Exception | None = None
        try:
            for step in self.nemesis.schedule(self.seed):
                if time.monotonic() > began + seconds:
                    break
                at = time.monotonic() - began
                done = self.nemesis.do(step)
                print(f"  {at:6.1f} s: {step.kind}: {done}", flush=True)
                kinds[step.kind] += 1
                self._look(step)
        except Exception as error:
            failure = error
        print(f"  {sum(kinds.values())} faults of {len(kinds)} kinds")
        try:
            self._calm()
        except Exception as error:
            failure = failure or error
        if failure is not None:
            raise failure
        assert self.load.done() > LOAD_MIN * seconds, "the load was too light to show anything"

    def _calm(self) -> None:
        """Ends all faults and all clients, and reads what there is then."""
        try:
            self.nemesis.heal()
            self.ensemble.wait_for(*SERVERS)
            self._goes_on()
        finally:
            self.load.stop()
            print(f"  {self.load.figures()}", flush=True)
        self._settle()
        self.load.stop_watchers()
        self.settled = True

    def judgements(self) -> dict[str, Callable[[], list[str]]]:
        load = self.load
        holds = [hold for client in load.locks for hold in client.holds]
        puts = [put for client in load.producers for put in client.puts]
        takes = [take for client in load.consumers for take in client.takes]
        ops = [*load.ops(), *self.final]
        counts = [op for op in ops if op.key in workload.COUNTERS]
        found: dict[str, Callable[[], list[str]]] = {
            "no client saw anything that cannot be": load.wrong,
            "writes are linearizable, done once, and none is lost": lambda: checker.registers(ops),
            "counters count": lambda: checker.counters(counts),
            "one holds the lock at a time": lambda: checker.locks(holds),
        }
        if self.settled:
            found["each item of the queue is taken once"] = lambda: checker.queue(
                puts, takes, self.standing
            )
            found["watchers know the last state, dead sessions are gone, servers are equal"] = (
                lambda: self.unsettled
            )
        return found

    def _look(self, step: Step) -> None:
        """The servers run, and serve again, unless the next fault is not to wait for that."""
        for number, server in self.ensemble.servers.items():
            if not server.running():
                code = server.process.returncode if server.process else None
                said = server.log_tail(3)
                server.spawn()
                raise AssertionError(f"server {number} ended with {code}; its log ends:\n{said}")
        if not step.hasty:
            self.ensemble.wait_for(*SERVERS)
            self._goes_on()

    def _goes_on(self) -> None:
        """Clients are served again."""
        enough = self.load.done() + 10
        what = "clients to be served again"
        lab.wait_until(lambda: self.load.done() >= enough, what, SERVE_SECONDS_MAX, 0.1)

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
