"""Clients of an ensemble whose every move is known: what was sent when, and what came back when.

A `Connection` is one TCP connection. A `Client` is a session that moves from server to server as
real clients do: it pings when it is idle, gives a server up that is silent for two thirds of the
session timeout, and comes back with the highest zxid that it has seen. Neither ever repeats a
request: what was under way when a connection broke is `Lost`, and may or may not have been done.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import raw

Address = tuple[str, int]
SessionKey = tuple[int, bytes]

NEW_SESSION: SessionKey = (0, bytes(16))
SYNC, RECONFIG, MULTI_READ, ADD_WATCH, CLOSE = 9, 16, 22, 106, -11
NODE_EXISTS, BAD_VERSION, SESSION_EXPIRED, NEW_CONFIG_NO_QUORUM = -110, -103, -112, -13
# What an event tells.
DATA_CHANGED = 3
# Until a server that accepts connections has answered a handshake.
HANDSHAKE_SECONDS_MAX = 3.0
# Between two rounds of attempts to connect.
RETRY_SECONDS = 0.01
# What a server's connections hear is noted within this time, for its next word to the leader.
NOTED_SECONDS = 1.0


class Lost(ConnectionError):
    """The connection broke, or was given up: what was under way may or may not be done."""


class Expired(Exception):
    """The session is gone."""


@dataclass(frozen=True)
class Reply:
    xid: int
    zxid: int
    error: int
    body: bytes
    # When the request went out, and when the answer was there.
    sent: float
    came: float


@dataclass(frozen=True)
class Event:
    kind: int
    path: str
    came: float


@dataclass(frozen=True)
class Stat:
    """What the suites use of a znode's record."""

    czxid: int
    mzxid: int
    version: int
    owner: int
    # In ms since 1970, as the leader's clock had it.
    mtime: int

    @classmethod
    def of(cls, body: bytes) -> Stat:
        czxid, mzxid, _, mtime, version, _, _, owner = struct.unpack(">qqqqiiiq", body[-68:-16])
        return cls(czxid, mzxid, version, owner, mtime)


@dataclass(frozen=True)
class Ending:
    """A client was told that its session is gone, which it did not end itself."""

    session: int
    timeout_s: float
    # When the servers surely heard it last (see `Hearing`), and when it was told.
    heard: float
    told: float


class Hearing:
    """When the servers surely heard a session last, as its client knows from their answers.

    A server that is asked for a session answers once the leader has noted it. What it hears later
    it notes itself, tells the leader several times in a third of the timeout, and answers for at
    most a third of the timeout beyond what the leader has confirmed. So an answer proves that the
    leader knows of what was answered longer ago than that, and not that it knows of the same
    request: a server that was cut off just now does answer. From what the leader knows, or from
    the beginning of a later one, the session has its full timeout.
    """

    def __init__(self, asked: float, timeout_s: float) -> None:
        """`asked`: when the server was asked for the session, which it has granted."""
        self.surely = asked
        self._unconfirmed_s = timeout_s / 3 + NOTED_SECONDS
        self._answered: deque[tuple[float, float]] = deque()

    def answered(self, sent: float, came: float) -> None:
        """A request that was sent then was answered then. In the order of the answers."""
        self._answered.append((sent, came))
        while self._answered[0][1] <= sent - self._unconfirmed_s:
            self.surely = max(self.surely, self._answered.popleft()[0])


class Connection:
    """One connection with its session. Requests may be pipelined."""

    def __init__(
        self,
        address: Address,
        timeout_ms: int,
        session: SessionKey = NEW_SESSION,
        seen: int = 0,
        patience_s: float = HANDSHAKE_SECONDS_MAX,
        read_only: bool = False,
    ) -> None:
        self.address = address
        self.seen = seen
        self.events: deque[Event] = deque()
        self._xid = 0
        self._sent: dict[int, float] = {}
        self._input = bytearray()
        self._pings: deque[float] = deque()
        began = time.monotonic()
        try:
            self._socket = socket.create_connection(address, timeout=patience_s)
        except OSError as error:
            raise Lost(f"{address[0]}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = self.last_sent = time.monotonic()
        # When the last request was sent that the server has answered.
        self.alive_since = began
        self.timeout_s = patience_s * 3
        request = struct.pack(">iqiq", 0, seen, timeout_ms, session[0])
        try:
            self._write(request + raw.buffer(session[1]) + bytes([read_only]))
            response = self._frame(began + patience_s)
            if response is None:
                raise Lost(f"{address[0]}: no answer to the handshake")
        except Lost:
            self.close()
            raise
        _, negotiated_ms, session_id = struct.unpack(">iiq", response[:16])
        if negotiated_ms <= 0:
            self.close()
            raise Expired(f"{address[0]} refuses session {session[0]:#x}")
        self.timeout_s = negotiated_ms / 1000
        self.session: SessionKey = (session_id, response[20:36])
        self.hearing = Hearing(began, self.timeout_s)
        # Whether the server only lets read.
        self.read_only = response[36:] == b"\1"

    def send(self, opcode: int, body: bytes = b"") -> int:
        """Sends a request without waiting; returns its xid."""
        self._xid += 1
        self._sent[self._xid] = self._write(struct.pack(">ii", self._xid, opcode) + body)
        return self._xid

    def receive(self, deadline: float | None = None) -> Reply | None:
        """The next reply; None if the deadline comes first. Keeps the session alive meanwhile."""
        while True:
            frame = self._frame(deadline)
            if frame is None:
                return None
            xid, zxid, error = struct.unpack(">iqi", frame[:16])
            if xid == raw.PING_XID:
                self.alive_since = self._pings.popleft()
                self.hearing.answered(self.alive_since, self.heard)
            elif xid == raw.EVENT_XID:
                kind, _state, length = struct.unpack(">iii", frame[16:28])
                path = frame[28 : 28 + length].decode()
                self.events.append(Event(kind, path, self.heard))
            else:
                assert xid == next(iter(self._sent), None), f"reply {xid} is out of order"
                sent = self.alive_since = self._sent.pop(xid)
                # That the session is gone does not prove that it was heard.
                if error != SESSION_EXPIRED:
                    self.hearing.answered(sent, self.heard)
                self.seen = max(self.seen, zxid)
                return Reply(xid, zxid, error, frame[16:], sent, self.heard)

    def call(self, opcode: int, body: bytes = b"") -> Reply:
        """Sends a request and waits for its reply, behind which no other may be under way."""
        assert not self._sent, "requests are under way"
        self.send(opcode, body)
        reply = self.receive()
        assert reply is not None
        return reply

    def idle(self, seconds: float) -> None:
        """Does nothing but keep the session alive and take in events."""
        reply = self.receive(time.monotonic() + seconds)
        assert reply is None, f"a reply that nobody waits for: {reply}"

    def close(self) -> None:
        """Breaks the connection; the session goes on."""
        self._socket.close()

    def _write(self, message: bytes) -> float:
        self.last_sent = time.monotonic()
        try:
            self._socket.sendall(raw.buffer(message))
        except OSError as error:
            raise Lost(f"{self.address[0]}: {error}") from error
        return self.last_sent

    def _frame(self, deadline: float | None) -> bytes | None:
        while True:
            if len(self._input) >= 4:
                (length,) = struct.unpack(">i", self._input[:4])
                if len(self._input) >= 4 + length:
                    frame = bytes(self._input[4 : 4 + length])
                    del self._input[: 4 + length]
                    return frame
            if not self._read(deadline):
                return None

    def _read(self, deadline: float | None) -> bool:
        """Takes in what has come; whether anything did before the deadline."""
        while True:
            now = time.monotonic()
            silent_at = self.heard + self.timeout_s * 2 / 3
            if now >= silent_at:
                raise Lost(f"{self.address[0]}: silent for {now - self.heard:.1f} s")
            if deadline is not None and now >= deadline:
                return False
            ping_at = self.last_sent + self.timeout_s / 3
            if now >= ping_at:
                self._pings.append(self._write(struct.pack(">ii", raw.PING_XID, raw.PING)))
                continue
            until = min(silent_at, ping_at, deadline if deadline is not None else silent_at)
            self._socket.settimeout(max(until - now, 0.0001))
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise Lost(f"{self.address[0]}: {error}") from error
            if not part:
                raise Lost(f"{self.address[0]} closed the connection")
            self.heard = time.monotonic()
            self._input += part
            return True


class Client:
    """A session that lives through the failures of servers. Not to be shared by threads.

    It connects to the servers in the order given, from the one at hand on. The methods raise
    `Lost` when a connection breaks, and `Expired` when the session is gone; the next call then
    begins another session.
    """

    def __init__(
        self, addresses: Sequence[Address], timeout_ms: int, retry_s: float = RETRY_SECONDS
    ) -> None:
        self.addresses = list(addresses)
        self.timeout_ms = timeout_ms
        self.retry_s = retry_s
        self.session = NEW_SESSION
        self.seen = 0
        # How often a connection broke that this side did not end.
        self.broken = 0
        self.sessions = 0
        # Of its sessions, as it was told.
        self.endings: list[Ending] = []
        self.connection: Connection | None = None
        # The last one that was granted.
        self._granted: Connection | None = None

    def connect(self, seconds_max: float) -> Connection:
        """The connection there is, or another one, as soon as a server grants it."""
        deadline = time.monotonic() + seconds_max
        while self.connection is None:
            for _ in self.addresses:
                address = self.addresses[0]
                try:
                    self.connection = Connection(address, self.timeout_ms, self.session, self.seen)
                    break
                except Lost:
                    self.addresses.append(self.addresses.pop(0))
                except Expired:
                    self._is_gone()
                    raise
            else:
                if time.monotonic() > deadline:
                    raise Lost(f"no server of {self.addresses} grants a session")
                time.sleep(self.retry_s)
        self._granted = self.connection
        if self.session != self.connection.session:
            self.sessions += 1
            self.session = self.connection.session
        return self.connection

    def call(self, opcode: int, body: bytes = b"", seconds_max: float = 30) -> Reply:
        connection = self.connect(seconds_max)
        with self.watched():
            reply = connection.call(opcode, body)
        self.check(reply)
        return reply

    def check(self, reply: Reply) -> None:
        """Gives the session up if the reply says that it is gone."""
        if reply.error == SESSION_EXPIRED:
            self.leave()
            self._is_gone()
            raise Expired(f"xid {reply.xid} is answered by error {reply.error}")

    def idle(self, seconds: float) -> None:
        connection = self.connect(seconds)
        with self.watched():
            connection.idle(seconds)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes it if the connection breaks meanwhile."""
        try:
            yield
        except Lost:
            self.broken += 1
            self.leave()
            # As real clients do: the next one is asked first.
            self.addresses.append(self.addresses.pop(0))
            raise
        finally:
            if self.connection is not None:
                self.seen = max(self.seen, self.connection.seen)

    def leave(self) -> None:
        """Ends the connection; the session may be taken up again."""
        if self.connection is not None:
            self.seen = max(self.seen, self.connection.seen)
            self.connection.close()
            self.connection = None

    def end(self) -> bool:
        """Ends the session, if a server can be told; whether it said that it did."""
        ended = False
        if self.connection is not None:
            with contextlib.suppress(Lost):
                xid = self.connection.send(CLOSE)
                while not ended:
                    reply = self.connection.receive()
                    ended = reply is not None and reply.xid == xid and reply.error == 0
        self.leave()
        self.session = NEW_SESSION
        return ended

    def _is_gone(self) -> None:
        """It was told so. Another session is begun next."""
        granted = self._granted
        if granted is not None and granted.session == self.session:
            timeout_s, heard = granted.timeout_s, granted.hearing.surely
            ending = Ending(self.session[0], timeout_s, heard, time.monotonic())
            self.endings.append(ending)
        self.session = NEW_SESSION

    # --- What the suites ask most ---------------------------------------------------------------

    def create(self, path: str, data: bytes = b"", flags: int = 0) -> Reply:
        return self.call(raw.CREATE, raw.create_body(path, data, flags))

    def set(self, path: str, data: bytes, version: int = -1) -> Reply:
        return self.call(raw.SET_DATA, raw.set_body(path, data, version))

    def delete(self, path: str, version: int = -1) -> Reply:
        return self.call(raw.DELETE, raw.delete_body(path, version))

    def get(self, path: str, watch: bool = False) -> tuple[bytes, Stat] | None:
        """Data and record as this server has them; None if there is no such znode."""
        reply = self.call(raw.GET_DATA, raw.text(path) + bytes([watch]))
        if reply.error == raw.NO_NODE:
            return None
        assert reply.error == 0, f"getData {path}: {reply.error}"
        (length,) = struct.unpack(">i", reply.body[:4])
        return reply.body[4 : 4 + max(length, 0)], Stat.of(reply.body)

    def sync(self) -> Reply:
        reply = self.call(SYNC, raw.text("/"))
        assert reply.error == 0, f"sync: {reply.error}"
        return reply

    def reconfig(self, joining: str = "", leaving: str = "") -> Reply:
        # Not a list of all members, and whatever the version is.
        words = [raw.text(text) if text else b"\xff" * 4 for text in (joining, leaving, "")]
        return self.call(RECONFIG, b"".join(words) + struct.pack(">q", -1))

    def children(self, path: str) -> list[str]:
        reply = self.call(raw.GET_CHILDREN, raw.text(path) + b"\0")
        assert reply.error == 0, f"getChildren {path}: {reply.error}"
        return names(reply.body)


def names(body: bytes) -> list[str]:
    """A list of strings."""
    (count,) = struct.unpack(">i", body[:4])
    found, at = [], 4
    for _ in range(count):
        (length,) = struct.unpack(">i", body[at : at + 4])
        found.append(body[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def created(reply: Reply) -> str:
    """The path of a znode that was created."""
    assert reply.error == 0, f"create: {reply.error}"
    return reply.body[4:].decode()
