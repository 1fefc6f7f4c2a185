"""A TCP relay in front of a server, to cut a client off without touching either side.

While cut, connections are accepted and closed at once, and those that existed are closed: the
client sees a lost connection, the server a client that went silent. It never changes a byte.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence


class Relay:
    """Forwards 127.0.0.1:`port` to the first of the servers that is there; a context manager."""

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self._servers = servers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._guard = threading.Lock()
        self._cut = False
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Closes every connection and keeps new ones from living."""
        with self._guard:
            self._cut = True
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()

    def mend(self) -> None:
        """Lets new connections through again."""
        with self._guard:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = self._connect_to_server()
        if server is None:
            client.close()
            return
        server.settimeout(None)
        with self._guard:
            if self._cut:
                client.close()
                server.close()
                return
            self._sockets |= {client, server}
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _connect_to_server(self) -> socket.socket | None:
        for place in self._servers:
            with contextlib.suppress(OSError):
                return socket.create_connection(place, timeout=5)
        return None

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Copies one direction; the end of either direction ends the connection."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # Each direction closes the end that it read from, so that no descriptor is reused early.
        with self._guard:
            self._sockets.discard(source)
        source.close()
