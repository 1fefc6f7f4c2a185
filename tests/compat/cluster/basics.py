"""What an ensemble must do when nothing worse happens than servers that come and go."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import lab
import raw
from ledger import SESSION_MS, Ledger

from . import behind, configured, growth, repair, shown
from .client import NODE_EXISTS, Client, Connection, Expired, Lost, created
from .ensemble import SERVE_SECONDS_MAX, Ensemble
from .failover import Trial
from .network import SERVERS, Loopback

CONFIG = {
    "tickTime": "500",
    "initLimit": "20",
    "syncLimit": "4",
    "minSessionTimeout": "1000",
    "maxSessionTimeout": "60000",
}
# Small files and many snapshots, so that the log soon does not reach back.
SNAPSHOTS = {**CONFIG, "snapCount": "50", "preAllocSize": "1024"}
LARGE = {**CONFIG, "jute.maxbuffer": str(16 << 20)}
# How long two new servers of three are looked at.
LOOK_SECONDS = 3.0
# A server without a majority may serve on for syncLimit, and its clients' silence.
DESERTED_SECONDS_MAX = 30
SHORT_SESSION_MS = 2_000
SEQUENTIAL_EACH = 150
CRASHES = 3
ITEMS = 40
ITEM_BYTES = 64 << 10
ITEM_ROUNDS = 32


def run(report: lab.Report, kind: lab.Kind) -> None:
    for missing in SERVERS:
        with report.case(f"three new servers form an ensemble, though {missing} is late"):
            forms_late(kind, missing)
    shared = [
        ("any two of three serve, and the third one catches up", any_two_serve),
        ("a write through any server is seen through all after sync", Ensemble.is_seen_through_all),
        ("a session moves between servers", session_moves),
        ("a session that moved is not served where it was", moved_away),
        ("another password does not move a session", wrong_password),
        ("the ephemerals of a session that was closed are gone everywhere", ephemerals_closed),
        ("the ephemerals of a session that expired are gone everywhere", ephemerals_expired),
        ("a watch fires for a write through another server", watch_fires),
        ("sequential znodes through all servers: no number twice, none left out", sequential),
        ("one of three acknowledges nothing, stops serving, and comes back", minority),
        ("kill -9 of all loses nothing that was acknowledged", kill_all),
        ("one server after the other is restarted under load", rolling_restart),
    ]
    name = "a follower that is away for a moment under load is sent no snapshot"
    if kind == "zkraft":
        shared.append((name, behind.short_outage))
    else:
        report.skip(name, "the logs that tell are zkraft's")
    cases_on(report, kind, CONFIG, shared)
    on_snapshots = [("a follower that missed 80 MiB catches up", far_behind)]
    name = "a follower whose data directory is lost is taken back"
    if kind == "zkraft":
        on_snapshots.append((name, wiped))
    else:
        report.skip(name, "ZooKeeper lets an empty server vote")
    name = "a large snapshot is sent, and the clients of its sender do not notice"
    if kind == "zkraft":
        on_snapshots.append((name, behind.sent_under_load))
    else:
        report.skip(name, "the logs that tell are zkraft's")
    cases_on(report, kind, SNAPSHOTS, on_snapshots)
    name = "znodes of 10 MiB reach every server, by the log and by a snapshot"
    if kind == "zkraft":
        cases_on(report, kind, LARGE, [(name, behind.large_znodes)])
    else:
        report.skip(name, "jute.maxbuffer of the laboratory's JVMs is the default")
    name = "a server whose log was forged is outvoted, and joins again with empty directories"
    if kind == "zkraft":
        cases_on(report, kind, CONFIG, [(name, repair.diverges)])
    else:
        report.skip(name, "the log's format is zkraft's")
    on_show = [
        ("status and mntr show each server of an ensemble, and who is gone", shown.shows),
        ("status and mntr show that a follower is behind", shown.falls_behind),
    ]
    if kind == "zkraft":
        cases_on(report, kind, shown.CONFIG, on_show)
    else:
        for name, _ in on_show:
            report.skip(name, "zkraft's own")
    alone = [
        ("one server grows to three and shrinks back under load", growth.grows_and_shrinks),
        ("the lines of all servers may be in a file of their own", configured.dynamic_file),
        ("clients are told of advertised addresses, and of no others", configured.advertised),
        ("two of three are destroyed: the third one recovers, and is joined", repair.recovers),
        ("two of three new servers found an ensemble if they may", repair.founds_with_majority),
    ]
    for name, case in alone:
        if kind == "zkraft":
            with report.case(name):
                case(kind)
        else:
            report.skip(name, "zkraft's own")


def cases_on(
    report: lab.Report,
    kind: lab.Kind,
    config: dict[str, str],
    cases: Sequence[tuple[str, Callable[[Ensemble], None]]],
) -> None:
    """Runs the cases on one ensemble, or on another one after a failure."""
    pending = list(cases)
    while pending:
        with contextlib.ExitStack() as stack:
            ensemble = stack.enter_context(Ensemble(kind, Loopback(), config))
            done = 0
            for name, case in pending:
                ensemble.name = f"{kind} {name}"
                failed = report.failed
                with report.case(name), logs_kept(ensemble):
                    ensemble.start()
                    case(ensemble)
                done += 1
                if report.failed > failed:
                    break
            del pending[:done]


@contextlib.contextmanager
def logs_kept(ensemble: Ensemble) -> Iterator[None]:
    try:
        yield
    except lab.Skipped:
        raise
    except Exception:
        ensemble.keep_logs()
        raise


# --- Starting -------------------------------------------------------------------------------------


def forms_late(kind: lab.Kind, missing: int) -> None:
    early = [number for number in SERVERS if number != missing]
    if missing == 2:
        early.reverse()
    with Ensemble(kind, Loopback(), CONFIG, name=f"{kind} late {missing}") as ensemble:
        for number in early:
            ensemble.servers[number].spawn()
            time.sleep(0.3)
        try:
            ensemble.wait_for(*early, seconds_max=LOOK_SECONDS)
            print("  two new servers serve without the third one")
        except TimeoutError:
            print(f"  two new servers do not serve within {LOOK_SECONDS:g} s without the third one")
        ensemble.start()
        ensemble.is_seen_through_all()


def any_two_serve(ensemble: Ensemble) -> None:
    for missing in SERVERS:
        for server in ensemble.servers.values():
            server.kill9()
        early = [number for number in SERVERS if number != missing]
        for number in early:
            ensemble.servers[number].spawn()
        ensemble.wait_for(*early)
        with ensemble.client(*early) as client:
            assert client.create(f"/without-{missing}").error == 0
        ensemble.start()
        with ensemble.client(missing) as client:
            client.sync()
            assert client.get(f"/without-{missing}") is not None, "it did not catch up"


# --- Clients of different servers -----------------------------------------------------------------


def session_moves(ensemble: Ensemble) -> None:
    with ensemble.client(1) as client:
        path = created(client.create("/moving-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
        session = client.session
        for number in (2, 3, 1, 3):
            client.leave()
            client.addresses = [ensemble.place(number)]
            found = client.get(path)
            assert client.session == session, "another session"
            assert found is not None, f"the ephemeral is not at {number}"
            assert found[1].owner == session[0]
            assert client.set(path, str(number).encode()).error == 0
        client.end()
    gone_everywhere(ensemble, path)


def moved_away(ensemble: Ensemble) -> None:
    first = Connection(ensemble.place(1), SESSION_MS)
    body = raw.create_body("/moved-", b"", raw.EPHEMERAL | raw.SEQUENTIAL)
    path = created(first.call(raw.CREATE, body))
    second = Connection(ensemble.place(2), SESSION_MS, first.session, first.seen)
    try:
        reply = first.call(raw.SET_DATA, raw.set_body(path, b"from the old place"))
        raise AssertionError(f"the old connection was answered: {reply}")
    except Lost:
        pass
    reply = second.call(raw.SET_DATA, raw.set_body(path, b"from the new place", 0))
    assert reply.error == 0, f"the write of the old connection was done: {reply}"
    first.close()
    second.close()


def wrong_password(ensemble: Ensemble) -> None:
    with ensemble.client(1) as client:
        path = created(client.create("/owned-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
        for number in SERVERS:
            try:
                guess = (client.session[0], b"16 bytes, guess!")
                Connection(ensemble.place(number), SESSION_MS, guess).close()
                raise AssertionError(f"server {number} took a wrong password")
            except Expired:
                pass
        session = client.session
        with contextlib.suppress(Lost):
            # ZooKeeper breaks the owner's connection; the session lives all the same.
            client.sync()
        assert client.get(path) is not None and client.session == session, "the session ended"


def ephemerals_closed(ensemble: Ensemble) -> None:
    for number in SERVERS:
        with ensemble.client(number) as client:
            path = created(client.create("/closed-", b"", raw.EPHEMERAL | raw.SEQUENTIAL))
            for other in SERVERS:
                with ensemble.client(other) as reader:
                    reader.sync()
                    assert reader.get(path) is not None, f"{path} is not at {other}"
        gone_everywhere(ensemble, path)


def gone_everywhere(ensemble: Ensemble, path: str) -> None:
    for number in SERVERS:
        with ensemble.client(number) as reader:
            reader.sync()
            assert reader.get(path) is None, f"{path} is still at {number}"


def ephemerals_expired(ensemble: Ensemble) -> None:
    paths = []
    for number in SERVERS:
        connection = Connection(ensemble.place(number), SHORT_SESSION_MS)
        body = raw.create_body("/expired-", b"", raw.EPHEMERAL | raw.SEQUENTIAL)
        paths.append(created(connection.call(raw.CREATE, body)))
        connection.close()
    for number in SERVERS:
        with ensemble.client(number) as reader:
            for path in paths:
                gone = lambda path=path, reader=reader: reader.get(path) is None  # noqa: E731
                lab.wait_until(gone, f"{path} to go at {number}", 30)


def watch_fires(ensemble: Ensemble) -> None:
    with ensemble.client() as client:
        path = created(client.create("/watched-", b"", raw.SEQUENTIAL))
    for number in SERVERS:
        for other in SERVERS:
            with ensemble.client(number) as watcher, ensemble.client(other) as writer:
                watcher.sync()
                assert watcher.get(path, watch=True) is not None
                assert writer.set(path, b"changed").error == 0
                connection = watcher.connection
                assert connection is not None
                lab.wait_until(
                    lambda watcher=watcher, events=connection.events: watcher.idle(0.05) or events,
                    f"the event at {number} of a write at {other}",
                )
                event = connection.events.popleft()
                assert (event.kind, event.path) == (3, path), f"{event}"


def sequential(ensemble: Ensemble) -> None:
    with ensemble.client() as client:
        assert client.create("/numbered").error == 0
    numbers: list[int] = []
    wrong: list[str] = []

    def create(number: int) -> None:
        try:
            with ensemble.client(number) as client:
                connection = client.connect(10)
                body = raw.create_body("/numbered/n-", b"", raw.SEQUENTIAL)
                for _ in range(SEQUENTIAL_EACH):
                    connection.send(raw.CREATE, body)
                mine = []
                for _ in range(SEQUENTIAL_EACH):
                    reply = connection.receive()
                    assert reply is not None
                    mine.append(int(created(reply).rsplit("-", 1)[1]))
                assert mine == sorted(mine), f"out of order at {number}"
                numbers.extend(mine)
        except (AssertionError, Lost, Expired) as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=create, args=(n,), daemon=True) for n in SERVERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong, wrong[0]
    assert sorted(numbers) == list(range(len(SERVERS) * SEQUENTIAL_EACH)), "numbers are not dense"
    for number in SERVERS:
        with ensemble.client(number) as client:
            client.sync()
            assert len(client.children("/numbered")) == len(numbers), f"at {number}"


# --- Servers that go ------------------------------------------------------------------------------


def minority(ensemble: Ensemble) -> None:
    for left in (ensemble.leader(), ensemble.followers()[0]):
        with ensemble.client(left) as client:
            path = created(client.create("/alone-", b"", raw.SEQUENTIAL))
        lone = Client([ensemble.place(left)], SESSION_MS)
        lone.connect(10)
        for number in SERVERS:
            if number != left:
                ensemble.servers[number].kill9()
        with contextlib.suppress(Lost):
            reply = lone.set(path, b"nobody else has it")
            raise AssertionError(f"a write without a majority was answered: {reply}")
        lab.wait_until(
            lambda left=left: not ensemble.servers[left].serves(),
            "the lone server to stop serving",
            DESERTED_SECONDS_MAX,
        )
        assert ensemble.servers[left].running(), "it ended: it is to wait for the others"
        ensemble.start()
        lone.connect(30)
        assert lone.set(path, b"again with the others").error == 0
        lone.end()


def kill_all(ensemble: Ensemble) -> None:
    ledger = Ledger(workers=6)
    hosts = [server.host for server in ensemble.servers.values()]
    port = ensemble.servers[1].port
    prepared = raw.Raw(port, SESSION_MS, host=hosts[0])
    ledger.prepare(prepared)
    prepared.close()
    for crash in range(CRASHES):
        enough = ledger.answered() + 500
        ledger.start(port, hosts)
        lab.wait_until(lambda enough=enough: ledger.answered() >= enough, "the load", 60)
        for server in ensemble.servers.values():
            server.kill9_running()
        ledger.join()
        ensemble.start()
        with ensemble.client(crash % 3 + 1) as client:
            client.sync()
        checking = raw.Raw(port, SESSION_MS, host=hosts[crash % 3])
        ledger.check(checking)
        checking.close()
    print(f"  {ledger.answered()} writes were acknowledged around {CRASHES} crashes of all")


def rolling_restart(ensemble: Ensemble) -> None:
    with Trial(ensemble, "term", 1) as trial:
        faults = []
        for number in SERVERS:
            role = "leader" if number == ensemble.leader() else "follower"
            fault = trial.fault(number)
            faults.append(fault)
            gaps = ", ".join(f"{n}: {gap:.0f} ms" for n, gap in fault.gaps.items())
            print(
                f"  {role} {number} is told to stop; {gaps}; {fault.broken} disconnected, "
                f"its own clients connected {fault.reconnects} times"
            )
        trial.check()
    if ensemble.kind == "zkraft":
        broken = sum(fault.broken for fault in faults)
        assert broken == 0, f"{broken} clients of servers that were not restarted lost them"
        assert all(fault.paid_once() for fault in faults), "more than one reconnect, or none"
    assert sum(fault.expired for fault in faults) == 0, "a session was lost"


# --- Servers that are behind ----------------------------------------------------------------------


def fill(ensemble: Ensemble, number: int, generation: int) -> int:
    """Writes much through one server; returns the last zxid."""
    with ensemble.client(number) as client:
        connection = client.connect(10)
        for path in ["/items", *(f"/items/{item}" for item in range(ITEMS))]:
            assert client.create(path).error in (0, NODE_EXISTS)
        for turn in range(ITEM_ROUNDS):
            for item in range(ITEMS):
                data = f"{generation} {turn} {item} ".encode().ljust(ITEM_BYTES, b".")
                connection.send(raw.SET_DATA, raw.set_body(f"/items/{item}", data))
            for _ in range(ITEMS):
                reply = connection.receive()
                assert reply is not None and reply.error == 0
        return connection.seen


def compare(ensemble: Ensemble, number: int, generation: int) -> None:
    with ensemble.client(number) as client:
        client.sync()
        for item in range(ITEMS):
            found = client.get(f"/items/{item}")
            expected = f"{generation} {ITEM_ROUNDS - 1} {item} ".encode()
            assert found is not None and found[0].startswith(expected), f"item {item}"


def far_behind(ensemble: Ensemble) -> None:
    fill(ensemble, 1, 0)
    follower = ensemble.followers()[0]
    server = ensemble.servers[follower]
    server.kill9()
    said = behind.Said(ensemble)
    seen = fill(ensemble, ensemble.leader(), 1)
    began = time.monotonic()
    ensemble.start()
    ensemble.caught_up(follower, seen)
    print(f"  it caught up in {time.monotonic() - began:.1f} s, its start included")
    compare(ensemble, follower, 1)
    if ensemble.kind == "zkraft":
        told = "".join(said.transfers())
        for word in ("sending", "receiving", "installed"):
            assert word in told, f"no log tells of {word} a snapshot: {told}"


def wiped(ensemble: Ensemble) -> None:
    seen = fill(ensemble, ensemble.leader(), 2)
    follower = ensemble.followers()[0]
    server = ensemble.servers[follower]
    server.kill9()
    server.wipe()
    server.spawn()
    ensemble.wait_for(follower, seconds_max=SERVE_SECONDS_MAX)
    ensemble.caught_up(follower, seen)
    compare(ensemble, follower, 2)
    ensemble.complete()
    # It counts again: one of the others may go.
    leader = ensemble.leader()
    ensemble.servers[leader].kill9()
    with ensemble.client(follower) as client:
        deadline = time.monotonic() + SERVE_SECONDS_MAX
        while True:
            with contextlib.suppress(Lost):
                assert client.create("/after-the-loss").error == 0
                break
            assert time.monotonic() < deadline, "no majority with the one that was taken back"
