"""Cases in which an operator must act: servers that differ."""

from __future__ import annotations

import re
import struct
import time

import lab

from .ensemble import Ensemble, Member
from .network import SERVERS

# How long servers may take to notice that they differ, and to end.
NOTICE_SECONDS_MAX = 30
MISMATCHES = "zk_digest_mismatches_count\t"
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
