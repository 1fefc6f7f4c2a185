"""Speed and size beside Apache ZooKeeper 3.8.0, measured in one run with `zkraft bench`.

    python3 tests/compat/speed_suite.py [--servers 1|3] [--quick] [--only PART ...]
        [--markdown FILE]

With --servers 3, an ensemble of each: clients are spread over its servers, and what the servers
take is their sum. Both sync every write to the same disk, with maxClientCnxns=0; the JVM has up to
4 GiB of heap (each of three: 2 GiB), G1 and 30 s of gets and of sets before either counts, 10 s of
each later load. Rounds on the two
alternate; the table shows medians and the ratio of each pair. The generator shares the processors
with the servers, so what it takes is printed, and so is what it reaches against a bare echo of the
same frames: no server can be faster than that here. Figures of one machine say little alone; ratios
of one run say more.

A target that is missed is said to be missed. It is not a failed case: how fast a machine is
proves nothing about the code. A case fails if it could not be measured.

Parts: pairs, latency, size (and restart), idle, flat, snapshot; of three: pairs, latency, idle.
Only if asked for: versions, which tells how far ZooKeeper 3.9.5 is from 3.8.0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lab
from cluster.ensemble import Ensemble
from cluster.network import SERVERS, Loopback

ZNODES = 1_000_000
# Sets a second while snapshots are taken.
RATE = 20_000
PARTS = ("pairs", "latency", "size", "idle", "flat", "snapshot")
ON_REQUEST = ("versions",)
PARTS_OF_THREE = ("pairs", "latency", "idle")
# What users run: the values of ZooKeeper's sample file.
TIMING = {"tickTime": "2000", "initLimit": "10", "syncLimit": "5"}


@dataclass(frozen=True)
class Pair:
    """A load on both. `faster`: times the operations, `cheaper`: part of the processor time for
    each, as targets; `None` where there is none."""

    name: str
    workload: str
    options: tuple[str, ...] = ()
    faster: float | None = None
    cheaper: float | None = None
    # Of each round. Few long operations need more.
    seconds: int = 2


PAIRS = (
    Pair("get", "get", faster=6, cheaper=1 / 8),
    Pair("set, 128 bytes", "set", faster=4, cheaper=1 / 5),
    Pair("create, 128 bytes", "create", faster=4, cheaper=1 / 5),
    Pair("mixed, 90 % get", "mixed", faster=6, cheaper=1 / 8),
    Pair("1 create, 8 set, 45 get, 45 list, 1 delete", "published"),
    Pair("ephemeral create and delete", "ephemeral"),
    Pair("Flink checkpoint, 8 requests", "flink"),
    Pair("session open and close", "session", ("--clients", "32"), faster=6),
    Pair("fan-out to 500 watchers", "fan-out", ("--clients", "500"), faster=6),
)

# Of these, so many from the first tell how far two ZooKeepers are from each other.
COMPARED = 4

SPREAD = ("--clients", "9")
PAIRS_OF_THREE = (
    Pair("get", "get", SPREAD, faster=6),
    Pair("set, 128 bytes", "set", SPREAD, faster=5, cheaper=1 / 6),
    Pair("mixed, 90 % get", "mixed", SPREAD, faster=6),
    Pair("fan-out to 3,000 watchers", "fan-out", ("--clients", "3000"), faster=4, seconds=5),
    # The last one leaves its znodes behind: to remove them takes longer than to make them.
    Pair("create, 128 bytes", "create", (*SPREAD, "--keep"), faster=5, cheaper=1 / 6),
)


class Fleet:
    """An ensemble of three, as `bench` sees it."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.servers = list(ensemble.servers.values())

    @property
    def address(self) -> str:
        return ",".join(server.address for server in self.servers)

    @property
    def home(self) -> Path:
        return self.servers[0].home


Loaded = lab.Server | Fleet


@dataclass
class Row:
    what: str
    zkraft: str
    other: str
    ratio: str
    target: str
    verdict: str


class Snapshots(threading.Thread):
    """Counts the snapshots that a server takes while it is loaded at [`RATE`]: not those of its
    filling, nor those for which it waits until it is idle."""

    def __init__(self, server: lab.Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.under_load = 0
        self._stopped = threading.Event()

    def __enter__(self) -> Snapshots:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        before = self._look()
        while not self._stopped.wait(0.5):
            now = self._look()
            seconds, received, taken = (new - old for new, old in zip(now, before, strict=True))
            if 0.8 * RATE <= received / seconds <= 1.2 * RATE:
                self.under_load += int(taken)
            before = now

    def _look(self) -> tuple[float, float, float]:
        words = lab.four_letter(self.server.port, "mntr")
        values = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
        taken = values.get("zk_cnt_snapshottime", "0")
        return time.monotonic(), float(values["zk_packets_received"]), float(taken)


class Speed:
    def __init__(self, quick: bool, report: lab.Report) -> None:
        self.quick = quick
        self.report = report
        self.rows: list[Row] = []
        # What is not about zkraft: lines of text.
        self.notes: list[str] = []

    def bench(self, workload: str, *options: str) -> dict:
        """Runs the load generator and returns what it measured."""
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [str(lab.zkraft_binary()), "bench", workload, *options, "--json", file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
            print("".join(f"  {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
            return json.loads(Path(file.name).read_text(encoding="utf-8"))

    of_pairs = PAIRS

    @contextlib.contextmanager
    def server(self, kind: lab.Kind) -> Iterator[Loaded]:
        """One that runs, ready to be loaded."""
        with lab.Server(kind, jvm_args=lab.JVM_OF_ONE if kind == "zookeeper" else ()) as server:
            yield server

    def row(
        self, what: str, zkraft: str, other: str, ratio: str, target: str, met: bool | None
    ) -> None:
        verdict = "" if met is None else "met" if met else "MISSED"
        self.rows.append(Row(what, zkraft, other, ratio, target, verdict))

    # --- Parts ----------------------------------------------------------------------------------

    def pairs(self) -> None:
        """Loads on both, in turn."""
        with self.server("zkraft") as ours, self.server("zookeeper") as theirs:
            # Reads and writes are other code; what comes after the first of each is mostly warm.
            warm_ups = [30, 30]
            for pair in self.of_pairs:
                warm_up = warm_ups.pop() if warm_ups else 10
                with self.report.case(pair.name):
                    self.pair(pair, ours, theirs, 2 if self.quick else warm_up)

    def pair(self, pair: Pair, ours: Loaded, theirs: Loaded, warm_up: int) -> None:
        seconds = ("--seconds", str(1 if self.quick else pair.seconds))
        measured = self.both(pair.workload, ours, theirs, warm_up, *seconds, *pair.options)
        first, other = (server["median"] for server in measured["servers"])
        ratios = measured["ratios"]
        targets = []
        met = True
        if pair.faster is not None:
            targets.append(f"{pair.faster:g}× the operations")
            met &= ratios["per_second"] >= pair.faster
        if pair.cheaper is not None:
            targets.append(f"1/{1 / pair.cheaper:g} of the processor time")
            met &= ratios["server_us"] <= pair.cheaper
        shown = [
            f"{server['per_second']:,.0f}/s, {server['server_us']:,.1f} µs"
            + (f", {server['p50_us'] / 1e3:,.0f} ms" if pair.workload == "fan-out" else "")
            for server in (first, other)
        ]
        echo = measured["bare_echo"]
        ceiling = f"; echo {echo['per_second']:,.0f}/s" if echo else ""
        self.row(
            pair.name,
            *shown,
            f"{ratios['per_second']:.1f}×, 1/{1 / ratios['server_us']:.1f}"
            f" (generator {first['generator_us']:.1f} µs{ceiling})",
            ", ".join(targets),
            met if targets else None,
        )

    def both(
        self, workload: str, ours: Loaded, theirs: Loaded, warm_up: int, *options: str
    ) -> dict:
        rounds, seconds = ("2", "1") if self.quick else ("5", "2")
        timed = () if "--seconds" in options else ("--seconds", seconds)
        return self.bench(
            workload,
            *(ours.address, "--versus", theirs.address),
            *("--pid", pid(ours), "--versus-pid", pid(theirs)),
            *("--rounds", rounds, *timed, "--warm-up", str(warm_up)),
            *options,
        )

    def latency(self) -> None:
        """A lone client with one request at a time, and what a sync of this disk takes."""
        with self.report.case("latency of a lone client"):
            with self.server("zkraft") as ours, self.server("zookeeper") as theirs:
                lone = ("--clients", "1", "--depth", "1")
                warm_up = 2 if self.quick else 15
                for workload in ("get", "set"):
                    measured = self.both(workload, ours, theirs, warm_up, *lone)
                    floor = fsync_floor_us(ours.home)
                    first, other = (server["median"] for server in measured["servers"])
                    trip_us = measured["bare_echo"]["p50_us"]
                    ratio = measured["ratios"]["p50"]
                    if workload == "get":
                        target, met = "half", ratio <= 0.5
                    else:
                        target = f"sync {floor:.0f} µs + 60 µs"
                        met = first["p50_us"] <= floor + 60
                    self.row(
                        f"p50 of a lone {workload}",
                        f"{first['p50_us']:.0f} µs",
                        f"{other['p50_us']:.0f} µs",
                        f"{ratio:.2f} (round trip to the echo {trip_us:.0f} µs)",
                        target,
                        met,
                    )

    def size(self) -> None:
        """Memory of an empty server and of each znode, and a restart with all of them."""
        with self.report.case(f"memory and restart with {self.znodes:,} znodes"):
            figures = []
            for kind, jvm in (("zkraft", ()), ("zookeeper", lab.JVM_OF_ONE)):
                with lab.Server(kind, jvm_args=jvm) as server:
                    time.sleep(1)
                    empty = resident(server)
                    measured = self.bench(
                        "fill",
                        *(server.address, "--keys", str(self.znodes), "--size", "100"),
                        *("--pid", pid(server), "--keep", "--no-echo", "--depth", "32"),
                    )
                    memory = measured["servers"][0]["memory"]
                    figures.append((empty, memory, restart_seconds(server)))
            (empty, ours, our_start), (their_empty, theirs, their_start) = figures
            self.row(
                "resident memory of an empty server",
                mebibytes(empty),
                mebibytes(their_empty),
                f"1/{their_empty / empty:.0f}",
                "20 MiB",
                empty <= 20 << 20,
            )
            self.row(
                f"memory of each of {self.znodes:,} znodes of 100 bytes",
                f"{ours['each']:.0f} bytes (peak {mebibytes(ours['peak_bytes'])} in all)",
                f"{theirs['each']:.0f} bytes (peak {mebibytes(theirs['peak_bytes'])} in all)",
                f"1/{theirs['each'] / ours['each']:.1f}",
                "250 bytes",
                ours["each"] <= 250,
            )
            self.row(
                f"kill -9 to the first session, {self.znodes:,} znodes",
                f"{our_start:.2f} s",
                f"{their_start:.2f} s",
                f"1/{their_start / our_start:.1f}",
                "1 s",
                our_start <= 1,
            )

    def idle(self) -> None:
        """Memory of a session that does nothing."""
        with self.report.case("memory of an idle session"):
            figures = []
            for kind, jvm in (("zkraft", ()), ("zookeeper", lab.JVM_OF_ONE)):
                with lab.Server(kind, jvm_args=jvm) as server:
                    measured = self.bench(
                        "idle",
                        *(server.address, "--clients", "2000" if self.quick else "10000"),
                        *("--pid", pid(server), "--settle", "5"),
                    )
                    figures.append(measured["servers"][0]["memory"]["each"])
            ours, theirs = figures
            self.row(
                "memory of an idle session",
                f"{ours / 1024:.1f} KiB",
                f"{theirs / 1024:.1f} KiB",
                f"1/{theirs / ours:.1f}",
                "8 KiB",
                ours <= 8 << 10,
            )

    def flat(self) -> None:
        """What a large tree costs each operation."""
        sizes = (1_000, 100_000, self.znodes)
        with self.report.case("cost as the tree grows"), lab.Server("zkraft") as server:
            for workload in ("get", "set"):
                figures = []
                for keys in sizes:
                    measured = self.bench(
                        workload,
                        *(server.address, "--keys", str(keys), "--pid", pid(server)),
                        *("--rounds", "2" if self.quick else "5", "--seconds", "2", "--no-echo"),
                    )
                    figures.append(measured["servers"][0]["median"])
                spread = figures[0]["per_second"] / figures[-1]["per_second"] - 1
                shown = [f"{f['per_second']:,.0f}/s ({f['server_us']:.1f} µs)" for f in figures]
                self.row(
                    f"{workload} at 1,000, 100,000, {self.znodes:,} znodes",
                    ", ".join(shown),
                    "",
                    f"{spread:+.0%} at the smallest",
                    "15 %",
                    spread <= 0.15,
                )

    def snapshot(self) -> None:
        """The worst latency while snapshots of a large tree are taken, and without them."""
        with self.report.case("snapshots under load"):
            never = {"snapCount": "2000000000"}
            with lab.Server("zkraft") as often, lab.Server("zkraft", never) as rarely:
                rounds, seconds = ("2", "8") if self.quick else ("3", "80")
                with Snapshots(often) as snapshots:
                    measured = self.bench(
                        "set",
                        *(often.address, "--versus", rarely.address),
                        *("--keys", str(self.znodes), "--size", "100", "--rate", str(RATE)),
                        *("--rounds", rounds, "--seconds", seconds, "--no-echo"),
                    )
                taken = snapshots.under_load
                if not taken:
                    raise AssertionError("no snapshot was taken under load: it was too light")
                # Of each round: the worst of all would compare two accidents.
                worst = [
                    statistics.median(r["latency_us"]["max"] for r in server["rounds"]) / 1e3
                    for server in measured["servers"]
                ]
                self.row(
                    f"worst latency at {RATE:,} sets/s, {self.znodes:,} znodes, {taken} snapshots",
                    f"{worst[0]:.1f} ms",
                    f"{worst[1]:.1f} ms without snapshots",
                    f"{worst[0] - worst[1]:+.1f} ms",
                    "5 ms more",
                    worst[0] - worst[1] <= 5,
                )

    def versions(self) -> None:
        """How far the newest ZooKeeper is from the one that the table has."""
        with self.report.case(f"ZooKeeper {lab.BASELINE} beside 3.8.0"):
            self.compare_versions()

    def compare_versions(self) -> None:
        newest = lab.Server("zookeeper", jvm_args=lab.JVM_OF_ONE)
        newest.class_path = str(lab.zookeeper_baseline() / "*")
        with newest, self.server("zookeeper") as usual:
            warm_ups = [30, 30]
            for pair in PAIRS[:COMPARED]:
                warm_up = 2 if self.quick else warm_ups.pop() if warm_ups else 10
                measured = self.both(pair.workload, newest, usual, warm_up, *pair.options)
                ratios = measured["ratios"]
                self.notes.append(
                    f"ZooKeeper {lab.BASELINE} beside 3.8.0, {pair.name}:"
                    f" {ratios['per_second']:.2f} times the operations,"
                    f" {ratios['server_us']:.2f} times the processor time for each"
                )

    # --- Helpers --------------------------------------------------------------------------------

    @property
    def znodes(self) -> int:
        return ZNODES // 20 if self.quick else ZNODES

    def table(self) -> str:
        """The rows as Markdown, and the notes."""
        lines = []
        if self.rows:
            lines.append("| | zkraft | ZooKeeper 3.8.0 | ratio | target | |")
            lines.append("|---|---|---|---|---|---|")
        for r in self.rows:
            cells = (r.what, r.zkraft, r.other, r.ratio, r.target, r.verdict)
            lines.append("| " + " | ".join(cells) + " |")
        lines += [f"\n{note}" for note in self.notes]
        return "\n".join(lines) + "\n"


class SpeedOfThree(Speed):
    """The same for an ensemble of three."""

    of_pairs = PAIRS_OF_THREE

    @contextlib.contextmanager
    def server(self, kind: lab.Kind) -> Iterator[Fleet]:
        jvm = lab.JVM_OF_THREE if kind == "zookeeper" else ()
        network = Loopback(ensemble=int(kind == "zookeeper"))
        with Ensemble(kind, network, TIMING, jvm_args=jvm) as ensemble:
            ensemble.start()
            ensemble.leader()
            yield Fleet(ensemble)

    def latency(self) -> None:
        """A lone client with one set at a time: of the leader, and of one that follows."""
        with self.server("zkraft") as ours, self.server("zookeeper") as theirs:
            assert isinstance(ours, Fleet) and isinstance(theirs, Fleet)
            warm_up = 2 if self.quick else 15
            for role in ("leader", "follower"):
                with self.report.case(f"latency of a lone client of the {role}"):
                    self.lone_set(role, ours, theirs, warm_up)

    def lone_set(self, role: str, ours: Fleet, theirs: Fleet, warm_up: int) -> None:
        members = []
        for fleet in (ours, theirs):
            leader = fleet.ensemble.leader()
            number = leader if role == "leader" else leader % len(SERVERS) + 1
            members.append(fleet.ensemble.servers[number])
        lone = ("--clients", "1", "--depth", "1")
        measured = self.both("set", members[0], members[1], warm_up, *lone)
        floor = fsync_floor_us(ours.home)
        first, other = (server["median"] for server in measured["servers"])
        trip_us = measured["bare_echo"]["p50_us"]
        ratio = measured["ratios"]["p50"]
        self.row(
            f"p50 of a lone set at the {role}",
            f"{first['p50_us']:.0f} µs",
            f"{other['p50_us']:.0f} µs",
            f"{ratio:.2f} (sync {floor:.0f} µs, round trip to the echo {trip_us:.0f} µs)",
            "0.6",
            ratio <= 0.6,
        )

    def idle(self) -> None:
        """Memory of three servers that keep sessions which do nothing."""
        count = 500 if self.quick else 5_000
        with self.report.case(f"memory with {count:,} idle sessions"):
            figures = []
            for kind in ("zkraft", "zookeeper"):
                with self.server(kind) as fleet:
                    measured = self.bench(
                        "idle",
                        *(fleet.address, "--clients", str(count)),
                        *("--pid", pid(fleet), "--settle", "5"),
                    )
                    figures.append(measured["servers"][0]["memory"]["rss_bytes"])
            ours, theirs = figures
            self.row(
                f"resident memory of all three with {count:,} idle sessions",
                mebibytes(ours),
                mebibytes(theirs),
                f"1/{theirs / ours:.1f}",
                "1/5",
                ours <= theirs / 5,
            )


def restart_seconds(server: lab.Server) -> float:
    """From kill -9 to the first session that is served: the median of three."""
    times = []
    for _ in range(3):
        server.kill9()
        began = time.monotonic()
        server.start()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def pid(loaded: Loaded) -> str:
    """The processes, as `bench` wants them."""
    if isinstance(loaded, Fleet):
        return ",".join(pid(server) for server in loaded.servers)
    assert loaded.process is not None
    return str(loaded.process.pid)


def resident(server: lab.Server) -> int:
    status = Path(f"/proc/{pid(server)}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def fsync_floor_us(home: Path) -> float:
    """What a small write and a data sync of a file that is there take, in µs."""
    with tempfile.NamedTemporaryFile(dir=home) as file:
        descriptor = file.fileno()
        os.pwrite(descriptor, b"\0" * (1 << 20), 0)
        os.fsync(descriptor)
        times = []
        for number in range(1_000):
            began = time.perf_counter()
            os.pwrite(descriptor, b"\1" * 512, number * 512)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1, help="of an ensemble")
    parser.add_argument("--quick", action="store_true", help="few rounds, small trees: a trial")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, *ON_REQUEST))
    parser.add_argument("--markdown", type=Path, help="where the table goes, too")
    arguments = parser.parse_args()
    lab.end_cleanly_on_sigterm()
    of_three = ", three of each" if arguments.servers == 3 else ""
    report = lab.Report("speed", f"zkraft and zookeeper{of_three}")
    known = PARTS if arguments.servers == 1 else PARTS_OF_THREE
    chosen = arguments.only or known
    allowed = (*known, *(ON_REQUEST if arguments.servers == 1 else ()))
    if not set(chosen) <= set(allowed):
        parser.error(f"of {arguments.servers} servers there are the parts {', '.join(allowed)}")
    kind = Speed if arguments.servers == 1 else SpeedOfThree
    speed = kind(arguments.quick, report)
    for name in chosen:
        part: Callable[[], None] = getattr(speed, name)
        part()
        print(speed.table(), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text(speed.table(), encoding="utf-8")
    missed = [row.what for row in speed.rows if row.verdict == "MISSED"]
    for what in missed:
        print(f"missed: {what}")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
