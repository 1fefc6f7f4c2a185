"""Three servers with the face of one, for the suites of real clients, and what disturbs them.

Those suites are written against `lab.Server`. `Service` offers what they use of it: to kill it is
to kill all three, and to be served by it is to be served by all. `Nemesis` kills one of them at a
time meanwhile, and lets it come back.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import lab

from .client import Address
from .ensemble import Ensemble
from .network import SERVERS, Loopback

# Between the return of one server and the end of the next one, and how long one is away.
PAUSE_SECONDS = (3.0, 6.0)
AWAY_SECONDS = (0.2, 1.5)
# How long a server without clients is spared until one comes.
CLIENT_SECONDS_MAX = 2.0
# A follower that is held up now and then: what is read from it is old.
HELD_UP_SECONDS = (0.02, 0.15)
# How often a case is begun whose requests are lost.
ATTEMPTS_MAX = 5


class Service:
    """An ensemble that is started and ended as one server. A context manager."""

    def __init__(self, kind: lab.Kind, config: Mapping[str, str], name: str) -> None:
        self.kind = kind
        self.ensemble = Ensemble(kind, Loopback(), config, name=f"{kind} {name}")

    @property
    def places(self) -> list[Address]:
        return self.ensemble.places()

    @property
    def address(self) -> str:
        """The connect string of all three."""
        return ",".join(f"{host}:{port}" for host, port in self.places)

    def data_dir_at(self, place: Address) -> Path:
        """The data directory of the server at this address."""
        (found,) = (s.data_dir for s in self.ensemble.servers.values() if s.place == place)
        return found

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ensemble.__exit__(None, None, None)

    def start(self) -> None:
        self.ensemble.start()

    def kill9(self) -> None:
        servers = self.ensemble.servers.values()
        for server in servers:
            # All at once: no client is to find another one.
            server.send_kill9()
        for server in servers:
            server.kill9()

    def stop(self) -> int:
        """Stops one after the other; returns the exit code that all have, or the odd one."""
        codes = [server.stop() for server in self.ensemble.servers.values()]
        return next((code for code in codes if code != codes[0]), codes[0])

    def restart(self) -> None:
        if self.running():
            for server in self.ensemble.servers.values():
                server.stop_well()
        self.start()

    def pause(self) -> None:
        for server in self.ensemble.servers.values():
            server.pause()

    def resume(self) -> None:
        for server in self.ensemble.servers.values():
            server.resume()

    def running(self) -> bool:
        """Whether all three do."""
        return all(server.running() for server in self.ensemble.servers.values())

    def deaths(self) -> list[str]:
        """What those of `lab.Server` are, of all three."""
        return self.ensemble.deaths()

    def log_tail(self, lines: int = 15) -> str:
        tails = (server.log_tail(lines) for server in self.ensemble.servers.values())
        return "\n".join(tails)


class Nemesis(threading.Thread):
    """Kills one server at a time, in turn the leader and a follower, and starts it again.

    Between kills it holds a follower up for a moment now and then. As a context manager it begins
    and ends.
    """

    def __init__(self, service: Service, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        # Clients that were at the servers which were killed.
        self.cut_off = 0
        self._ensemble = service.ensemble
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._wrong: Exception | None = None

    def __enter__(self) -> Nemesis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(2 * lab.START_SECONDS_MAX)

    def check(self) -> None:
        """Raises what went wrong with a server, if anything did."""
        if self._wrong is not None:
            raise self._wrong
        assert not self.is_alive(), "it does not end"
        assert self.cut_off, f"no client was at one of the {self.kills} servers that it killed"

    def run(self) -> None:
        try:
            while True:
                pause = time.monotonic() + self._random.uniform(*PAUSE_SECONDS)
                while time.monotonic() < pause:
                    self._hold_up()
                    if self._ended.wait(self._random.uniform(0.1, 0.5)):
                        return
                self._kill()
        except Exception as error:  # raised again by the owner
            self._wrong = error
            self._ensemble.keep_logs()

    def _kill(self) -> None:
        leader = self._ensemble.leader()
        follower = self._random.choice([number for number in SERVERS if number != leader])
        victim = leader if self.kills % 2 == 0 else follower
        server = self._ensemble.servers[victim]
        # Most cases are short: one of them is to be hit.
        sessions = server.sessions()
        deadline = time.monotonic() + CLIENT_SECONDS_MAX
        while not sessions and time.monotonic() < deadline:
            time.sleep(0.01)
            sessions = server.sessions()
        self.cut_off += len(sessions)
        server.kill9()
        self.kills += 1
        # Not cut short at the end: it is to be there when the next one goes, or the suite ends.
        time.sleep(self._random.uniform(*AWAY_SECONDS))
        server.spawn()
        self._ensemble.wait_for(victim)
        self._ensemble.caught_up(victim, self._ensemble.newest())

    def _hold_up(self) -> None:
        leader = self._ensemble.leader()
        number = self._random.choice([number for number in SERVERS if number != leader])
        server = self._ensemble.servers[number]
        server.pause()
        time.sleep(self._random.uniform(*HELD_UP_SECONDS))
        server.resume()


@contextlib.contextmanager
def served(
    report: lab.Report, kind: lab.Kind, config: Mapping[str, str], options: argparse.Namespace
) -> Iterator[lab.Server | Service]:
    """What a suite of clients runs against: one server or three, with or without a nemesis.

    A server that does not live until the suite has ended, or does not stop then as it must, is a
    failure.
    """
    if options.servers == 1:
        with lab.Server(kind, config) as server:
            yield server
            report_deaths(report, server, "the last case")
            try:
                if server.running():
                    server.stop_well()
            except (AssertionError, TimeoutError) as wrong:
                report.record_failure("the server stops when it is told to", str(wrong))
        return
    with Service(kind, config, report.suite) as service:
        if options.nemesis:
            with Nemesis(service, options.seed) as nemesis:
                yield service
            with report.case("clients were cut off, and every server came back"):
                nemesis.check()
            print(
                f"  {nemesis.kills} servers were killed and {nemesis.cut_off} clients cut off, "
                f"seed {options.seed}",
                flush=True,
            )
        else:
            yield service
        report_deaths(report, service, "the last case")
        if report.failed:
            service.ensemble.keep_logs()


def report_deaths(report: lab.Report, server: lab.Server | Service, since: str) -> None:
    """Counts as failures the servers that ended though nobody ended them. A case that starts what
    is down would hide them."""
    for death in server.deaths():
        report.record_failure(f"no server ends by itself (seen after {since})", death)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `served` obeys."""
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--nemesis", action="store_true", help="kill one of three now and then")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the nemesis")
    parser.add_argument("--rounds", type=int, default=1, help="how often every case is run")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.nemesis and options.servers == 1:
        parser.error("--nemesis needs --servers 3")


class Again:
    """Runs a case under the nemesis again if a request of it was lost.

    What was under way when a server was killed may or may not be done, and a case that does not
    expect that cannot go on. That is the only reason to begin again: whatever else fails, fails.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._attempts_max = ATTEMPTS_MAX if options.nemesis else 1

    def run(self, case: Callable[[str], None], is_lost: Callable[[Exception], bool]) -> None:
        """`case` is given what makes the paths of this attempt its own."""
        for attempt in range(1, self._attempts_max + 1):
            try:
                case("" if attempt == 1 else f"-{attempt}")
                return
            except Exception as error:
                if attempt == self._attempts_max or not is_lost(error):
                    raise
                print(f"  again: {type(error).__name__} {error}", flush=True)
