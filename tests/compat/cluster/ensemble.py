"""Three servers that are one ensemble: starting, looking at and disturbing them."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lab
import raw

from .client import Address, Client, created
from .network import SERVERS, Bridged, Loopback

CLIENT_PORT, QUORUM_PORT, ELECTION_PORT = 2181, 2888, 3888
# A JVM on a busy machine takes its time.
SERVE_SECONDS_MAX = 90
LOOK_SECONDS_MAX = 1.0
# Of each log, when logs are kept.
LOG_BYTES_MAX = 4 << 20
LOGS = lab.REPO / "target" / "cluster-suite"


class Member(lab.Server):
    """One server of an ensemble."""

    def __init__(
        self,
        kind: lab.Kind,
        number: int,
        network: Loopback | Bridged,
        config: Mapping[str, str],
        disk: Path | None,
        observers: Sequence[int] = (),
        jvm_args: Sequence[str] = (),
        dynamic: bool = False,
    ) -> None:
        self.number = number
        lines = {
            f"server.{n}": f"{host}:{QUORUM_PORT}:{ELECTION_PORT}"
            + (":observer" if n in observers else "")
            for n, host in network.hosts.items()
        }
        own = {"initLimit": "10", "syncLimit": "5", **config}
        super().__init__(
            kind,
            own if dynamic else {**own, **lines},
            CLIENT_PORT,
            data_dir=disk / "data" if disk else None,
            jvm_args=jvm_args,
            wrapper=network.wrapper(number),
            host=network.hosts[number],
        )
        if dynamic:
            members = self.home / "members.dynamic"
            # With the addresses for clients, as ZooKeeper's tools write them.
            places = [f";{host}:{CLIENT_PORT}" for host in network.hosts.values()]
            text = "".join(
                f"{key}={line}{place}\n"
                for (key, line), place in zip(lines.items(), places, strict=True)
            )
            members.write_text(text, encoding="utf-8")
            self.configure(dynamicConfigFile=str(members))
        self._write_id()

    @property
    def place(self) -> Address:
        return self.host, self.port

    def serves(self) -> bool:
        return self.running() and lab.answers_handshake(self.port, self.host)

    def mode(self) -> str:
        """What `srvr` calls it; empty if it does not say."""
        return self.look("srvr", "Mode: ")

    def voters(self) -> str:
        """How many servers vote, as this one says."""
        return self.look("mntr", "zk_quorum_size")

    def look(self, word: str, key: str) -> str:
        """The value behind a key in the answer to a four-letter word; empty if it is not there."""
        try:
            answer = lab.four_letter(self.port, word, LOOK_SECONDS_MAX, self.host)
        except (OSError, UnicodeDecodeError):
            return ""
        found = [line.removeprefix(key) for line in answer.splitlines() if line.startswith(key)]
        return found[0].strip() if found else ""

    def sessions(self) -> set[int]:
        """The sessions whose clients are connected to it; none if it does not say."""
        try:
            answer = lab.four_letter(self.port, "cons", LOOK_SECONDS_MAX, self.host)
        except (OSError, UnicodeDecodeError):
            return set()
        return {int(session, 16) for session in re.findall(r"sid=0x([0-9a-f]+)", answer)}

    def wipe(self) -> None:
        """Its data directory is lost; what is configured is there again."""
        assert not self.running()
        for path in self.data_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._write_id()

    def _write_id(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "myid").write_text(f"{self.number}\n", encoding="utf-8")


class Ensemble:
    """Three servers, and observers if they have numbers of their own in the network. As a context
    manager it ends them, and raises if one of zkraft ended otherwise than told before; after an
    error their logs are kept. `dynamic`: their lines are in a file that `dynamicConfigFile`
    names."""

    def __init__(
        self,
        kind: lab.Kind,
        network: Loopback | Bridged,
        config: Mapping[str, str] | None = None,
        disks: Mapping[int, Path] | None = None,
        name: str = "",
        jvm_args: Sequence[str] = (),
        dynamic: bool = False,
    ) -> None:
        self.kind = kind
        self.network = network
        self.name = name or kind
        disks, config = disks or {}, config or {}
        # With ZooKeeper's leaderServes=no a leader has no clients, and answers no word either.
        self._leader_serves = config.get("leaderServes") != "no"
        self.observers = [n for n in network.hosts if n not in SERVERS]
        self.servers = {
            n: Member(kind, n, network, config, disks.get(n), self.observers, jvm_args, dynamic)
            for n in network.hosts
        }

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        deaths = self.deaths() if self.kind == "zkraft" else []
        is_failure = isinstance(error, Exception) and not isinstance(error, lab.Skipped)
        if is_failure or deaths:
            self.keep_logs()
        for server in self.servers.values():
            # Stopped together, not one after the other: nobody is to take over any more.
            if server.running():
                server.kill9()
            server.close()
        assert error is not None or not deaths, deaths[0]

    def deaths(self) -> list[str]:
        """What those of `lab.Server` are, of all."""
        return [f"server {n} {death}" for n, s in self.servers.items() for death in s.deaths()]

    def start(self) -> None:
        """Starts those that do not run, and waits until all serve."""
        for server in self.servers.values():
            if not server.running():
                server.spawn()
        self.wait_for(*self.servers)

    def wait_for(self, *numbers: int, seconds_max: float = SERVE_SECONDS_MAX) -> None:
        """Waits until these servers serve."""
        deadline = time.monotonic() + seconds_max
        for number in numbers:
            server = self.servers[number]
            while not server.serves():
                if not server.running():
                    code = server.process.returncode if server.process else None
                    raise RuntimeError(
                        f"server {number} ended with {code}; its log ends:\n{server.log_tail()}"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited {seconds_max:g} s for server {number} to serve")
                time.sleep(0.05)

    def leader(self, seconds_max: float = SERVE_SECONDS_MAX) -> int:
        """The server that leads, as soon as one says so."""
        return lab.wait_until(self.leads, "a leader", seconds_max, 0.1)

    def leads(self) -> int | None:
        modes = {n: s.mode() for n, s in self.servers.items() if s.running()}
        leaders = [number for number, mode in modes.items() if mode == "leader"]
        followers = [number for number, mode in modes.items() if mode == "follower"]
        if not self._leader_serves and len(modes) == len(SERVERS) == len(followers) + 1:
            leaders = [number for number in modes if number not in followers]
        return leaders[0] if len(leaders) == 1 else None

    def make_lead(self, number: int, seconds_max: float = SERVE_SECONDS_MAX) -> int:
        """Moves the leadership to a server; how many leaders had to give it up until then.

        Whoever leads falls silent until another one does: its clients stay with it. ZooKeeper's
        would not.
        """
        assert self.kind == "zkraft"
        deadline = time.monotonic() + seconds_max
        given_up = 0
        while (leader := self.leader()) != number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds_max:g} s for server {number} to lead")
            others = [server for n, server in self.servers.items() if n != leader]
            self.servers[leader].pause()
            try:
                lab.wait_until(
                    lambda others=others: any(other.mode() == "leader" for other in others),
                    "another leader",
                    every_seconds=0.05,
                )
            finally:
                self.servers[leader].resume()
            given_up += 1
            self.wait_for(*SERVERS)
        return given_up

    def newest(self) -> int:
        """A zxid of what was done before."""
        with self.client() as client:
            client.sync()
            return client.seen

    def is_seen_through_all(self) -> None:
        """What is written through any server is read through all after a sync."""
        for number in self.servers:
            with self.client(number) as writer:
                path = created(writer.create("/seen-", b"by all", raw.SEQUENTIAL))
            for other in self.servers:
                with self.client(other) as reader:
                    reader.sync()
                    found = reader.get(path)
                    assert found is not None and found[0] == b"by all", f"{path} at {other}"

    def followers(self) -> list[int]:
        leader = self.leader()
        return [number for number in SERVERS if number != leader]

    def place(self, number: int) -> Address:
        return self.servers[number].place

    def places(self, first: int = 1) -> list[Address]:
        """The addresses for clients, beginning with that of one server."""
        return [self.place((first - 1 + n) % len(SERVERS) + 1) for n in range(len(SERVERS))]

    @contextlib.contextmanager
    def client(self, *numbers: int, timeout_ms: int = 10_000) -> Iterator[Client]:
        """A client of these servers, of all if none is named; its session ends with it."""
        client = Client([self.place(number) for number in numbers or SERVERS], timeout_ms)
        try:
            yield client
        finally:
            client.end()

    def caught_up(self, number: int, zxid: int, seconds_max: float = SERVE_SECONDS_MAX) -> None:
        """Waits until the server serves a client that has seen this."""
        with self.client(number) as client:
            client.seen = zxid
            client.connect(seconds_max)

    def complete(self, seconds_max: float = SERVE_SECONDS_MAX) -> None:
        """Waits until each server votes: one that is taken back serves a moment before it does,
        and until then the others are a majority only together."""
        if self.kind != "zkraft":
            return
        every = str(len(SERVERS))

        def all_vote() -> bool:
            leader = self.leads()
            return leader is not None and self.servers[leader].voters() == every

        lab.wait_until(all_vote, "a vote for every server", seconds_max, 0.05)

    def keep_logs(self) -> None:
        """Copies what the servers said to where it stays, and prints the ends."""
        folder = LOGS / re.sub(r"\W+", "-", self.name)[:60]
        folder.mkdir(parents=True, exist_ok=True)
        for number, server in self.servers.items():
            if not server.log.exists():
                continue
            with open(server.log, "rb") as log:
                log.seek(max(0, server.log.stat().st_size - LOG_BYTES_MAX))
                (folder / f"server-{number}.log").write_bytes(log.read())
            print(f"  the log of server {number} ends:")
            print(
                "".join(f"    {line[:300]}\n" for line in server.log_tail(8).splitlines()), end=""
            )
        print(f"  logs are kept in {folder}", flush=True)
