"""Pods of the manifest, made of namespaces.

A pod is a namespace of the network, of mounts, of processes and of the host name. It has the
command, the environment, the user, the volumes and the probes that the manifest gives it, a root
that it cannot write, and a new address each time it is made. Names are those of the headless
service; a name server of the suite has them when it is told so.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lab
from manifest_suite import NAMESPACE, Manifest

from .client import Address, Client
from .ensemble import LOGS
from .names import NameServer
from .network import Switch

SEARCH = f"{NAMESPACE}.svc.cluster.local svc.cluster.local cluster.local"
SECRET = "0123456789abcdef0123456789abcdef\n"
READY_SECONDS_MAX = 60
# What a leader says that was told to stop.
HANDED_OVER = "leadership was handed over"

# Makes the root of a pod, with the commands of this system instead of the image's, and becomes its
# process. Arguments: see `Pod.spawn`.
ENTER = r"""
set -e
root=$1 binary=$2 volumes=$3 resolver=$4 host=$5 user=$6 group=$7; shift 7
echo "$host" > /proc/sys/kernel/hostname
mount -t tmpfs -o mode=755 none "$root"
cd "$root"
mkdir -p proc dev tmp etc usr/local/bin
mount -t proc none proc
for device in null urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
for part in bin sbin lib lib64 usr/bin usr/sbin usr/lib usr/lib64; do
    if [ -L /$part ]; then ln -s "$(readlink /$part)" $part
    elif [ -d /$part ]; then mkdir -p $part; mount --bind /$part $part; fi
done
touch usr/local/bin/zkraft
mount --bind "$binary" usr/local/bin/zkraft
cp "$resolver" etc/resolv.conf
echo "hosts: files dns" > etc/nsswitch.conf
echo "127.0.0.1 localhost" > etc/hosts
while read -r mode path source; do
    mkdir -p ".$path"
    mount --bind "$source" ".$path"
    mount -o "remount,bind,$mode" ".$path"
done < "$volumes"
# Not the volumes, each of which has a mode of its own.
mount -o remount,ro "$root"
cd /
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --groups "$group" \
    --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


class Named(Manifest):
    """The same pods, but with server lines, so that each listens at its own name only."""

    def environment(self, host: str) -> dict[str, str]:
        del host
        return {}

    def zoo_cfg(self) -> str:
        hosts = {n + 1: f"{self.name}-{n}.{self.domain}" for n in range(self.replicas)}
        lines = [f"server.{n}={host}:2888:3888\n" for n, host in hosts.items()]
        return super().zoo_cfg() + "".join(lines)


class Scalable(Manifest):
    """The same pods, of which there may be more or fewer, and a superuser who may say so."""

    SUPERUSER = b"super:password"

    def zoo_cfg(self) -> str:
        digest = base64.b64encode(hashlib.sha1(self.SUPERUSER).digest()).decode()
        commented = re.compile("^# (.*superDigest=super:)…$", re.M)
        text, count = commented.subn(lambda found: found[1] + digest, super().zoo_cfg())
        assert count == 1, "the manifest has no place for the superuser"
        return text

    def scale(self, replicas: int) -> None:
        """What an operator changes in the manifest."""
        self.replicas = self.stateful_set["replicas"] = replicas
        (variable,) = [v for v in self.container["env"] if v["name"] == "ZKRAFT_REPLICAS"]
        variable["value"] = str(replicas)


class Cluster:
    """The pods of the manifest, and the names that they have."""

    def __init__(self, manifest: Manifest, replicas_max: int = 0) -> None:
        """`replicas_max`: there may be so many pods later, if that is more."""
        self.manifest = manifest
        runs = lab.CACHE / "run"
        runs.mkdir(parents=True, exist_ok=True)
        self.home = Path(tempfile.mkdtemp(prefix="pods-", dir=runs))
        self._stack = contextlib.ExitStack()
        count = max(manifest.replicas, replicas_max)
        hosts = [f"{manifest.name}-{ordinal}" for ordinal in range(count)]
        self.switch = self._stack.enter_context(Switch(hosts))
        self.names = self._stack.enter_context(NameServer(Switch.ADDRESS))
        self.resolver = self.home / "resolv.conf"
        # As in the pods of Kubernetes.
        text = f"search {SEARCH}\nnameserver {Switch.ADDRESS}\noptions ndots:5\n"
        self.resolver.write_text(text, encoding="utf-8")
        self._all = [Pod(self, host, number) for number, host in enumerate(hosts, 1)]
        self.pods = self._all[: manifest.replicas]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._all:
            pod.kill()
        self._stack.close()
        if "LAB_KEEP" not in os.environ:
            shutil.rmtree(self.home, ignore_errors=True)

    @classmethod
    def probe(cls) -> str:
        """Why there can be no pods here; empty if there can."""
        try:
            with cls(Manifest()) as cluster:
                pod = cluster.pods[0]
                pod.spawn(["zkraft", "--version"])
                assert pod.process is not None
                code = pod.process.wait(20)
                return "" if code == 0 else f"no pods: {pod.log_tail(1)}"
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            return f"no pods: {error}"

    def start(self) -> None:
        """Starts the pods that do not run, where their names say, and waits until all are ready."""
        self.names.is_silent = False
        for pod in self.pods:
            if not pod.running():
                if not pod.address:
                    pod.move()
                pod.publish()
                pod.start()
        self.all_ready()

    def scale(self, replicas: int) -> list[Pod]:
        """There are to be so many pods; who is made from now on knows it. Returns those that are
        to come, or to go."""
        assert isinstance(self.manifest, Scalable)
        self.manifest.scale(replicas)
        before, self.pods = self.pods, self._all[:replicas]
        return self._all[min(len(before), replicas) : max(len(before), replicas)]

    def all_ready(self, seconds_max: float = READY_SECONDS_MAX) -> float:
        """Waits until all pods are ready; how many seconds it took."""
        began = time.monotonic()
        for pod in self.pods:
            pod.wait("readinessProbe", seconds_max)
        return time.monotonic() - began

    def leader(self) -> Pod:
        return lab.wait_until(self._leads, "a leader", READY_SECONDS_MAX, 0.1)

    def followers(self) -> list[Pod]:
        leader = self.leader()
        return [pod for pod in self.pods if pod is not leader]

    def places(self) -> list[Address]:
        return [pod.place for pod in self.pods]

    @contextlib.contextmanager
    def client(self, *pods: Pod) -> Iterator[Client]:
        """A client of these pods, of all if none is named; its session ends with it."""
        client = Client([pod.place for pod in pods or self.pods], 10_000)
        try:
            yield client
        finally:
            client.end()

    @contextlib.contextmanager
    def logs_kept(self, name: str) -> Iterator[None]:
        try:
            yield
        except lab.Skipped:
            raise
        except Exception:
            folder = LOGS / re.sub(r"\W+", "-", name)[:60]
            folder.mkdir(parents=True, exist_ok=True)
            for pod in self._all:
                print(f"  the log of {pod.host} ends:")
                lines = pod.log_tail(8).splitlines()
                print("".join(f"    {line[:300]}\n" for line in lines), end="")
                if pod.log.exists():
                    shutil.copy(pod.log, folder / f"{pod.host}.log")
            print(f"  logs are kept in {folder}", flush=True)
            raise

    def _leads(self) -> Pod | None:
        leaders = [pod for pod in self.pods if pod.running() and pod.mode() == "leader"]
        return leaders[0] if len(leaders) == 1 else None


class Pod:
    """One pod: its namespaces, its volumes, and its only container."""

    def __init__(self, cluster: Cluster, host: str, number: int) -> None:
        self.cluster = cluster
        self.host = host
        self.number = number
        self.name = f"{host}.{cluster.manifest.domain}"
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._home = cluster.home / host
        self.log = self._home / "log"
        self._make_volumes()

    @property
    def place(self) -> Address:
        return self.address, int(self.cluster.manifest.zoo_cfg_keys()["clientPort"])

    # --- What happens to it ---------------------------------------------------------------------

    def move(self, address: str = "") -> None:
        """Has another address from now on; nobody's so far if none is named."""
        assert not self.running()
        self.address = address or self.cluster.switch.fresh()
        self.cluster.switch.give(self.host, self.address)

    def publish(self, address: str = "") -> None:
        """Its name means its address, or another one, from now on."""
        self.cluster.names.publish(self.name, address or self.address)

    def withdraw(self) -> None:
        self.cluster.names.withdraw(self.name)

    def start(self) -> None:
        self.spawn(["zkraft", *self.cluster.manifest.container["args"]])

    def kill(self) -> None:
        """SIGKILL, as when a node loses its power."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait(20)

    def delete(self, with_hook: bool = True) -> int:
        """What Kubernetes does to a pod that is to go; its exit code."""
        assert self.process is not None
        container, pod = self.cluster.manifest.container, self.cluster.manifest.pod
        grace = pod["terminationGracePeriodSeconds"]
        began, since = time.monotonic(), self.said()
        if with_hook:
            done = self.execute(container["lifecycle"]["preStop"]["exec"]["command"], grace)
            assert done.returncode == 0, f"the preStop hook fails: {done.stderr}"
            assert self.running(), "it ended before it was told to"
            assert not self.says(HANDED_OVER, since), "it handed over before it was told to"
        self._signal(signal.SIGTERM)
        try:
            return self.process.wait(grace - (time.monotonic() - began))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.host} did not stop in {grace} s") from None

    # --- How it is ------------------------------------------------------------------------------

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def probe(self, name: str) -> bool:
        """Whether this probe of the manifest succeeds now."""
        probe = self.cluster.manifest.container[name]
        try:
            done = self.execute(probe["exec"]["command"], probe["timeoutSeconds"])
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def wait(self, probe: str, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Waits until a probe succeeds."""

        def succeeds() -> bool:
            assert self.running(), f"{self.host} ended; its log ends:\n{self.log_tail()}"
            return self.probe(probe)

        lab.wait_until(succeeds, f"the {probe} of {self.host}", seconds_max, 0.1)

    def is_ready(self) -> bool:
        return self.probe("readinessProbe")

    def voters(self) -> int:
        """How many servers vote, as `zkraft status` in the pod says; 0 if it does not."""
        shown = self.execute(["zkraft", "status"], 5).stdout
        found = re.search(r"^voters +(\d+)$", shown, re.M)
        return int(found[1]) if found else 0

    def mode(self) -> str:
        try:
            answer = lab.four_letter(self.place[1], "srvr", 1, self.address)
        except (OSError, UnicodeDecodeError):
            return ""
        found = re.search(r"^Mode: (\w+)$", answer, re.M)
        return found[1] if found else ""

    def says(self, text: str, since: int = 0) -> bool:
        return text in self.log.read_text(encoding="utf-8", errors="replace")[since:]

    def said(self) -> int:
        """The length of its log: what it says from now on stands behind."""
        return len(self.log.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # --- Its process ----------------------------------------------------------------------------

    def spawn(self, command: Sequence[str]) -> None:
        user = self.cluster.manifest.pod["securityContext"]
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.host),
                    *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"),
                    *("--propagation", "private", "sh", "-c", ENTER, "sh"),
                    *(str(self._home / "root"), str(lab.zkraft_binary().resolve())),
                    *(str(self._home / "volumes"), str(self.cluster.resolver), self.host),
                    *(str(user["runAsUser"]), str(user["fsGroup"]), *command),
                ],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def execute(
        self, command: Sequence[str], seconds_max: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as its user."""
        user = self.cluster.manifest.pod["securityContext"]
        inside = ["nsenter", "--target", str(self._inner()), "--mount", "--uts", "--net", "--pid"]
        inside += ["--root", "--wd", "setpriv", "--reuid", str(user["runAsUser"])]
        inside += ["--regid", str(user["runAsGroup"]), "--clear-groups", "--bounding-set=-all"]
        return subprocess.run(
            [*inside, *command],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds_max,
        )

    def _environment(self) -> Mapping[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, **self.cluster.manifest.environment(self.host)}

    def _signal(self, number: signal.Signals) -> None:
        """To the process that is the first of its namespace, which is the server's."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._inner(), number)

    def _inner(self) -> int:
        """The only child of `unshare`."""
        assert self.process is not None
        outer = self.process.pid

        def child() -> int | None:
            # `ip` replaces itself by `unshare`, and that by nothing.
            listing = Path(f"/proc/{outer}/task/{outer}/children")
            words = listing.read_text(encoding="ascii").split()
            return int(words[0]) if words else None

        return lab.wait_until(child, f"the process of {self.host}", 10)

    def _make_volumes(self) -> None:
        """What the volumes of the manifest are made of, and where they are mounted."""
        manifest = self.cluster.manifest
        group = manifest.pod["securityContext"]["fsGroup"]
        (self._home / "root").mkdir(parents=True)
        lines = []
        for mount in manifest.container["volumeMounts"]:
            volume = manifest.mount(mount["mountPath"] + "/")
            source = self._home / f"volume-{mount['name']}"
            source.mkdir()
            if "configMap" in volume:
                self._project(source, "zoo.cfg", manifest.zoo_cfg(), 0o644)
            elif "secret" in volume:
                self._project(source, "secret", SECRET, volume["secret"]["defaultMode"])
            else:
                os.chown(source, 0, group)
                source.chmod(0o2775)
                self.data = source
            mode = "ro" if mount.get("readOnly") else "rw"
            lines.append(f"{mode} {mount['mountPath']} {source}\n")
        (self._home / "volumes").write_text("".join(lines), encoding="utf-8")
        if isinstance(manifest, Named):
            # A part of the data volume that an operator has written.
            place = self.data / Path(manifest.zoo_cfg_keys()["dataDir"]).name
            place.mkdir()
            (place / "myid").write_text(f"{self.number}\n", encoding="utf-8")
            os.chown(place, 1000, group)

    def _project(self, source: Path, name: str, text: str, mode: int) -> None:
        """A file as Kubernetes puts it there: behind two links, so that all change at once."""
        group = self.cluster.manifest.pod["securityContext"]["fsGroup"]
        version = source / "..2026"
        version.mkdir()
        path = version / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        os.chown(path, 0, group)
        (source / "..data").symlink_to("..2026")
        (source / name).symlink_to(f"..data/{name}")
