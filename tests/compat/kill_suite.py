"""kill -9 under load: what was acknowledged is there, nothing happened twice.

    python3 tests/compat/kill_suite.py [--cycles 100] [--seeds 2] [--first-seed 20260]

Each cycle starts the server on the same files, loads it through several pipelining clients, kills
it, starts it again, and compares with what was acknowledged (`ledger.py`). Besides:

- ephemerals: a session that comes back still owns its own; those of sessions that do not are gone;
- watches die with the server: a session that comes back is not told before it sets them again;
- the files do not pile up, whatever the number of kills.

A kill falls at a random moment, just as a snapshot is being written, just as the log goes to its
next file, or right after a session was granted; and some are followed by more kills while the next
server loads. Every seed has a data directory of its own; the cycles are shared among the seeds.

kill -9 keeps the page cache, so it cannot show that the disk was asked. That is shown by a second
part: strace of the real binary, with a data sync between each write request and its reply.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import lab
import raw
from ledger import SESSION_MS, Ledger

FIRST_SEED = 20_260
SHORT_SESSION_MS = 1_000
# How long a kill waits for the moment that it is meant for.
MOMENT_SECONDS_MAX = 1.5
# Kills of one server in a row, with hardly a write between them.
SHORT_RUNS = 300
# However often it was killed, a server has no more files of the log than this. A snapshot is taken
# when the log since the last one is of 32 runs; three snapshots are kept with the log after them.
SEGMENTS_MAX = 150
CONFIG = {
    "tickTime": "500",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
    # Snapshots under load, so that kills fall into them and restarts begin from them.
    "snapCount": "3000",
    # Small files of the log (KiB), so that kills fall between two of them.
    "preAllocSize": "1024",
}


class Figures:
    """What was seen along the way; none of it is judged."""

    def __init__(self) -> None:
        self.served_ms: list[float] = []
        self.segments: list[int] = []
        self.mebibytes: list[float] = []
        self.kills: Counter[str] = Counter()

    def note_files(self, data_dir: Path) -> None:
        segments = size = 0
        for path in data_dir.rglob("*"):
            # It may go while it is looked at.
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size if path.is_file() else 0
                segments += path.name.startswith("segment.")
        self.segments.append(segments)
        self.mebibytes.append(size / (1 << 20))

    def show(self) -> None:
        served, segments, size = self.served_ms, self.segments, self.mebibytes
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        print(f"  kills: {kinds}")
        print(
            f"  start to first session served: median {statistics.median(served):.0f} ms, "
            f"worst {max(served):.0f} ms of {len(served)}"
        )
        print(
            f"  files: at most {max(segments)} of the log, {max(size):.1f} MiB in all; "
            f"at the end {segments[-1]} and {size[-1]:.1f} MiB",
            flush=True,
        )


class Killing:
    """The server, its clients, and what they know."""

    def __init__(self, server: lab.Server, seed: int, figures: Figures) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.figures = figures
        self.ledger = Ledger()
        self.gone: list[str] = []
        self.kept: tuple[int, bytes] = (0, bytes(16))

    def prepare(self) -> None:
        client = raw.Raw(self.server.port, SESSION_MS)
        self.ledger.prepare(client)
        for path in ["/live", "/watched"]:
            error, _ = client.create(path)
            assert error == 0, f"create {path}: {error}"
        error, _ = client.create("/live/kept", flags=raw.EPHEMERAL)
        assert error == 0
        self.kept = client.session
        client.close()

    def cycle(self, number: int) -> None:
        watching = raw.Raw(self.server.port, SESSION_MS, self.kept)
        watching.get("/watched", watch=True)
        doomed = raw.Raw(self.server.port, SHORT_SESSION_MS)
        error, path = doomed.create(f"/live/doomed-{number}", flags=raw.EPHEMERAL)
        assert error == 0, f"ephemeral: {error}"
        self.ledger.start(self.server.port)
        kind = self._kill_at_a_moment()
        self.figures.kills[kind] += 1
        self.ledger.join()
        doomed.close()
        watching.close()
        self.gone.append(path[4:].decode())
        if self.random.random() < 0.3:
            self._kill_while_it_loads()
        self.figures.served_ms.append(start_and_serve(self.server))
        self._check()
        self.figures.note_files(self.server.data_dir)

    def _kill_at_a_moment(self) -> str:
        """Kills under load; returns at which moment, the one that was chosen if it came."""
        chosen = self.random.choice(["any", "any", "snapshot", "next segment", "new session"])
        log, snapshots = (self.server.data_dir / name for name in ("log", "snapshot"))
        newest = max(path.name for path in log.iterdir())
        moments = {
            "snapshot": lambda: any(p.suffix == ".tmp" for p in snapshots.iterdir()),
            "next segment": lambda: max(path.name for path in log.iterdir()) > newest,
        }
        deadline = time.monotonic() + MOMENT_SECONDS_MAX
        if chosen == "any":
            time.sleep(self.random.uniform(0.0, 0.5))
        elif chosen == "new session":
            raw.Raw(self.server.port, SHORT_SESSION_MS).close()
        else:
            while not moments[chosen]():
                if time.monotonic() > deadline:
                    chosen = "any"
                    break
            time.sleep(self.random.choice([0, 0, 0.001, 0.003]))
        self.server.kill9_running()
        return chosen

    def _kill_while_it_loads(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            self.server.spawn()
            # From within the first instructions to after it serves.
            time.sleep(self.random.choice([0, 0.001, 0.003, 0.005, 0.01, 0.02, 0.05]))
            self.server.kill9_running()
            self.figures.kills["while it loads"] += 1

    def _check(self) -> None:
        client = raw.Raw(self.server.port, SESSION_MS, self.kept)
        try:
            self.ledger.check(client)
            assert client.get("/live/kept") is not None, "the ephemeral of a living session is gone"
            self._check_watch(client)
            self._check_gone(client)
        finally:
            client.close()

    def _check_watch(self, client: raw.Raw) -> None:
        """The watch of before the kill is gone; one that is set again works."""
        set_watched = (raw.SET_DATA, raw.set_body("/watched", b""))
        client.events = 0
        client.call(*set_watched)
        client.get("/watched", watch=True)
        assert client.events == 0, "a watch outlived the server"
        client.call(*set_watched)
        client.get("/watched")
        assert client.events == 1, f"{client.events} events for one watch"

    def _check_gone(self, client: raw.Raw) -> None:
        """Ephemerals of sessions that ended some cycles ago."""
        for path in self.gone[:-8]:
            lab.wait_until(
                lambda path=path: client.get(path) is None, f"{path} to go with its session", 20
            )
        del self.gone[:-8]


def start_and_serve(server: lab.Server) -> float:
    """Starts the server; returns how many ms it took until a client had a session."""
    began = time.monotonic()
    server.spawn()
    while True:
        try:
            raw.Raw(server.port, SHORT_SESSION_MS).close()
            return (time.monotonic() - began) * 1000
        except OSError as error:
            code = server.process.poll() if server.process else None
            if code is not None:
                raise RuntimeError(f"the server ended with {code}; {server.log_tail()}") from error
            if time.monotonic() > began + lab.START_SECONDS_MAX:
                raise TimeoutError(f"no session was granted: {error}") from error
            time.sleep(0.001)


def kill_cycles(report: lab.Report, cycles: int, seed: int) -> None:
    with report.case(f"seed {seed}: {cycles} kills under load lose nothing and repeat nothing"):
        with lab.Server("zkraft", CONFIG) as server:
            figures = Figures()
            killing = Killing(server, seed, figures)
            killing.prepare()
            for number in range(cycles):
                killing.cycle(number)
                if number % 25 == 24:
                    print(f"  {number + 1} of {cycles} kills", flush=True)
            workers = killing.ledger.workers
            sets = sum(worker.sets_acknowledged for worker in workers)
            pairs = sum(worker.pairs_acknowledged for worker in workers)
            items = sum(worker.items_sent for worker in workers)
            print(f"  acknowledged sets {sets}, transactions {pairs}, items sent {items}")
            figures.show()
            assert sets > cycles * 10, "the load was too light to show anything"
            assert max(figures.segments) <= SEGMENTS_MAX, "files of the log pile up"


def many_short_runs(report: lab.Report, runs: int) -> None:
    """A server that is killed again and again by what looks after it."""
    with report.case(f"{runs} kills of a server with nothing to do leave few files"):
        config = {key: value for key, value in CONFIG.items() if key != "snapCount"}
        with lab.Server("zkraft", config) as server:
            figures = Figures()
            for number in range(runs):
                server.kill9_running()
                figures.kills["idle"] += 1
                figures.served_ms.append(start_and_serve(server))
                figures.note_files(server.data_dir)
            figures.show()
            early = statistics.median(figures.served_ms[:20])
            late = statistics.median(figures.served_ms[-20:])
            print(f"  the last 20 starts took {late:.0f} ms, the first 20 {early:.0f} ms (medians)")
            assert max(figures.segments) <= SEGMENTS_MAX, "files of the log pile up"


def synced_before_reply(report: lab.Report) -> None:
    """Between each write request and its reply the real binary waits for the disk."""
    name = "strace: a data sync between every write request and its reply"
    if shutil.which("strace") is None:
        report.skip(name, "strace is not installed")
        return
    with report.case(name), lab.Server("zkraft", CONFIG) as server:
        assert server.process is not None
        client = raw.Raw(server.port, SESSION_MS)
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
    parser.add_argument("--cycles", type=int, default=100, help="kills under load, of all seeds")
    parser.add_argument("--seeds", type=int, default=2, help="data directories with their own")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--short-runs", type=int, default=SHORT_RUNS)
    arguments = parser.parse_args()
    lab.end_cleanly_on_sigterm()
    report = lab.Report("kill", "zkraft")
    synced_before_reply(report)
    many_short_runs(report, arguments.short_runs)
    for number in range(arguments.seeds):
        # The first ones take what is left over.
        cycles = arguments.cycles // arguments.seeds + (number < arguments.cycles % arguments.seeds)
        kill_cycles(report, cycles, arguments.first_seed + number)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
