"""A look at the znodes of a server: the two reads that the suite needs, over a raw socket.

One `Znodes` is one session: it opens with the connection and is closed with it. It must never
write, set a watch, or be kept open over a restart of the server.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

# Op codes and the one error code that is an answer here (spec sections 3 and 6).
GET_DATA = 4
GET_CHILDREN = 8
CLOSE_SESSION = -11
NO_NODE = -101

SESSION_TIMEOUT_MS = 10_000
ANSWER_SECONDS_MAX = 10


@dataclass(frozen=True)
class Znode:
    """What a getData answer tells. `owner` is the session of an ephemeral node, else 0."""

    data: bytes = field(repr=False)
    czxid: int
    owner: int


class Znodes:
    """A session that reads, at the first of these servers that grants it one.

    As the session begins with a write, it sees all that was done before. Socket failures surface as
    OSError.
    """

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        for number, place in enumerate(places, 1):
            try:
                self._open(place, ANSWER_SECONDS_MAX / len(places))
                return
            except OSError:
                if number == len(places):
                    raise

    def _open(self, place: tuple[str, int], patience_s: float) -> None:
        self._xid = 0
        self._socket = socket.create_connection(place, patience_s)
        try:
            body = struct.pack(">iqiqi16s?", 0, 0, SESSION_TIMEOUT_MS, 0, 16, bytes(16), False)
            self._send(body)
            self._receive()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Znodes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._socket:
            if error is None:
                self._call(CLOSE_SESSION, b"")

    def get(self, path: str) -> Znode | None:
        """The node at `path`, or None if there is none."""
        answer = self._read(GET_DATA, path)
        if answer is None:
            return None
        (length,) = struct.unpack_from(">i", answer)
        # A null buffer has the length -1 and, like an empty one, no bytes.
        length = max(length, 0)
        stat = 4 + length
        (czxid,) = struct.unpack_from(">q", answer, stat)
        # Before ephemeralOwner: two zxids, two times, three versions.
        (owner,) = struct.unpack_from(">q", answer, stat + 4 * 8 + 3 * 4)
        return Znode(answer[4:stat], czxid, owner)

    def children(self, path: str) -> list[str]:
        """The sorted names of the children; none if the node does not exist."""
        answer = self._read(GET_CHILDREN, path)
        if answer is None:
            return []
        (count,) = struct.unpack_from(">i", answer)
        names = []
        offset = 4
        for _ in range(count):
            (length,) = struct.unpack_from(">i", answer, offset)
            names.append(answer[offset + 4 : offset + 4 + length].decode())
            offset += 4 + length
        return sorted(names)

    def below(self, path: str) -> list[str]:
        """The paths of all descendants, parents first."""
        found = []
        for name in self.children(path):
            child = f"{path.rstrip('/')}/{name}"
            found += [child, *self.below(child)]
        return found

    def _read(self, op: int, path: str) -> bytes | None:
        raw = path.encode()
        return self._call(op, struct.pack(">i", len(raw)) + raw + b"\0")

    def _call(self, op: int, body: bytes) -> bytes | None:
        self._xid += 1
        self._send(struct.pack(">ii", self._xid, op) + body)
        answer = self._receive()
        xid, _zxid, error = struct.unpack_from(">iqi", answer)
        if xid != self._xid:
            raise ConnectionError(f"answer to xid {xid}, expected {self._xid}")
        if error == NO_NODE:
            return None
        if error:
            raise ConnectionError(f"op {op} was answered with error {error}")
        return answer[16:]

    def _send(self, body: bytes) -> None:
        self._socket.sendall(struct.pack(">i", len(body)) + body)

    def _receive(self) -> bytes:
        (length,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("the server closed the connection")
            parts += part
        return bytes(parts)
