"""Where the servers of an ensemble live, and how their network is broken.

The suite runs itself again in network and mount namespaces of its own, so that addresses and ports
are free whatever else runs here, and nothing stays behind however it ends. `Loopback` gives each
server an address of the loopback interface. `Bridged` gives each a network namespace and a cable to
a bridge; what it does not hear is decided by a packet filter in its own namespace, so that senders
do not notice, and it may have another address. On a `Switch`, who has a namespace may have another
address whenever it is told so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

import lab

# Said to the script when it runs itself in namespaces: empty, or why it does not.
INSIDE = "CLUSTER_SUITE_INSIDE"

SERVERS = (1, 2, 3)


def enter(script: str, python: str = sys.executable) -> None:
    """Runs the script again where network and mounts are its own, if that can be."""
    mine = [python, script, *sys.argv[1:]]
    why = "unshare or ip is not installed"
    tools = shutil.which("unshare") and shutil.which("ip")
    for flags in (["-m", "-n"], ["-r", "-m", "-n"]) if tools else ():
        # What `ip netns` keeps is below /run.
        prepare = "mount -t tmpfs none /run && ip link set lo up"
        tried = subprocess.run(
            ["unshare", *flags, "--propagation", "private", "sh", "-c", prepare],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode == 0:
            os.environ[INSIDE] = ""
            command = ["sh", "-c", f'{prepare} && exec "$@"', "sh", *mine]
            os.execvp("unshare", ["unshare", *flags, "--propagation", "private", *command])
        why = f"no namespaces: {tried.stderr.strip()}"
    os.environ[INSIDE] = why
    os.execv(python, mine)


def is_own() -> bool:
    """Whether network and mounts are this suite's own."""
    return not why_not_own()


def why_not_own() -> str:
    """Why network and mounts are not this suite's own; empty if they are."""
    return os.environ.get(INSIDE, "not in namespaces of its own")


class Loopback:
    """Addresses of the loopback interface, and a network that cannot be broken."""

    def __init__(self, servers: Sequence[int] = SERVERS, ensemble: int = 0) -> None:
        """`ensemble`: numbers those that run at the same time."""
        # Where others use the interface too, the addresses are likely to be nobody else's.
        block = (0, 1) if is_own() else (20 + os.getpid() % 200, os.getpid() // 200 % 250 + 1)
        first = ensemble * len(SERVERS)
        self.hosts = {n: f"127.{block[0]}.{block[1]}.{first + n}" for n in servers}

    def wrapper(self, number: int) -> Sequence[str]:
        del number
        return ()


class Bridged:
    """A namespace for each server. One at a time; they go with the suite's own namespace."""

    def __init__(self, filters: Filters) -> None:
        self.hosts = {n: f"10.77.0.{n}" for n in SERVERS}
        self._filters = filters
        self._given = 0
        _run("ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "address", "add", "10.77.0.254/16", "dev", "br0")
        _run("ip", "link", "set", "br0", "up")
        for number, host in self.hosts.items():
            space = f"s{number}"
            _run("ip", "netns", "add", space)
            cable = ["link", "add", f"to-{space}", "type", "veth"]
            _run("ip", *cable, "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", f"to-{space}", "master", "br0", "up")
            _run("ip", "-n", space, "address", "add", f"{host}/16", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            filters.prepare(space)

    def __enter__(self) -> Bridged:
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.hosts:
            _run("ip", "link", "delete", f"to-s{number}")
            _run("ip", "netns", "delete", f"s{number}")
        _run("ip", "link", "delete", "br0")

    def wrapper(self, number: int) -> Sequence[str]:
        return ("ip", "netns", "exec", f"s{number}")

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """For each pair, nothing that the first server sends reaches the second one."""
        for source, target in pairs:
            self._filters.cut(f"s{target}", self.hosts[source])

    def isolate(self, number: int) -> None:
        """Cuts a server off from the other servers; clients still reach it."""
        others = [other for other in self.hosts if other != number]
        self.cut([(number, other) for other in others] + [(other, number) for other in others])

    def lose(self, number: int, percent: int) -> None:
        """The server does not hear so many of the other servers' packets."""
        others = [host for other, host in self.hosts.items() if other != number]
        self._filters.lose(f"s{number}", others, percent)

    def slow(self, number: int) -> None:
        """What the server sends takes its time."""
        shape = ["root", *self._filters.slowness]
        _run("tc", "-n", f"s{number}", "qdisc", "replace", "dev", "eth0", *shape)

    def move(self, number: int) -> str:
        """The server has an address that nobody ever had, and not its old one any more."""
        self._given += 1
        host = f"10.77.{self._given // 200 + 1}.{self._given % 200 + 1}"
        _run("ip", "-n", f"s{number}", "address", "flush", "dev", "eth0")
        _run("ip", "-n", f"s{number}", "address", "add", f"{host}/16", "dev", "eth0")
        self.hosts[number] = host
        return host

    def heal(self) -> None:
        for number in self.hosts:
            self._filters.clear(f"s{number}")
            shaped = ["tc", "-n", f"s{number}", "qdisc", "delete", "dev", "eth0", "root"]
            # It fails if there is nothing to delete.
            subprocess.run(shaped, capture_output=True, check=False)


class Switch:
    """Namespaces with names, and addresses that are given and taken. They go with the suite's own
    namespace, and before when this ends."""

    ADDRESS = "10.78.0.254"

    def __init__(self, spaces: Iterable[str]) -> None:
        self._spaces = list(spaces)
        self._given = 0
        _run("ip", "link", "add", "br1", "type", "bridge")
        _run("ip", "address", "add", f"{self.ADDRESS}/16", "dev", "br1")
        _run("ip", "link", "set", "br1", "up")
        for number, space in enumerate(self._spaces):
            _run("ip", "netns", "add", space)
            cable = ["link", "add", f"plug{number}", "type", "veth"]
            _run("ip", *cable, "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", f"plug{number}", "master", "br1", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "-n", space, "link", "set", "eth0", "up")

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        for number, space in enumerate(self._spaces):
            _run("ip", "link", "delete", f"plug{number}")
            _run("ip", "netns", "delete", space)
        _run("ip", "link", "delete", "br1")

    def fresh(self) -> str:
        """An address that nobody ever had."""
        self._given += 1
        return f"10.78.{self._given // 200 + 1}.{self._given % 200 + 1}"

    def give(self, space: str, address: str) -> None:
        """The namespace has this address from now on, and none that it had before."""
        _run("ip", "-n", space, "address", "flush", "dev", "eth0")
        _run("ip", "-n", space, "address", "add", f"{address}/16", "dev", "eth0")
        # Others may still believe that it is somebody else's.
        _run("ip", "neighbour", "flush", "dev", "br1")
        for other in self._spaces:
            _run("ip", "-n", other, "neighbour", "flush", "dev", "eth0")


class Filters:
    """nftables, of this machine or Debian's unpacked, and what the kernel can do with it."""

    def __init__(self) -> None:
        self.slowness: Sequence[str] = ()
        # Why a fault cannot be had here, by what it is.
        self.missing: dict[str, str] = {}
        self._environment = dict(os.environ)
        self._nft = shutil.which("nft") or ""
        if not self._nft:
            root = lab.debian("nftables")
            self._nft = str(root / "usr" / "sbin" / "nft")
            libraries = [str(path) for path in (root / "usr" / "lib").glob("*-linux-gnu")]
            self._environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)

    def probe(self) -> str:
        """Finds out what works, in a namespace made for it. Returns why nothing does, if so."""
        try:
            _run("ip", "netns", "add", "probe")
        except RuntimeError as error:
            return str(error)
        try:
            _run("ip", "-n", "probe", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
            self.prepare("probe")
            self._probe_loss()
            self._probe_slowness()
        except RuntimeError as error:
            return str(error)
        finally:
            _run("ip", "netns", "delete", "probe")
        return ""

    def _probe_loss(self) -> None:
        try:
            self.lose("probe", ["10.77.0.1"], 10)
        except RuntimeError as error:
            self.missing["lossy link"] = str(error)

    def _probe_slowness(self) -> None:
        why = ""
        for shape in (
            ["netem", "delay", "40ms", "20ms"],
            # Without netem: a narrow link, whose queue takes time.
            ["tbf", "rate", "1mbit", "burst", "4kb", "latency", "300ms"],
        ):
            try:
                _run("tc", "-n", "probe", "qdisc", "replace", "dev", "eth0", "root", *shape)
                self.slowness = shape
                return
            except (OSError, RuntimeError) as error:
                why = str(error)
        self.missing["slow link"] = why

    def prepare(self, space: str) -> None:
        self._apply(
            space,
            "table inet faults {\n"
            "  set cut { type ipv4_addr; }\n"
            "  chain lossy { }\n"
            "  chain input {\n"
            "    type filter hook input priority 0;\n"
            "    ip saddr @cut drop\n"
            "    jump lossy\n"
            "  }\n"
            "}\n",
        )

    def cut(self, space: str, host: str) -> None:
        self._apply(space, f"add element inet faults cut {{ {host} }}\n")

    def lose(self, space: str, hosts: Sequence[str], percent: int) -> None:
        what = f"ip saddr {{ {', '.join(hosts)} }} numgen random mod 100 < {percent} drop"
        self._apply(space, f"add rule inet faults lossy {what}\n")

    def clear(self, space: str) -> None:
        self._apply(space, "flush set inet faults cut\nflush chain inet faults lossy\n")

    def _apply(self, space: str, rules: str) -> None:
        done = subprocess.run(
            ["ip", "netns", "exec", space, self._nft, "-f", "-"],
            input=rules,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"nft: {done.stderr.strip()}")


def filters() -> tuple[Filters | None, str]:
    """The packet filters, or why there are none."""
    if not is_own():
        return None, why_not_own()
    try:
        found = Filters()
    except (LookupError, OSError, RuntimeError) as error:
        return None, f"nftables cannot be fetched: {error}"
    why = found.probe()
    return (None, why) if why else (found, "")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
