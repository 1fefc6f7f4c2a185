"""Changes of the ensemble by `reconfig`, and what clients are told of them (spec section 12.5).

Each case leaves three members behind, also when it fails.
"""

from __future__ import annotations

import contextlib
import queue
import re
import time
from collections.abc import Iterator

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    NewConfigNoQuorumError,
    NoAuthError,
    NodeExistsError,
    SessionExpiredError,
)
from kazoo.protocol.states import ZnodeStat

import lab
from cluster.ensemble import ELECTION_PORT, QUORUM_PORT, Ensemble
from cluster.network import SERVERS
from cluster.service import Service

from .bench import (
    EVENT_SECONDS_MAX,
    SUPER,
    Bench,
    Events,
    States,
    above,
    case,
    equal,
    raises,
    steady,
    three_servers,
)

CONFIG = "/zookeeper/config"
CHANGES_MEMBERS = "it changes which servers there are"
# Until who joins has caught up and votes, or who is removed has no vote.
VOTE_SECONDS_MAX = 30


@case
@three_servers
@steady(CHANGES_MEMBERS)
def a_server_is_removed_and_added_back(bench: Bench) -> None:
    with _changed(bench) as ensemble:
        leader = ensemble.leader()
        home, gone = ensemble.followers()
        admin, watcher = _admin(bench, home), _client_at(bench, leader)
        states, there = States(admin), _client_at(bench, gone)
        states_there = States(there)
        root = bench.folder(admin)
        version = _version(admin)
        changes = Events()
        watcher.get(CONFIG, watch=changes)

        raises(NoAuthError, _judged, watcher, None, str(gone), None)
        raises(BadVersionError, admin.reconfig, None, str(gone), None, version - 1)
        equal(_members(admin), set(SERVERS), "members after requests that were refused")
        data, stat = _judged(admin, None, str(gone), None, version)
        equal(_members_in(data), {leader, home}, "members that are answered")
        above(stat.mzxid, version, "the version")
        equal(_version_in(data), stat.mzxid, "the version in the text")
        changes.expect("CHANGED", CONFIG)
        equal(watcher.get(CONFIG, watch=changes)[0], data, "what the watcher reads")
        _wait_for_voters(ensemble, 2)
        # ZooKeeper's goes on to serve without a vote.
        lets_go = ensemble.kind == "zkraft"
        if lets_go:
            states_there.wait_for("SUSPENDED")
            equal(ensemble.servers[gone].serves(), False, "whether it serves clients")
        admin.create(f"{root}/meanwhile", b"x")

        joining = _line(ensemble, gone)
        raises(BadVersionError, admin.reconfig, joining, None, None, version)
        data, stat = _judged(admin, joining, None, None, stat.mzxid)
        equal(_members_in(data), set(SERVERS), "members that are answered")
        changes.expect("CHANGED", CONFIG)
        ensemble.wait_for(gone)
        if lets_go:
            states_there.wait_for_newest("CONNECTED")
        equal(there.get(f"{root}/meanwhile")[0], b"x", "what was written without it")
        _wait_for_voters(ensemble, 3)
        equal(states.seen, [], "states of a client of a server that stayed")

        # Its vote counts: without it there is no majority now.
        ensemble.servers[leader].kill9()
        _create(admin, f"{root}/with-its-vote")


@case
@three_servers
@steady(CHANGES_MEMBERS)
def all_members_are_named_at_once(bench: Bench) -> None:
    with _changed(bench) as ensemble:
        # A leader that goes costs those at the others nothing. ZooKeeper's breaks all connections.
        leads = ensemble.leader()
        gone = leads if ensemble.kind == "zkraft" else ensemble.followers()[0]
        stay = [number for number in SERVERS if number != gone]
        admin, watcher = _admin(bench, stay[0]), _client_at(bench, stay[1])
        states, states_of_watcher = States(admin), States(watcher)
        seen: queue.Queue[set[int]] = queue.Queue()
        watcher.DataWatch(CONFIG, lambda data, stat: seen.put(_members_in(data)))
        equal(seen.get(timeout=EVENT_SECONDS_MAX), set(SERVERS), "members at first")

        version = _version(admin)
        two = ",".join(_line(ensemble, number) for number in stay)
        raises(BadVersionError, admin.reconfig, None, None, two, version + 1)
        data, stat = _judged(admin, None, None, two, version)
        equal(_members_in(data), set(stay), "members that are answered")
        equal(seen.get(timeout=EVENT_SECONDS_MAX), set(stay), "members that the watch tells")
        _wait_for_voters(ensemble, 2)
        equal(ensemble.leader() in stay, True, "whether one of the members leads")
        _create(admin, f"{bench.folder(admin)}/of-two")

        three = "\n".join(_line(ensemble, number) for number in SERVERS)
        data, _ = _judged(admin, None, None, three, stat.mzxid)
        equal(_members_in(data), set(SERVERS), "members that are answered")
        equal(seen.get(timeout=EVENT_SECONDS_MAX), set(SERVERS), "members that the watch tells")
        ensemble.wait_for(gone)
        _wait_for_voters(ensemble, 3)
        late = _client_at(bench, gone)
        equal(late.exists(f"{bench.root}/of-two") is not None, True, "what the two wrote")
        equal((states.seen, states_of_watcher.seen), ([], []), "states of those that stayed")


# --- Parts of cases -----------------------------------------------------------------------------


@contextlib.contextmanager
def _changed(bench: Bench) -> Iterator[Ensemble]:
    """The ensemble, which has its three members again afterwards."""
    assert isinstance(bench.server, Service)
    ensemble = bench.server.ensemble
    try:
        yield ensemble
    finally:
        for server in ensemble.servers.values():
            if not server.running():
                server.spawn()
        admin = bench.client()
        admin.add_auth("digest", SUPER)
        every = ",".join(_line(ensemble, number) for number in SERVERS)
        _judged(admin, None, None, every)
        ensemble.wait_for(*SERVERS)
        ensemble.complete()


def _judged(client: KazooClient, *request: str | int | None) -> tuple[bytes, ZnodeStat]:
    """Asks for a change until there is a majority of those that stay. The leader may miss one for
    a moment, just after a server came back or another one led."""
    deadline = time.monotonic() + VOTE_SECONDS_MAX
    while True:
        try:
            return client.reconfig(*request)
        except NewConfigNoQuorumError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _client_at(bench: Bench, number: int) -> KazooClient:
    """A client of one server alone."""
    assert isinstance(bench.server, Service)
    return bench.client_of(bench.server.ensemble.servers[number].address)


def _admin(bench: Bench, number: int) -> KazooClient:
    """One that may change the ensemble."""
    admin = _client_at(bench, number)
    admin.add_auth("digest", SUPER)
    return admin


def _line(ensemble: Ensemble, number: int) -> str:
    """The line of a server, as `reconfig` takes it."""
    server = ensemble.servers[number]
    # Of a port alone zkraft's clients are told nothing, as before. ZooKeeper would listen at all
    # addresses then, which the servers here have in common.
    client = server.port if ensemble.kind == "zkraft" else server.address
    return f"server.{number}={server.host}:{QUORUM_PORT}:{ELECTION_PORT};{client}"


def _members(client: KazooClient) -> set[int]:
    return _members_in(client.get(CONFIG)[0])


def _members_in(data: bytes) -> set[int]:
    return set(map(int, re.findall(rb"^server\.(\d+)=", data, re.M)))


def _version(client: KazooClient) -> int:
    return _version_in(client.get(CONFIG)[0])


def _version_in(data: bytes) -> int:
    (found,) = re.findall(rb"^version=([0-9a-f]+)$", data, re.M)
    return int(found, 16)


def _wait_for_voters(ensemble: Ensemble, count: int) -> None:
    def so_many() -> bool:
        leader = ensemble.leads()
        return leader is not None and ensemble.servers[leader].voters() == str(count)

    lab.wait_until(so_many, f"{count} servers to vote", VOTE_SECONDS_MAX, 0.05)


def _create(client: KazooClient, path: str) -> None:
    """Waits for a majority no longer than it needs. ZooKeeper's breaks connections meanwhile."""

    def created() -> bool:
        with contextlib.suppress(ConnectionLoss, SessionExpiredError):
            with contextlib.suppress(NodeExistsError):
                client.create_async(path).get(timeout=VOTE_SECONDS_MAX)
            return True
        return False

    lab.wait_until(created, f"{path} to be created", VOTE_SECONDS_MAX)
