"""Judges what clients recorded: the order of writes, locks, queues, watches.

Every function returns what is wrong, one line each; nothing if all is well. An operation whose
outcome is not known (`maybe`) may have been done at any time after it began, once, or never.

A server's replies tell the version of a znode and the zxid of its last change, so the order of all
writes of a znode is known, and it only has to be compared with the order in time. That makes these
checks complete for registers without any search.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import lab

from .client import Ending, Hearing

OK, NO, MAYBE = "done", "refused", "unknown"
# How much is told of one kind.
PROBLEMS_MAX = 5


@dataclass(slots=True)
class Op:
    """What one client did to one znode, and what it was told."""

    client: str
    # write; cas (a write with an expected version); read (sync, then read); look (read alone)
    kind: str
    key: str
    began: float
    value: str = ""
    expected: int = -1
    ended: float = 0.0
    outcome: str = MAYBE
    # Behind the operation, if it was done.
    version: int = -1
    zxid: int = 0
    session: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.key} by {self.client} [{self.began:.3f}, {self.ended:.3f}] "
            f"{self.outcome} version {self.version} zxid {self.zxid:x} value {self.value!r}"
        )

    def writes(self) -> bool:
        return self.kind in ("write", "cas")


@dataclass(frozen=True)
class Hold:
    """A time in which a client was sure that it held the lock."""

    client: str
    began: float
    ended: float


@dataclass(frozen=True)
class Item:
    """Something put into the queue or taken out of it."""

    client: str
    path: str
    value: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What came to a watcher, and when."""

    # armed (a watch was set); event (the znode changed); read (without setting one)
    kind: str
    at: float
    # That the reply tells; a persistent watch is set without reading.
    version: int = -1


@dataclass
class Watching:
    """What came to a watcher over one connection, in order, until that broke."""

    client: str
    key: str
    # Or it fires once, and is then set again by the read that tells what changed.
    persistent: bool
    marks: list[Mark] = field(default_factory=list)

    def events(self) -> int:
        return sum(mark.kind == "event" for mark in self.marks)

    def __str__(self) -> str:
        kind = "persistent" if self.persistent else "one-shot"
        return f"{kind} watch of {self.key} by {self.client}"


# --- Registers ------------------------------------------------------------------------------------


def registers(ops: Iterable[Op]) -> list[str]:
    """All znodes, each for itself. Each begins empty with version 0, and is read at the end."""
    by_key: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        by_key[op.key].append(op)
    return [problem for mine in by_key.values() for problem in register(mine)]


def register(ops: Sequence[Op]) -> list[str]:
    done = [op for op in ops if op.outcome == OK]
    problems = [*_versions(ops, done), *_real_time(done), *_sessions(done)]
    return problems + _refusals([op for op in ops if op.outcome == NO], done)


def _versions(ops: Sequence[Op], done: Sequence[Op]) -> list[str]:
    """Each version has one value and one zxid, and each write is done once."""
    problems = []
    states: dict[int, Op] = {}
    for op in done:
        known = states.setdefault(op.version, op)
        if (known.value, known.zxid) != (op.value, op.zxid):
            problems.append(f"one version, two states: {known}; {op}")
    written = Counter(op.version for op in done if op.writes())
    problems += [
        f"two writes made version {version}: {states[version]}"
        for version, count in written.items()
        if count > 1
    ]
    order = [states[version] for version in sorted(states)]
    problems += [
        f"later version, earlier zxid: {before}; {after}"
        for before, after in zip(order, order[1:], strict=False)
        if before.zxid >= after.zxid
    ]
    sources = {op.value: op for op in ops if op.writes()}
    seen: dict[str, Op] = {}
    for state in order:
        source = sources.get(state.value)
        if state.version == 0 and state.value == "":
            continue
        if source is None or source.outcome == NO:
            problems.append(f"a value that nobody wrote, or whose write was refused: {state}")
        elif state.ended < source.began:
            problems.append(f"seen before it was written: {state}; {source}")
        twice = seen.setdefault(state.value, state)
        if twice is not state:
            problems.append(f"done twice: {twice}; {state}")
    last = max(states, default=0)
    unknown = sum(op.writes() and op.outcome == MAYBE for op in ops)
    if last - len(written) > unknown:
        problems.append(
            f"{order[-1].key}: version {last}, but only {len(written)} writes were acknowledged "
            f"and {unknown} may have been done"
        )
    return problems


def _real_time(done: Sequence[Op]) -> list[str]:
    """What began after another one had ended comes after it."""
    problems = []
    ended: list[tuple[float, int, Op]] = []
    floor: Op | None = None
    for number, op in enumerate(sorted(done, key=lambda op: op.began)):
        if op.kind == "look":
            continue
        while ended and ended[0][0] < op.began:
            before = heapq.heappop(ended)[2]
            if floor is None or before.version > floor.version:
                floor = before
        if floor is not None and op.version < floor.version + op.writes():
            problems.append(f"goes back in time: after {floor} came {op}")
        heapq.heappush(ended, (op.ended, number, op))
    return problems


def _sessions(done: Sequence[Op]) -> list[str]:
    """Nobody sees older states than before in a session, whichever server it asks."""
    problems = []
    last: dict[int, Op] = {}
    for op in sorted(done, key=lambda op: (op.began, op.version)):
        before = last.get(op.session)
        if before is not None and before.ended <= op.began and op.version < before.version:
            problems.append(f"a session went back: {before}; {op}")
        last[op.session] = op
    return problems


def _refusals(refused: Sequence[Op], done: Sequence[Op]) -> list[str]:
    """A write that expected a version was not refused while the znode had just that version."""
    problems = []
    firm = [op for op in done if op.kind != "look"]
    for op in refused:
        same = [other for other in firm if other.version == op.expected]
        before = any(other.ended < op.began for other in same)
        after = any(other.began > op.ended and not other.writes() for other in same)
        if before and after:
            problems.append(f"refused though the version was right: {op}")
    return problems


def counters(ops: Iterable[Op]) -> list[str]:
    """Znodes whose every write adds one to the number before the blank."""
    return [
        f"a count that differs from the number of writes: {op}"
        for op in ops
        if op.outcome == OK and int((op.value or "0").split()[0]) != op.version
    ]


# --- Locks and queues -----------------------------------------------------------------------------


def locks(holds: Iterable[Hold]) -> list[str]:
    """No two clients hold the lock at a time."""
    problems = []
    last: Hold | None = None
    for hold in sorted(holds, key=lambda hold: hold.began):
        if last is not None and hold.began < last.ended:
            problems.append(f"two hold the lock: {last}; {hold}")
        if last is None or hold.ended > last.ended:
            last = hold
    return problems


def queue(puts: Sequence[Item], takes: Sequence[Item], standing: Mapping[str, str]) -> list[str]:
    """Each item that was put is taken once, or still stands. `standing`: paths and values."""
    problems = []
    taken = Counter(take.path for take in takes if take.outcome == OK)
    unsure = {take.path for take in takes if take.outcome == MAYBE}
    problems += [f"taken {count} times: {path}" for path, count in taken.items() if count > 1]
    problems += [f"taken, and still there: {path}" for path in taken if path in standing]
    for put in puts:
        if put.outcome == OK and not (
            put.path in taken or put.path in unsure or put.path in standing
        ):
            problems.append(f"lost: {put}")
    known = {put.value: put for put in puts}
    places: dict[str, set[str]] = defaultdict(set)
    for path, value in [*standing.items(), *((take.path, take.value) for take in takes)]:
        places[value].add(path)
    for put in puts:
        if put.outcome == OK:
            places[put.value].add(put.path)
    for value, paths in places.items():
        if value not in known or known[value].outcome == NO:
            problems.append(f"never put, or refused: {value} at {sorted(paths)}")
        if len(paths) > 1:
            problems.append(f"put twice: {value} at {sorted(paths)}")
    return problems


# --- Watches --------------------------------------------------------------------------------------


def watches(watchings: Iterable[Watching], ops: Iterable[Op]) -> list[str]:
    """Each write while a watch is set is told: to a persistent one once, to one that fires once
    before its client reads it. Nothing else is told, and nothing before it is written.

    Events do not name the write. But a read that comes after them on the same connection tells how
    many writes there were until then, since each adds one to the version.
    """
    writes: dict[str, dict[int, Op]] = defaultdict(dict)
    last: Counter[str] = Counter()
    for op in ops:
        if op.outcome == OK:
            last[op.key] = max(last[op.key], op.version)
            if op.writes():
                writes[op.key][op.version] = op
    problems = []
    for watching in watchings:
        mine = writes[watching.key]
        if watching.persistent:
            problems += _persistent(watching, mine, last[watching.key])
        else:
            problems += _once(watching, mine)
    return problems


def _persistent(watching: Watching, writes: Mapping[int, Op], last: int) -> list[str]:
    """Its client reads before the watch is set, and again and again after that."""
    problems = []
    before = armed = None
    told: list[Mark] = []
    for mark in watching.marks:
        if mark.kind == "event":
            told.append(mark)
            if armed is None:
                problems.append(f"{watching} was told before it was set: {mark}")
            continue
        if mark.kind == "armed":
            armed = mark
            continue
        if armed is not None and before is not None:
            new = range(before.version + 1, mark.version + 1)
            wanted = len(new)
            if armed.at > before.at:
                # What was written between that read and the watch need not be told.
                known = [writes[version] for version in new if version in writes]
                wanted = sum(op.began > armed.at for op in known)
            if not wanted <= len(told) <= len(new):
                problems.append(_miscounted(watching, before, mark, len(told), wanted))
            elif len(told) == len(new):
                problems += _too_early(watching, told, before, writes)
        before, told = mark, []
    # The connection broke before another read.
    if armed is not None and before is not None and armed.at < before.at:
        if len(told) > last - before.version:
            problems.append(f"{watching} was told more than there was after {before}: {told[-1]}")
        problems += _too_early(watching, told, before, writes)
    return problems


def _once(watching: Watching, writes: Mapping[int, Op]) -> list[str]:
    problems = []
    armed: Mark | None = None
    told: list[Mark] = []
    for mark in watching.marks:
        if mark.kind == "event":
            told.append(mark)
            continue
        if armed is not None:
            wanted = int(mark.version > armed.version)
            if len(told) != wanted:
                problems.append(_miscounted(watching, armed, mark, len(told), wanted))
            problems += _too_early(watching, told[:1], armed, writes)
        if mark.kind == "armed":
            armed, told = mark, []
    return problems


def _too_early(
    watching: Watching, told: Sequence[Mark], before: Mark, writes: Mapping[int, Op]
) -> list[str]:
    """The events since a read are those of the versions behind it."""
    return [
        f"{watching} was told before it was written: {event}; {writes[version]}"
        for version, event in enumerate(told, before.version + 1)
        if version in writes and event.at < writes[version].began
    ]


def _miscounted(watching: Watching, before: Mark, after: Mark, told: int, wanted: int) -> str:
    return (
        f"{watching} was told {told} times, not {wanted}, "
        f"between version {before.version} at {before.at:.3f} "
        f"and version {after.version} at {after.at:.3f}"
    )


# --- Sessions -------------------------------------------------------------------------------------


def sessions(endings: Iterable[Ending]) -> list[str]:
    """No session ends before its timeout has passed since its client was surely heard. (That it is
    gone may be told long after its end, so that not every early end is found.)"""
    return [
        f"session {end.session:#x} was told to be gone {end.told - end.heard:.3f} s after its "
        f"client was surely heard, before its {end.timeout_s:g} s"
        for end in endings
        if end.told - end.heard < end.timeout_s
    ]


def raise_if_any(problems: Sequence[str]) -> None:
    shown = [*problems[:PROBLEMS_MAX]]
    if len(problems) > PROBLEMS_MAX:
        shown.append(f"and {len(problems) - PROBLEMS_MAX} more")
    assert not problems, "\n".join(shown)


# --- Whether it would find anything ---------------------------------------------------------------


def finds_what_is_planted(report: lab.Report) -> None:
    """A checker that finds nothing must be known to be able to."""

    def op(kind: str, began: float, ended: float, version: int, value: str, **more) -> Op:
        made = Op("c", kind, "/k", began, value, ended=ended, outcome=OK)
        made.version, made.zxid, made.session = version, version + 100, int(began * 100)
        for name, change in more.items():
            setattr(made, name, change)
        return made

    first, second = op("write", 1, 2, 1, "a"), op("write", 3, 4, 2, "b")
    good = [first, second, op("read", 5, 6, 2, "b")]
    lost = op("write", 1, 2, -1, "x", outcome=MAYBE)
    bad: dict[str, list[Op]] = {
        "a lost write": [first, op("read", 3, 4, 0, "")],
        "a stale read": [first, second, op("read", 5, 6, 1, "a")],
        "an overwritten acknowledgement": [first, op("write", 3, 4, 1, "b")],
        "a write done twice": [first, op("read", 3, 4, 3, "a")],
        "a retried write": [lost, op("read", 3, 4, 1, "x"), op("read", 5, 6, 2, "x")],
        "a refused write that was done": [
            op("cas", 1, 2, -1, "r", outcome=NO, expected=7),
            op("read", 3, 4, 1, "r"),
        ],
        "a wrong refusal": [
            first,
            op("cas", 3, 4, -1, "r", outcome=NO, expected=1),
            op("read", 5, 6, 1, "a"),
        ],
        "two states of a version": [first, op("read", 3, 4, 1, "z")],
        "a zxid that went back": [first, op("write", 3, 4, 2, "b", zxid=7)],
        "a session that went back": [
            op("look", 1, 2, 1, "a", session=5),
            op("look", 3, 4, 0, "", session=5),
            lost,
            op("write", 0, 1, 1, "a"),
        ],
    }

    def watched(persistent: bool, marks: str) -> list[str]:
        """What is found in marks like `event 3.5` and `read 4 1`, the time and the version."""
        watching = Watching("w", "/k", persistent)
        for mark in marks.split(", "):
            what, at, version = (*mark.split(), "-1")[:3]
            watching.marks.append(Mark(what, float(at), int(version)))
        return watches([watching], good)

    # Version 1 is written from 1 to 2, version 2 from 3 to 4.
    told_well = [
        (True, "read 0 0, armed 0.5, event 1.5, read 2 1, event 3.5, read 5 2"),
        (True, "read 0 0, armed 0.5, event 1.5, event 3.5, read 5 2"),
        # It may have been set before the write or after it.
        (True, "read 0 0, armed 1.5, read 2 1, event 3.5, read 5 2"),
        (True, "read 0 0, armed 1.5, event 1.6, read 2 1, read 2.5 1, event 3.5"),
        (False, "armed 0 0, event 1.5, armed 2 1, event 3.5, read 4 2, armed 5 2"),
        (False, "armed 0 0, read 0.5 0, event 1.5, read 2 1, armed 5 2"),
        (False, "armed 0 0, event 1.5"),
    ]
    told_badly: dict[str, tuple[bool, str]] = {
        "a missing event": (True, "read 0 0, armed 0.5, read 0.6 0, event 1.5, read 5 2"),
        "the first event missing": (True, "read 0 0, armed 0.5, read 2 1"),
        "the last event missing": (True, "read 2 1, armed 2.1, read 2.2 1, read 5 2"),
        "an event twice": (True, "read 2 1, armed 2.1, event 3.1, event 3.2, read 5 2"),
        "an event of nothing": (True, "read 4 2, armed 4.1, read 4.2 2, event 5, read 6 2"),
        "one at the end": (True, "read 4 2, armed 4.1, read 4.2 2, event 5"),
        "one before the watch": (True, "read 2 1, event 3.5, armed 4.1, read 5 2"),
        "one too early": (True, "read 2 1, armed 2.1, read 2.2 1, event 2.5, read 5 2"),
        "one-shot, missing": (False, "armed 0 0, read 2 1"),
        "one-shot, missing, then set again": (False, "armed 0 0, armed 2 1"),
        "one-shot, twice": (False, "armed 0 0, event 1.5, event 3.5, read 5 2"),
        "one-shot, of nothing": (False, "armed 4 2, event 5, read 6 2"),
        "one-shot, not set": (False, "armed 0 0, event 1.5, read 2 1, event 3.5, read 5 2"),
        "one-shot, late": (False, "armed 0 0, read 2 1, event 2.1, armed 2.2 1"),
        "one-shot, before the write": (False, "armed 0 0, event 0.5, armed 2 1"),
    }

    def ended(told: float, timeout_s: float, answered: Sequence[tuple[float, float]]) -> list[str]:
        """What is found in the end of a session that was granted at 0, when its requests were
        answered like this."""
        hearing = Hearing(0, timeout_s)
        for sent, came in answered:
            hearing.answered(sent, came)
        return sessions([Ending(7, timeout_s, hearing.surely, told)])

    # A ping each 2 s, and a request each 0.1 s.
    pings = [(second, second + 0.1) for second in range(2, 21, 2)]
    busy = [(tenth / 10, tenth / 10 + 0.05) for tenth in range(201)]
    ended_well: list[tuple[float, float, Sequence[tuple[float, float]]]] = [
        (6.1, 6, []),
        # Its server was cut off from 18 s on: the leader may not know of the last pings.
        (22.1, 6, pings),
        (26.5, 6, busy),
    ]
    ended_badly: dict[str, tuple[float, float, Sequence[tuple[float, float]]]] = {
        "as soon as it was granted": (5.9, 6, []),
        "while it was pinged": (20.5, 6, pings),
        "though others knew of its pings": (21.9, 6, pings),
        "while it was used": (20.1, 6, busy),
        "soon after it was used": (22.5, 6, busy),
        "after half its timeout": (3.1, 6, busy[:2]),
    }
    with report.case("the checker finds what is planted, and nothing else"):
        assert register(good) == [], register(good)
        assert register([*good, lost]) == []
        for what, history in bad.items():
            assert register(history), f"{what} is not found"
        for marks in told_well:
            assert watched(*marks) == [], (marks, watched(*marks))
        for what, marks in told_badly.items():
            assert watched(*marks), f"{what} is not found"
        for what, (told, timeout_s, answered) in ended_badly.items():
            assert ended(told, timeout_s, answered), f"a session that ended {what} is not found"
        for told, timeout_s, answered in ended_well:
            assert ended(told, timeout_s, answered) == [], (told, timeout_s, answered)
        assert counters([op("read", 1, 2, 3, "2")])
        apart, over = Hold("b", 2, 3), Hold("b", 1.5, 3)
        assert not locks([Hold("a", 1, 2), apart]) and locks([Hold("a", 1, 2), over])
        put, taken = Item("p", "/q/1", "v", OK), Item("t", "/q/1", "v", OK)
        assert queue([put], [taken], {}) == [] == queue([put], [], {"/q/1": "v"})
        assert queue([put], [], {}) and queue([put], [taken, taken], {})
        assert queue([put], [taken], {"/q/1": "v"}) and queue([put], [], {"/q/2": "v", "/q/1": "v"})
        assert queue([], [], {"/q/1": "v"})
