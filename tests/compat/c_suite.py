"""Interop suite: ZooKeeper's own C client (Debian's libzookeeper-mt) against zkraft or ZooKeeper.

    python3 tests/compat/c_suite.py --against zkraft|zookeeper [--only TEXT]

Compiles `c_suite/*.c` and runs one process per case. A case asks for what it cannot do itself by a
line `@action` on its standard output; this driver does it and answers `done`.
"""

from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import lab
from relay import Relay

SOURCES = Path(__file__).with_name("c_suite")
BUILD = lab.CACHE / "c_suite"
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
    options = parser.parse_args()

    lab.end_cleanly_on_sigterm()
    program = build()
    report = lab.Report("c_suite", options.against)
    with lab.Server(options.against, CONFIG) as server, Relay(server.port) as relay:
        for number, name in enumerate(_case_names(program)):
            claim = name.replace("_", " ")
            if options.only and options.only not in claim:
                continue
            command = [str(program), name, server.address, relay.address, f"/case{number}"]
            with report.case(claim):
                run_case(command, server, relay)
    return report.close()


def build() -> Path:
    """Compiles the suite with warnings as errors; returns the program."""
    root = lab.debian("libzookeeper-mt-dev")
    library = next((root / "usr" / "lib").glob("*/libzookeeper_mt.so")).parent
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "suite"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DTHREADED"]
    command += ["-isystem", str(root / "usr" / "include")]
    command += [str(source) for source in sorted(SOURCES.glob("*.c"))]
    command += ["-o", str(program), f"-L{library}", f"-Wl,-rpath,{library}"]
    command += ["-lzookeeper_mt", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the C suite does not compile:\n{done.stderr}")
    return program


def run_case(command: list[str], server: lab.Server, relay: Relay) -> None:
    """Runs one case to its end; raises with the reason if it did not pass."""
    if not server.running():
        server.start()
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


def _case_names(program: Path) -> list[str]:
    done = subprocess.run([str(program), "list"], capture_output=True, text=True, check=True)
    return done.stdout.split()


if __name__ == "__main__":
    sys.exit(main())
