"""What clients may read, and where: of every server at once, without a majority, of observers."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lab
import raw
from ledger import SESSION_MS

from .client import SYNC, Client, Connection, Expired, Lost, created
from .ensemble import Ensemble
from .network import SERVERS, Loopback

CONFIG = {
    "tickTime": "500",
    "initLimit": "20",
    "syncLimit": "4",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
}
FRESH = {**CONFIG, "linearizableReads": "true"}
READ_ONLY = {**CONFIG, "readonlymode.enabled": "true"}
# The feature level from which on there are local sessions.
LOCAL_LEVEL = 2
LOCAL = {**CONFIG, "localSessionsEnabled": "true"}
UPGRADING = {**LOCAL, "localSessionsUpgradingEnabled": "true"}
OBSERVER = 4

KAZOO = "kazoo==2.11.0"
HERE = Path(__file__).resolve().parent

ROUNDS = 200
# A server without a majority serves on for syncLimit, and waits 2 s more.
READ_ONLY_SECONDS_MAX = 30
CALM_SECONDS = 0.5
NOT_READ_ONLY, EPHEMERAL_ON_LOCAL = -119, -120


def fetch() -> None:
    """What comes from the network."""
    lab.venv(KAZOO)
    lab.zookeeper_class_path()


def run(report: lab.Report, kind: lab.Kind) -> None:
    fresh = "linearizable reads: "
    if kind == "zkraft":
        with report.case(f"{fresh}none is older than what was answered before, wherever it goes"):
            fresh_reads()
        with report.case(f"{fresh}they go on when the leader is killed"):
            fresh_through_failover()
    else:
        report.skip(fresh.rstrip(": "), "ZooKeeper has none")
    # ZooKeeper gives new sessions in read-only mode only if they are local.
    config = READ_ONLY if kind == "zkraft" else {**READ_ONLY, **LOCAL}
    for client, case in [("bytes", by_bytes), ("kazoo", by_kazoo), ("Java", by_java)]:
        with report.case(f"read-only mode, as {client} sees it"):
            with Ensemble(kind, Loopback(), config, name=f"{kind} read-only {client}") as ensemble:
                ensemble.start()
                case(ensemble)
    outlive = "local sessions outlive the leader"
    for name, settings, case in [
        ("a local session reads and writes, and makes no ephemeral", LOCAL, local_alone),
        ("a local session becomes one of the ensemble in its place", UPGRADING, upgraded),
        (outlive, UPGRADING, local_through_failover),
    ]:
        if name == outlive and kind == "zookeeper":
            report.skip(name, "ZooKeeper disconnects everyone then")
            continue
        with report.case(name):
            with Ensemble(kind, Loopback(), settings, name=f"{kind} {name}") as ensemble:
                ensemble.start()
                _know_local_sessions(ensemble)
                case(ensemble)
    with report.case("an observer serves its clients and has no vote"):
        network = Loopback((*SERVERS, OBSERVER))
        with Ensemble(kind, network, CONFIG, name=f"{kind} observer") as ensemble:
            ensemble.start()
            observed(ensemble)


# --- Linearizable reads ---------------------------------------------------------------------------


def stale(ensemble: Ensemble) -> int:
    """How many reads showed less than what was answered before they were sent."""
    found = 0
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ensemble.client(number)) for number in SERVERS]
        path = created(clients[0].create("/fresh-", b"0", raw.SEQUENTIAL))
        for reader in clients:
            reader.sync()
        for turn in range(1, ROUNDS + 1):
            writer = clients[turn % len(clients)]
            assert writer.set(path, str(turn).encode()).error == 0
            for reader in clients:
                value = reader.get(path)
                assert value is not None
                found += int(value[0]) < turn
    return found


def fresh_reads() -> None:
    counts = {}
    for name, config in (("without", CONFIG), ("with", FRESH)):
        with Ensemble("zkraft", Loopback(), config, name=f"zkraft {name} fresh") as ensemble:
            ensemble.start()
            counts[name] = stale(ensemble)
    reads = ROUNDS * len(SERVERS)
    print(f"  of {reads} reads {counts['without']} were old without, {counts['with']} with")
    assert counts["with"] == 0
    # Else this shows nothing.
    assert counts["without"] > 0, "no read was old without it either"


def fresh_through_failover() -> None:
    with Ensemble("zkraft", Loopback(), FRESH, name="zkraft fresh failover") as ensemble:
        ensemble.start()
        leader = ensemble.leader()
        readers = [number for number in SERVERS if number != leader]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(ensemble.client(number)) for number in readers]
            path = created(clients[0].create("/through-", b"0", raw.SEQUENTIAL))
            worst = 0.0
            for turn in range(1, ROUNDS + 1):
                if turn == ROUNDS // 2:
                    ensemble.servers[leader].kill9()
                began = time.monotonic()
                assert clients[turn % 2].set(path, str(turn).encode()).error == 0
                value = clients[1 - turn % 2].get(path)
                worst = max(worst, time.monotonic() - began)
                assert value is not None and int(value[0]) == turn, f"{value} in turn {turn}"
            assert all(client.broken == 0 for client in clients), "a connection broke"
        print(f"  the longest turn took {1000 * worst:.0f} ms")


# --- Read-only mode -------------------------------------------------------------------------------


def isro(ensemble: Ensemble, number: int) -> str:
    server = ensemble.servers[number]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return lab.four_letter(server.port, "isro", 1, server.host)
    return ""


def desert(ensemble: Ensemble, left: int) -> None:
    """All but one server are killed; that one becomes read-only."""
    for number in SERVERS:
        if number != left:
            ensemble.servers[number].kill9()
    lab.wait_until(
        lambda: isro(ensemble, left) == "ro", "read-only mode", READ_ONLY_SECONDS_MAX, 0.05
    )
    assert ensemble.servers[left].mode() == "read-only"


def by_bytes(ensemble: Ensemble) -> None:
    for left in (ensemble.leader(), ensemble.followers()[0]):
        with ensemble.client(left) as client:
            path = created(client.create("/read-", b"before", raw.SEQUENTIAL))
        assert isro(ensemble, left) == "rw"
        place = ensemble.place(left)
        before = Connection(place, SESSION_MS, read_only=True)
        assert not before.read_only, "there is a majority"
        desert(ensemble, left)
        with contextlib.suppress(Lost):
            before.idle(CALM_SECONDS)
            raise AssertionError("a connection of before is still there")
        try:
            Connection(place, SESSION_MS).close()
            raise AssertionError("a client that wants to write was served")
        except Lost:
            pass
        reader = Connection(place, SESSION_MS, read_only=True)
        assert reader.read_only
        reply = reader.call(raw.GET_DATA, raw.text(path) + b"\1")
        assert reply.error == 0 and reply.body[4:10] == b"before"
        for opcode, body in [
            (raw.SET_DATA, raw.set_body(path, b"")),
            (raw.CREATE, raw.create_body("/new", b"", 0)),
            (SYNC, raw.text("/")),
        ]:
            assert reader.call(opcode, body).error == NOT_READ_ONLY
        ensemble.start()
        try:
            reader.idle(10)
            raise AssertionError("a read-only connection outlived read-only mode")
        except Lost:
            pass
        with ensemble.client(left) as client:
            assert client.set(path, b"after").error == 0


class Program:
    """A client in a process of its own: takes a request on each line, answers with one."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        log = lab.CACHE / f"read-only-{name}.log"
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.states: list[str] = []
        self._answers: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, request: str, seconds_max: float = 30) -> str:
        assert self._process.stdin is not None
        before = len(self._answers)
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        lab.wait_until(lambda: len(self._answers) > before, f"an answer to {request}", seconds_max)
        return self._answers[before]

    def reaches(self, state: str, seconds_max: float = 60) -> None:
        lab.wait_until(
            lambda: state in self.states, f"{state}, after {self.states}", seconds_max, 0.05
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            (self.states if word == "state" else self._answers).append(rest)


def by_kazoo(ensemble: Ensemble) -> None:
    command = [str(lab.venv(KAZOO)), str(HERE / "reader.py")]
    seen_by(ensemble, "kazoo", command, "CONNECTED_RO", "CONNECTED")


def by_java(ensemble: Ensemble) -> None:
    command = ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1"]
    command += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp", lab.zookeeper_class_path()]
    command += [str(HERE / "Reader.java")]
    seen_by(ensemble, "java", command, "ConnectedReadOnly", "SyncConnected")


def seen_by(
    ensemble: Ensemble, name: str, command: Sequence[str], reading: str, writing: str
) -> None:
    """A library's client that only wants to read, from a loss of the majority to its return."""
    left = ensemble.followers()[0]
    with ensemble.client() as client:
        path = created(client.create("/read-", b"before", raw.SEQUENTIAL))
    with ensemble.client(left) as client:
        client.sync()
    desert(ensemble, left)
    hosts = ",".join(f"{host}:{port}" for host, port in ensemble.places())
    with Program(name, [*command, hosts]) as program:
        program.reaches(reading)
        assert writing not in program.states, program.states
        assert program.ask(f"get {path}") == "before"
        refused = program.ask("create /written")
        assert "NotReadOnly" in refused, refused
        began = len(program.states)
        ensemble.start()
        lab.wait_until(
            lambda: writing in program.states[began:],
            f"{writing} after {program.states}",
            90,
            0.05,
        )
        print(f"  {name}: {', '.join(program.states)}")
        assert program.ask("create /written") == "/written"


# --- Local sessions -------------------------------------------------------------------------------


def _know_local_sessions(ensemble: Ensemble) -> None:
    """Until all members have said that they know them, zkraft makes none."""
    if ensemble.kind == "zkraft":
        lab.wait_until(
            lambda: all(
                gauge(ensemble, number, "feature_level") >= LOCAL_LEVEL for number in SERVERS
            ),
            "the feature level of local sessions",
        )


def gauge(ensemble: Ensemble, number: int, name: str) -> int:
    return int(ensemble.servers[number].look("mntr", f"zk_{name}\t"))


def local_alone(ensemble: Ensemble) -> None:
    first, second = ensemble.followers()
    known = gauge(ensemble, first, "global_sessions")
    with ensemble.client(first) as client:
        path = created(client.create("/local-", b"", raw.SEQUENTIAL))
        assert client.set(path, b"written").error == 0
        refused = client.create("/mine", b"", raw.EPHEMERAL)
        assert refused.error == EPHEMERAL_ON_LOCAL, refused
        assert gauge(ensemble, first, "local_sessions") == 1
        assert gauge(ensemble, first, "global_sessions") == known
        session, seen = client.session, client.seen
        client.leave()
        client.connect(10)
        assert client.session == session, "it does not come back to its server"
        client.leave()
        try:
            Connection(ensemble.place(second), SESSION_MS, session, seen).close()
            raise AssertionError("another server knows it")
        except Expired:
            pass


def upgraded(ensemble: Ensemble) -> None:
    number, leader = ensemble.followers()[0], ensemble.leader()
    with ensemble.client(number) as client, ensemble.client(leader) as other:
        watched = created(client.create("/watched-", b"", raw.SEQUENTIAL))
        assert client.get(watched, watch=True) is not None
        before = client.session
        connection = client.connect(10)
        body = raw.create_body("/mine-", b"", raw.EPHEMERAL | raw.SEQUENTIAL)
        connection.send(raw.CREATE, body)
        connection.send(raw.GET_CHILDREN, raw.text("/") + b"\0")
        connection.send(raw.CREATE, body)
        replies = [connection.receive() for _ in range(3)]
        paths = [created(replies[0]), created(replies[2])]
        assert paths[0][1:].encode() in replies[1].body, "a read does not see the write before it"
        assert client.broken == 0 and client.session == before
        assert other.set(watched, b"changed").error == 0
        lab.wait_until(lambda: client.idle(0.05) or connection.events, "the event of its watch")
        client.leave()
        client.addresses = [ensemble.place(leader)]
        for path in paths:
            found = client.get(path)
            assert found is not None and found[1].owner == before[0]
        assert client.session == before, "it did not move"
        assert client.end()
    with ensemble.client(number) as reader:
        reader.sync()
        assert reader.get(paths[0]) is None


def local_through_failover(ensemble: Ensemble) -> None:
    leader = ensemble.leader()
    with contextlib.ExitStack() as stack:
        followers = ensemble.followers()
        clients = [stack.enter_context(ensemble.client(number)) for number in followers]
        path = created(clients[0].create("/kept-", b"", raw.SEQUENTIAL))
        for client in clients:
            client.connect(10)
        sessions = [client.session for client in clients]
        ensemble.servers[leader].kill9()
        for turn, client in enumerate(clients):
            assert client.set(path, str(turn).encode()).error == 0
            assert client.create(f"{path}/e{turn}", b"", raw.EPHEMERAL).error == 0
        assert [client.session for client in clients] == sessions
        assert all(client.broken == 0 for client in clients), "a connection broke"


# --- Observers ------------------------------------------------------------------------------------


def observed(ensemble: Ensemble) -> None:
    observer = ensemble.servers[OBSERVER]
    assert observer.mode() == "observer"
    assert observer.look("mntr", "zk_server_state\t") == "observer"
    assert observer.look("mntr", "zk_peer_state\t").startswith("observing")
    leader = ensemble.leader()
    assert ensemble.servers[leader].look("mntr", "zk_quorum_size\t") == "3"
    with ensemble.client(OBSERVER) as client:
        path = created(client.create("/observed-", b"0", raw.SEQUENTIAL))
        mine = created(client.create("/mine-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
        with ensemble.client(leader) as writer:
            client.sync()
            assert client.get(path, watch=True) is not None
            assert writer.set(path, b"1").error == 0
        events = client.connect(10).events
        lab.wait_until(lambda: client.idle(0.05) or events, "an event at the observer")

        # A leader is lost: its clients wait.
        session = client.session
        ensemble.servers[leader].kill9()
        if ensemble.kind == "zookeeper":
            # It disconnects everyone.
            lab.wait_until(lambda: ensemble.leads() not in (None, leader), "another leader", 60)
            with contextlib.suppress(Lost):
                client.idle(5)
        assert client.set(path, b"2").error == 0
        assert client.get(mine) is not None
        if ensemble.kind == "zkraft":
            assert client.broken == 0 and client.session == session
        # It does not count: two of three are a majority, one with it is none.
        other = next(n for n in SERVERS if n != leader and n != ensemble.leader())
        ensemble.servers[other].kill9()
        with contextlib.suppress(Lost):
            reply = client.set(path, b"nobody else has it")
            raise AssertionError(f"a write of one server and an observer was answered: {reply}")
        ensemble.start()
        client.connect(30)
        assert client.set(path, b"3").error == 0

    # It is killed: nobody else notices.
    with beating(ensemble, SERVERS) as beats:
        observer.kill9()
        time.sleep(2)
    assert beats.broken == 0, f"{beats.broken} connections broke"
    print(f"  without the observer the longest write took {1000 * beats.worst:.0f} ms")
    ensemble.start()
    with ensemble.client(OBSERVER) as client:
        client.sync()
        found = client.get(path)
        assert found is not None and found[0] == b"3"


class Beats:
    """Writes through each of some servers, one after the other."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.broken = 0


@contextlib.contextmanager
def beating(ensemble: Ensemble, numbers: Sequence[int]) -> Iterator[Beats]:
    beats = Beats()
    ends = threading.Event()

    def write(client: Client) -> None:
        while not ends.is_set():
            began = time.monotonic()
            with contextlib.suppress(Lost, Expired):
                client.set("/", b"")
            beats.worst = max(beats.worst, time.monotonic() - began)
        beats.broken += client.broken
        client.end()

    clients = [Client([ensemble.place(number)], SESSION_MS) for number in numbers]
    run: Callable[[Client], threading.Thread] = lambda client: threading.Thread(  # noqa: E731
        target=write, args=(client,), daemon=True
    )
    threads = [run(client) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield beats
    finally:
        ends.set()
        for thread in threads:
            thread.join(60)
