"""Full, read-only, failing and slow disks: the reason is said, and nothing acknowledged is lost.

    python3 tests/compat/disk_suite.py [--rounds 1]

Disks are small real file systems, made for one case each: tmpfs, and ext4 on a loop device. They
are mounted in a mount namespace of this process alone, so that nothing of them is left behind
however it ends. What no small disk does by itself (a sync that fails, or that takes seconds) is
done to the real server by strace.

What must hold each time:

- a server that cannot go on ends with exit code 1 and one last line that names the file, the cause
  and what to do;
- clients get no acknowledgement for what was lost, and all that was acknowledged is there once the
  disk is well again (`ledger.py`);
- what is only slow ends no session and changes no order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import raw
from ledger import SESSION_MS, Ledger

# Said to the script when it runs itself in a mount namespace.
INSIDE = "DISK_SUITE_INSIDE"
MIB = 1 << 20
NOBODY = 65534
FULL = "No space left on device (os error 28)"
ROOM = "nothing that was acknowledged is lost: free some space and start again"
# No snapshots but where a case is about them.
CONFIG = {
    "tickTime": "500",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
    "snapCount": "10000000",
    "preAllocSize": "4096",
}


# --- Disks --------------------------------------------------------------------------------------


class Disk:
    """A small file system of its own, mounted at `path`."""

    def __init__(self, kind: str, mebibytes: int) -> None:
        self.kind = kind
        self.home = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=_runs()))
        self.path = self.home / "disk"
        self.path.mkdir()
        self.image = self.home / "image"
        if kind == "ext4":
            with open(self.image, "wb") as image:
                image.truncate(mebibytes * MIB)
            # Nothing reserved for root: full is full for everyone.
            _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))
        self._size = mebibytes
        try:
            self.mount()
        except RuntimeError:
            shutil.rmtree(self.home)
            raise

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
        shutil.rmtree(self.home)

    def mount(self, options: str = "rw") -> None:
        if self.kind == "ext4":
            # The loop device goes with the mount.
            _run("mount", "-o", f"loop,{options}", str(self.image), str(self.path))
        else:
            options = f"size={self._size}m,{options}"
            _run("mount", "-t", "tmpfs", "-o", options, "none", str(self.path))

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> Path:
        """Takes what is free but so many bytes, with a file that is not the server's."""
        path = self.path / "foreign"
        with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while (room := self.free() - leave) > 0:
                file.write(bytes(min(room, MIB)))
            # What is left is less than a block, or was only reckoned not to be free.
            while not leave:
                file.write(bytes(512))
        return path


def _runs() -> Path:
    runs = lab.CACHE / "run"
    runs.mkdir(parents=True, exist_ok=True)
    return runs


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")


def disk_kinds() -> dict[str, str | None]:
    """The kinds of disks, each with the reason why it cannot be had here, if so."""
    why = os.environ[INSIDE] or None
    kinds = {"tmpfs": why, "ext4": why}
    if why is None:
        for kind in kinds:
            try:
                Disk(kind, 16).__exit__()
            except (OSError, RuntimeError) as error:
                kinds[kind] = str(error)
    return kinds


class Bench:
    """Runs the cases; those on a disk once on each kind of disk."""

    def __init__(self, report: lab.Report, only: str) -> None:
        self.report = report
        self.only = only
        self.kinds = disk_kinds()

    def case(self, name: str, case: Callable[[], None]) -> None:
        if self.only in name:
            with self.report.case(name):
                case()

    def on_disks(
        self, name: str, mebibytes: int, case: Callable[[Disk], None], only: str = ""
    ) -> None:
        for kind, why in self.kinds.items():
            if only not in ("", kind) or self.only not in f"{kind}: {name}":
                continue
            if why is not None:
                self.report.skip(f"{kind}: {name}", why)
                continue
            with self.report.case(f"{kind}: {name}"), Disk(kind, mebibytes) as disk:
                case(disk)

    def traced(self, name: str, case: Callable[[], None]) -> None:
        if shutil.which("strace") is None:
            self.report.skip(name, "strace is not installed")
        else:
            self.case(name, case)


# --- Servers and their clients --------------------------------------------------------------------


@contextlib.contextmanager
def server_on(
    data: Path, ledger: Ledger | None = None, config: dict[str, str] | None = None
) -> Iterator[lab.Server]:
    """A server with its data there, and the ledger's znodes in it."""
    with lab.Server("zkraft", {**CONFIG, **(config or {})}, data_dir=data) as server:
        if ledger is not None:
            client = raw.Raw(server.port, SESSION_MS)
            ledger.prepare(client)
            client.close()
        yield server


def check(server: lab.Server, ledger: Ledger) -> None:
    """Compares what the server holds with what was acknowledged."""
    broken = list(server.data_dir.glob("catalog.broken-*"))
    assert not broken, f"the catalog did not survive: {broken}"
    client = raw.Raw(server.port, SESSION_MS)
    try:
        ledger.check(client)
    finally:
        client.close()


def loaded(ledger: Ledger, server: lab.Server, writes: int = 200) -> None:
    """Begins to load the server, and waits until so many writes more were answered."""
    enough = ledger.answered() + writes
    ledger.start(server.port)
    lab.wait_until(lambda: ledger.answered() >= enough, f"{writes} answers")


def stopped(server: lab.Server, *expected: str, seconds_max: float = 60) -> str:
    """Waits for the server to end by itself with a last line that holds all of this."""
    code, line = server.ended(seconds_max)
    assert code == 1, f"exit code {code}: {line}"
    assert line.startswith("zkraft stopped: "), f"the last line is: {line}"
    missing = [text for text in expected if text not in line]
    assert not missing, f"{missing} is not in: {line}"
    print(f"  {line}", flush=True)
    return line


def refused(server: lab.Server, *expected: str) -> str:
    """Starts a server that cannot start, for the reason that is told."""
    server.spawn()
    return stopped(server, *expected, seconds_max=lab.START_SECONDS_MAX)


def still_full(server: lab.Server, data: Path) -> None:
    """Starts a server whose disk is full: it ends for the same reason, unless what the last run had
    filled ahead is room enough."""
    server.spawn()
    lab.wait_until(
        lambda: not server.running() or lab.answers_handshake(server.port),
        "the server to serve or end",
        lab.START_SECONDS_MAX,
    )
    if server.running():
        print("  it began with the disk full")
        server.kill9()
    else:
        stopped(server, str(data), FULL, ROOM)


def misconfigured(server: lab.Server, *expected: str) -> None:
    """Starts a server whose configuration cannot be followed, for the reason that is told."""
    server.spawn()
    code, line = server.ended(lab.START_SECONDS_MAX)
    missing = [text for text in expected if text not in line]
    assert code == 2 and not missing, f"exit code {code}, {missing} missing: {line}"
    print(f"  {line}", flush=True)


def snapshots(data: Path) -> set[str]:
    return {path.name for path in (data / "snapshot").iterdir() if path.suffix != ".tmp"}


def leftovers(data: Path) -> list[str]:
    return [path.name for path in data.rglob("*.tmp")]


def mntr(server: lab.Server) -> dict[str, str]:
    lines = lab.four_letter(server.port, "mntr").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


class Tracer:
    """strace on one thread of a server, doing something to its system calls until it is left."""

    def __init__(self, server: lab.Server, thread: str, inject: str) -> None:
        calls = inject.split(":")[0]
        command = ["strace", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={inject}"]
        self.process = subprocess.Popen(
            [*command, "-p", str(_thread_id(server, thread))], stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        attached = self.process.stderr.readline().decode()
        if "attached" not in attached:
            self.process.kill()
            raise AssertionError(f"strace cannot attach: {attached.strip()}")

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def _thread_id(server: lab.Server, name: str) -> int:
    assert server.process is not None
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return int(task.name)
    raise AssertionError(f"the server has no thread {name}")


class Pinging:
    """A client with a short session that only says that it lives, as clients do."""

    def __init__(self, server: lab.Server, name: str, timeout_ms: int = 1_000) -> None:
        self.client = raw.Raw(server.port, timeout_ms)
        self.timeout_ms = self.client.timeout_ms
        self.path = f"/{name}"
        error, _ = self.client.create(self.path, flags=raw.EPHEMERAL)
        assert error == 0
        self.lost: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ping, daemon=True)
        self._thread.start()

    def _ping(self) -> None:
        try:
            while not self._end.wait(self.timeout_ms / 3_000):
                self.client.send(raw.PING)
        except OSError as error:
            self.lost = str(error)

    def check(self) -> None:
        """The connection stands, and so does the session's ephemeral."""
        assert self.lost is None, f"the connection was lost: {self.lost}"
        assert self.client.get(self.path) is not None, f"{self.path} is gone: the session expired"

    def close(self) -> None:
        self._end.set()
        self._thread.join(30)
        self.client.close()


# --- Full ---------------------------------------------------------------------------------------


def full_by_its_own_writes(disk: Disk) -> None:
    """So small a disk has no room for the reserve: what is full stays full."""
    data, spare = disk.path / "data", disk.path / "spare"
    spare.write_bytes(bytes(6 * MIB))
    ledger = Ledger(pad=8_000, keep=10**9)
    with server_on(data, ledger) as server:
        ledger.start(server.port)
        stopped(server, f"{data}/log/segment.", FULL, ROOM)
        ledger.join()
        still_full(server, data)
        spare.unlink()
        server.start()
        check(server, ledger)


def full_by_a_foreign_file(disk: Disk) -> None:
    data = disk.path / "data"
    ledger = Ledger(pad=1_000)
    with server_on(data, ledger) as server:
        loaded(ledger, server)
        foreign = disk.fill()
        stopped(server, f"{data}/log/segment.", FULL, ROOM)
        ledger.join()
        still_full(server, data)
        foreign.unlink()
        server.start()
        check(server, ledger)
        lab.wait_until(lambda: not leftovers(data), "the temporary files to go")


def full_but_for_the_reserve(disk: Disk) -> None:
    """The reserve lets a server start on a full disk, so that its clients can make room."""
    data = disk.path / "data"
    # So large that the log of their deletion takes no more than a quarter of the reserve.
    ledger = Ledger(pad=32_000, keep=10**9)
    with server_on(data, ledger, {"snapCount": "2000"}) as server:
        assert (data / "ballast").exists(), "there is no reserve"
        ledger.start(server.port)
        stopped(server, f"{data}/log/segment.", FULL, ROOM)
        ledger.join()
        server.start()
        assert "the reserve of 4096 KiB was released" in server.log_tail(100)
        check(server, ledger)
        client = raw.Raw(server.port, SESSION_MS)
        ledger.delete_items(client, 10**9)
        client.close()
        print(f"  all was deleted with {disk.free() // 1024} KiB left", flush=True)
        # A start on a disk that is nearly full takes a snapshot. Two are kept then, with the log
        # from the older one on: the second of now lets everything go that was before.
        # With more than this it is not nearly full any more, and the rest goes in due time, below.
        enough = 16 * MIB
        starts = 0
        while disk.free() <= enough:
            assert starts < 3, f"{disk.free() // 1024} KiB after {starts} starts"
            assert server.stop() == 0
            server.start()
            starts += 1
            with contextlib.suppress(TimeoutError):
                lab.wait_until(lambda: disk.free() > enough, "room", seconds_max=5)
        print(f"  after {starts} more starts {disk.free() // 1024} KiB are free", flush=True)
        client = raw.Raw(server.port, SESSION_MS)
        for _ in range(3):
            # A snapshot's worth of writes, small ones.
            for number in range(2_000):
                error, _ = client.create(f"/after-{number}")
                assert error in (0, -110), error
        client.close()
        lab.wait_until(lambda: disk.free() > 32 * MIB, "all that was deleted to go")
        print(f"  after three more snapshots {disk.free() // 1024} KiB are free", flush=True)
        check(server, ledger)
        server.kill9_running()
        server.start()
        check(server, ledger)
        assert (data / "ballast").exists(), "the reserve is not there again"


def full_for_snapshots_only(disk: Disk) -> None:
    """The log is elsewhere: a snapshot that has no room costs nothing but the snapshot."""
    ledger = Ledger(pad=1_000)
    data = disk.path / "data"
    with tempfile.TemporaryDirectory(dir=_runs()) as log:
        config = {"dataLogDir": log, "snapCount": "300"}
        with server_on(data, ledger, config) as server:
            foreign = disk.fill()
            loaded(ledger, server, 2_000)
            said = "no snapshot was written; the log is kept instead"
            lab.wait_until(lambda: said in server.log_tail(100), "the warning")
            assert "is nearly full (0 KiB left)" in server.log_tail(100), server.log_tail(5)
            assert not snapshots(data), "a snapshot on a full disk"
            foreign.unlink()
            lab.wait_until(lambda: snapshots(data), "a snapshot once there is room")
            server.kill9_running()
            ledger.join()
            server.start()
            check(server, ledger)


def no_room_for_a_snapshot_beside_the_log(disk: Disk) -> None:
    """A snapshot does not take the last space from the log: the server goes on."""
    data = disk.path / "data"
    # Slow enough that the log does not take all room while a snapshot is being written.
    ledger = Ledger(pad=8_000, keep=10**9, pause_s=0.001)
    with server_on(data, ledger, {"snapCount": "4000"}) as server:
        # About 1,000 items of 8 KB: so much log, and a snapshot of the same size.
        disk.fill(leave=18 * MIB)
        loaded(ledger, server, 4_000)
        said = "no snapshot was written; the log is kept instead"
        lab.wait_until(lambda: said in server.log_tail(100), "the warning")
        enough = ledger.answered() + 200
        lab.wait_until(lambda: ledger.answered() >= enough, "answers after it")
        lab.wait_until(lambda: not leftovers(data), "the temporary files to go")
        stopped(server, f"{data}/log/segment.", FULL, ROOM)
        ledger.join()
        (disk.path / "foreign").unlink()
        server.start()
        check(server, ledger)


def full_log_disk(disk: Disk) -> None:
    log = disk.path / "log-disk"
    ledger = Ledger(pad=1_000)
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        with server_on(Path(home) / "data", ledger, {"dataLogDir": str(log)}) as server:
            loaded(ledger, server)
            foreign = disk.fill()
            stopped(server, f"{log}/log/segment.", FULL, ROOM)
            ledger.join()
            still_full(server, log)
            foreign.unlink()
            server.start()
            check(server, ledger)


# --- Read-only, and not ours ----------------------------------------------------------------------


def read_only_at_a_start(disk: Disk) -> None:
    data = disk.path / "data"
    ledger = Ledger()
    with server_on(data, ledger) as server:
        loaded(ledger, server)
        assert server.stop() == 0
        ledger.join()
        disk.remount("ro")
        refused(server, str(data), "Read-only file system (os error 30)", "mount it writable")
        disk.remount("rw")
        server.start()
        check(server, ledger)


def read_only_under_load(disk: Disk) -> None:
    """What ext4 does after an error of the drive beneath it."""
    data = disk.path / "data"
    ledger = Ledger()
    with server_on(data, ledger) as server:
        loaded(ledger, server)
        disk.remount("abort")
        stopped(server, f"{data}/log/segment.")
        ledger.join()
        refused(server, str(data), "Read-only file system (os error 30)", "mount it writable")
        disk.unmount()
        disk.mount()
        server.start()
        check(server, ledger)


def of_another_user(disk: Disk) -> None:
    """Started once as root, then as the user that it is meant for."""
    data = disk.path / "data"
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        raise lab.Skipped("needs root and setpriv")
    ledger = Ledger()
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reachable = subprocess.run(
        [*nobody, "test", "-x", str(lab.zkraft_binary())],
        capture_output=True,
        text=True,
        check=False,
    )
    if reachable.returncode != 0:
        why = reachable.stderr.strip() or "it cannot reach the binary"
        raise lab.Skipped(f"the server cannot run as another user: {why}")
    with server_on(data, ledger) as server:
        loaded(ledger, server)
        assert server.stop() == 0
        ledger.join()
        server.home.chmod(0o755)
        disk.home.chmod(0o755)
        server.wrapper = tuple(nobody)
        expected = ("Permission denied (os error 13)", "must belong to the user that runs zkraft")
        refused(server, f"{data}/lock", *expected)
        data.chmod(0o700)
        misconfigured(server, str(data), *expected)
        _run("chown", "-R", str(NOBODY), str(data))
        server.start()
        check(server, ledger)


def not_a_directory() -> None:
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        file = Path(home) / "file"
        file.write_text("not a directory")
        for data in (file, file / "data"):
            server = lab.Server("zkraft", CONFIG, data_dir=data)
            try:
                misconfigured(server, str(file), "dataDir must be a directory")
            finally:
                server.close()
        config = {**CONFIG, "dataLogDir": str(file)}
        server = lab.Server("zkraft", config, data_dir=Path(home) / "data")
        try:
            refused(server, str(file), "dataDir and dataLogDir must be directories")
        finally:
            server.close()
        assert file.read_text() == "not a directory"


# --- Failing calls --------------------------------------------------------------------------------


def failing_calls() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What fails, how strace is told, and what is said then."""
    again = "check the disk and start again"
    yield "a sync", "fdatasync:error=EIO:when=5", ("sync of", "(os error 5)", again)
    yield "a sync, for want of room", "fdatasync:error=ENOSPC:when=5", ("cannot sync", FULL, ROOM)
    yield "a write", "pwrite64:error=EIO:when=5", ("cannot write to", "(os error 5)", again)
    yield (
        "a write, for the quota",
        "pwrite64:error=EDQUOT:when=5",
        ("cannot write to", "(os error 122)", ROOM),
    )
    yield (
        "a write, for a file system that became read-only",
        "pwrite64:error=EROFS:when=5",
        ("cannot write to", "(os error 30)", "mount it writable"),
    )
    yield (
        "a new file",
        "openat:error=EACCES:when=1",
        ("cannot create", "(os error 13)", "must belong to the user"),
    )


def failing_call(inject: str, expected: tuple[str, ...]) -> None:
    """It is not tried again, and nothing is acknowledged that rests on it."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        with server_on(data, ledger, {"preAllocSize": "1024"}) as server:
            with Tracer(server, "log", inject):
                ledger.start(server.port)
                stopped(server, f"{data}/log", *expected)
                ledger.join()
            server.start()
            check(server, ledger)


def failing_stop() -> None:
    """A log that cannot be closed is told, though everything acknowledged is in it."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        with server_on(data, ledger) as server:
            client = raw.Raw(server.port, SESSION_MS)
            assert client.create("/last")[0] == 0
            with Tracer(server, "log", "fdatasync:error=EIO"):
                assert server.process is not None
                server.process.terminate()
                stopped(server, f"sync of {data}/log/segment.", "check the disk and start again")
            server.start()
            client = raw.Raw(server.port, SESSION_MS)
            assert client.get("/last") is not None
            check(server, ledger)


def no_more_files() -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        with server_on(data, ledger, {"preAllocSize": "1024"}) as server:
            loaded(ledger, server, 10)
            assert server.process is not None
            pid = server.process.pid
            taken = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken, taken))
            # A new segment opens its file, the same for what goes past the cache, and its directory.
            expected = ("zkraft stopped: cannot ", "(os error 24)", "raise the limit of open files")
            stopped(server, f" {data}/log", *expected)
            ledger.join()
            server.start()
            check(server, ledger)


def failing_snapshots() -> None:
    ledger = Ledger()
    said = "no snapshot was written; the log is kept instead"
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        for call in ("fdatasync:error=EIO", "pwrite64:error=EIO", "openat:error=EMFILE"):
            shutil.rmtree(data, ignore_errors=True)
            ledger = Ledger()
            with server_on(data, ledger, {"snapCount": "300"}) as server:
                with Tracer(server, "snapshot", call):
                    loaded(ledger, server, 2_000)
                    lab.wait_until(lambda: said in server.log_tail(100), f"the warning ({call})")
                    enough = ledger.answered() + 200
                    lab.wait_until(lambda: ledger.answered() >= enough, "answers after it")
                lab.wait_until(lambda: not leftovers(data), "the temporary files to go")
                server.kill9_running()
                ledger.join()
                server.start()
                check(server, ledger)


# --- Slow ---------------------------------------------------------------------------------------


def stall_of_three_seconds() -> None:
    """Three times the sessions' timeouts: they live on, and the order stays."""
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        # So low a limit holds back the clients that wait: their pings are not even read.
        with server_on(data, None, {"globalOutstandingLimit": "10"}) as server:
            idle = [Pinging(server, f"idle-{number}") for number in range(3)]
            held = [Pinging(server, f"held-{number}") for number in range(3)]
            writer = raw.Raw(server.port, SESSION_MS)
            assert writer.create("/ordered")[0] == 0
            with Tracer(server, "log", "fdatasync:delay_exit=3000000:when=1"):
                began = time.monotonic()
                sent = [
                    writer.send(raw.SET_DATA, raw.set_body("/ordered", str(number).encode()))
                    for number in range(50)
                ]
                for client in held:
                    client.client.send(raw.SET_DATA, raw.set_body(client.path, b"x"))
                time.sleep(0.5)
                for word, expected in (("srvr", "Mode: "), ("mntr", "zk_"), ("ruok", "imok")):
                    answer = lab.four_letter(server.port, word)
                    assert expected in answer, f"{word}: {answer[:80]}"
                asked_s = time.monotonic() - began
                got = [writer.receive() for _ in sent]
                stalled_s = time.monotonic() - began
            assert asked_s < 2.5 < stalled_s, f"words {asked_s:.1f} s, writes {stalled_s:.1f} s"
            print(f"  the words were answered after {asked_s:.1f} s of {stalled_s:.1f} s")
            assert [xid for xid, _, _ in got] == sent, "out of order"
            assert not any(error for _, error, _ in got)
            # Long enough for a wrong expiry to be carried out.
            time.sleep(1.5)
            for client in [*idle, *held]:
                client.check()
                client.close()
            lines = [line for line in server.log_tail(100).splitlines() if "slow" in line]
            assert lines, "no warning of the slow sync"
            print(f"  {lines[0]}", flush=True)
            duration = re.search(r"duration_ms=(\d+)", lines[0])
            assert duration and 2_900 < int(duration[1]) < 30_000, lines[0]
            assert f"{data}/log" in lines[0], "the warning does not say which disk"
            assert int(mntr(server)["zk_fsync_threshold_exceed_count"]) == 1


def slow_all_the_time(rounds: int) -> None:
    """Every sync takes 50 ms, and the server is killed in the middle of it."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        with server_on(Path(home) / "data", ledger, {"snapCount": "300"}) as server:
            for _ in range(3 * rounds):
                with Tracer(server, "log", "fdatasync:delay_enter=50000"):
                    loaded(ledger, server, 500)
                    server.kill9_running()
                    ledger.join()
                server.start()
                check(server, ledger)


# --- Signals, and two at once ---------------------------------------------------------------------


def stopped_for_three_seconds() -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        with server_on(Path(home) / "data", ledger) as server:
            clients = [Pinging(server, f"pinging-{number}") for number in range(3)]
            loaded(ledger, server)
            server.pause()
            time.sleep(3)
            answered = ledger.answered()
            server.resume()
            lab.wait_until(lambda: ledger.answered() > answered + 200, "answers after the pause")
            time.sleep(1.5)
            for client in clients:
                client.check()
                client.close()
            server.kill9_running()
            ledger.join()
            server.start()
            check(server, ledger)


def told_to_stop_under_load(rounds: int) -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        with server_on(Path(home) / "data", ledger, {"snapCount": "300"}) as server:
            for _ in range(5 * rounds):
                loaded(ledger, server)
                code = server.stop()
                assert code == 0, f"exit code {code}: {server.log_tail(3)}"
                ledger.join()
                server.start()
                assert "clean_shutdown=true" in server.log_tail(20), server.log_tail(20)
                check(server, ledger)


def two_on_one_directory() -> None:
    ledger = Ledger()
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        with server_on(data, ledger) as server:
            loaded(ledger, server)
            second = lab.Server("zkraft", CONFIG, data_dir=data)
            try:
                refused(second, f"data directory {data} is in use by another zkraft")
            finally:
                second.close()
            answered = ledger.answered()
            lab.wait_until(lambda: ledger.answered() > answered + 200, "answers of the first")
            server.kill9_running()
            ledger.join()
            server.start()
            check(server, ledger)


def killed_while_another_starts(rounds: int) -> None:
    """The second gets the directory, or is refused; never do both write."""
    ledger = Ledger()
    began = refusals = 0
    with tempfile.TemporaryDirectory(dir=_runs()) as home:
        data = Path(home) / "data"
        with server_on(data, ledger) as first:
            second = lab.Server("zkraft", CONFIG, data_dir=data)
            try:
                for number in range(10 * rounds):
                    loaded(ledger, first, 50)
                    second.spawn()
                    time.sleep(0.002 * (number % 5))
                    first.kill9_running()
                    ledger.join()
                    try:
                        lab.wait_until(lambda: lab.answers_handshake(second.port)
                                       or not second.running(), "the second to serve or end")
                        if second.running():
                            began += 1
                            check(second, ledger)
                            second.kill9_running()
                        else:
                            refusals += 1
                            stopped(second, "is in use by another zkraft")
                    finally:
                        second.kill9()
                    first.start()
                    check(first, ledger)
            finally:
                second.close()
    print(f"  the second server began {began} times and was refused {refusals} times", flush=True)


# --- All of it ----------------------------------------------------------------------------------


def cases(bench: Bench, rounds: int) -> None:
    disks, traced, case = bench.on_disks, bench.traced, bench.case
    disks("a disk full of the server's own writes", 24, full_by_its_own_writes)
    disks("a disk that something else fills under load", 24, full_by_a_foreign_file)
    disks("a full disk with a reserve", 64, full_but_for_the_reserve)
    # With less room than this, a start alone calls for a snapshot.
    disks("a full disk for snapshots, with the log elsewhere", 32, full_for_snapshots_only)
    disks("no room for a snapshot beside the log", 48, no_room_for_a_snapshot_beside_the_log)
    disks("a full disk for the log, with the rest elsewhere", 16, full_log_disk)
    disks("read-only at a start", 16, read_only_at_a_start)
    disks("read-only under load", 16, read_only_under_load, only="ext4")
    disks("files of another user", 16, of_another_user)
    case("a data directory that is none", not_a_directory)

    for what, inject, expected in failing_calls():
        traced(
            f"a call of the log fails: {what}",
            lambda inject=inject, expected=expected: failing_call(inject, expected),
        )
    traced("a call of the log fails: the last sync of a clean stop", failing_stop)
    case("a call of the log fails: no more files may be opened", no_more_files)
    traced("calls of the snapshot thread fail", failing_snapshots)
    traced("a sync takes three seconds", stall_of_three_seconds)
    traced("every sync is slow", lambda: slow_all_the_time(rounds))

    case("the process is stopped for three seconds", stopped_for_three_seconds)
    case("told to stop under load", lambda: told_to_stop_under_load(rounds))
    case("a second server on the same directory", two_on_one_directory)
    case("killed while another one starts", lambda: killed_while_another_starts(rounds))


def enter_namespace() -> None:
    """Runs this script again where its mounts are its own; tells it why not, if that cannot be."""
    mine = [sys.executable, __file__, *sys.argv[1:]]
    why = "unshare is not installed"
    for flags in (["-m"], ["-r", "-m"]) if shutil.which("unshare") else ():
        tried = subprocess.run(
            ["unshare", *flags, "true"], capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            os.environ[INSIDE] = ""
            os.execvp("unshare", ["unshare", *flags, "--propagation", "private", *mine])
        why = f"no mount namespace: {tried.stderr.strip()}"
    os.environ[INSIDE] = why
    os.execv(sys.executable, mine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="how often all of it is done")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    if INSIDE not in os.environ:
        enter_namespace()
    lab.end_cleanly_on_sigterm()
    report = lab.Report("disk", "zkraft")
    bench = Bench(report, arguments.only)
    for _ in range(arguments.rounds):
        cases(bench, arguments.rounds)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
