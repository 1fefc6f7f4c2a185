"""A Flink session cluster on this machine, built from the jars alone.

Owns the processes (JobManagers, one TaskManager), their configuration, and the ways to look at
them: REST, logs, and the znodes in which Flink keeps its leaders. The ZooKeeper-protocol server
belongs to the caller. Everything listens on 127.0.0.1 and lives in one temporary directory.

It must never judge: what is right and what is wrong is said in flink_suite.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import lab
from flink.znodes import Znode, Znodes

T = TypeVar("T")

# What Flink's own scripts open for Java 17, as far as these jobs need it.
ADD_OPENS = tuple(
    argument
    for package in (
        "java.lang",
        "java.net",
        "java.nio",
        "java.time",
        "java.util",
        "java.util.concurrent",
    )
    for argument in ("--add-opens", f"java.base/{package}=ALL-UNNAMED")
)
SMALL_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:MaxMetaspaceSize=256m")

JOB_MANAGER_MAIN = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER_MAIN = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
CLI_MAIN = "org.apache.flink.client.cli.CliFrontend"
MEMORY_MAIN = "org.apache.flink.runtime.util.bash.BashJavaUtils"

STOP_SECONDS_MAX = 20
CLI_SECONDS_MAX = 120
REST_SECONDS_MAX = 10

# What a user of the manifests gives Flink. Of the place of the servers and of that of the state it
# has examples.
DEPLOYED = lab.REPO / "deploy" / "flink" / "config.yaml"
QUORUM_KEY = "high-availability.zookeeper.quorum"
STORAGE_KEY = "high-availability.storageDir"
ROOT_KEY = "high-availability.zookeeper.path.root"
CLUSTER_KEY = "high-availability.cluster-id"
TIMEOUT_KEY = "high-availability.zookeeper.client.session-timeout"

LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} - %m%n
# The suite asks for jobs that are not there yet, several times a second.
logger.rest.name = org.apache.flink.runtime.rest.handler
logger.rest.level = OFF
"""


@dataclass(frozen=True)
class Options:
    """What a cluster is asked for beyond what all clusters of the suite share."""

    version: str
    session_timeout_ms: int
    tolerate_suspended_connections: bool
    # Its high availability is configured by this file alone, with its own quorum and storageDir;
    # the file says then what else is said here.
    high_availability: Path | None = None


class Distribution:
    """One release of Flink: its class path and the command lines of its programs."""

    # Not on the class path: the table and Python parts, which only slow the start down.
    JARS = ("flink-dist-*.jar", "flink-connector-files-*.jar", "log4j-*.jar")

    def __init__(self, version: str) -> None:
        self.version = version
        self.home = lab.flink(version)
        jars = [jar for name in self.JARS for jar in sorted((self.home / "lib").glob(name))]
        self.class_path = os.pathsep.join(str(jar) for jar in jars)

    def command(self, conf: Path, jvm: Sequence[str], main: str, *arguments: str) -> list[str]:
        """A Java command line with the logging configuration of `conf`."""
        return [
            "java",
            *SMALL_JVM,
            *ADD_OPENS,
            *jvm,
            f"-Djava.io.tmpdir={conf.parent / 'tmp'}",
            f"-Dlog4j.configurationFile={conf / 'log4j2.properties'}",
            "-cp",
            self.class_path,
            main,
            *arguments,
        ]

    def compile_job(self, source: Path, target: Path) -> Path:
        """Compiles the job's one source file against this release into a jar in `target`."""
        classes = target / "classes"
        classes.mkdir()
        javac = ["javac", "-nowarn", "--release", "11", "-cp", self.class_path]
        _run([*javac, "-d", str(classes), str(source)])
        jar = target / f"{source.stem}.jar"
        with zipfile.ZipFile(jar, "w") as archive:
            for file in sorted(classes.iterdir()):
                archive.write(file, file.name)
        return jar

    def task_manager_memory(self, conf: Path) -> tuple[list[str], list[str]]:
        """The JVM options and the program arguments that Flink derives from its memory keys."""
        output = _run(
            [
                "java",
                "-cp",
                f"{self.home / 'bin' / 'bash-java-utils.jar'}{os.pathsep}{self.class_path}",
                MEMORY_MAIN,
                "GET_TM_RESOURCE_PARAMS",
                "--configDir",
                str(conf),
            ]
        )
        mark = "BASH_JAVA_UTILS_EXEC_RESULT:"
        lines = [line[len(mark) :] for line in output.splitlines() if line.startswith(mark)]
        jvm, arguments = lines
        return jvm.split(), arguments.split()


class JavaProcess:
    """A child process whose output goes to a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )

    def running(self) -> bool:
        return self._process.poll() is None

    def kill9(self) -> None:
        self._process.kill()
        self._process.wait(STOP_SECONDS_MAX)

    def stop(self) -> None:
        """SIGTERM; SIGKILL if that is not enough."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill9()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def session(self) -> int:
        """The session of its client, from the last handshake in the log; 0 if there was none."""
        found = re.findall(r"session id = 0x([0-9a-f]+), negotiated", self.log_text())
        return int(found[-1], 16) if found else 0

    def negotiated_timeout_ms(self) -> int:
        """The session timeout that the server granted, from the last handshake in the log."""
        found = re.findall(r"negotiated timeout = (\d+)", self.log_text())
        if not found:
            raise LookupError(f"{self.name} logged no handshake")
        return int(found[-1])

    def high_availability(self) -> dict[str, str]:
        """What it says at its start that it has read of high availability."""
        line = r"Loading configuration property: (high-availability[\w.-]*), (.*)"
        return dict(re.findall(line, self.log_text()))

    def reconnection(self, since: datetime) -> Reconnection:
        """How its client came to a server again, as its log tells."""
        asked = self._logged("Opening socket connection to server", since)
        answered = self._logged("Session establishment complete on server", since)
        if not asked or not answered:
            raise LookupError(f"{self.name} has not logged that it is connected again")
        return Reconnection(tuple(when for when in asked if when <= answered[0]), answered[0])

    def _logged(self, text: str, since: datetime) -> list[float]:
        """When lines with this text were logged, in seconds since then."""
        times = re.findall(rf"^(\S+) .*{text}", self.log_text(), re.M)
        after = [(datetime.fromisoformat(time) - since).total_seconds() for time in times]
        return [seconds for seconds in after if seconds >= 0]

    def suspensions(self) -> int:
        """How often its client has reported a broken connection."""
        return self.log_text().count("State change: SUSPENDED")

    def log_tail(self, lines: int = 10, columns: int = 180) -> str:
        """The last lines of the log, without stack frames."""
        state = "" if self.running() else f", ended with {self._process.returncode}"
        said = [line for line in self.log_text().splitlines() if not line.startswith("\tat ")]
        tail = "\n".join(line[:columns] for line in said[-lines:])
        return f"--- {self.name}{state}, {self.log}\n{tail}"


@dataclass(frozen=True)
class Reconnection:
    """A client that lost its server: when it asked which server for its session, each time, and
    when the first one answered."""

    asked: tuple[float, ...]
    answered: float


class JobManager(JavaProcess):
    """A JobManager with its own REST port, by which its leadership is recognised."""

    def __init__(self, name: str, distribution: Distribution, conf: Path, logs: Path) -> None:
        self.rest_port = lab.free_port()
        command = distribution.command(
            conf,
            ["-Xmx320m"],
            JOB_MANAGER_MAIN,
            "--configDir",
            str(conf),
            "-D",
            f"rest.port={self.rest_port}",
        )
        super().__init__(name, command, logs / f"{name}.log")


class TaskManager(JavaProcess):
    def __init__(self, name: str, distribution: Distribution, conf: Path, logs: Path) -> None:
        jvm, arguments = distribution.task_manager_memory(conf)
        command = distribution.command(
            conf, jvm, TASK_MANAGER_MAIN, "--configDir", str(conf), *arguments
        )
        super().__init__(name, command, logs / f"{name}.log")


class Rest:
    """The REST API of one JobManager. Everything that goes wrong in it is an OSError."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        return self._call("GET", path)

    def job_state(self, job: str) -> str:
        state: str = self.get(f"/jobs/{job}")["state"]
        return state

    def cancel(self, job: str) -> None:
        self._call("PATCH", f"/jobs/{job}?mode=cancel")

    def checkpoints(self, job: str) -> Checkpoints:
        answer = self.get(f"/jobs/{job}/checkpoints")
        latest = answer["latest"]
        return Checkpoints(
            completed=(latest["completed"] or {}).get("id", 0),
            restored=(latest["restored"] or {}).get("id", 0),
            restores=answer["counts"]["restored"],
            failed=answer["counts"]["failed"],
        )

    def attempts(self, job: str) -> dict[str, tuple[int, str]]:
        """Attempt number and state of every subtask."""
        found = {}
        for vertex in self.get(f"/jobs/{job}")["vertices"]:
            details = self.get(f"/jobs/{job}/vertices/{vertex['id']}")
            for task in details["subtasks"]:
                key = f"{vertex['name']} #{task['subtask']}"
                found[key] = (task["attempt"], task["status"])
        return found

    def restarts(self, job: str) -> int:
        """The job's numRestarts; LookupError until the JobManager has gathered its metrics."""
        values = self.get(f"/jobs/{job}/metrics?get=numRestarts")
        if not values:
            raise LookupError("numRestarts is not gathered yet")
        return int(values[0]["value"])

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(self._base + path, method=method)
        # An HTTP error is an OSError already (URLError); a half answer is not.
        with urllib.request.urlopen(request, timeout=REST_SECONDS_MAX) as answer:
            try:
                return json.loads(answer.read() or b"null")
            except ValueError as broken:
                raise OSError(f"{path}: {broken}") from broken


@dataclass(frozen=True)
class Checkpoints:
    """Ids of the latest checkpoints (0: none); how many this JobManager has restored and lost."""

    completed: int
    restored: int
    restores: int
    failed: int


@dataclass(frozen=True)
class Leader:
    """A `connection_info` znode: who leads one component, and since which election."""

    address: str
    fencing_token: uuid.UUID
    znode: Znode

    @staticmethod
    def parse(znode: Znode) -> Leader:
        """Reads the Java serialisation of a UTF string in block data and a java.util.UUID."""
        raw = znode.data
        # Stream magic and version, the mark and length of block data, then writeUTF's length.
        if raw[:5] != b"\xac\xed\x00\x05\x77":
            raise ValueError(f"not a leader's record: {raw!r}")
        length = int.from_bytes(raw[6:8], "big")
        # The fields of a UUID are written in the order of their names: least, then most.
        least, most = raw[-16:-8], raw[-8:]
        return Leader(raw[8 : 8 + length].decode(), uuid.UUID(bytes=most + least), znode)


class Cluster:
    """JobManagers and one TaskManager that find each other through the server.

    A context manager: at its end every process is gone and so is the directory (kept when
    `LAB_KEEP` is set).
    """

    def __init__(
        self, distribution: Distribution, options: Options, servers: Sequence[tuple[str, int]]
    ) -> None:
        self.distribution = distribution
        self.options = options
        self._servers = servers
        # The znode under which this cluster keeps everything.
        self.root = f"/flink/c-{uuid.uuid4().hex[:8]}"
        if options.high_availability is not None:
            said = configured(options.high_availability)
            self.root = said[ROOT_KEY] + said[CLUSTER_KEY]
        self.home = Path(tempfile.mkdtemp(prefix=f"flink-{options.version}-"))
        self.output = self.home / "output"
        self.job_managers: list[JobManager] = []
        self.task_manager: TaskManager | None = None
        self._started = 0
        self._conf = self.home / "conf"
        self._logs = self.home / "logs"
        for folder in (self._conf, self._logs, self.output):
            folder.mkdir()
        self._write_configuration()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running():
            process.kill9()
        if "LAB_KEEP" not in os.environ:
            shutil.rmtree(self.home, ignore_errors=True)

    @property
    def plans(self) -> str:
        """The child of the root that holds submitted jobs; 2.x renamed it."""
        return "jobgraphs" if self.options.version.startswith("1.") else "execution-plans"

    @property
    def trusts_old_latches(self) -> bool:
        """Whether its Curator (5.4.0) leads by a latch node of an expired session.

        Two JobManagers may then lead at once after a long outage, whatever the server does:
        CURATOR-696, fixed in 5.7.0.
        """
        return self.options.version.startswith("1.")

    # --- Processes ---

    def start_job_manager(self) -> JobManager:
        self._started += 1
        manager = JobManager(
            f"jobmanager-{self._started}", self.distribution, self._conf, self._logs
        )
        self.job_managers.append(manager)
        return manager

    def start_task_manager(self) -> None:
        self.task_manager = TaskManager("taskmanager", self.distribution, self._conf, self._logs)

    def running(self) -> list[JavaProcess]:
        """The JobManagers and the TaskManager that run."""
        every = [*self.job_managers, *([self.task_manager] if self.task_manager else [])]
        return [process for process in every if process.running()]

    def leading(self) -> JobManager:
        """The running JobManager that the rest_server znode names."""
        port = int(self.leader("rest_server").address.rsplit(":", 1)[1])
        for manager in self.job_managers:
            if manager.rest_port == port and manager.running():
                return manager
        raise LookupError(f"the leader's REST port {port} is of no running JobManager")

    def stop_standbys(self) -> None:
        leading = self.leading()
        for manager in self.job_managers:
            if manager.running() and manager is not leading:
                manager.stop()

    # --- Looks ---

    def leader(self, component: str) -> Leader:
        """Who leads a component: rest_server, dispatcher, resource_manager or job-<id>."""
        with Znodes(self._servers) as tree:
            znode = tree.get(f"{self.root}/leader/{component}/connection_info")
        if znode is None:
            raise LookupError(f"{component} has no leader")
        return Leader.parse(znode)

    def paths_with(self, text: str) -> list[str]:
        """The paths below this cluster's root that contain `text`."""
        with Znodes(self._servers) as tree:
            return [path for path in tree.below(self.root) if text in path]

    def ephemerals(self) -> dict[str, int]:
        """The ephemeral nodes below this cluster's root, with the sessions that own them."""
        with Znodes(self._servers) as tree:
            nodes = {path: tree.get(path) for path in tree.below(self.root)}
        return {path: node.owner for path, node in nodes.items() if node and node.owner}

    def children(self, path: str) -> list[str]:
        with Znodes(self._servers) as tree:
            return tree.children(path)

    def latched_twice(self) -> bool:
        """Whether two JobManagers stand for election."""
        return len(self.children(f"{self.root}/leader/latch")) >= 2

    def znode_exists(self, path: str) -> bool:
        with Znodes(self._servers) as tree:
            return tree.get(path) is not None

    def rest(self) -> Rest:
        """The REST API of the leader."""
        return Rest(self.leading().rest_port)

    def wait_for(self, what: str, seconds_max: float, look: Callable[[], T | None]) -> T:
        """Polls until `look` returns something true.

        While parts of the cluster are down, a look fails with OSError or LookupError: that counts
        as "not yet". The failure names the last reason and shows the ends of the logs.
        """
        deadline = time.monotonic() + seconds_max
        while True:
            reason = "not so"
            try:
                if value := look():
                    return value
            except (OSError, LookupError) as not_yet:
                reason = f"{type(not_yet).__name__}: {not_yet}"
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {seconds_max:g} s for {what}; last: {reason}\n{self.log_tails()}"
                )
            time.sleep(0.2)

    def log_tails(self) -> str:
        """The ends of the logs, of the last two JobManagers and the TaskManager."""
        processes: list[JavaProcess] = list(self.job_managers[-2:])
        if self.task_manager:
            processes.append(self.task_manager)
        return "\n".join(process.log_tail() for process in processes)

    # --- Jobs ---

    def submit(self, jar: Path, main: str, *arguments: str) -> str:
        """Submits a job through the command-line client, which asks the server for the leader."""
        command = self.distribution.command(
            self._conf, ["-Xmx256m"], CLI_MAIN, "run", "-d", "-c", main, str(jar), *arguments
        )
        environment = os.environ | {"FLINK_CONF_DIR": str(self._conf)}
        output = _run(command, environment)
        match = re.search(r"submitted with JobID ([0-9a-f]{32})", output)
        if not match:
            raise RuntimeError(f"the client named no job: {output}")
        return match[1]

    def _write_configuration(self) -> None:
        keys = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.bind-host": "127.0.0.1",
            "rest.address": "localhost",
            "rest.bind-address": "127.0.0.1",
            "taskmanager.host": "localhost",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": 2,
            "taskmanager.memory.process.size": "640m",
            "taskmanager.memory.managed.size": "8m",
            "taskmanager.memory.network.min": "32m",
            "taskmanager.memory.network.max": "32m",
            "taskmanager.memory.framework.heap.size": "96m",
            "taskmanager.memory.framework.off-heap.size": "64m",
            "taskmanager.memory.jvm-metaspace.size": "160m",
            "taskmanager.memory.jvm-overhead.min": "64m",
            "taskmanager.memory.jvm-overhead.max": "64m",
            "parallelism.default": 2,
            "state.backend.type": "hashmap",
            "execution.checkpointing.storage": "filesystem",
            "execution.checkpointing.dir": f"file://{self.home}/checkpoints",
            "execution.checkpointing.interval": "1 s",
            # A checkpoint that falls into an outage of the server fails, whatever the server does
            # afterwards. That alone must not restart the job: the suite looks for other reasons.
            "execution.checkpointing.tolerable-failed-checkpoints": 100,
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1000,
            "restart-strategy.fixed-delay.delay": "500 ms",
            # REST answers come from caches; these are their ages.
            "web.refresh-interval": 300,
            "rest.cache.checkpoint-statistics.timeout": "300 ms",
            "metrics.fetcher.update-interval": 1000,
            "io.tmp.dirs": f"{self.home}/tmp",
        }
        # One flat line per key is YAML as Flink's reader takes it.
        text = self._high_availability() + _lines(keys)
        (self._conf / "config.yaml").write_text(text, encoding="utf-8")
        (self._conf / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        (self.home / "tmp").mkdir()

    def _high_availability(self) -> str:
        options = self.options
        own = {
            QUORUM_KEY: ",".join(f"{host}:{port}" for host, port in self._servers),
            STORAGE_KEY: f"file://{self.home}/ha",
        }
        if options.high_availability is not None:
            text = options.high_availability.read_text(encoding="utf-8")
            for key, value in own.items():
                line = rf"^{re.escape(key)}: .*"
                text, found = re.subn(line, f"{key}: {value}", text, flags=re.M)
                assert found == 1, f"{key} is there {found} times"
            return text
        root, _, cluster_id = self.root.rpartition("/")
        return _lines(
            {
                **own,
                "high-availability.type": "zookeeper",
                CLUSTER_KEY: f"/{cluster_id}",
                ROOT_KEY: root,
                TIMEOUT_KEY: options.session_timeout_ms,
                # A client that gives up on an operation ends its process. So: first retries soon,
                # for the short outages, and more than the long outage can use up (20 s at the
                # least).
                "high-availability.zookeeper.client.retry-wait": 1000,
                "high-availability.zookeeper.client.max-retry-attempts": 20,
                "high-availability.zookeeper.client.tolerate-suspended-connections": (
                    "true" if options.tolerate_suspended_connections else "false"
                ),
            }
        )


def configured(file: Path) -> dict[str, str]:
    """What a configuration file says that has one flat line per key."""
    lines = re.findall(r"^([\w.-]+): (.+)$", file.read_text(encoding="utf-8"), re.M)
    return dict(lines)


def _lines(keys: Mapping[str, object]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in keys.items())


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Runs a short-lived program and returns its standard output."""
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLI_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        detail = f"{done.stdout}\n{done.stderr}".strip()[-4000:]
        raise RuntimeError(f"{command[0]} … failed with {done.returncode}: {detail}")
    return done.stdout
