"""Servers that are behind: what they missed costs a snapshot only if it was much."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime

import lab
import raw

from . import steady
from .client import NODE_EXISTS
from .ensemble import Ensemble, Member
from .network import SERVERS

# How long a follower is away, and the load meanwhile: together less than the 64 MiB of the log that
# are kept in memory, and what 120,000 writes of 128 bytes a second come to.
OUTAGE_SECONDS = 3.0
OUTAGE_BATCH, OUTAGE_EVERY_S, OUTAGE_BYTES = 30, 0.02, 4 << 10
# Else the outage shows nothing.
MISSED_MIB_MIN = 20
# Only as long as that does a follower that missed so little need, on a machine however busy.
CAUGHT_UP_SECONDS_MAX = 10

# The state that is sent; nothing makes it shorter. What came last may follow from the log.
LARGE_COUNT, LARGE_BYTES = 400, 512 << 10
LARGE_AT_ONCE = 20
SENT_MIB_MIN = 150
# 64 MiB/s is the limit of a transfer.
TRANSFER_SECONDS_MIN = 2.0
LOAD_BATCH, LOAD_EVERY_S = 5, 0.005
# Of a closed loop, which would come every few milliseconds.
GAP_SECONDS_MAX = 0.5

# Znodes of 10 MiB; together they are more than what is kept of the log.
TEN_BYTES, TENS = 10 << 20, 8

# What the logs say of snapshots that go from server to server.
TRANSFERRED = re.compile(r"(sending|receiving) a snapshot|a snapshot of the leader's was installed")
# And of one at the server that sends it.
BEGUN = re.compile(r"^(\S+Z) .*sending a snapshot server=(\d+)", re.MULTILINE)
DONE = re.compile(
    r"^(\S+Z) .*sending a snapshot: done server=(\d+) .*transferred_kib=(\d+)", re.MULTILINE
)


class Said:
    """What servers say in their logs from now on."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._servers = ensemble.servers
        self._from = {n: size(server) for n, server in ensemble.servers.items()}

    def by(self, number: int) -> str:
        with open(self._servers[number].log, "rb") as log:
            log.seek(self._from[number])
            return log.read().decode(errors="replace")

    def transfers(self) -> list[str]:
        """All that tells of a snapshot that was sent, received or installed."""
        return [
            f"server {number}: {line}"
            for number in self._servers
            for line in self.by(number).splitlines()
            if TRANSFERRED.search(line)
        ]


def size(server: Member) -> int:
    return server.log.stat().st_size if server.log.exists() else 0


def short_outage(ensemble: Ensemble) -> None:
    """Followers are away for a moment under load: they catch up from the log alone."""
    leader, followers = ensemble.leader(), ensemble.followers()
    for follower, other, kill in [(*followers, False), (*reversed(followers), True)]:
        server, said = ensemble.servers[follower], Said(ensemble)
        load = steady.writers(ensemble, [leader, other], OUTAGE_BATCH, OUTAGE_EVERY_S, OUTAGE_BYTES)
        with steady.running(load):
            time.sleep(0.5)
            if kill:
                server.kill9()
            else:
                code = server.stop()
                assert code == 0, f"exit code {code}"
            gone = time.monotonic()
            time.sleep(OUTAGE_SECONDS)
            newest, back = ensemble.newest(), time.monotonic()
            server.spawn()
            ensemble.wait_for(follower)
            ensemble.caught_up(follower, newest)
            lab.wait_until(
                lambda: ensemble.servers[leader].look("mntr", "zk_synced_followers\t") == "2",
                "the follower to be in sync",
                CAUGHT_UP_SECONDS_MAX,
            )
            took = time.monotonic() - back
        missed = sum(writer.count(gone, back) for writer in load)
        mib = missed * OUTAGE_BYTES >> 20
        print(
            f"  follower {follower} was {'killed' if kill else 'told to stop'} and missed {missed} "
            f"writes, {mib} MiB; it was in sync {took:.1f} s after its start"
        )
        assert mib >= MISSED_MIB_MIN, "the load was too light to show anything"
        assert took <= CAUGHT_UP_SECONDS_MAX, f"it took {took:.1f} s"
        told = said.transfers()
        assert not told, f"a snapshot for an outage of {OUTAGE_SECONDS:g} s: {told[0]}"
        with ensemble.client(follower) as client:
            for writer in load:
                writer.check(client)


def sent_under_load(ensemble: Ensemble) -> None:
    """A large snapshot is sent, and the clients of its sender do not notice."""
    leader, follower = ensemble.leader(), ensemble.followers()[0]
    server = ensemble.servers[follower]
    server.kill9()
    fill(ensemble, leader)
    said = Said(ensemble)
    load = steady.writers(ensemble, [leader], LOAD_BATCH, LOAD_EVERY_S)
    reader = steady.Reader(ensemble, leader, load[0].path, LOAD_BATCH, LOAD_EVERY_S)
    clients = [*load, reader]
    # The log tells the time of day.
    midnight = time.time() - time.monotonic()
    with steady.running(clients):
        time.sleep(0.3)
        newest = ensemble.newest()
        server.spawn()
        ensemble.wait_for(follower)
        ensemble.caught_up(follower, newest)
    told = said.by(leader)
    begun, done = BEGUN.search(told), DONE.search(told)
    assert begun and done, f"server {leader} does not tell of a snapshot that it sent"
    assert int(begun[2]) == int(done[2]) == follower, f"{begun[0]}; {done[0]}"
    counted = {n: ensemble.servers[n].look("mntr", "zk_snap_count\t") for n in (leader, follower)}
    assert counted == {leader: "1", follower: "0"}, f"snapshots that were sent: {counted}"
    mib = int(done[3]) >> 10
    assert mib >= SENT_MIB_MIN, f"{mib} MiB were sent"
    since, until = (datetime.fromisoformat(at[1]).timestamp() - midnight for at in (begun, done))
    assert until - since >= TRANSFER_SECONDS_MIN, f"{mib} MiB in {until - since:.2f} s"
    for client in clients:
        count, gap_s = client.count(since, until), client.gap_s(since, until)
        print(
            f"  {mib} MiB were sent in {until - since:.1f} s; {client.name} had {count} answers "
            f"meanwhile, the longest gap took {1000 * gap_s:.0f} ms",
            flush=True,
        )
        assert gap_s <= GAP_SECONDS_MAX, f"{client.name} waited for {1000 * gap_s:.0f} ms"
    assert ensemble.leader() == leader, "another server leads"
    assert "a snapshot of the leader's was installed" in said.by(follower)
    for number in (leader, follower):
        with ensemble.client(number) as client:
            load[0].check(client)
    with ensemble.client(follower) as client:
        for item in range(LARGE_COUNT):
            found = client.get(f"/large/{item}")
            assert found is not None and len(found[0]) == LARGE_BYTES, f"/large/{item}"


def large_znodes(ensemble: Ensemble) -> None:
    """Znodes of 10 MiB, where jute.maxbuffer lets them: through any server, to one that was away, by
    the log and by a snapshot, and past the loss of the leader."""
    leader, (writer, late) = ensemble.leader(), ensemble.followers()
    paths = [f"/ten-{n}" for n in range(TENS)]
    written: dict[str, bytes] = {}

    def write(path: str, number: int) -> int:
        data = f"{path} through {number} ".encode() + os.urandom(TEN_BYTES)
        with ensemble.client(number) as client:
            done = client.set(path, data) if path in written else client.create(path, data)
            assert done.error == 0, f"{path} through {number}: {done.error}"
            written[path] = data
            return client.seen

    def compare(number: int) -> None:
        with ensemble.client(number) as client:
            client.sync()
            for path, data in written.items():
                found = client.get(path)
                assert found is not None and found[0] == data, f"{path} at {number} is another"

    def returns(newest: int) -> None:
        ensemble.servers[late].spawn()
        ensemble.wait_for(late)
        ensemble.caught_up(late, newest)
        compare(late)

    for number in (leader, writer, late):
        write(paths[0], number)
        for other in SERVERS:
            compare(other)

    ensemble.servers[late].kill9()
    said = Said(ensemble)
    returns(write(paths[1], writer))
    assert not said.transfers(), f"a snapshot for 10 MiB: {said.transfers()[0]}"

    ensemble.servers[late].kill9()
    returns(max(write(path, writer) for path in paths))
    assert said.transfers(), f"no snapshot for {TENS} times 10 MiB"

    ensemble.servers[leader].kill9()
    write(paths[0], writer)
    ensemble.start()
    for number in SERVERS:
        compare(number)


def fill(ensemble: Ensemble, number: int) -> None:
    """Makes the state large through one server."""
    with ensemble.client(number) as client:
        assert client.create("/large").error in (0, NODE_EXISTS)
        connection = client.connect(10)
        for first in range(0, LARGE_COUNT, LARGE_AT_ONCE):
            for item in range(first, first + LARGE_AT_ONCE):
                body = raw.create_body(f"/large/{item}", os.urandom(LARGE_BYTES), 0)
                connection.send(raw.CREATE, body)
            for _ in range(LARGE_AT_ONCE):
                reply = connection.receive()
                assert reply is not None and reply.error == 0, f"{reply}"
