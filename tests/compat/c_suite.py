"""Interop suite: ZooKeeper's own C client (Debian's libzookeeper-mt) against zkraft or ZooKeeper.

    python3 tests/compat/c_suite.py --against zkraft|zookeeper [--only TEXT]
        [--servers 3 [--nemesis [--seed N]]] [--rounds N]

Compiles `c_suite/*.c` and runs one process per case. A case asks for what it cannot do itself by a
line `@action` on its standard output; this driver does it and answers `done`. With `--servers 3`
the server is an ensemble of three, all in the connect string, and with `--nemesis` one of them is
killed every few seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import lab
from cluster import service
from relay import Relay

SOURCES = Path(__file__).with_name("c_suite")
BUILD = lab.CACHE / "c_suite"
# Synchronous reads that bench.c puts behind a sync.
READS = "exists wexists get wget get_children wget_children get_children2 get_acl".split()
# What a check says of a request that was under way when the connection broke, or came too late.
LOST = ("gave -4 (", "gave -7 (")
LINE_SECONDS_MAX = 60
CONFIG = {
    "tickTime": "500",
    "extendedTypesEnabled": "true",
    "znode.container.checkIntervalMs": "300",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="C client interop suite")
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), required=True)
    parser.add_argument("--only", default="", help="run the cases whose claim has this text")
    service.add_options(parser)
    options = parser.parse_args()
    service.check_options(parser, options)

    lab.end_cleanly_on_sigterm()
    program = build()
    report = lab.Report("c_suite", options.against)
    again = service.Again(options)
    with (
        service.served(report, options.against, CONFIG, options) as server,
        Relay(server.places) as relay,
    ):
        for number, (name, steady) in enumerate(_cases(program) * options.rounds):
            claim = name.replace("_", " ")
            if options.only and options.only not in claim:
                continue
            if options.nemesis and steady:
                report.leave_out(claim, steady)
                continue

            def run(suffix: str, name: str = name, root: str = f"/case{number}") -> None:
                command = [str(program), name, server.address, relay.address, root + suffix]
                run_case(command, server, relay)

            with report.case(claim):
                # A case that failed halfway may have left the server dead.
                if not options.nemesis and not server.running():
                    server.start()
                again.run(run, lambda error: any(word in str(error) for word in LOST))
            service.report_deaths(report, server, claim)
    return report.close()


def build() -> Path:
    """Compiles the suite with warnings as errors; returns the program.

    It is named after what went into it: whoever runs another one at the same time keeps theirs.
    """
    root = lab.debian("libzookeeper-mt-dev")
    library = next((root / "usr" / "lib").glob("*/libzookeeper_mt.so")).parent
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DTHREADED"]
    command += ["-isystem", str(root / "usr" / "include")]
    command += [str(source) for source in sorted(SOURCES.glob("*.c"))]
    command += [f"-Wl,--wrap=zoo_{name}" for name in READS]
    command += [f"-L{library}", f"-Wl,-rpath,{library}", "-lzookeeper_mt", "-lpthread"]
    texts = [source.read_text(encoding="utf-8") for source in sorted(SOURCES.iterdir())]
    digest = hashlib.sha256(repr((command, texts)).encode()).hexdigest()[:16]
    program = BUILD / f"suite-{digest}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            made = Path(scratch) / "suite"
            done = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"the C suite does not compile:\n{done.stderr}")
            made.rename(program)
    return program


def run_case(command: list[str], server: lab.Server | service.Service, relay: Relay) -> None:
    """Runs one case to its end; raises with the reason if it did not pass."""
    relay.mend()
    actions = {
        "kill": server.kill9,
        "start": server.start,
        "cut": relay.cut,
        "mend": relay.mend,
    }
    with open(BUILD / "client.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        verdict = _follow(process, actions)
        code = process.wait(LINE_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
    if verdict != "ok" or code != 0:
        raise AssertionError(f"{verdict or 'no verdict'} (exit code {code})")


def _follow(process: subprocess.Popen[str], actions: Mapping[str, Callable[[], None]]) -> str:
    """Does what the case asks for until its output ends; returns its last line."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    verdict = ""
    while True:
        try:
            line = lines.get(timeout=LINE_SECONDS_MAX)
        except queue.Empty:
            raise TimeoutError(f"silent for {LINE_SECONDS_MAX} s") from None
        if line is None:
            return verdict
        if line.startswith("@"):
            actions[line[1:]]()
            process.stdin.write("done\n")
            process.stdin.flush()
        else:
            verdict = line


def _cases(program: Path) -> list[tuple[str, str]]:
    """The names of the cases, and why one cannot be run while servers are killed, if so."""
    done = subprocess.run([str(program), "list"], capture_output=True, text=True, check=True)
    return [(name, why) for name, _, why in (x.partition("\t") for x in done.stdout.splitlines())]


if __name__ == "__main__":
    sys.exit(main())
