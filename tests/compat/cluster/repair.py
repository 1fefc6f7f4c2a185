"""Cases in which an operator must act: servers that differ, lost majorities, first starts."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import time

import lab
import raw
from ledger import SESSION_MS, Ledger

from .client import Client, Lost
from .ensemble import Ensemble, Member
from .network import SERVERS, Loopback

# How long servers may take to notice that they differ, and to end.
NOTICE_SECONDS_MAX = 30
WORDS = "lose what only the others have"
MISMATCHES = "zk_digest_mismatches_count\t"
ACKNOWLEDGED = 500
SECTOR = 512


# --- Servers that differ --------------------------------------------------------------------------


def diverges(ensemble: Ensemble) -> None:
    """A server whose log says something else: without a majority all go on, with one it stops."""
    wrong, right, late = 3, 1, 2
    with ensemble.client() as client:
        assert client.create("/truth", b"as it was written").error == 0
        for number in SERVERS:
            with ensemble.client(number) as reader:
                reader.sync()
                assert reader.get("/truth") is not None
    for server in ensemble.servers.values():
        server.kill9()
    changed = forge(ensemble.servers[wrong], b"as it was written", b"as it was forged!")
    assert changed > 0, "nothing to forge in the log"

    for number in (wrong, right):
        ensemble.servers[number].spawn()
    ensemble.wait_for(wrong, right)
    for number in (wrong, right):
        server = ensemble.servers[number]
        lab.wait_until(
            lambda server=server: int(server.look("mntr", MISMATCHES) or 0) > 0,
            f"server {number} to notice",
            NOTICE_SECONDS_MAX,
        )
        assert "ALARM: after the same entries another server has another state" in server.log_tail(
            200
        ), "no alarm in the log"
    with ensemble.client(right) as client:
        assert client.create("/one-to-one").error == 0
    assert all(ensemble.servers[n].serves() for n in (wrong, right)), "one to one: both go on"

    began = time.monotonic()
    ensemble.servers[late].spawn()
    code, last = ensemble.servers[wrong].ended(NOTICE_SECONDS_MAX)
    print(f"  outvoted {time.monotonic() - began:.1f} s after the third one was started")
    assert code == 1, f"exit code {code}"
    pattern = (
        r"zkraft stopped: after entry \d+ the state of this server has the digest [0-9a-f]{16}, "
        r"and that of servers 1 and 2 has [0-9a-f]{16}.*keep that, and report"
    )
    assert re.search(pattern, last), last
    ensemble.wait_for(right, late)
    with ensemble.client(right, late) as client:
        found = client.get("/truth")
        assert found is not None and found[0] == b"as it was written"

    # It stays as it is until somebody has looked at it.
    kept = files(ensemble.servers[wrong])
    ensemble.servers[wrong].spawn()
    code, again = ensemble.servers[wrong].ended()
    assert (code, again) == (1, last), again
    assert files(ensemble.servers[wrong]) == kept, "something was removed or written"
    ensemble.servers[wrong].wipe()
    ensemble.start()
    with ensemble.client(wrong) as client:
        client.sync()
        found = client.get("/truth")
        assert found is not None and found[0] == b"as it was written", "it did not come back well"


def files(server: Member) -> dict[str, int]:
    """The files of the log and the snapshots, and their lengths."""
    folders = [server.data_dir / "log", server.data_dir / "snapshot"]
    return {str(path): path.stat().st_size for folder in folders for path in folder.iterdir()}


def forge(server: Member, before: bytes, after: bytes) -> int:
    """Replaces bytes in the server's log, with right checksums; returns in how many groups."""
    assert len(before) == len(after) and not server.running()
    changed = 0
    for path in sorted((server.data_dir / "log").glob("segment.*")):
        segment = bytearray(path.read_bytes())
        (salt,) = struct.unpack_from("<I", segment, SECTOR - 4)
        at = SECTOR
        while at + 24 <= len(segment):
            number, _, length, checksum = struct.unpack_from("<QQII", segment, at)
            body = bytes(segment[at + 24 : at + 24 + length])
            head = bytes(segment[at : at + 20])
            if number == 0 or crc32c(crc32c(salt, head), body) != checksum:
                break
            if before in body:
                body = body.replace(before, after)
                segment[at + 24 : at + 24 + length] = body
                struct.pack_into("<I", segment, at + 20, crc32c(crc32c(salt, head), body))
                changed += 1
            at += -(-(24 + length) // SECTOR) * SECTOR
        path.write_bytes(segment)
    return changed


def crc32c(start: int, data: bytes) -> int:
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc = CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC32C = [_crc32c_of(byte) for byte in range(256)]


# --- Lost majorities ------------------------------------------------------------------------------


def recovers(kind: lab.Kind) -> None:
    """Two of three are destroyed; the third goes on alone, and two new ones are added to it."""
    config = {"tickTime": "500", "reconfigEnabled": "true", "skipACL": "yes"}
    with Ensemble(kind, Loopback(), config, name=f"{kind} recover") as ensemble:
        ensemble.start()
        servers = ensemble.servers
        ledger = Ledger(workers=4)
        port = servers[1].port
        prepared = raw.Raw(port, SESSION_MS, host=servers[1].host)
        ledger.prepare(prepared)
        prepared.close()
        ledger.start(port, [server.host for server in servers.values()])
        lab.wait_until(lambda: ledger.answered() >= ACKNOWLEDGED, "the load", 60)
        client = Client(ensemble.places(), 30_000)
        assert client.create("/mine", b"", raw.EPHEMERAL).error == 0
        session, seen = client.session, client.seen
        client.leave()

        refused = zkraft("recover", servers[1], "--show")
        assert refused.returncode == 1 and "in use by another zkraft" in refused.stderr, refused
        for number in (1, 2):
            servers[number].kill9()
        refused = zkraft("recover", servers[1], "--confirm", WORDS)
        assert refused.returncode == 1 and "server 3 answers at" in refused.stderr, refused
        servers[3].kill9()
        ledger.join()

        # The one that has most. (With three alive, the two others together have all there is.)
        standing = {number: standing_of(server) for number, server in servers.items()}
        survivor = max(standing, key=lambda number: standing[number])
        print(f"  last entries, by term and index: {standing}; {survivor} survives")
        others = [number for number in SERVERS if number != survivor]
        saved = ensemble.servers[others[0]].home / "saved"
        subprocess.run(["cp", "-a", servers[others[0]].data_dir, saved], check=True)
        for number in others:
            servers[number].wipe()

        dead = servers[survivor]
        before = standing_of(dead)
        for words in ([], ["--confirm", "yes"]):
            done = zkraft("recover", dead, *words)
            assert done.returncode == 1 and "nothing was changed" in done.stderr, done
        assert standing_of(dead) == before
        done = zkraft("recover", dead, "--confirm", WORDS)
        assert done.returncode == 0, done
        assert "is a cluster of its own now" in done.stdout and "is LOST" in done.stdout, done
        again = zkraft("recover", dead, "--confirm", WORDS)
        assert again.returncode == 1 and "it is the only member already" in again.stderr, again

        dead.spawn()
        ensemble.wait_for(survivor)
        checking = raw.Raw(dead.port, SESSION_MS, host=dead.host)
        ledger.check(checking)
        checking.close()
        print(f"  all of {ledger.answered()} acknowledged writes are there")
        # The session goes on, of a client that has seen zxids of before.
        client.addresses = [dead.place]
        assert client.get("/mine") is not None and client.session == session
        assert client.seen >> 32 > (seen >> 32) + 1000, "the epoch did not jump"
        with ensemble.client(survivor) as reader:
            assert reader.create("/after-the-loss").error == 0

        # With its old data none of the others comes back.
        stranger = servers[others[0]]
        stranger.wipe()
        subprocess.run(["cp", "-aT", saved, stranger.data_dir], check=True)
        stranger.spawn()
        lab.wait_until(
            lambda: "empty its data and log directories and add it with reconfig"
            in stranger.log_tail(200),
            "the stranger to be told",
            NOTICE_SECONDS_MAX,
        )
        assert not stranger.serves()
        stranger.kill9()
        stranger.wipe()

        for number in others:
            servers[number].spawn()
        time.sleep(1)
        assert not any(servers[number].serves() for number in others), "nobody let them in"
        for number in others:
            line = f"server.{number}={servers[number].host}:2888:3888;{servers[number].port}"
            reply = client.reconfig(joining=line)
            assert reply.error == 0, reply
        ensemble.wait_for(*others)
        # They count: one may go.
        wait_for_votes(dead)
        client.addresses = ensemble.places()
        dead.kill9()
        deadline = time.monotonic() + NOTICE_SECONDS_MAX
        while True:
            with contextlib.suppress(Lost):
                assert client.create("/with-new-ones").error == 0
                break
            assert time.monotonic() < deadline, "the new ones are no majority"
        for number in others:
            checking = raw.Raw(servers[number].port, SESSION_MS, host=servers[number].host)
            ledger.check(checking)
            checking.close()
        client.end()


def standing_of(server: Member) -> tuple[int, int]:
    """Term and index of the last entry, as its operator is told."""
    shown = zkraft("recover", server, "--show")
    assert shown.returncode == 0, shown
    found = re.search(r"last entry +term (\d+), index (\d+)", shown.stdout)
    assert found, shown.stdout
    return int(found[1]), int(found[2])


def wait_for_votes(server: Member) -> None:
    lab.wait_until(
        lambda: server.look("mntr", "zk_quorum_size\t") == "3", "three votes", NOTICE_SECONDS_MAX
    )


def zkraft(command: str, server: Member, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command on a server's configuration; nobody is there to answer it."""
    configured = [lab.zkraft_binary(), command, str(server.home / "zoo.cfg"), *words]
    return subprocess.run(
        configured,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
        cwd=server.home,
        timeout=60,
    )


# --- First starts ---------------------------------------------------------------------------------


def founds_with_majority(kind: lab.Kind) -> None:
    """Two of three new servers found an ensemble, if that was asked for; the third one joins."""
    config = {"tickTime": "500", "foundWithMajority": "true"}
    with Ensemble(kind, Loopback(), config, name=f"{kind} found with majority") as ensemble:
        ensemble.servers[1].spawn()
        time.sleep(1)
        assert not ensemble.servers[1].serves(), "one of three founded an ensemble"
        ensemble.servers[3].spawn()
        ensemble.wait_for(1, 3)
        warned = ensemble.servers[1].log_tail(200)
        assert "would begin a second cluster beside the first" in warned, "no warning in the log"
        with ensemble.client(1, 3) as client:
            assert client.create("/without-2").error == 0
        ensemble.start()
        with ensemble.client(2) as client:
            client.sync()
            assert client.get("/without-2") is not None, "it did not join them"

