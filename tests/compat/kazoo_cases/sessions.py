"""Sessions: expiry, re-attachment, and what a killed server must give back.

These cases run last because most of them kill the server or wait for an expiry.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, KazooException
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.security import READ_ACL_UNSAFE

import lab
from relay import Relay

from .bench import (
    ENDS_SERVERS,
    EVENT_SECONDS_MAX,
    SESSION_SECONDS_MIN,
    Bench,
    Events,
    States,
    above,
    case,
    equal,
    expect_gone,
    in_threads,
    steady,
)

# --- Closing and expiry -------------------------------------------------------------------------


@case
def closing_removes_all_ephemerals_in_one_change(bench: Bench) -> None:
    owner, watcher = bench.client(), bench.client()
    path = bench.folder(owner)
    for number in range(20):
        owner.create(f"{path}/{number}", ephemeral=True)
    watcher.sync(path)
    seen = Events()
    before = watcher.exists(path)
    watcher.get_children(path, watch=seen)
    owner.stop()
    seen.expect("CHILD", path)
    children, stat = watcher.get_children(path, include_data=True)
    equal(children, [], "children right after the first event")
    equal(stat.cversion, before.cversion + 20, "cversion")


@case
def every_client_gets_a_session_of_its_own(bench: Bench) -> None:
    clients = in_threads(*[bench.client for _ in range(30)])
    equal(len({client.client_id[0] for client in clients}), 30, "different session ids")
    root = bench.folder(clients[0])
    in_threads(*[lambda c=c: c.create(f"{root}/n-", sequence=True) for c in clients])
    clients[0].sync(root)
    equal(len(clients[0].get_children(root)), 30, "nodes")


@case
def a_read_only_client_is_served_in_full_by_a_healthy_server(bench: Bench) -> None:
    client = bench.client(read_only=True)
    equal(client.client_state, KeeperState.CONNECTED, "state")
    client.create(f"{bench.folder(client)}/node")


@case
def restarting_a_client_ends_its_session(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/ephemeral"
    client.create(path, ephemeral=True)
    old = client.client_id[0]
    client.restart()
    equal(client.client_id[0] != old, True, "a new session")
    expect_gone(client, path)


@case
def the_ephemeral_of_a_killed_client_lives_until_its_session_expires(bench: Bench) -> None:
    watcher = bench.client()
    path = f"{bench.folder(watcher)}/ephemeral"
    with _child(bench.server.address, 3, path) as child:
        owner, _ = child.session()
        child.kill()
        gone = Events()
        watcher.sync(path)
        equal(watcher.exists(path, watch=gone).owner_session_id, owner, "owner after the kill")
        gone.expect("DELETED", path)
        equal(watcher.exists(path), None, "the ephemeral after the expiry")


@case
def a_client_paused_for_too_long_learns_that_its_session_is_lost(bench: Bench) -> None:
    watcher = bench.client()
    path = f"{bench.folder(watcher)}/ephemeral"
    with _child(bench.server.address, SESSION_SECONDS_MIN, path) as child:
        owner, _ = child.session()
        gone = Events()
        watcher.sync(path)
        watcher.exists(path, watch=gone)
        child.pause()
        gone.expect("DELETED", path)
        child.resume()
        child.wait_for(KazooState.LOST)
        session = child.wait_for(KazooState.CONNECTED)
        equal(session != owner, True, "a new session after the loss")


@case
@steady("it tells how often the connection breaks")
def a_client_cut_off_for_too_long_learns_that_its_session_is_lost(bench: Bench) -> None:
    watcher = bench.client()
    root = bench.folder(watcher)
    with Relay(bench.server.places) as relay:
        client = bench.client_of(relay.address, timeout=SESSION_SECONDS_MIN)
        states = States(client)
        path = client.create(f"{root}/ephemeral", ephemeral=True)
        old = client.client_id[0]
        gone = Events()
        watcher.sync(path)
        watcher.exists(path, watch=gone)
        relay.cut()
        gone.expect("DELETED", path)
        relay.mend()
        states.wait_for(KazooState.LOST)
        states.wait_for_newest(KazooState.CONNECTED)
        equal(states.seen, ["SUSPENDED", "LOST", "CONNECTED"], "states")
        equal(client.client_id[0] != old, True, "a new session")
        client.stop()


@case
def a_lock_passes_on_when_its_holder_expires(bench: Bench) -> None:
    heir = bench.client()
    path = bench.folder(heir, "lock")
    with Relay(bench.server.places) as relay:
        holder = bench.client_of(relay.address, timeout=SESSION_SECONDS_MIN)
        equal(holder.Lock(path).acquire(timeout=EVENT_SECONDS_MAX), True, "holder's acquire")
        lock = heir.Lock(path)
        equal(lock.acquire(blocking=False), False, "acquire while it is held")
        relay.cut()
        equal(lock.acquire(timeout=EVENT_SECONDS_MAX), True, "heir's acquire")
        lock.release()
        relay.mend()
        holder.stop()


@case
def pings_keep_an_idle_session_alive(bench: Bench) -> None:
    client, watcher = bench.client(timeout=SESSION_SECONDS_MIN), bench.client()
    path = f"{bench.folder(client)}/ephemeral"
    client.create(path, ephemeral=True)
    states = States(client)
    # Four times the timeout: without pings the session would expire twice over.
    threading.Event().wait(4 * SESSION_SECONDS_MIN)
    watcher.sync(path)
    equal(watcher.exists(path).owner_session_id, client.client_id[0], "owner")
    equal(KazooState.LOST in states.seen, False, "lost")


# --- Re-attachment ------------------------------------------------------------------------------


@case
def another_process_takes_over_a_session_by_id_and_password(bench: Bench) -> None:
    watcher = bench.client()
    path = f"{bench.folder(watcher)}/ephemeral"
    with _child(bench.server.address, 8, path) as child:
        session, password = child.session()
        child.kill()
    heir = bench.client(client_id=(session, password))
    equal(heir.client_id[0], session, "session")
    equal(heir.exists(path).owner_session_id, session, "owner")
    heir.stop()
    watcher.sync(path)
    expect_gone(watcher, path)


@case
def a_wrong_password_gets_a_new_session_and_harms_nobody(bench: Bench) -> None:
    owner = bench.client()
    path = f"{bench.folder(owner)}/ephemeral"
    owner.create(path, ephemeral=True)
    session = owner.client_id[0]
    thief = bench.client(client_id=(session, bytes(16)))
    equal(thief.client_id[0] != session, True, "the thief has another session")
    equal(owner.retry(owner.exists, path).owner_session_id, session, "owner")
    equal(owner.client_id[0], session, "the owner's session")


@case
def an_unknown_session_is_refused_and_replaced(bench: Bench) -> None:
    client = bench.client(client_id=(0x1234_5678_9ABC, bytes(16)))
    equal(client.client_id[0] not in (0, 0x1234_5678_9ABC), True, "a new session")
    client.create(bench.root)


@case
def a_short_cut_keeps_session_and_ephemerals(bench: Bench) -> None:
    with Relay(bench.server.places) as relay:
        client = bench.client_of(relay.address)
        states = States(client)
        path = f"{bench.folder(client)}/ephemeral"
        client.create(path, ephemeral=True)
        session, born = client.client_id[0], client.exists(path)
        for _ in range(5):
            relay.cut()
            states.wait_for_newest(KazooState.SUSPENDED)
            relay.mend()
            states.wait_for_newest(KazooState.CONNECTED)
        equal(client.client_id[0], session, "session")
        equal(client.exists(path), born, "stat of the ephemeral")
        equal(KazooState.LOST in states.seen, False, "lost")
        client.stop()


@case
@steady("it pauses the servers itself")
def a_short_pause_of_the_server_costs_nothing_but_time(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client)
    session = client.client_id[0]
    bench.server.pause()
    try:
        pending = [client.create_async(f"{path}/{number}") for number in range(10)]
        threading.Event().wait(0.5)
        equal([result.ready() for result in pending], [False] * 10, "answered while paused")
    finally:
        bench.server.resume()
    for result in pending:
        result.get(timeout=30)
    equal(client.client_id[0], session, "session")


# --- A killed server ----------------------------------------------------------------------------


@case
@steady(ENDS_SERVERS)
def a_session_and_its_ephemeral_survive_a_killed_server(bench: Bench) -> None:
    client = bench.client(timeout=4)
    states = States(client)
    path = f"{bench.folder(client)}/ephemeral"
    client.create(path, b"x", ephemeral=True)
    session, born = client.client_id, client.exists(path)
    bench.server.kill9()
    states.wait_for(KazooState.SUSPENDED)
    bench.server.restart()
    states.wait_for_newest(KazooState.CONNECTED)
    equal(client.client_id, session, "session")
    equal(client.retry(client.exists, path), born, "stat of the ephemeral")
    equal(states.seen, ["SUSPENDED", "CONNECTED"], "states")
    other = bench.client()
    gone = Events()
    other.exists(path, watch=gone)
    client.stop()
    gone.expect("DELETED", path)


@case
@steady(ENDS_SERVERS)
def a_session_survives_a_clean_stop_and_start(bench: Bench) -> None:
    client = bench.client(timeout=4)
    states = States(client)
    path = f"{bench.folder(client)}/ephemeral"
    client.create(path, ephemeral=True)
    session = client.client_id
    # 143: a Java process that ends by SIGTERM.
    equal(bench.server.stop(), 0 if bench.server.kind == "zkraft" else 143, "exit code")
    states.wait_for(KazooState.SUSPENDED)
    bench.server.start()
    states.wait_for_newest(KazooState.CONNECTED)
    equal(client.client_id, session, "session")
    equal(client.retry(client.exists, path).owner_session_id, session[0], "owner")


@case
@steady(ENDS_SERVERS)
def a_session_outlives_a_server_that_is_down_for_longer_than_its_timeout(bench: Bench) -> None:
    with Relay(bench.server.places) as relay:
        client = bench.client_of(relay.address, timeout=2)
        states = States(client)
        path = f"{bench.folder(client)}/ephemeral"
        client.create(path, ephemeral=True)
        session = client.client_id
        relay.cut()
        bench.server.kill9()
        states.wait_for(KazooState.SUSPENDED)
        threading.Event().wait(2.5)
        bench.server.restart()
        # Every session gets a full timeout from the start of the server (spec section 8.4).
        relay.mend()
        states.wait_for_newest(KazooState.CONNECTED)
        equal(client.client_id, session, "session")
        equal(client.exists(path).owner_session_id, session[0], "owner")
        client.stop()


@case
@steady(ENDS_SERVERS)
def a_session_whose_client_stays_away_expires_after_a_restart(bench: Bench) -> None:
    watcher = bench.client(timeout=8)
    watcher_states = States(watcher)
    root = bench.folder(watcher)
    with Relay(bench.server.places) as relay:
        client = bench.client_of(relay.address, timeout=2)
        states = States(client)
        path = client.create(f"{root}/ephemeral", ephemeral=True)
        relay.cut()
        bench.server.kill9()
        watcher_states.wait_for(KazooState.SUSPENDED)
        bench.server.restart()
        watcher_states.wait_for_newest(KazooState.CONNECTED)
        lab.wait_until(lambda: watcher.retry(watcher.exists, path) is None, "the expiry")
        relay.mend()
        states.wait_for(KazooState.LOST)
        states.wait_for_newest(KazooState.CONNECTED)
        client.stop()


@case
@steady(ENDS_SERVERS)
def nodes_come_back_exactly_after_a_killed_server(bench: Bench) -> None:
    client = bench.client(timeout=4)
    states = States(client)
    root = bench.folder(client)
    client.create(f"{root}/changed", b"1")
    client.set(f"{root}/changed", b"2")
    client.create(f"{root}/read-only", None, acl=READ_ACL_UNSAFE)
    client.create(f"{root}/parent/größe", b"x" * 100_000, makepath=True)
    client.create(f"{root}/parent/n-", sequence=True)
    client.create(f"{root}/deleted")
    client.delete(f"{root}/deleted")
    before = _picture(client, root)

    bench.server.kill9()
    states.wait_for(KazooState.SUSPENDED)
    bench.server.restart()
    states.wait_for_newest(KazooState.CONNECTED)
    equal(_picture(client, root), before, "the subtree")
    following = client.create(f"{root}/parent/n-", sequence=True)
    equal(following, f"{root}/parent/n-0000000002", "next sequential name")
    above(client.exists(following).czxid, before[root][1].pzxid, "zxid of the next write")


@case
@steady(ENDS_SERVERS)
def acknowledged_writes_survive_kills_under_load(bench: Bench) -> None:
    client = bench.client(timeout=4)
    root = bench.folder(client)
    acknowledged: set[str] = set()
    stop = threading.Event()
    progress = threading.Semaphore(0)

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = f"{root}/{number}"
            # A lost connection leaves the outcome open; only a reply is a promise.
            with contextlib.suppress(KazooException):
                client.create(path, b"x" * 200)
                acknowledged.add(path)
                progress.release()

    def write_some(count: int) -> None:
        for _ in range(count):
            if not progress.acquire(timeout=30):
                raise TimeoutError("the writer made no progress")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    for _ in range(3):
        write_some(50)
        bench.server.kill9()
        bench.server.restart()
    write_some(50)
    stop.set()
    writer.join(30)
    children = {f"{root}/{name}" for name in client.retry(client.get_children, root)}
    equal(acknowledged - children, set(), "acknowledged but lost")


@case
@steady(ENDS_SERVERS)
def requests_without_an_answer_fail_with_connection_loss(bench: Bench) -> None:
    client = bench.client(timeout=4)
    path = bench.folder(client)
    states = States(client)
    bench.server.pause()
    pending = [client.create_async(f"{path}/{number}") for number in range(5)]
    bench.server.kill9()
    for result in pending:
        result.wait(30)
        equal(type(result.exception), ConnectionLoss, "outcome")
    bench.server.restart()
    states.wait_for_newest(KazooState.CONNECTED)
    client.retry(client.get_children, path)


def _picture(client: KazooClient, path: str) -> dict[str, tuple]:
    """Data, stat and ACL of every node of a subtree."""
    data, stat = client.get(path)
    picture = {path: (data, stat, client.get_acls(path)[0])}
    for name in client.get_children(path):
        picture |= _picture(client, f"{path}/{name}")
    return picture


# --- A client in another process ----------------------------------------------------------------


class _Child:
    """The process of `child.py`; its lines arrive in order."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[list[str]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def session(self) -> tuple[int, bytes]:
        word, *rest = self._next()
        if word == "lost":
            raise ConnectionLoss("of the child, under its requests")
        equal(word, "session", "the child's first line")
        session, password = rest
        return int(session), bytes.fromhex(password)

    def wait_for(self, state: str) -> int:
        """Waits for a state and returns the session id of that moment."""
        while (line := self._next())[0] != state:
            pass
        return int(line[1])

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def _next(self) -> list[str]:
        return self._lines.get(timeout=30)

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.split())


@contextlib.contextmanager
def _child(hosts: str, timeout_seconds: float, path: str) -> Iterator[_Child]:
    script = Path(__file__).with_name("child.py")
    process = subprocess.Popen(
        [sys.executable, str(script), hosts, str(timeout_seconds), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = _Child(process)
    try:
        yield child
    finally:
        child.kill()
        process.stdin.close()
