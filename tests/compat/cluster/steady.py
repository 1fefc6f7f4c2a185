"""A load of a known rate on one server, whose every answer is timed.

Such a client stays with its server and never comes again: a connection that breaks, a request that
is refused or not answered, and an answer that is older than the one before are failures.
"""

from __future__ import annotations

import bisect
import contextlib
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import raw
from ledger import SESSION_MS

from .client import Client, Connection, Reply
from .ensemble import Ensemble

WRITE_BYTES = 128


class Steady(threading.Thread):
    """Sends `batch` requests at once every so often, and waits for all answers."""

    opcode = raw.GET_DATA

    def __init__(
        self, ensemble: Ensemble, number: int, path: str, batch: int, every_s: float
    ) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.batch = batch
        self.every_s = every_s
        # When each answer was there.
        self.times: list[float] = []
        self._client = Client([ensemble.place(number)], SESSION_MS)
        self._wrong: str | None = None
        self._ends = threading.Event()

    def run(self) -> None:
        try:
            while not self._ends.is_set():
                began = time.monotonic()
                self._turn(self._client.connect(10))
                self._ends.wait(max(0.0, began + self.every_s - time.monotonic()))
        except Exception as error:  # noqa: BLE001
            # Whatever it is, a client that is gone must not look content.
            self._wrong = f"{self.name}: {type(error).__name__}: {error}"
        self._client.end()

    def request(self) -> bytes:
        return raw.text(self.path) + b"\0"

    def take(self, reply: Reply) -> None:
        """Looks at an answer."""

    def well(self) -> None:
        assert self._wrong is None, self._wrong

    def stop(self) -> None:
        self._ends.set()
        self.join(30)
        assert not self.is_alive(), f"{self.name} hangs"

    def count(self, since: float, until: float) -> int:
        """How many answers came in that time."""
        return bisect.bisect_right(self.times, until) - bisect.bisect_left(self.times, since)

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without an answer."""
        first, last = bisect.bisect_left(self.times, since), bisect.bisect_right(self.times, until)
        moments = [since, *self.times[first:last], until]
        return max(after - before for before, after in zip(moments, moments[1:], strict=False))

    def _turn(self, connection: Connection) -> None:
        for _ in range(self.batch):
            connection.send(self.opcode, self.request())
        for _ in range(self.batch):
            reply = connection.receive()
            assert reply is not None and reply.error == 0, f"{reply}"
            self.take(reply)
            self.times.append(reply.came)


class Writer(Steady):
    """Sets its own znode: its version tells how often that was done."""

    opcode = raw.SET_DATA

    def __init__(
        self, ensemble: Ensemble, number: int, path: str, batch: int, every_s: float, length: int
    ) -> None:
        super().__init__(ensemble, number, path, batch, every_s)
        self.name = f"the writer at {number}"
        self.length = length
        self._sent = 0

    def request(self) -> bytes:
        self._sent += 1
        return raw.set_body(self.path, self.value(self._sent))

    def value(self, number: int) -> bytes:
        return f"{number}.".encode().ljust(self.length, b".")

    def check(self, client: Client) -> None:
        """Each write was acknowledged, and done once."""
        self.well()
        client.sync()
        found = client.get(self.path)
        assert found is not None, f"{self.path} is gone"
        assert len(self.times) == self._sent == found[1].version, (
            f"{self.path}: {self._sent} writes were sent, {len(self.times)} acknowledged, "
            f"{found[1].version} done"
        )
        assert found[0] == self.value(self._sent), f"{self.path} has another value"


class Reader(Steady):
    """Gets the znode of a writer of the same server."""

    def __init__(
        self, ensemble: Ensemble, number: int, path: str, batch: int, every_s: float
    ) -> None:
        super().__init__(ensemble, number, path, batch, every_s)
        self.name = f"the reader at {number}"
        self._newest = 0

    def take(self, reply: Reply) -> None:
        (length,) = struct.unpack(">i", reply.body[:4])
        read = int(reply.body[4 : 4 + length].split(b".")[0] or 0)
        assert read >= self._newest, f"{read} after {self._newest}"
        self._newest = read


@contextlib.contextmanager
def running(clients: Sequence[Steady]) -> Iterator[None]:
    """They all are well as long as this lasts."""
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop()
    for client in clients:
        client.well()


def writers(
    ensemble: Ensemble,
    numbers: Sequence[int],
    batch: int,
    every_s: float,
    length: int = WRITE_BYTES,
) -> list[Writer]:
    """One for each of these servers, with a znode of its own that is set to so many bytes."""
    with ensemble.client(*numbers) as client:
        made = [client.create("/steady-", b"", raw.SEQUENTIAL) for _ in numbers]
    paths = [reply.body[4:].decode() for reply in made if reply.error == 0]
    assert len(paths) == len(numbers), f"{made}"
    return [
        Writer(ensemble, number, path, batch, every_s, length)
        for number, path in zip(numbers, paths, strict=True)
    ]
