"""What operators are shown of an ensemble: `zkraft status` and `mntr` of each server."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping

import lab
import raw
from ledger import SESSION_MS

from . import stalled, steady
from .client import SYNC, Connection
from .ensemble import LOOK_SECONDS_MAX, Ensemble
from .network import SERVERS

# So that nobody looks for another leader, or stops serving, while others are silent for a moment.
CONFIG = {"tickTime": "500", "initLimit": "20", "syncLimit": "20"}
SEE_SECONDS_MAX = 10
# How often something that passes by itself is looked for.
LOOKS = 5
# What `mntr` calls what `zkraft status` shows.
NAMES = {
    "leader": "zk_raft_leader",
    "term": "zk_raft_term",
    "entries behind": "zk_raft_lag",
    "joining": "zk_raft_joining",
    "pending writes": "zk_pending_writes",
    "pending syncs": "zk_pending_syncs",
    "voters": "zk_quorum_size",
}
OF_LEADERS = {"followers linked": "zk_learners", "followers in sync": "zk_synced_followers"}
# An otherwise idle server is behind by an entry or two under load.
LAG_MIN = 20
LOAD_BATCH, LOAD_EVERY_S = 5, 0.002

Shown = Mapping[str, str]


def status(ensemble: Ensemble, number: int) -> dict[str, str]:
    """The lines of `zkraft status`."""
    server = ensemble.servers[number]
    done = subprocess.run(
        [lab.zkraft_binary(), "status", "--server", server.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    # In columns, after names that may hold spaces.
    lines = (re.fullmatch(r"(.{20}) (.*)", line) for line in done.stdout.splitlines())
    return {line[1].strip(): line[2] for line in lines if line}


def words(ensemble: Ensemble, number: int) -> dict[str, str]:
    """The lines of `mntr`."""
    server = ensemble.servers[number]
    answer = lab.four_letter(server.port, "mntr", LOOK_SECONDS_MAX, server.host)
    return dict(line.split("\t", 1) for line in answer.splitlines() if "\t" in line)


def shown(ensemble: Ensemble, number: int) -> dict[str, str]:
    """What is shown of a server's ensemble, by both ways alike."""
    deadline = time.monotonic() + SEE_SECONDS_MAX
    while True:
        said, told = status(ensemble, number), words(ensemble, number)
        found = {name: said.get(name, "") for name in [*NAMES, *OF_LEADERS]}
        other = {name: told.get(key, "") for name, key in {**NAMES, **OF_LEADERS}.items()}
        for n in SERVERS:
            found[f"server {n}"] = said.get(f"server {n}", "")
            linked = told.get(f"zk_peer_linked_{n}")
            other[f"server {n}"] = {"1": "linked", "0": "not linked", None: ""}.get(linked, "?")
        found["mode"], other["mode"] = said.get("Mode", ""), told.get("zk_server_state", "")
        if found == other:
            return found
        # Something may have changed in between, but not for ever.
        assert time.monotonic() < deadline, f"status shows {found}, mntr {other}"


def becomes(ensemble: Ensemble, number: int, expected: Shown, seconds_max: float) -> None:
    """Waits until a server is shown like that."""
    deadline = time.monotonic() + seconds_max
    while True:
        found = shown(ensemble, number)
        wrong = {name: found[name] for name in expected if found[name] != expected[name]}
        if not wrong:
            return
        assert time.monotonic() < deadline, (
            f"server {number} shows {wrong}, and not { {name: expected[name] for name in wrong} }"
        )
        time.sleep(0.05)


def at_rest(ensemble: Ensemble, leader: int, term: str) -> dict[int, Shown]:
    """How each server is to be shown when all are there and nothing is to be done."""
    rest = {"leader": str(leader), "term": term, "voters": str(len(SERVERS)), "joining": "0"}
    rest |= {"entries behind": "0", "pending writes": "0", "pending syncs": "0"}
    expected = {}
    for number in SERVERS:
        others = str(len(SERVERS) - 1) if number == leader else ""
        lines = {f"server {n}": "linked" if n != number else "" for n in SERVERS}
        mode = "leader" if number == leader else "follower"
        of_leaders = dict.fromkeys(OF_LEADERS, others)
        expected[number] = {"mode": mode, **rest, **lines, **of_leaders}
    return expected


def shows(ensemble: Ensemble) -> None:
    leader = ensemble.leader()
    late, silent = ensemble.followers()
    term = shown(ensemble, leader)["term"]
    assert int(term) > 0
    rest = at_rest(ensemble, leader, term)

    def all_at_rest() -> None:
        for number in SERVERS:
            becomes(ensemble, number, rest[number], SEE_SECONDS_MAX)

    all_at_rest()
    leads_since(ensemble, leader)
    print("  at rest: " + ", ".join(f"{name} {value}" for name, value in rest[leader].items()))

    # One is gone.
    ensemble.servers[late].kill9()
    gone = {f"server {late}": "not linked"}
    fewer = dict.fromkeys(OF_LEADERS, "1")
    becomes(ensemble, silent, {**rest[silent], **gone}, SEE_SECONDS_MAX)
    becomes(ensemble, leader, {**rest[leader], **gone, **fewer}, SEE_SECONDS_MAX)
    ensemble.start()
    all_at_rest()

    falls_silent(ensemble, leader, silent, rest[leader])
    all_at_rest()
    waits(ensemble)


def leads_since(ensemble: Ensemble, leader: int) -> None:
    """Only a leader tells for how long it leads."""
    look = {n: words(ensemble, n).get("zk_leader_uptime") for n in SERVERS}
    told_ms = look.pop(leader)
    assert told_ms is not None and set(look.values()) == {None}, f"{leader}: {told_ms}; {look}"
    uptime_ms = int(words(ensemble, leader)["zk_uptime"])
    assert 0 < int(told_ms) <= uptime_ms, f"it leads for {told_ms} ms of {uptime_ms}"


def falls_silent(ensemble: Ensemble, leader: int, follower: int, rest: Shown) -> None:
    """A follower that is silent under load is not counted on until it is heard again."""
    server = ensemble.servers[follower]
    load = steady.writers(ensemble, [leader], LOAD_BATCH, LOAD_EVERY_S)
    with steady.running(load):
        server.pause()
        try:
            for key in OF_LEADERS.values():
                lab.wait_until(
                    lambda key=key: ensemble.servers[leader].look("mntr", f"{key}\t") == "1",
                    f"{key} to fall",
                    SEE_SECONDS_MAX,
                )
        finally:
            server.resume()
        back = {name: rest[name] for name in OF_LEADERS}
        becomes(ensemble, leader, back, SEE_SECONDS_MAX)


def waits(ensemble: Ensemble) -> None:
    """Nobody hears the leader: what its clients ask for is pending, until it leads no more. That is
    soon, and may be over before a busy machine has looked."""
    for _ in range(LOOKS):
        if is_seen_to_wait(ensemble):
            return
    raise AssertionError(f"what is pending was not shown in {LOOKS} looks")


def is_seen_to_wait(ensemble: Ensemble) -> bool:
    leader = ensemble.leader()
    followers = [ensemble.servers[number] for number in SERVERS if number != leader]
    writer, other = (Connection(ensemble.place(leader), SESSION_MS) for _ in range(2))
    for server in followers:
        server.pause()
    try:
        writer.send(raw.SET_DATA, raw.set_body("/", b""))
        other.send(SYNC, raw.text("/"))
        pending = {"pending writes": "1", "pending syncs": "1", "leader": str(leader)}
        found: Shown = {"leader": str(leader)}
        while found["leader"] == str(leader) and not is_seen(pending, found):
            found = shown(ensemble, leader)
        seen = is_seen(pending, found)
    finally:
        for server in followers:
            server.resume()
    for connection in (writer, other):
        reply = connection.receive()
        assert reply is not None and reply.error == 0, f"{reply}"
        connection.close()
    return seen


def is_seen(expected: Shown, found: Shown) -> bool:
    return all(found.get(name) == value for name, value in expected.items())


def falls_behind(ensemble: Ensemble) -> None:
    """The log of a follower stands still under load: it is behind, and shown to be."""
    leader, follower = ensemble.leader(), ensemble.followers()[0]
    server = ensemble.servers[follower]

    def lag(number: int) -> int:
        return int(ensemble.servers[number].look("mntr", "zk_raft_lag\t") or -1)

    load = steady.writers(ensemble, [leader], LOAD_BATCH, LOAD_EVERY_S)
    with steady.running(load):
        with stalled.log(server):
            lab.wait_until(lambda: lag(follower) >= LAG_MIN, "it to be behind", SEE_SECONDS_MAX)
            behind, others = int(status(ensemble, follower)["entries behind"]), lag(leader)
        lab.wait_until(lambda: lag(follower) == 0, "it to catch up under load", SEE_SECONDS_MAX)
    print(f"  while its log stood still it was {behind} entries behind, and the leader {others}")
    assert behind >= LAG_MIN > others
    becomes(ensemble, follower, {"entries behind": "0", "pending writes": "0"}, SEE_SECONDS_MAX)
    with ensemble.client(follower) as client:
        load[0].check(client)
