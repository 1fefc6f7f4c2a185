"""Names for the suites: records that come, go and change while servers look them up."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import lab

A = 1
NAME_ERROR = 3
PORT = 53
# Too short to matter: resolvers of the C library keep nothing anyway.
TTL_SECONDS = 1


class NameServer(threading.Thread):
    """Answers for IPv4 addresses over UDP until it is closed. Names it has no record of do not
    exist; one that is silent answers nobody."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.is_silent = False
        self._records: dict[str, str] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, PORT))
        self._socket.settimeout(0.1)
        self._closed = threading.Event()

    def __enter__(self) -> NameServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self.join(5)
        self._socket.close()

    def publish(self, name: str, address: str) -> None:
        self._records = {**self._records, name: address}

    def withdraw(self, name: str) -> None:
        self._records = {known: at for known, at in self._records.items() if known != name}

    def run(self) -> None:
        while not self._closed.is_set():
            try:
                query, sender = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            if not self.is_silent:
                self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
        address = self._records.get(".".join(labels).lower())
        # Asked for another kind, a name that exists has an answer without records.
        has_answer = address is not None and kind == A
        # An answer of an authority, to a question that came over a server that recurses.
        flags = 0x8580 | (NAME_ERROR if address is None else 0)
        reply = query[:2] + struct.pack(">HHHHH", flags, 1, int(has_answer), 0, 0) + question
        if address is not None and has_answer:
            # The name is that of the question.
            reply += struct.pack(">HHHIH", 0xC00C, A, 1, TTL_SECONDS, 4)
            reply += socket.inet_aton(address)
        return reply


class HostsFile:
    """/etc/hosts, for the suite and all that it starts while this lasts. It is mounted where the
    mounts are the suite's own."""

    PLACE = "/etc/hosts"

    def __init__(self, records: Mapping[str, str]) -> None:
        self._records = dict(records)
        runs = lab.CACHE / "run"
        runs.mkdir(parents=True, exist_ok=True)
        self._file, path = tempfile.mkstemp(prefix="hosts-", dir=runs)
        self._path = Path(path)
        # Whoever has given up root can read it too.
        self._path.chmod(0o644)
        self._write()

    def __enter__(self) -> HostsFile:
        mount = ["mount", "--bind", str(self._path), self.PLACE]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self._remove()
            raise lab.Skipped(f"{self.PLACE} cannot be mounted: {done.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.PLACE], check=False)
        self._remove()

    def publish(self, name: str, address: str) -> None:
        self._records[name] = address
        self._write()

    def _write(self) -> None:
        """In place, since the mount is of this very file, and at once: it is always as long."""
        records = {"localhost": "127.0.0.1", **self._records}
        lines = [f"{address:<15} {name}\n" for name, address in records.items()]
        os.pwrite(self._file, "".join(lines).encode(), 0)

    def _remove(self) -> None:
        os.close(self._file)
        self._path.unlink()
