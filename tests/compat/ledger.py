"""What clients sent, what was acknowledged, and what a server must hold after it was ended.

`Ledger` loads a server through several pipelining clients until the connections break, and
compares what it finds later with what it knows:

- counters: the value last acknowledged, or a later one that was under way; versions count each
  write once;
- pairs of znodes that only transactions write: both halves are always the same, and values of
  transactions that had to fail are never seen;
- a queue of sequential znodes: every acknowledged one is there with its data, whatever stands was
  sent and stands once, and where it was acknowledged; no number is given twice, though taken items
  are deleted.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Sequence

import raw

DEPTH = 16
SESSION_MS = 20_000


class Worker:
    """One client: what it sent, what was acknowledged. Lives through all restarts.

    `pad`: items are filled up to this many bytes. `keep`: with more items than this, it deletes
    its oldest ones. `pause_s`: it does nothing for so long after each answer.
    """

    def __init__(self, number: int, pad: int, keep: int, pause_s: float) -> None:
        self.number = number
        self.pad = pad
        self.keep = keep
        self.pause_s = pause_s
        self.turn = 0
        self.counter = f"/counter-{number}"
        self.sets_sent = 0
        self.sets_acknowledged = 0
        self.acknowledgements = 0
        self.pair = f"/pair-{number}"
        self.pairs_sent = 0
        self.pairs_acknowledged = 0
        self.pairs_refused: set[int] = set()
        self.items_sent = 0
        self.items: dict[str, bytes] = {}
        # Where each item was acknowledged, also of those that were deleted since.
        self.places: dict[bytes, str] = {}
        self.deleted: set[str] = set()
        self.answered = 0
        self.error: str | None = None

    def paths(self) -> list[str]:
        return [self.counter, f"{self.pair}-a", f"{self.pair}-b"]

    def data(self, item: bytes) -> bytes:
        """What the item holds: it follows from its beginning, and cannot be compressed."""
        return item + random.Random(item).randbytes(max(0, self.pad - len(item)))

    def load(self, port: int, host: str) -> None:
        """Writes until the connection breaks; remembers what else ended it."""
        try:
            self._load(port, host)
        except BaseException as wrong:  # `join` raises it
            self.error = f"client {self.number}: {type(wrong).__name__}: {wrong}"

    def _load(self, port: int, host: str) -> None:
        try:
            client = raw.Raw(port, SESSION_MS, host=host)
        except (OSError, raw.Refused):
            return
        pending: list[tuple[int, str, object]] = []
        try:
            while True:
                while len(pending) < DEPTH:
                    pending.append(self._send(client))
                xid, error, body = client.receive()
                expected = pending[0][0]
                assert xid == expected, f"reply {xid} out of order, expected {expected}"
                self._acknowledge(pending.pop(0), error, body)
                if self.pause_s:
                    time.sleep(self.pause_s)
        except OSError:
            pass
        finally:
            client.close()

    def _send(self, client: raw.Raw) -> tuple[int, str, object]:
        self.turn += 1
        kind = self.turn % 4
        if kind == 1:
            self.items_sent += 1
            item = f"{self.number}:{self.items_sent}:".encode()
            body = raw.create_body("/queue/item-", self.data(item), raw.SEQUENTIAL)
            return client.send(raw.CREATE, body), "create", item
        if kind == 2 and len(self.items) > self.keep:
            path = min(self.items)
            del self.items[path]
            return client.send(raw.DELETE, raw.delete_body(path)), "delete", path
        if kind == 3:
            self.pairs_sent += 1
            value = str(self.pairs_sent).encode()
            halves = [(raw.SET_DATA, raw.set_body(f"{self.pair}-{h}", value)) for h in "ab"]
            if self.pairs_sent % 4:
                return client.send(raw.MULTI, raw.multi_body(*halves)), "pair", self.pairs_sent
            self.pairs_refused.add(self.pairs_sent)
            missing = (raw.CHECK, raw.delete_body("/missing"))
            return client.send(raw.MULTI, raw.multi_body(*halves, missing)), "refused", None
        self.sets_sent += 1
        body = raw.set_body(self.counter, str(self.sets_sent).encode())
        return client.send(raw.SET_DATA, body), "set", self.sets_sent

    def _acknowledge(self, sent: tuple[int, str, object], error: int, body: bytes) -> None:
        _, kind, what = sent
        self.answered += 1
        if kind == "refused":
            assert error or not raw.multi_succeeded(body), "a transaction that must fail did not"
            return
        assert error == 0, f"{kind} {what!r}: error {error}"
        if kind == "set":
            self.sets_acknowledged = what
            self.acknowledgements += 1
        elif kind == "pair":
            assert raw.multi_succeeded(body), f"transaction {what} failed"
            self.pairs_acknowledged = what
        elif kind == "create":
            path = body[4:].decode()
            self.items[path] = what
            self.places[what] = path
        else:
            self.deleted.add(what)


class Ledger:
    """Several workers on one server, or on several that hold the same."""

    def __init__(
        self, workers: int = 4, pad: int = 0, keep: int = 64, pause_s: float = 0
    ) -> None:
        self.workers = [Worker(number, pad, keep, pause_s) for number in range(workers)]
        self._versions = [0] * workers
        self._highest = -1
        self._threads: list[threading.Thread] = []

    def prepare(self, client: raw.Raw) -> None:
        """Makes the znodes that the workers write."""
        for path in ["/queue", *(path for worker in self.workers for path in worker.paths())]:
            error, _ = client.create(path)
            assert error == 0, f"create {path}: {error}"

    def start(self, port: int, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        """Begins to load the server, or the servers at these addresses."""
        self._threads = [
            threading.Thread(
                target=worker.load, args=(port, hosts[worker.number % len(hosts)]), daemon=True
            )
            for worker in self.workers
        ]
        for thread in self._threads:
            thread.start()

    def join(self, seconds_max: float = 30) -> None:
        """Waits until the workers have noticed that the server is gone; raises what ended them
        instead."""
        for thread in self._threads:
            thread.join(seconds_max)
            assert not thread.is_alive(), "a client hangs though its server is gone"
        wrong = [worker.error for worker in self.workers if worker.error]
        assert not wrong, wrong[0]

    def answered(self) -> int:
        return sum(worker.answered for worker in self.workers)

    def check(self, client: raw.Raw) -> None:
        """Compares; also writes, to see which number an item gets."""
        for index, worker in enumerate(self.workers):
            self._check_counter(client, index, worker)
            self._check_pair(client, worker)
        self._check_queue(client)

    def _check_counter(self, client: raw.Raw, index: int, worker: Worker) -> None:
        found = client.get(worker.counter)
        assert found is not None, f"{worker.counter} is gone"
        value = int(found[0] or b"0")
        acknowledged, sent = worker.sets_acknowledged, worker.sets_sent
        assert acknowledged <= value <= sent, (
            f"{worker.counter} is {value}, acknowledged {acknowledged}, sent {sent}"
        )
        # Sets reach the counter in order, each at most once. What was under way at a kill may
        # be missing, so the version lies between the acknowledged writes and the value.
        assert worker.acknowledgements <= found[1] <= value, (
            f"{worker.counter}: version {found[1]}, {worker.acknowledgements} writes "
            f"acknowledged, value {value}"
        )
        assert found[1] >= self._versions[index], f"{worker.counter}: version went back"
        self._versions[index] = found[1]

    def _check_pair(self, client: raw.Raw, worker: Worker) -> None:
        halves = [client.get(f"{worker.pair}-{half}") for half in "ab"]
        assert halves[0] == halves[1], f"half a transaction: {worker.pair} holds {halves}"
        assert halves[0] is not None, f"{worker.pair} is gone"
        value = int(halves[0][0] or b"0")
        acknowledged, sent = worker.pairs_acknowledged, worker.pairs_sent
        assert acknowledged <= value <= sent, (
            f"{worker.pair} is {value}, acknowledged {acknowledged}, sent {sent}"
        )
        assert value not in worker.pairs_refused, f"transaction {value} was to fail"

    def _check_queue(self, client: raw.Raw) -> None:
        standing = {f"/queue/{name}" for name in client.children("/queue")}
        for worker in self.workers:
            missing = [path for path in worker.items if path not in standing]
            assert not missing, f"acknowledged items are gone: {missing[:5]}"
            back = worker.deleted & standing
            assert not back, f"deleted items are back: {sorted(back)[:5]}"
        self._check_items(client.get_all(sorted(standing)))
        # Numbers given from now on are higher than any that was seen, deleted ones included.
        error, answer = client.create("/queue/item-", b"probe", raw.SEQUENTIAL)
        assert error == 0, f"create: {error}"
        path = answer[4:].decode()
        number = int(path.rsplit("-", 1)[1])
        seen = [int(p.rsplit("-", 1)[1]) for p in standing]
        assert number > max([self._highest, *seen]), f"number {number} was given before"
        self._highest = number
        error, _ = client.call(raw.DELETE, raw.delete_body(path))
        assert error == 0, f"delete {path}: {error}"

    def _check_items(self, found: dict[str, bytes]) -> None:
        """Compares all items that stand, by path, with what was sent and acknowledged."""
        standing: dict[bytes, str] = {}
        for path, data in found.items():
            sender, item = self._sender(data)
            assert sender is not None, f"nobody sent what {path} holds: {data[:60]!r}"
            other = standing.setdefault(item, path)
            assert other == path, f"item {item!r} stands twice: {other} and {path}"
            place = sender.places.get(item, path)
            assert place == path, f"item {item!r} was acknowledged as {place} and stands as {path}"
        for worker in self.workers:
            for path, item in worker.items.items():
                assert standing.get(item) == path, (
                    f"{path} is to hold {item!r} and holds {found.get(path, b'')[:60]!r}"
                )

    def _sender(self, data: bytes) -> tuple[Worker | None, bytes]:
        """Who sent an item with this data, and how the item is called."""
        match = re.match(rb"([0-9]+):([0-9]+):", data)
        if match is None or int(match[1]) >= len(self.workers):
            return None, b""
        worker, item = self.workers[int(match[1])], match[0]
        is_sent = 1 <= int(match[2]) <= worker.items_sent
        return (worker, item) if is_sent and data == worker.data(item) else (None, b"")

    def delete_items(self, client: raw.Raw, count: int) -> None:
        """Deletes at most so many acknowledged items, as an operator who makes room would."""
        for worker in self.workers:
            for path in sorted(worker.items)[: count // len(self.workers)]:
                error, _ = client.call(raw.DELETE, raw.delete_body(path))
                assert error == 0, f"delete {path}: {error}"
                del worker.items[path]
                worker.deleted.add(path)
