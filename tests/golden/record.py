"""Records what a build writes to disks and says to its peers, for `tests/golden/main.rs` to read.

    python3 tests/golden/record.py --commit COMMIT [--binary PATH] --into tests/golden/level1

One recording for each feature level, made once by a build that knew it, and never again: what is
recorded is what ensembles out there have on their disks. It refuses a directory that exists.

    alone           data of a server alone: a log of several starts, from its beginning
    alone-snapshot  the same server later: a snapshot, and the log behind it
    member          data of a follower of three, with a snapshot and changes of membership
    */expected      what the server said of its state before it was stopped
    peer.bin        what servers said to each other, as it went over the wire: for each connection
                    the bytes of who dialled and of who was dialled, each behind its length (u32,
                    little-endian), cut off behind the last whole frame below a limit
    origin          which build wrote it all

Left out of the data: the ballast and the lock, which hold nothing, and the zeros behind the last
group of a segment, which the next start cuts off as well.

Needs root, for a network of its own and for listening to it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compat"))
import lab  # noqa: E402
import raw  # noqa: E402
from cluster import network  # noqa: E402
from cluster.client import CLOSE  # noqa: E402
from cluster.ensemble import QUORUM_PORT, Ensemble  # noqa: E402
from cluster.network import Loopback  # noqa: E402

CREATE2, CREATE_CONTAINER, CREATE_TTL, SET_ACL, RECONFIG, AUTH = 15, 19, 21, 7, 16, 100
AUTH_XID = -4
CONFIG = {
    "tickTime": "500",
    "minSessionTimeout": "1000",
    "extendedTypesEnabled": "true",
    "enforceQuota": "true",
    "preAllocSize": "64",
    "initLimit": "20",
    "syncLimit": "4",
    # Since level 2. Earlier builds refuse it.
    "localSessionsEnabled": "true",
    "localSessionsUpgradingEnabled": "true",
}
# Of each direction of each connection between servers.
STREAM_BYTES_MAX = 12 << 10
PREAMBLE, FRAME_HEAD = 12, 8


# --- What clients do ------------------------------------------------------------------------------


def everything(address: tuple[str, int], name: str) -> None:
    """Each kind of write once, and some that fail."""
    host, port = address
    owner = raw.Raw(port, 20_000, host=host)
    top = f"/{name}"
    call = owner.call
    expect(0, owner.create(top, b"top")[0])
    auth(owner, b"bob:secret")
    for number in range(3):
        expect(0, owner.create(f"{top}/s-", str(number).encode(), raw.SEQUENTIAL)[0])
    null = raw.text(f"{top}/null") + struct.pack(">i", -1) + raw.OPEN_ACL + struct.pack(">i", 0)
    expect(0, call(CREATE2, null)[0])
    expect(0, owner.create(f"{top}/mine", b"x" * 3_000, raw.EPHEMERAL)[0])
    expect(0, call(CREATE_CONTAINER, raw.create_body(f"{top}/box", b"", 4))[0])
    ttl = raw.create_body(f"{top}/brief", b"", 5) + struct.pack(">q", 86_400_000)
    expect(0, call(CREATE_TTL, ttl)[0])
    expect(-110, owner.create(top)[0])
    expect(0, call(raw.SET_DATA, raw.set_body(f"{top}/null", b"no more", 0))[0])
    expect(-103, call(raw.SET_DATA, raw.set_body(f"{top}/null", b"", 7))[0])
    acl = struct.pack(">ii", 1, 31) + raw.text("auth") + raw.text("") + struct.pack(">i", -1)
    expect(0, call(SET_ACL, raw.text(f"{top}/s-0000000001") + acl)[0])
    expect(-111, call(raw.DELETE, raw.delete_body(top))[0])
    expect(0, call(raw.DELETE, raw.delete_body(f"{top}/s-0000000000"))[0])
    together = [
        (raw.CREATE, raw.create_body(f"{top}/m", b"1", 0)),
        (raw.SET_DATA, raw.set_body(f"{top}/m", b"2", 0)),
        (raw.CHECK, raw.delete_body(f"{top}/m", 1)),
        (raw.DELETE, raw.delete_body(f"{top}/s-0000000002")),
    ]
    assert raw.multi_succeeded(call(raw.MULTI, raw.multi_body(*together))[1])
    assert not raw.multi_succeeded(call(raw.MULTI, raw.multi_body(*together))[1])
    quota(owner, f"{top}/box")
    # Taken up by another connection, while the first one is there.
    again = raw.Raw(port, 20_000, owner.session, host=host)
    expect(0, again.create(f"{top}/again", b"", raw.EPHEMERAL)[0])
    brief = raw.Raw(port, 1_000, host=host)
    expect(0, brief.create(f"{top}/expires", b"", raw.EPHEMERAL)[0])
    brief.close()
    lab.wait_until(lambda: again.get(f"{top}/expires") is None, "a session to expire", 30)
    owner.close()
    other = raw.Raw(port, 20_000, host=host)
    expect(0, other.create(f"{top}/closed", b"", raw.EPHEMERAL)[0])
    expect(0, other.call(CLOSE)[0])
    other.close()
    # This session stays.
    again.close()


def quota(client: raw.Raw, path: str) -> None:
    place = f"/zookeeper/quota{path}"
    parts = place.split("/")
    for depth in range(4, len(parts) + 1):
        client.create("/".join(parts[:depth]))
    limits = b"count=3,bytes=-1=;byteHardLimit=-1;countHardLimit=3"
    expect(0, client.create(f"{place}/zookeeper_limits", limits)[0])
    expect(0, client.create(f"{place}/zookeeper_stats")[0])
    expect(0, client.create(f"{path}/one")[0])
    expect(0, client.create(f"{path}/two")[0])
    expect(-125, client.create(f"{path}/three")[0])


def auth(client: raw.Raw, who: bytes) -> None:
    body = struct.pack(">iii", AUTH_XID, AUTH, 0) + raw.text("digest") + raw.buffer(who)
    client.socket.sendall(raw.buffer(body))
    xid, error, _ = client.receive()
    assert (xid, error) == (AUTH_XID, 0)


def expect(expected: int, found: int) -> None:
    assert found == expected, f"{found} instead of {expected}"


# --- Data -----------------------------------------------------------------------------------------


def alone(into: Path, binary: Path) -> None:
    with_log = lab.Server("zkraft", CONFIG)
    with_log.binary = binary
    try:
        with_log.start()
        everything((with_log.host, with_log.port), "first")
        with_log.restart()
        everything((with_log.host, with_log.port), "second")
        with_log.kill9()
        with_log.start()
        everything((with_log.host, with_log.port), "third")
        keep(with_log, into / "alone")
        later = lab.Server("zkraft", {**CONFIG, "snapCount": "40"}, data_dir=with_log.data_dir)
        later.binary = binary
        try:
            later.start()
            everything((later.host, later.port), "fourth")
            files = later.data_dir / "snapshot"
            taken = lambda: [f for f in files.iterdir() if not f.name.endswith(".tmp")]  # noqa: E731
            lab.wait_until(taken, "a snapshot", 30)
            everything((later.host, later.port), "fifth")
            keep(later, into / "alone-snapshot")
        finally:
            later.close()
    finally:
        with_log.close()


def member(into: Path, binary: Path) -> None:
    config = {**CONFIG, "snapCount": "160", "reconfigEnabled": "true", "skipACL": "yes"}
    with Ensemble("zkraft", Loopback(), config, name="golden") as ensemble:
        for server in ensemble.servers.values():
            server.binary = binary
        ensemble.start()
        for number in ensemble.servers:
            everything(ensemble.place(number), f"by-{number}")
        leaving = ensemble.followers()[0]
        line = f"server.{leaving}={ensemble.network.hosts[leaving]}:2888:3888;2181"
        with ensemble.client(ensemble.leader()) as client:
            for joining, gone in (("", str(leaving)), (line, "")):
                body = raw.text(joining) + raw.text(gone) + struct.pack(">iq", -1, -1)
                expect(0, client.call(RECONFIG, body).error)
                time.sleep(3)
        ensemble.wait_for(*ensemble.servers)
        ensemble.servers[ensemble.leader()].kill9()
        survivors = [n for n, server in ensemble.servers.items() if server.running()]
        ensemble.wait_for(*survivors)
        ensemble.start()
        for number in ensemble.servers:
            everything(ensemble.place(number), f"later-by-{number}")
        follower = next(n for n in ensemble.followers() if n != leaving)
        keep(ensemble.servers[follower], into / "member")


def keep(server: lab.Server, into: Path) -> None:
    """Stops the server when nothing happens any more, and keeps what it has and what it said."""
    said, since = "", time.monotonic()
    # Not for so long that a snapshot is taken meanwhile, behind which there is no log.
    while time.monotonic() < since + 1:
        before, said = said, lab.four_letter(server.port, "hash", host=server.host)
        since = since if said == before else time.monotonic()
        time.sleep(0.1)
    zxid, digest = said.strip().splitlines()[-1].split(": ")
    count = lab.four_letter(server.port, "srvr", host=server.host)
    znodes = next(line for line in count.splitlines() if line.startswith("Node count"))
    code = server.stop()
    assert code == 0, f"it ended with {code}"
    ignored = shutil.ignore_patterns("ballast", "lock", "*.generating")
    shutil.copytree(server.data_dir, into, ignore=ignored)
    for segment in (into / "log").iterdir():
        content = segment.read_bytes().rstrip(b"\0")
        segment.write_bytes(content + bytes(-len(content) % 512))
    expected = f"zxid {zxid}\ndigest {digest}\nznodes {znodes.split(': ')[1]}\n"
    (into / "expected").write_text(expected, encoding="utf-8")


# --- What servers say to each other ---------------------------------------------------------------


class Ear(threading.Thread):
    """Hears all that goes over the loopback interface from and to the servers' ports."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        every_protocol = 3
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._parts: dict[tuple, dict[int, bytes]] = defaultdict(dict)
        self._begins: dict[tuple, int] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                packet, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING:
                self._take(packet[14:])

    def _take(self, packet: bytes) -> None:
        is_tcp = packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP
        if not is_tcp:
            return
        (length,) = struct.unpack(">H", packet[2:4])
        segment = packet[(packet[0] & 15) * 4 : length or None]
        source, target, sequence = struct.unpack(">HHI", segment[:8])
        if QUORUM_PORT not in (source, target):
            return
        stream = (packet[12:16], source, packet[16:20], target)
        is_syn = segment[13] & 2
        if is_syn:
            self._begins[stream] = sequence + 1
        payload = segment[(segment[12] >> 4) * 4 :]
        if payload and stream in self._begins:
            at = (sequence - self._begins[stream]) % (1 << 32)
            self._parts[stream].setdefault(at, payload)

    def heard(self) -> list[tuple[bytes, bytes]]:
        """Of each connection, what came from who dialled and from who was dialled."""
        self._over.set()
        self.join()
        dialled = [stream for stream in self._parts if stream[3] == QUORUM_PORT]
        back = lambda stream: (*stream[2:], *stream[:2])  # noqa: E731
        return [(self._whole(stream), self._whole(back(stream))) for stream in dialled]

    def _whole(self, stream: tuple) -> bytes:
        parts, whole = self._parts.get(stream, {}), b""
        while len(whole) < STREAM_BYTES_MAX and (part := parts.get(len(whole))):
            whole += part
        end = PREAMBLE if len(whole) >= PREAMBLE else 0
        while len(whole) >= end + FRAME_HEAD:
            (length,) = struct.unpack("<I", whole[end : end + 4])
            after = end + FRAME_HEAD + length
            if end == 0 or after > min(len(whole), STREAM_BYTES_MAX):
                break
            end = after
        return whole[:end]


def peers(into: Path, binary: Path) -> None:
    """Three servers found an ensemble, lose a leader, and one of them is sent a snapshot."""
    ear = Ear()
    ear.start()
    with Ensemble("zkraft", Loopback(), {**CONFIG, "snapCount": "5"}, name="golden") as ensemble:
        for server in ensemble.servers.values():
            server.binary = binary
        ensemble.start()
        everything(ensemble.place(ensemble.followers()[0]), "a")
        with ensemble.client(ensemble.followers()[0]) as client:
            client.sync()
        behind = ensemble.leader()
        ensemble.servers[behind].kill9()
        others = [number for number in ensemble.servers if number != behind]
        ensemble.wait_for(*others)
        with ensemble.client(*others) as client:
            expect(0, client.create("/big").error)
            # More than a leader keeps of its log.
            for _ in range(20):
                expect(0, client.set("/big", bytes(1_000_000)).error)
            seen = client.seen
        ensemble.start()
        ensemble.caught_up(behind, seen)
        time.sleep(2)
    with open(into / "peer.bin", "wb") as file:
        for directions in ear.heard():
            for stream in directions:
                file.write(struct.pack("<I", len(stream)) + stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", required=True, help="of the build")
    parser.add_argument("--binary", type=Path, help="the build, if it need not be made")
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    into = arguments.into.resolve()
    assert not into.exists(), f"{into} exists: what is recorded there stays as it is"
    binary = (arguments.binary or lab.zkraft_of(arguments.commit)).resolve()
    if network.INSIDE not in os.environ:
        network.enter(__file__)
    assert network.is_own(), "others must not be heard"
    lab.end_cleanly_on_sigterm()
    made = into.with_name(f"{into.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    (made / "origin").write_text(f"commit {arguments.commit}\n", encoding="utf-8")
    peers(made, binary)
    alone(made, binary)
    member(made, binary)
    made.rename(into)


if __name__ == "__main__":
    main()
