"""Interop suite: PyPI's kazoo against zkraft, or against ZooKeeper to judge the suite itself.

    python3 tests/compat/kazoo_suite.py --against zkraft|zookeeper [--only TEXT]
        [--servers 3 [--nemesis [--seed N]]] [--rounds N]

One server runs for all cases; some cases kill and restart it, so that later cases also meet data
that survived a crash. The cases are in `kazoo_cases/`. With `--servers 3` it is an ensemble of
three, all in the connect string, and with `--nemesis` one of them is killed every few seconds.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import lab
from cluster import service

KAZOO = "kazoo==2.11.0"
CASE_SECONDS_MAX = 90
CASE_MODULES = ("nodes", "watches", "recipes", "security", "commands", "sessions", "ensembles")


def main() -> int:
    options = _parse(sys.argv[1:])
    _enter_venv()
    lab.end_cleanly_on_sigterm()
    logging.basicConfig(level=logging.CRITICAL)
    bench, cases = _load_cases()

    report = lab.Report("kazoo_suite", options.against)
    config = {"tickTime": str(bench.TICK_MS), "enforceQuota": "true"}
    if options.servers > 1:
        config |= bench.ENSEMBLE_CONFIG
    again = service.Again(options)
    with service.served(report, options.against, config, options) as server:
        for number, function in enumerate(cases * options.rounds):
            claim = bench.claim_of(function)
            if options.only and options.only not in claim:
                continue
            if options.servers == 1 and function in bench.THREE_SERVERS:
                report.leave_out(claim, bench.NEEDS_THREE)
                continue
            if options.nemesis and function in bench.STEADY:
                report.leave_out(claim, bench.STEADY[function])
                continue

            def run(suffix: str, function: Any = function, root: str = f"/case{number}") -> None:
                _run_bounded(bench.Bench(server, root + suffix), function)

            with report.case(claim):
                if not options.nemesis:
                    _ensure_running(server)
                again.run(run, bench.was_lost)
            service.report_deaths(report, server, claim)
    return report.close()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kazoo interop suite")
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), required=True)
    parser.add_argument("--only", default="", help="run the cases whose claim has this text")
    service.add_options(parser)
    options = parser.parse_args(arguments)
    service.check_options(parser, options)
    return options


def _enter_venv() -> None:
    """Continues in the venv's Python, which has kazoo."""
    python = lab.venv(KAZOO)
    if sys.prefix != str(python.parent.parent):
        sys.stdout.flush()
        os.execv(python, [str(python), __file__, *sys.argv[1:]])


def _load_cases() -> tuple[ModuleType, list[Callable[..., None]]]:
    """Imports the case modules, which register their cases in this order."""
    for name in CASE_MODULES:
        importlib.import_module(f"kazoo_cases.{name}")
    bench = importlib.import_module("kazoo_cases.bench")
    return bench, bench.CASES


def _ensure_running(server: lab.Server | service.Service) -> None:
    """A case that failed halfway may have left the server dead. (If it was not the case that ended
    it, `report_deaths` says so.)"""
    if not server.running():
        server.start()


def _run_bounded(bench: Any, function: Callable[..., None]) -> None:
    """Runs one case in a thread of its own: kazoo's calls themselves have no time limit."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            function(bench)
        except BaseException as error:  # raised again below
            failure.append(error)
        finally:
            bench.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(CASE_SECONDS_MAX)
    if thread.is_alive():
        raise TimeoutError(f"the case did not end within {CASE_SECONDS_MAX} s")
    if failure:
        raise failure[0]


if __name__ == "__main__":
    sys.exit(main())
