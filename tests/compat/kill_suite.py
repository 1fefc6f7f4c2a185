"""kill -9 under load: what was acknowledged is there, nothing happened twice.

    python3 tests/compat/kill_suite.py [--cycles 100]

Each cycle starts the server on the same files, loads it through several pipelining clients, kills
it at a random moment, starts it again, and compares with what was acknowledged:

- counters: the value last acknowledged, or a later one that was under way; versions count each
  write once;
- a queue of sequential znodes: every acknowledged one is there with its data, no item stands
  twice, no number is given twice, though taken items are deleted;
- ephemerals: a session that comes back still owns its own; those of sessions that do not are gone.

kill -9 keeps the page cache, so it cannot show that the disk was asked. That is shown by a second
part: strace of the real binary, with a data sync between each write request and its reply.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lab
import raw

SEED = 20_260
WORKERS = 4
DEPTH = 16
SHORT_SESSION_MS = 1_000
LONG_SESSION_MS = 20_000
CONFIG = {
    "tickTime": "500",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
    # Snapshots under load, so that kills fall into them and restarts begin from them.
    "snapCount": "3000",
}


class Worker:
    """One client: what it sent, what was acknowledged. Lives through all cycles."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.counter = f"/counter-{number}"
        self.sets_sent = 0
        self.sets_acknowledged = 0
        self.acknowledgements = 0
        self.items_sent = 0
        self.items: dict[str, bytes] = {}
        self.deletes_sent: set[str] = set()
        self.deleted: set[str] = set()

    def load(self, port: int) -> None:
        """Writes until the connection breaks."""
        try:
            client = raw.Raw(port, LONG_SESSION_MS)
        except (OSError, raw.Refused):
            return
        pending: list[tuple[int, str, object]] = []
        try:
            while True:
                while len(pending) < DEPTH:
                    pending.append(self._send(client))
                xid, error, body = client.receive()
                if xid != pending[0][0]:
                    raise AssertionError(f"reply {xid} out of order, expected {pending[0][0]}")
                self._acknowledge(pending.pop(0), error, body)
        except OSError:
            client.close()

    def _send(self, client: raw.Raw) -> tuple[int, str, object]:
        kind = (self.sets_sent + self.items_sent + len(self.deletes_sent)) % 3
        if kind == 2 and len(self.items) > 64:
            path = min(self.items)
            self.deletes_sent.add(path)
            data = self.items.pop(path)
            body = raw.text(path) + struct.pack(">i", -1)
            return client.send(raw.DELETE, body), "delete", (path, data)
        if kind == 1:
            self.items_sent += 1
            data = f"{self.number}:{self.items_sent}".encode()
            body = raw.create_body("/queue/item-", data, raw.SEQUENTIAL)
            return client.send(raw.CREATE, body), "create", data
        self.sets_sent += 1
        body = raw.set_body(self.counter, str(self.sets_sent).encode())
        return client.send(raw.SET_DATA, body), "set", self.sets_sent

    def _acknowledge(self, sent: tuple[int, str, object], error: int, body: bytes) -> None:
        _, kind, what = sent
        assert error == 0, f"{kind} {what}: error {error}"
        if kind == "set":
            self.sets_acknowledged = what
            self.acknowledgements += 1
        elif kind == "create":
            self.items[body[4:].decode()] = what
        else:
            self.deleted.add(what[0])


class Killing:
    """The server, its clients, and what they know."""

    def __init__(self, server: lab.Server) -> None:
        self.server = server
        self.random = random.Random(SEED)
        self.workers = [Worker(number) for number in range(WORKERS)]
        self.versions = [0] * WORKERS
        self.highest = -1
        self.gone: list[str] = []
        self.kept: tuple[int, bytes] = (0, bytes(16))

    def prepare(self) -> None:
        client = raw.Raw(self.server.port, LONG_SESSION_MS)
        for path in ["/queue", "/live", *(worker.counter for worker in self.workers)]:
            error, _ = client.create(path)
            assert error == 0, f"create {path}: {error}"
        error, _ = client.create("/live/kept", flags=raw.EPHEMERAL)
        assert error == 0
        self.kept = client.session
        client.close()

    def cycle(self, number: int) -> None:
        doomed = raw.Raw(self.server.port, SHORT_SESSION_MS)
        error, path = doomed.create(f"/live/doomed-{number}", flags=raw.EPHEMERAL)
        assert error == 0, f"ephemeral: {error}"
        threads = [
            threading.Thread(target=worker.load, args=(self.server.port,), daemon=True)
            for worker in self.workers
        ]
        for thread in threads:
            thread.start()
        time.sleep(self.random.uniform(0.05, 0.5))
        self.server.kill9()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs after the kill"
        doomed.close()
        self.gone.append(path[4:].decode())
        self.server.start()
        self.check()

    def check(self) -> None:
        client = raw.Raw(self.server.port, LONG_SESSION_MS, self.kept)
        try:
            self._check_counters(client)
            self._check_queue(client)
            assert client.get("/live/kept") is not None, "the ephemeral of a living session is gone"
            self._check_gone(client)
        finally:
            client.close()

    def _check_counters(self, client: raw.Raw) -> None:
        for index, worker in enumerate(self.workers):
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
            assert found[1] >= self.versions[index], f"{worker.counter}: version went back"
            self.versions[index] = found[1]

    def _check_queue(self, client: raw.Raw) -> None:
        names = client.children("/queue")
        standing = {f"/queue/{name}" for name in names}
        for worker in self.workers:
            missing = [path for path in worker.items if path not in standing]
            assert not missing, f"acknowledged items are gone: {missing[:5]}"
            back = worker.deleted & standing
            assert not back, f"deleted items are back: {sorted(back)[:5]}"
        known = {path: data for worker in self.workers for path, data in worker.items.items()}
        unknown = standing - known.keys()
        data = {path: client.get(path) for path in sorted(unknown)}
        items = [*known.values(), *(found[0] for found in data.values() if found)]
        assert len(items) == len(set(items)), "an item stands twice"
        for path in list(known)[:: max(1, len(known) // 50)]:
            found = client.get(path)
            assert found is not None and found[0] == known[path], f"{path} holds {found}"
        # Numbers given from now on are higher than any that was seen, deleted ones included.
        error, probe = client.create("/queue/item-", b"probe", raw.SEQUENTIAL)
        assert error == 0
        path = probe[4:].decode()
        number = int(path.rsplit("-", 1)[1])
        seen = [int(p.rsplit("-", 1)[1]) for p in standing]
        assert number > max([self.highest, *seen]), f"number {number} was given before"
        self.highest = number
        client.call(raw.DELETE, raw.text(path) + struct.pack(">i", -1))

    def _check_gone(self, client: raw.Raw) -> None:
        """Ephemerals of sessions that ended some cycles ago."""
        for path in self.gone[:-8]:
            lab.wait_until(
                lambda path=path: client.get(path) is None, f"{path} to go with its session", 20
            )
        del self.gone[:-8]


def kill_cycles(report: lab.Report, cycles: int) -> None:
    with report.case(f"{cycles} kills under load lose nothing and repeat nothing"):
        with lab.Server("zkraft", CONFIG) as server:
            killing = Killing(server)
            killing.prepare()
            for number in range(cycles):
                killing.cycle(number)
                if number % 10 == 9:
                    print(f"  {number + 1} of {cycles} kills", flush=True)
            sets = sum(worker.sets_acknowledged for worker in killing.workers)
            items = sum(worker.items_sent for worker in killing.workers)
            print(f"  acknowledged sets {sets}, items sent {items}", flush=True)
            assert sets > cycles * 10, "the load was too light to show anything"


def synced_before_reply(report: lab.Report) -> None:
    """Between each write request and its reply the real binary waits for the disk."""
    name = "strace: a data sync between every write request and its reply"
    if shutil.which("strace") is None:
        report.skip(name, "strace is not installed")
        return
    with report.case(name), lab.Server("zkraft", CONFIG) as server:
        assert server.process is not None
        client = raw.Raw(server.port, LONG_SESSION_MS)
        assert client.create("/traced")[0] == 0
        with tempfile.TemporaryDirectory() as home:
            trace = Path(home) / "trace"
            calls = "read,recvfrom,write,writev,sendto,fdatasync,fsync"
            command = ["strace", "-f", "-yy", "-e", f"trace={calls}", "-o", str(trace)]
            tracer = subprocess.Popen(
                [*command, "-p", str(server.process.pid)],
                stderr=subprocess.PIPE,
            )
            try:
                assert tracer.stderr is not None
                attached = tracer.stderr.readline().decode()
                if "attached" not in attached:
                    raise AssertionError(f"strace cannot attach: {attached.strip()}")
                port = client.socket.getsockname()[1]
                for number in range(200):
                    error, _ = client.call(
                        raw.SET_DATA, raw.set_body("/traced", str(number).encode())
                    )
                    assert error == 0
            finally:
                tracer.terminate()
                tracer.wait(30)
            lines = trace.read_text(errors="replace").splitlines()
        client.close()
        checked = check_order(lines, port)
        assert checked >= 190, f"only {checked} of 200 writes were seen in the trace"


def check_order(lines: list[str], client_port: int) -> int:
    """Walks through a trace; returns how many replies followed a sync that followed the request."""
    ours = re.compile(rf"<TCP(?:v6)?:\[[^\]]*:{client_port}\]>")
    asked = synced = False
    syncing: set[str] = set()
    replies = 0
    for line in lines:
        thread, _, call = line.partition(" ")
        call = call.strip()
        if re.match(r"(fdatasync|fsync)\(", call):
            if asked:
                syncing.add(thread)
            if call.endswith("= 0") and asked:
                synced = True
        elif re.match(r"<\.\.\. (fdatasync|fsync) resumed>", call):
            # It counts only if it began after the request came.
            synced |= thread in syncing and call.endswith("= 0")
            syncing.discard(thread)
        elif re.match(r"(read|recvfrom)\(", call) and ours.search(call):
            if re.search(r"= [1-9][0-9]*$", call):
                asked, synced = True, False
                syncing.clear()
        elif re.match(r"(write|writev|sendto)\(", call) and ours.search(call):
            assert not asked or synced, f"a reply left before a sync: {line}"
            replies += asked
            asked = False
    return replies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100)
    arguments = parser.parse_args()
    lab.end_cleanly_on_sigterm()
    report = lab.Report("kill", "zkraft")
    synced_before_reply(report)
    kill_cycles(report, arguments.cycles)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
