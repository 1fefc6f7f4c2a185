"""A client of the wire protocol in one page: frames over a socket, nothing hidden.

For suites that must know exactly what was sent and what was acknowledged. It keeps no state that a
real client would need to recover; it never retries.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence

CREATE, DELETE, EXISTS, GET_DATA, SET_DATA, GET_CHILDREN, PING = 1, 2, 3, 4, 5, 8, 11
CHECK, MULTI = 13, 14
EPHEMERAL, SEQUENTIAL = 1, 2
NO_NODE = -101
PING_XID, EVENT_XID = -2, -1
# Reads that are under way at once when many znodes are read.
READ_DEPTH = 64
OPEN_ACL = struct.pack(">ii", 1, 31) + b"\0\0\0\5world" + b"\0\0\0\6anyone"


class Refused(Exception):
    """The server does not know the session (any more)."""


class Malformed(Exception):
    """What the server sent is no frame. Not an OSError: no connection broke."""


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">i", len(encoded)) + encoded


def buffer(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


class Raw:
    """One connection with its session."""

    def __init__(
        self,
        port: int,
        timeout_ms: int,
        session: tuple[int, bytes] = (0, bytes(16)),
        patience_s: float = 30,
        host: str = "127.0.0.1",
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout=patience_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.next_xid = 1
        # Watch events that came while an answer was waited for.
        self.events = 0
        request = struct.pack(">iqiq", 0, 0, timeout_ms, session[0]) + buffer(session[1]) + b"\0"
        self.socket.sendall(buffer(request))
        response = self._frame()
        _, self.timeout_ms, session_id = struct.unpack(">iiq", response[:16])
        if self.timeout_ms <= 0:
            self.close()
            raise Refused
        self.session = (session_id, response[20:36])

    def send(self, opcode: int, body: bytes = b"") -> int:
        """Sends a request without waiting; returns its xid."""
        xid = PING_XID if opcode == PING else self.next_xid
        self.next_xid += opcode != PING
        self.socket.sendall(buffer(struct.pack(">ii", xid, opcode) + body))
        return xid

    def receive(self) -> tuple[int, int, bytes]:
        """The next reply: xid, error, body."""
        frame = self._frame()
        xid, _zxid, error = struct.unpack(">iqi", frame[:16])
        return xid, error, frame[16:]

    def call(self, opcode: int, body: bytes = b"") -> tuple[int, bytes]:
        xid = self.send(opcode, body)
        while True:
            got, error, answer = self.receive()
            if got == xid:
                return error, answer
            self.events += got == EVENT_XID

    def create(self, path: str, data: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        return self.call(CREATE, create_body(path, data, flags))

    def get(self, path: str, watch: bool = False) -> tuple[bytes, int] | None:
        """Data and version; None if the znode does not exist."""
        error, answer = self.call(GET_DATA, text(path) + (b"\1" if watch else b"\0"))
        if error == NO_NODE:
            return None
        assert error == 0, f"getData {path}: {error}"
        return data_and_version(answer)

    def get_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The data of many znodes, pipelined; what does not exist is left out."""
        found: dict[str, bytes] = {}
        left = deque(paths)
        sent: deque[tuple[int, str]] = deque()
        while left or sent:
            while left and len(sent) < READ_DEPTH:
                path = left.popleft()
                sent.append((self.send(GET_DATA, text(path) + b"\0"), path))
            xid, error, answer = self.receive()
            if xid == EVENT_XID:
                self.events += 1
                continue
            expected, path = sent.popleft()
            assert xid == expected, f"reply {xid} out of order, expected {expected}"
            assert error in (0, NO_NODE), f"getData {path}: {error}"
            if error == 0:
                found[path] = data_and_version(answer)[0]
        return found

    def children(self, path: str) -> list[str]:
        error, answer = self.call(GET_CHILDREN, text(path) + b"\0")
        assert error == 0, f"getChildren {path}: {error}"
        (count,) = struct.unpack(">i", answer[:4])
        names, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack(">i", answer[at : at + 4])
            names.append(answer[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return names

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def _frame(self) -> bytes:
        (length,) = struct.unpack(">i", self._exactly(4))
        if length < 0:
            raise Malformed(f"a frame of {length} bytes")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        if data is None or len(data) < count:
            raise ConnectionError("the server closed the connection")
        return data


def data_and_version(answer: bytes) -> tuple[bytes, int]:
    """What getData answers."""
    (length,) = struct.unpack(">i", answer[:4])
    length = max(length, 0)
    (version,) = struct.unpack(">i", answer[4 + length + 32 : 4 + length + 36])
    return answer[4 : 4 + length], version


def create_body(path: str, data: bytes, flags: int) -> bytes:
    return text(path) + buffer(data) + OPEN_ACL + struct.pack(">i", flags)


def set_body(path: str, data: bytes, version: int = -1) -> bytes:
    return text(path) + buffer(data) + struct.pack(">i", version)


def delete_body(path: str, version: int = -1) -> bytes:
    return text(path) + struct.pack(">i", version)


def multi_body(*operations: tuple[int, bytes]) -> bytes:
    """A transaction of requests, each given by its opcode and body."""
    parts = [struct.pack(">i?i", opcode, False, -1) + body for opcode, body in operations]
    return b"".join(parts) + struct.pack(">i?i", -1, True, -1)


def multi_succeeded(answer: bytes) -> bool:
    """Whether a transaction was done: its first result is then not an error."""
    (kind,) = struct.unpack(">i", answer[:4])
    return kind != -1
