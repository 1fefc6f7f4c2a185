"""Clients that use an ensemble as applications do, and record what they were told.

Each is a thread with one session, which moves from server to server on its own. What it records is
judged by the checker once all is over; what it can tell at once to be wrong stands in `wrong`.
"""

from __future__ import annotations

import functools
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import raw

from .checker import MAYBE, NO, OK, Hold, Item, Mark, Op, Watching
from .client import (
    ADD_WATCH,
    BAD_VERSION,
    DATA_CHANGED,
    MULTI_READ,
    NEW_SESSION,
    Address,
    Client,
    Connection,
    Ending,
    Expired,
    Lost,
    Reply,
    Stat,
    created,
)

SESSION_MS = 6_000
# Between two rounds of attempts to connect: many clients must not starve the servers.
RETRY_SECONDS = 0.1
REGISTERS = ("/register-0", "/register-1", "/register-2")
COUNTERS = ("/counter-0", "/counter-1")
STREAM, WATCHED = "/stream", "/watched"
ACCOUNTS = tuple(f"/account-{number}" for number in range(5))
BALANCE = 100
LOCK, QUEUE, LIVE = "/lock", "/queue", "/live"
# Writes of the stream that are under way at a time.
BURST = 8
LOCK_PATIENCE_SECONDS = 5.0
# Of addWatch.
PERSISTENT, RECURSIVE = 0, 1
# What each kind of client must have done for each second of a run, faults included, or the run
# shows nothing of what it is for: a tenth or less of what comes of it on a busy machine.
WORK_MIN = {
    "writes of registers": 1.0,
    "reads of registers after sync": 0.5,
    "reads of registers": 0.5,
    "additions to counters": 1.0,
    "writes of the stream": 1.0,
    "locks held": 0.1,
    "items put into the queue": 1.0,
    "items taken out of the queue": 1.0,
    "transfers": 0.5,
    "audits": 0.2,
    "events to persistent watches": 1.0,
    "events to recursive watches": 1.0,
    "events to watches that fire once": 0.5,
    "sessions with ephemerals closed": 0.1,
    "sessions with ephemerals left to expire": 0.1,
}


class Actor(threading.Thread):
    """One client. `step` does something and records it."""

    # Between two steps, in seconds.
    pace = (0.01, 0.05)

    def __init__(self, name: str, addresses: Sequence[Address], seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.random = random.Random(seed)
        self.client = Client(addresses, SESSION_MS, RETRY_SECONDS)
        self.ops: list[Op] = []
        self.wrong: list[str] = []
        # Steps that came to their end.
        self.steps = 0
        self.expired = 0
        self._number = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
                self.steps += 1
                self.rest()
            except Lost:
                pass
            except Expired:
                self.expired += 1
            except Exception as error:  # noqa: BLE001
                # Also what a garbled answer raises: who is gone must not look content.
                self.wrong.append(f"{self.name}: {type(error).__name__}: {error}")
                return
        self.client.end()

    def step(self) -> None:
        raise NotImplementedError

    def rest(self) -> None:
        self.client.idle(self.random.uniform(*self.pace))

    def stop(self) -> None:
        self._stopped.set()

    def endings(self) -> list[Ending]:
        """Sessions that it was told are gone."""
        return self.client.endings

    def unique(self) -> str:
        self._number += 1
        return f"{self.name}.{self._number}"

    @contextmanager
    def recorded(self, kind: str, key: str, value: str = "", expected: int = -1) -> Iterator[Op]:
        """An operation; its outcome is unknown unless it is told."""
        op = Op(self.name, kind, key, time.monotonic(), value, expected)
        self.ops.append(op)
        yield op

    def write(self, key: str, value: str, expected: int = -1) -> Op:
        kind = "cas" if expected >= 0 else "write"
        with self.recorded(kind, key, value, expected) as op:
            self.judge(op, self.client.set(key, value.encode(), expected))
        return op

    def judge(self, op: Op, reply: Reply) -> None:
        op.ended = reply.came
        op.session = self.client.session[0]
        if reply.error == 0:
            stat = Stat.of(reply.body)
            op.outcome, op.version, op.zxid = OK, stat.version, stat.mzxid
        else:
            assert reply.error == BAD_VERSION and op.kind == "cas", f"error {reply.error}: {op}"
            op.outcome = NO

    def read(self, key: str, with_sync: bool) -> Op:
        with self.recorded("read" if with_sync else "look", key) as op:
            if with_sync:
                self.client.sync()
            found = self.client.get(key)
            assert found is not None, f"{key} is gone"
            op.ended = time.monotonic()
            op.value, op.version, op.zxid = found[0].decode(), found[1].version, found[1].mzxid
            op.outcome, op.session = OK, self.client.session[0]
        return op


class Registers(Actor):
    """Writes, writes if the version is as expected, and reads, with and without sync."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._versions: dict[str, int] = {}

    def step(self) -> None:
        key = self.random.choice(REGISTERS)
        kind = self.random.choice(["write", "cas", "read", "look"])
        if kind in ("read", "look"):
            op = self.read(key, kind == "read")
        else:
            op = self.write(key, self.unique(), self._versions.get(key, 0) if kind == "cas" else -1)
        if op.outcome == OK:
            self._versions[key] = op.version


class Counters(Actor):
    """Adds one, if nobody else did meanwhile."""

    def step(self) -> None:
        key = self.random.choice(COUNTERS)
        op = self.read(key, with_sync=self.random.random() < 0.3)
        self.write(key, f"{op.version + 1} {self.unique()}", op.version)


class Stream(Actor):
    """The only one that writes its znode, several writes at a time: they are done in order."""

    pace = (0.02, 0.2)

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._sent = 0
        # What the znode holds, if that is known; the writes that may have been done since.
        self._version = 0
        self._unsure: list[Op] = []

    def step(self) -> None:
        if self._unsure:
            self._resolve()
        connection = self.client.connect(1)
        burst = []
        for _ in range(BURST):
            self._sent += 1
            burst.append(Op(self.name, "write", STREAM, time.monotonic(), str(self._sent)))
        self.ops += burst
        self._unsure = list(burst)
        with self.client.watched():
            for op in burst:
                connection.send(raw.SET_DATA, raw.set_body(STREAM, op.value.encode()))
            for op in burst:
                reply = connection.receive()
                assert reply is not None
                self.client.check(reply)
                self.judge(op, reply)
                assert op.version == self._version + 1, f"after {self._version} came {op}"
                self._version = op.version
                self._unsure.pop(0)

    def _resolve(self) -> None:
        """Writes of a connection that broke were done up to one of them, and no later one."""
        op = self.read(STREAM, with_sync=True)
        values = [unsure.value for unsure in self._unsure]
        done = values.index(op.value) + 1 if op.value in values else 0
        assert op.version == self._version + done, (
            f"{STREAM} holds {op.value} as version {op.version}; version {self._version} was "
            f"acknowledged, then {values} were sent"
        )
        self._version, self._unsure = op.version, []


class Locks(Actor):
    """The recipe with ephemeral sequential znodes.

    It holds the lock while it is connected and hears from its server: for two thirds of the session
    timeout after the last request that was answered, as real clients do.
    """

    pace = (0.02, 0.2)

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.holds: list[Hold] = []
        self._token = ""

    def step(self) -> None:
        self._clean()
        self._token = self.unique()
        flags = raw.EPHEMERAL | raw.SEQUENTIAL
        mine = created(self.client.create(f"{LOCK}/{self._token}-", b"", flags))
        patience = time.monotonic() + LOCK_PATIENCE_SECONDS
        while time.monotonic() < patience and not self._stopped.is_set():
            order = sorted(self.client.children(LOCK), key=lambda name: name.rsplit("-", 1)[1])
            if order and f"{LOCK}/{order[0]}" == mine:
                self._hold(mine)
                break
            self.client.idle(self.random.uniform(0.02, 0.1))
        reply = self.client.delete(mine)
        assert reply.error in (0, raw.NO_NODE), f"delete {mine}: {reply.error}"
        self._token = ""

    def _hold(self, mine: str) -> None:
        connection = self.client.connection
        assert connection is not None
        began = time.monotonic()
        release = began + self.random.uniform(0.02, 0.5)
        try:
            while time.monotonic() < release and self.client.get(mine) is not None:
                self.client.idle(0.03)
        finally:
            sure_until = connection.alive_since + connection.timeout_s * 2 / 3
            ended = min(time.monotonic(), sure_until)
            if ended > began:
                self.holds.append(Hold(self.name, began, ended))

    def _clean(self) -> None:
        """Removes what an attempt left behind whose end is not known."""
        if self._token:
            self.client.sync()
            for name in self.client.children(LOCK):
                if name.startswith(f"{self._token}-"):
                    reply = self.client.delete(f"{LOCK}/{name}")
                    assert reply.error in (0, raw.NO_NODE), f"delete {name}: {reply.error}"
            self._token = ""


class Producer(Actor):
    """Puts items into the queue."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.puts: list[Item] = []

    def step(self) -> None:
        value = self.unique()
        path, outcome = "", MAYBE
        try:
            path = created(self.client.create(f"{QUEUE}/i-", value.encode(), raw.SEQUENTIAL))
            outcome = OK
        finally:
            self.puts.append(Item(self.name, path, value, outcome))


class Consumer(Actor):
    """Takes one of the first items out of the queue."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.takes: list[Item] = []

    def step(self) -> None:
        standing = sorted(self.client.children(QUEUE))
        if not standing:
            return
        path = f"{QUEUE}/{self.random.choice(standing[:3])}"
        found = self.client.get(path)
        if found is None:
            return
        outcome = MAYBE
        try:
            reply = self.client.delete(path)
            assert reply.error in (0, raw.NO_NODE), f"delete {path}: {reply.error}"
            outcome = OK if reply.error == 0 else NO
        finally:
            self.takes.append(Item(self.name, path, found[0].decode(), outcome))


class Transfers(Actor):
    """Moves money between two accounts in one transaction."""

    def step(self) -> None:
        keys = self.random.sample(ACCOUNTS, 2)
        amount = self.random.randint(1, 10)
        before = [self.read(key, with_sync=False) for key in keys]
        values = [
            f"{balance(op.value) + change} {self.unique()}"
            for op, change in zip(before, (-amount, amount), strict=True)
        ]
        ops = []
        for key, value, old in zip(keys, values, before, strict=True):
            with self.recorded("cas", key, value, old.version) as op:
                ops.append(op)
        writes = [
            (raw.SET_DATA, raw.set_body(op.key, op.value.encode(), op.expected)) for op in ops
        ]
        reply = self.client.call(raw.MULTI, raw.multi_body(*writes))
        assert reply.error == 0, f"multi: {reply.error}"
        done = raw.multi_succeeded(reply.body)
        for number, op in enumerate(ops):
            op.ended, op.session = reply.came, self.client.session[0]
            op.outcome = OK if done else NO
            if done:
                # Each result: type, whether the last, error, and the record.
                stat = Stat.of(reply.body[: (9 + 68) * (number + 1)])
                op.version, op.zxid = stat.version, stat.mzxid
            else:
                # One of them was not as expected, and it is not recorded which.
                op.expected = -1


class Auditor(Actor):
    """Sees all accounts at one moment: no money comes or goes."""

    pace = (0.05, 0.3)

    def step(self) -> None:
        reads = [(raw.GET_DATA, raw.text(key) + b"\0") for key in ACCOUNTS]
        reply = self.client.call(MULTI_READ, raw.multi_body(*reads))
        assert reply.error == 0, f"multiRead: {reply.error}"
        balances, at = [], 0
        for key in ACCOUNTS:
            kind, length = struct.unpack(">ixxxxxi", reply.body[at : at + 13])
            assert kind == raw.GET_DATA, f"multiRead of {key} failed"
            balances.append(balance(reply.body[at + 13 : at + 13 + length].decode()))
            at += 13 + length + 68
        assert sum(balances) == BALANCE * len(ACCOUNTS), f"money came or went: {balances}"


class Teller(Actor):
    """The only one that writes what the watchers watch. Now and then it lets them wait."""

    def step(self) -> None:
        self.write(WATCHED, self.unique())

    def rest(self) -> None:
        super().rest()
        if self.random.random() < 0.02:
            self.client.idle(self.random.uniform(0.5, 3))


class Watcher(Actor):
    """Knows what a znode holds from being told that it changed, and from nothing else.

    It reads besides, and records what it reads between what it is told: so what there was to tell
    is known too.
    """

    pace = (0.2, 0.2)

    def __init__(self, mode: int | None, *arguments) -> None:
        """`mode`: of a persistent watch; none fires once."""
        super().__init__(*arguments)
        self.mode = mode
        self.known = ""
        self.watchings: list[Watching] = []
        # What it read; it writes nothing.
        self.looks: list[Op] = []
        self._set_on: object = None
        self._is_told = False

    def step(self) -> None:
        connection = self.client.connect(1)
        if self._set_on is not connection:
            self._set_on = connection
            self.watchings.append(Watching(self.name, WATCHED, self.mode is not None))
            if self.mode is not None:
                self._read("read")
                body = raw.text(WATCHED) + struct.pack(">i", self.mode)
                reply = self.client.call(ADD_WATCH, body)
                assert reply.error == 0, f"addWatch: {reply.error}"
                self._note(Mark("armed", reply.came))
            self._is_told = True
        self._take_events(connection)
        is_told, self._is_told = self._is_told, False
        value = self._read("armed" if is_told and self.mode is None else "read")
        if is_told:
            self.known = value

    def _read(self, kind: str) -> str:
        op = Op(self.name, "look", WATCHED, time.monotonic())
        found = self.client.get(WATCHED, watch=kind == "armed")
        assert found is not None, f"{WATCHED} is gone"
        op.ended, op.outcome, op.session = time.monotonic(), OK, self.client.session[0]
        op.value, op.version, op.zxid = found[0].decode(), found[1].version, found[1].mzxid
        self.looks.append(op)
        # What is there by now came before the reply.
        self._take_events(self.client.connection)
        self._note(Mark(kind, op.ended, op.version))
        return op.value

    def _take_events(self, connection: Connection | None) -> None:
        while connection is not None and connection.events:
            event = connection.events.popleft()
            assert (event.kind, event.path) == (DATA_CHANGED, WATCHED), f"told of {event}"
            self._note(Mark("event", event.came))
            self._is_told = True

    def _note(self, mark: Mark) -> None:
        self.watchings[-1].marks.append(mark)


class Ephemerals(Actor):
    """Sessions that come and go: their znodes live just as long."""

    pace = (0.05, 0.3)

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.abandoned: list[str] = []
        # Ephemerals that were there, and whose sessions were closed, or left to expire.
        self.closed = self.left = 0
        self._other = Client(self.client.addresses, SESSION_MS, RETRY_SECONDS)

    def step(self) -> None:
        path = f"{LIVE}/{self.unique()}"
        self.client.session = NEW_SESSION
        self.client.leave()
        try:
            reply = self.client.create(path, b"", raw.EPHEMERAL)
            session = self.client.session
            assert reply.error == 0, f"create {path}: {reply.error}"
            self.left += 1
            for _ in range(self.random.randint(1, 20)):
                self.client.idle(0.05)
                if self.client.get(path) is None:
                    # The session may have ended without our knowing yet.
                    self.client.sync()
                    assert self.client.session != session or self.client.get(path), (
                        f"{path} went before its session"
                    )
            if self.random.random() < 0.5 and self.client.end():
                self._other.sync()
                assert self._other.get(path) is None, f"{path} outlived its session"
                self.left -= 1
                self.closed += 1
                return
        finally:
            # It may not be asked again for longer than its session lives, and does not ping.
            self._other.end()
            self.client.leave()
            self.client.session = NEW_SESSION
            self.abandoned.append(path)

    def rest(self) -> None:
        time.sleep(self.random.uniform(*self.pace))

    def endings(self) -> list[Ending]:
        return [*super().endings(), *self._other.endings]


def balance(value: str) -> int:
    return int(value.split()[0]) if value else BALANCE


class Workload:
    """All the clients together."""

    def __init__(self, places: Callable[[int], list[Address]], seed: int) -> None:
        self._places = places
        self._seed = seed
        # How long the clients worked, once they are stopped.
        self.seconds = 0.0
        self._began = 0.0
        self.actors: list[Actor] = []
        self.registers = self._some(Registers, 3)
        self.counters = self._some(Counters, 2)
        self.streams = self._some(Stream, 1)
        self.locks = self._some(Locks, 4)
        self.producers = self._some(Producer, 1)
        self.consumers = self._some(Consumer, 2)
        self.transfers = self._some(Transfers, 2)
        self.auditors = self._some(Auditor, 1)
        self.tellers = self._some(Teller, 1)
        self.watchers: list[Watcher] = []
        for mode in (PERSISTENT, RECURSIVE, None):
            self.watchers += self._some(functools.partial(Watcher, mode), 3)
        self.ephemerals = self._some(Ephemerals, 2)

    def _some(self, make: Callable[..., Actor], count: int) -> list:
        made = []
        for _ in range(count):
            number = len(self.actors)
            actor = make(f"c{number}", self._places(number % 3 + 1), self._seed * 1000 + number)
            self.actors.append(actor)
            made.append(actor)
        return made

    def prepare(self, client: Client) -> None:
        paths = [*REGISTERS, *COUNTERS, STREAM, WATCHED, *ACCOUNTS, LOCK, QUEUE, LIVE]
        for path in paths:
            reply = client.create(path)
            assert reply.error == 0, f"create {path}: {reply.error}"

    def start(self) -> None:
        self._began = time.monotonic()
        for actor in self.actors:
            actor.start()

    def stop(self) -> None:
        self.seconds = time.monotonic() - self._began
        for actor in self.actors:
            if not isinstance(actor, Watcher):
                actor.stop()
        for actor in self.actors:
            if not isinstance(actor, Watcher):
                actor.join(60)
                assert not actor.is_alive(), f"{actor.name} hangs"

    def stop_watchers(self) -> None:
        for watcher in self.watchers:
            watcher.stop()
        for watcher in self.watchers:
            watcher.join(30)

    def wrong(self) -> list[str]:
        return [line for actor in self.actors for line in actor.wrong]

    def watchings(self) -> list[Watching]:
        return [watching for watcher in self.watchers for watching in watcher.watchings]

    def looks(self) -> list[Op]:
        """What watchers read."""
        return [op for watcher in self.watchers for op in watcher.looks]

    def told(self) -> int:
        """Events that came to watchers."""
        return sum(watching.events() for watching in self.watchings())

    def ops(self) -> list[Op]:
        return [op for actor in self.actors for op in actor.ops]

    def done(self) -> int:
        """Operations that were acknowledged."""
        return sum(op.outcome == OK for op in self.ops())

    def steps(self) -> dict[str, int]:
        """How far each client has come, of those that saw nothing wrong yet."""
        return {actor.name: actor.steps for actor in self.actors if actor.is_alive()}

    def endings(self) -> list[Ending]:
        return [ending for actor in self.actors for ending in actor.endings()]

    def work(self) -> dict[str, int]:
        """How often each kind of client did what it is for."""

        def done(actors: Sequence[Actor], *kinds: str) -> int:
            ops = (op for actor in actors for op in actor.ops)
            return sum(op.outcome == OK and op.kind in kinds for op in ops)

        def events(mode: int | None) -> int:
            mine = (watcher for watcher in self.watchers if watcher.mode == mode)
            return sum(watching.events() for watcher in mine for watching in watcher.watchings)

        puts = (put for producer in self.producers for put in producer.puts)
        takes = (take for consumer in self.consumers for take in consumer.takes)
        return {
            "writes of registers": done(self.registers, "write", "cas"),
            "reads of registers after sync": done(self.registers, "read"),
            "reads of registers": done(self.registers, "look"),
            "additions to counters": done(self.counters, "cas"),
            "writes of the stream": done(self.streams, "write"),
            "locks held": sum(len(lock.holds) for lock in self.locks),
            "items put into the queue": sum(put.outcome == OK for put in puts),
            "items taken out of the queue": sum(take.outcome == OK for take in takes),
            # Each changes two accounts.
            "transfers": done(self.transfers, "cas") // 2,
            "audits": sum(auditor.steps for auditor in self.auditors),
            "events to persistent watches": events(PERSISTENT),
            "events to recursive watches": events(RECURSIVE),
            "events to watches that fire once": events(None),
            "sessions with ephemerals closed": sum(e.closed for e in self.ephemerals),
            "sessions with ephemerals left to expire": sum(e.left for e in self.ephemerals),
        }

    def lacking(self) -> list[str]:
        """Of what there was too little to show anything, in the time that the clients worked."""
        work = self.work()
        assert work.keys() == WORK_MIN.keys()
        return [
            f"{what}: {work[what]} in {self.seconds:.0f} s, not {least}"
            for what, rate in WORK_MIN.items()
            if work[what] < (least := max(1, int(rate * self.seconds)))
        ]

    def figures(self) -> str:
        ops = self.ops()
        outcomes = ", ".join(f"{sum(op.outcome == o for op in ops)} {o}" for o in (OK, NO, MAYBE))
        puts = sum(len(p.puts) for p in self.producers)
        takes = sum(len(c.takes) for c in self.consumers)
        holds = sum(len(lock.holds) for lock in self.locks)
        ends = sum(len(e.abandoned) for e in self.ephemerals)
        broken = sum(actor.client.broken for actor in self.actors)
        expired = sum(actor.expired for actor in self.actors)
        return (
            f"operations: {outcomes}; queue: {puts} put, {takes} takes; lock: {holds} holds; "
            f"{self.told()} events to {len(self.watchings())} watches; "
            f"{ends} sessions with ephemerals; {broken} connections broke, {expired} sessions "
            "expired under way"
        )
