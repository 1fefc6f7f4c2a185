"""The laboratory of the interop suites: downloads, servers and the report.

Every suite beside this file imports it. It fetches what the suites need (Debian packages, PyPI
packages) into `<repo>/.cache`, starts one server at a time per `Server` (zkraft or Apache
ZooKeeper 3.8.0), and counts cases. Python 3.11 standard library only.

It must never install anything system-wide, never listen on anything but loopback addresses and
networks of its own, and never end a process that it did not start.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

REPO = Path(__file__).resolve().parents[2]
CACHE = REPO / ".cache"

Kind = Literal["zkraft", "zookeeper"]

# Options of a ZooKeeper server that is measured. Others have what starts fast and stays small.
JVM_OF_ONE = ("-XX:TieredStopAtLevel=4", "-XX:-UseSerialGC", "-XX:+UseG1GC", "-Xmx4g", "-Xms1g")
# Each of three has less; what it does not need it does not take.
JVM_OF_THREE = ("-XX:TieredStopAtLevel=4", "-XX:-UseSerialGC", "-XX:+UseG1GC", "-Xmx2g")

START_SECONDS_MAX = 30
# zkraft takes 15 s at most by itself (manifest_suite.py); the machine may be busy besides.
STOP_SECONDS_MAX = 60

# What a ZooKeeper server of Debian's libzookeeper-java needs at run time. Jetty is left out:
# the admin server stays off.
ZOOKEEPER_PACKAGES = (
    "libzookeeper-java",
    "libslf4j-java",
    "libnetty-java",
    "libsnappy-java",
    "libdropwizard-metrics-java",
    "libcommons-cli-java",
    "libcommons-io-java",
)
ZOOKEEPER_JARS = (
    "zookeeper.jar",
    "zookeeper-jute.jar",
    "slf4j-api.jar",
    "slf4j-simple.jar",
    "metrics-core.jar",
    "snappy-java.jar",
    "commons-cli.jar",
    "commons-io.jar",
    "netty-*.jar",
)

# The version that the protocol facts describe, and what of pyspark's jars it needs to run. Netty's
# native parts and the log4j binding of slf4j are left out: without a binding nothing is logged.
BASELINE = "3.9.5"
BASELINE_JARS = (
    r"(zookeeper|zookeeper-jute|slf4j-api|metrics-core|snappy-java|commons-io|commons-cli"
    r"|curator-(client|framework|recipes)"
    r"|netty-(buffer|codec|codec-base|common|handler|resolver|transport"
    r"|transport-classes-epoll|transport-native-unix-common))-\d[^-]*\.jar"
)


# --- Downloads ----------------------------------------------------------------------------------


def debian(*packages: str) -> Path:
    """Unpacks Debian packages with their dependencies and returns the root of the unpacked tree.

    Dependencies that this machine has installed are not fetched, except Java libraries: a class
    path is built from one tree. Java runtimes are never fetched. Idempotent: one stamp per
    package name.
    """
    root = CACHE / "deb" / "root"
    stamps = CACHE / "deb" / "stamps"
    with _locked():
        for folder in (root, stamps, CACHE / "deb" / "archives"):
            folder.mkdir(parents=True, exist_ok=True)
        asked = [name for name in packages if not (stamps / name).exists()]
        if asked:
            wanted = [n for n in _closure(asked) if not (stamps / n).exists()]
            _fetch(wanted, CACHE / "deb" / "archives", root)
            for name in wanted:
                (stamps / name).touch()
    return root


def venv(*requirements: str) -> Path:
    """Installs PyPI requirements into `.cache/venv`; returns the path of its Python."""
    home = CACHE / "venv"
    python = home / "bin" / "python3"
    stamps = home / "stamps"
    with _locked():
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(home)])
        stamps.mkdir(exist_ok=True)
        missing = [r for r in requirements if not (stamps / _stamp_name(r)).exists()]
        if missing:
            _run([str(python), "-m", "pip", "install", "--quiet", *missing])
            for requirement in missing:
                (stamps / _stamp_name(requirement)).touch()
    return python


def flink(version: str) -> Path:
    """The jars of one Apache Flink release: a directory with `lib/` and `bin/`.

    They come from PyPI's apache-flink-libraries (230 to 330 MB), which some releases publish as a
    wheel (`pyflink/lib`) and some as a source archive (`<name>/deps/lib`). It has no scripts.
    """
    home = CACHE / f"flink-{version}"
    stamp = home / "complete"
    with _locked():
        if stamp.exists():
            return home
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as downloads:
            requirement = f"apache-flink-libraries=={version}"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*pip, "--dest", downloads, requirement])
            (archive,) = Path(downloads).iterdir()
            _unpack_flink(archive, home)
        stamp.touch()
    return home


def _unpack_flink(archive: Path, home: Path) -> None:
    """Copies `…/lib/*.jar` and `…/bin/*.jar` of a wheel or source archive to `lib` and `bin`."""
    wanted = re.compile(r"(?:pyflink|[^/]+/deps)/((?:lib|bin)/[^/]+\.jar)")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if match := wanted.fullmatch(name):
                    _copy_stream(wheel.open(name), home / match[1])
    else:
        with tarfile.open(archive) as source:
            for member in source:
                if match := wanted.fullmatch(member.name):
                    stream = source.extractfile(member)
                    if stream is not None:
                        _copy_stream(stream, home / match[1])


def zookeeper_baseline() -> Path:
    """The jars of Apache ZooKeeper 3.9.5 and of Curator 5.9.0: a directory full of jars.

    They come from PyPI's pyspark 4.3.0, a source archive of 456 MB that carries them among many.
    """
    home = CACHE / f"zookeeper-{BASELINE}"
    stamp = home / "complete"
    with _locked():
        if stamp.exists():
            return home
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*pip, "--dest", downloads, "pyspark==4.3.0"])
            (archive,) = Path(downloads).iterdir()
            with tarfile.open(archive) as source:
                for member in source:
                    match = re.fullmatch(r"[^/]+/deps/jars/([^/]+\.jar)", member.name)
                    if match and re.fullmatch(BASELINE_JARS, match[1]):
                        stream = source.extractfile(member)
                        if stream is not None:
                            _copy_stream(stream, home / match[1])
        if not (home / f"zookeeper-{BASELINE}.jar").exists():
            raise RuntimeError(f"no ZooKeeper {BASELINE} in {archive.name}")
        stamp.touch()
    return home


def _copy_stream(stream: IO[bytes], target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with stream, open(target, "wb") as file:
        shutil.copyfileobj(stream, file)


@functools.cache
def zkraft_binary() -> Path:
    """The server under test: `ZKRAFT_BIN`, or the release build, which is made if missing.

    A build that is older than its sources is refused, not made anew: other suites may be running
    it. That is looked at once, so that who edits meanwhile does not end a suite.
    """
    named = os.environ.get("ZKRAFT_BIN")
    if named:
        return Path(named)
    built = REPO / "target" / "release" / "zkraft"
    if not built.exists():
        _run(["cargo", "build", "--release", "-j1"], cwd=REPO)
    elif newer := newer_source(built, REPO):
        raise RuntimeError(
            f"{built} is older than {newer.relative_to(REPO)}: run `cargo build --release`, "
            f"or name the server to test in ZKRAFT_BIN (if cargo finds nothing to build: "
            f"`touch {built}`)"
        )
    return built


def newer_source(built: Path, repo: Path) -> Path | None:
    """The newest of the sources of a build that were changed after it; None if none was.

    The sources are those that cargo names in the list beside the build: files that only tests have
    would be newer for ever. Without such a list they are all that is below `src` and `proto`.
    """
    listed = built.with_suffix(".d")
    names: list[str] = []
    if listed.exists():
        _, _, line = listed.read_text(encoding="utf-8").partition(": ")
        names = [re.sub(r"\\(.)", r"\1", name) for name in re.split(r"(?<!\\)\s+", line)]
    # A list that came with a copied build is of another tree.
    sources = [path for path in map(Path, filter(None, names)) if path.is_relative_to(repo)]
    if not sources:
        sources = [path for part in ("src", "proto") for path in (repo / part).rglob("*")]
    changed = {p: p.stat().st_mtime for p in [*sources, repo / "Cargo.lock"] if p.exists()}
    newest = max(changed, key=lambda path: changed[path])
    return newest if changed[newest] > built.stat().st_mtime else None


def zkraft_of(commit: str) -> Path:
    """The server as an earlier commit has it, a release build that is made once.

    `Skipped` if the history here does not reach that far.
    """
    home = CACHE / "builds" / commit
    binary = home / "zkraft"
    with _locked(f"builds/{commit}.lock"):
        if binary.exists():
            return binary
        git = ["git", "-C", str(REPO)]
        found = subprocess.run(
            [*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False
        )
        if found.returncode != 0:
            raise Skipped(f"the history here has no commit {commit[:12]} (a shallow clone?)")
        with tempfile.TemporaryDirectory(dir=CACHE) as sources:
            _run([*git, "archive", "--output", f"{sources}/tree.tar", commit])
            _run(["tar", "-xf", "tree.tar"], cwd=Path(sources))
            target = Path(sources) / "target"
            build = ["cargo", "build", "--release", "--locked", "-j1", "--bin", "zkraft"]
            _run([*build, "--target-dir", str(target)], cwd=Path(sources))
            home.mkdir(parents=True, exist_ok=True)
            # Under its name only when it is whole.
            shutil.copy2(target / "release" / "zkraft", home / "zkraft.new")
            (home / "zkraft.new").rename(binary)
    return binary


@contextlib.contextmanager
def _locked(name: str = "lock") -> Iterator[None]:
    """Holds a lock of the cache, so that two suites may start at once."""
    path = CACHE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _closure(packages: Sequence[str]) -> list[str]:
    """The packages and all they depend on, without what the machine itself must provide."""
    try:
        return _walk_dependencies(packages)
    except LookupError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update", "-qq"])
        return _walk_dependencies(packages)


def _walk_dependencies(packages: Sequence[str]) -> list[str]:
    installed = _installed_packages()
    found: list[str] = []
    level = list(packages)
    while level:
        found += level
        following: set[str] = set()
        for dependency in _direct_dependencies(level):
            provided = dependency in installed and not dependency.endswith(("-java", "-jni"))
            if not provided and "-jre" not in dependency and dependency not in found:
                following.add(dependency)
        level = sorted(following)
    return found


def _direct_dependencies(packages: Sequence[str]) -> list[str]:
    """The first real alternative of each `Depends` of each package."""
    done = subprocess.run(
        ["apt-cache", "depends", "--important", "--no-pre-depends", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LookupError(f"apt-cache depends {' '.join(packages)}: {done.stderr.strip()}")
    names = []
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"\s+\|?Depends: ([a-z0-9][a-z0-9.+-]*)", line)
        if match:
            names.append(match[1])
    return names


def _installed_packages() -> set[str]:
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}


def _fetch(packages: Sequence[str], archives: Path, root: Path) -> None:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
    try:
        _run(command, cwd=archives)
    except RuntimeError:
        # A stale index names files that the mirror no longer has.
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update", "-qq"])
        _run(command, cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(root)])
        archive.unlink()


def _stamp_name(requirement: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]", "_", requirement)


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        detail = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {detail}")


# --- Servers ------------------------------------------------------------------------------------


class Server:
    """One server process with its own configuration file, data directory and port.

    `config` holds zoo.cfg keys that are added to, or replace, the defaults. `arguments` are passed
    to zkraft behind the configuration file and are not allowed for ZooKeeper; `jvm_args` are for
    ZooKeeper alone and zkraft does not see them: what a zoo.cfg cannot say to it. `wrapper` is a
    command that runs the server in its own process (`setpriv ...`); `host` is the address on which
    it serves clients. As a context manager it starts
    the server, and stops it and removes the directory that it made at the end (kept when
    `LAB_KEEP` is set).
    """

    def __init__(
        self,
        kind: Kind,
        config: Mapping[str, str] | None = None,
        port: int | None = None,
        data_dir: Path | None = None,
        arguments: Sequence[str] = (),
        jvm_args: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        if kind not in ("zkraft", "zookeeper"):
            raise ValueError(f"unknown kind of server: {kind}")
        if arguments and kind == "zookeeper":
            raise ValueError("only zkraft takes command-line arguments")
        self.kind = kind
        self.host = host
        self.port = port or free_port()
        runs = CACHE / "run"
        runs.mkdir(parents=True, exist_ok=True)
        self.home = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=runs))
        self.data_dir = data_dir or self.home / "data"
        self.log = self.home / "server.log"
        self.arguments = tuple(arguments)
        self.jvm_args = tuple(jvm_args)
        self.wrapper = tuple(wrapper)
        # Of zkraft: which build it is; the one under test if that is not said.
        self.binary: Path | None = None
        # Of ZooKeeper: the jars it runs from; Debian's if that is not said.
        self.class_path: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        # What the process was last told by this object, and how it ended without being told.
        # A nemesis ends and starts servers while a suite asks for their deaths.
        self._guard = threading.Lock()
        self._told: signal.Signals | None = None
        self._is_end_noted = False
        self._deaths: list[str] = []
        self._config_file = self.home / "zoo.cfg"
        self._config = dict(config or {})
        self._write_config()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def places(self) -> list[tuple[str, int]]:
        """Where clients may connect: host and port."""
        return [(self.host, self.port)]

    def data_dir_at(self, place: tuple[str, int]) -> Path:
        """The data directory of the server at this address, which is this one."""
        assert place in self.places
        return self.data_dir

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._close(is_judged=error is None)

    def start(self) -> None:
        """Starts the process and waits until it answers a handshake, at most 30 s."""
        if self.running():
            raise RuntimeError("the server is running already")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.spawn()
        try:
            wait_until(self._ready, "the server to answer a handshake", START_SECONDS_MAX)
        except BaseException as failure:
            self.kill9()
            raise RuntimeError(f"{failure}; its log ends:\n{self.log_tail()}") from failure

    def spawn(self) -> None:
        """Starts the process and waits for nothing: it may well end by itself."""
        command = [*self.wrapper, *self._command()]
        with self._guard, open(self.log, "ab") as output:
            self._note_end()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.home,
            )
            self._told, self._is_end_noted = None, False

    def ended(self, seconds_max: float = STOP_SECONDS_MAX) -> tuple[int, str]:
        """Waits until the process ends by itself; its exit code and the last line of its log."""
        if self.process is None:
            raise RuntimeError("the server was never started")
        try:
            code = self.process.wait(seconds_max)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"waited {seconds_max:g} s for the server to end") from late
        with self._guard:
            # Whoever waits for it judges it.
            self._is_end_noted = True
        return code, self.log_tail(1)

    def kill9(self) -> None:
        """Ends the process as a power cut would, and reaps it. To clean up: it may be dead."""
        self.send_kill9()
        if self.process is not None:
            self.process.wait(STOP_SECONDS_MAX)

    def kill9_running(self) -> None:
        """kill -9 as the fault that is tested: a server that has crashed must not pass for one that
        was killed."""
        if self.process is None:
            raise RuntimeError("the server was never started")
        code = self.process.poll()
        assert code is None, f"before its kill -9 the server {self._ended_with(code)}"
        self.kill9()
        code = self.process.returncode
        assert code == -signal.SIGKILL, f"told kill -9, the server {self._ended_with(code)}"

    def send_kill9(self) -> None:
        """kill -9 without waiting for the end: of several servers, all are told before one is
        waited for."""
        self._tell(signal.SIGKILL)

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code (negative: the signal that ended it)."""
        if self.process is None:
            raise RuntimeError("the server was never started")
        if self._tell(signal.SIGTERM):
            # A paused process gets the signal only once it runs again.
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise
        return self.process.returncode

    def stop_well(self) -> None:
        """Stops it, and raises if it does not end as it must when it is told to stop."""
        try:
            code = self.stop()
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(
                f"told to stop, the server ran on for {STOP_SECONDS_MAX} s; its log ends:\n"
                f"{self.log_tail()}"
            ) from late
        # ZooKeeper's JVM ends by the signal.
        ends_well = code == 0 or self.kind != "zkraft"
        assert ends_well, f"told to stop, the server {self._ended_with(code)}"

    def restart(self) -> None:
        """Starts it again on the same port and data; stops it first if it still runs."""
        if self.running():
            self.stop_well()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: alive for TCP, silent for everybody."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def deaths(self) -> list[str]:
        """How the process ended, each time that it did otherwise than told, since this was last
        asked. Ends that `ended` told of are left out."""
        with self._guard:
            self._note_end()
            deaths, self._deaths = self._deaths, []
        return deaths

    def close(self) -> None:
        """Ends the process if it runs and removes what this object created.

        Raises if zkraft does not stop as it must, or ended otherwise than told before, unless an
        error is under way already.
        """
        self._close(is_judged=sys.exc_info()[1] is None)

    def _close(self, is_judged: bool) -> None:
        is_judged = is_judged and self.kind == "zkraft"
        try:
            if self.running():
                if is_judged:
                    self.stop_well()
                else:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.stop()
            if is_judged:
                deaths = self.deaths()
                assert not deaths, f"a server {deaths[0]}"
        finally:
            if "LAB_KEEP" not in os.environ:
                shutil.rmtree(self.home, ignore_errors=True)

    def _tell(self, number: signal.Signals) -> bool:
        """Sends a signal that ends the process; returns whether it ran."""
        with self._guard:
            self._note_end()
            if not self.running():
                return False
            assert self.process is not None
            self._told = number
            self.process.send_signal(number)
            return True

    def _note_end(self) -> None:
        """Remembers an end that is nobody's doing. `_guard` is held."""
        code = self.process.poll() if self.process is not None else None
        if code is None or self._is_end_noted:
            return
        self._is_end_noted = True
        if self._told == signal.SIGKILL:
            as_told = code == -signal.SIGKILL
        else:
            as_told = self._told is not None and (code == 0 or self.kind != "zkraft")
        if not as_told:
            self._deaths.append(self._ended_with(code))

    def _ended_with(self, code: int | None) -> str:
        return f"ended with {code}; its log ends:\n{self.log_tail()}"

    def log_tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError("the server is not running")
        self.process.send_signal(number)

    def _ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}")
        return answers_handshake(self.port, self.host)

    def configure(self, **keys: str) -> None:
        """Changes keys for the next start."""
        self._config.update(keys)
        self._write_config()

    def _write_config(self) -> None:
        keys = {
            "tickTime": "2000",
            "dataDir": str(self.data_dir),
            "clientPort": str(self.port),
            "clientPortAddress": self.host,
            "maxClientCnxns": "0",
            "4lw.commands.whitelist": "*",
            "admin.enableServer": "false",
        }
        keys.update(self._config)
        text = "".join(f"{key}={value}\n" for key, value in keys.items())
        self._config_file.write_text(text, encoding="utf-8")

    def _command(self) -> list[str]:
        if self.kind == "zkraft":
            binary = self.binary or zkraft_binary()
            return [str(binary), "serve", str(self._config_file), *self.arguments]
        return [
            "java",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            # ZooKeeper reads these keys as system properties of just this name only.
            *[
                f"-D{key}={value}"
                for key, value in self._config.items()
                if key.startswith(("znode.", "readonlymode."))
            ],
            *self.jvm_args,
            "-cp",
            self.class_path or zookeeper_class_path(),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            str(self._config_file),
        ]


def zookeeper_class_path() -> str:
    """The class path of Apache ZooKeeper's server and Java client, from the unpacked tree."""
    jars = debian(*ZOOKEEPER_PACKAGES) / "usr" / "share" / "java"
    paths = [path for pattern in ZOOKEEPER_JARS for path in sorted(jars.glob(pattern))]
    # Debian installs each jar twice, with and without its version; the first name is a link.
    distinct = {path.resolve(): str(path) for path in paths}
    return os.pathsep.join(distinct.values())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers_handshake(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server at this address answers a ConnectRequest.

    The request renews a session that cannot exist, so that the answer costs no transaction and
    leaves no session behind (spec section 2.2, step 8). A server that is still starting may take
    the request and never answer it, hence the short time limit.
    """
    unknown_session = 0x7A6B_6C61_6201
    body = struct.pack(">iqiqi16s?", 0, 0, 4000, unknown_session, 16, bytes(16), False)
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            return len(connection.recv(4)) > 0
    except OSError:
        return False


def four_letter(port: int, word: str, timeout_seconds: float = 10, host: str = "127.0.0.1") -> str:
    """Sends a four-letter word and returns the whole answer."""
    with socket.create_connection((host, port), timeout_seconds) as connection:
        connection.sendall(word.encode("ascii"))
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode("utf-8")


def end_cleanly_on_sigterm() -> None:
    """Makes SIGTERM an ordinary exit, so that servers are stopped when a suite is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def wait_until(
    condition: Callable[[], Any],
    what: str,
    seconds_max: float = 20,
    every_seconds: float = 0.02,
) -> Any:
    """Polls until the condition is true and returns its value; TimeoutError names `what`."""
    deadline = time.monotonic() + seconds_max
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds_max:g} s for {what}")
        time.sleep(every_seconds)


# --- Report -------------------------------------------------------------------------------------


class Skipped(Exception):
    """Raised inside a case that cannot run here; its text says why."""


class Report:
    """Counts the cases of one suite and prints a line for each.

    A case runs inside `with report.case("name"):` or in a function decorated with it. A failing
    case does not end the suite; its reason is printed. `close()` returns the exit code: 0 only if
    something passed and nothing failed.
    """

    def __init__(self, suite: str, against: str) -> None:
        self.suite = suite
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.left_out = 0
        self.failures: list[str] = []
        print(f"# {suite} against {against}", flush=True)

    def case(self, name: str) -> _Case:
        return _Case(self, name)

    def skip(self, name: str, why: str) -> None:
        self.skipped += 1
        print(f"SKIPPED {name}: {why}", flush=True)

    def leave_out(self, name: str, why: str) -> None:
        """Names a case that means nothing where this suite runs: nothing is amiss."""
        self.left_out += 1
        print(f"LEFT OUT {name}: {why}", flush=True)

    def record_pass(self, name: str, seconds: float) -> None:
        self.passed += 1
        print(f"ok      {name} ({seconds:.1f} s)", flush=True)

    def record_failure(self, name: str, reason: str) -> None:
        self.failed += 1
        self.failures.append(name)
        first, *details = reason.splitlines()
        print(f"FAILED  {name}: {first}")
        print("".join(f"        {line}\n" for line in details), end="", flush=True)

    def close(self) -> int:
        for name in self.failures:
            print(f"failed: {name}")
        if self.left_out:
            print(f"{self.left_out} cases were left out; each said why")
        tail = f", {self.skipped} skipped" if self.skipped else ""
        print(f"{self.passed} passed, {self.failed} failed{tail}", flush=True)
        return 0 if self.passed and not self.failed else 1


class _Case(contextlib.ContextDecorator):
    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self._report.record_pass(self._name, time.monotonic() - self._began)
            return True
        if isinstance(error, Skipped):
            self._report.skip(self._name, str(error))
            return True
        if not isinstance(error, Exception):
            # Ctrl-C and exits are not results of the case.
            return False
        self._report.record_failure(self._name, _reason(error, trace))
        return True


def _reason(error: BaseException, trace: Any) -> str:
    """The error, with the last place of it that lies in a suite and not in a library.

    The place follows the first line; an error that quotes a log has more of them.
    """
    frames = traceback.extract_tb(trace)
    ours = [f for f in frames if f.filename.startswith(str(REPO)) and ".cache" not in f.filename]
    where = (ours or frames)[-1]
    place = f"({Path(where.filename).name}:{where.lineno})"
    first, *details = (str(error) or where.line or "").splitlines() or [""]
    return "\n".join([f"{type(error).__name__}: {first} {place}", *details])
