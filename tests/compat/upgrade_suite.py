"""An upgrade while clients go on: an earlier build and the present one in one ensemble of three.

    python3 tests/compat/upgrade_suite.py [--from COMMIT] [--seconds 4] [--seed N]

The servers are replaced one at a time, followers first, the leader last: forward by stopping them,
back by stopping them, forward by killing them. The clients and the checker are those of the nemesis
of `cluster_suite.py`: no acknowledged write is lost, nothing is done twice, no lock is held by two.
Besides, no session may be lost, and servers of both builds have to end in the same state.

The earlier build is made from the history, once, in `.cache/builds`: that takes minutes. Where the
history does not reach back to it, the suite is SKIPPED. The logs of servers that failed are in
target/cluster-suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

import lab
from cluster import checker, nemesis, network
from cluster.ensemble import Ensemble
from cluster.network import SERVERS, Loopback

# The first build with ensembles. Its files and frames are kept in tests/golden too.
FIRST = "cb7ba498e44c39ceb6ab19fc8ccfa3261cf045d5"
FIRST_LEVEL = "1"


class Upgrade(nemesis.Trial):
    """The ensemble and its clients, while its servers become others."""

    def __init__(self, ensemble: Ensemble, builds: tuple[Path, Path], seconds: float, seed: int):
        super().__init__(ensemble, Healer(ensemble), seed)
        self.old, self.new = builds
        self.seconds = seconds

    def run(self) -> None:
        for server in self.ensemble.servers.values():
            server.binary = self.old
        self.ensemble.start()
        with self.ensemble.client() as client:
            self.load.prepare(client)
        self.load.start()
        try:
            # One server keeps the feature level, or there would be no way back.
            self._roll("forward on trial", self.new, kill=False, keep=FIRST_LEVEL)
            self._roll("back", self.old, kill=False)
            self._roll("forward again, by kill -9", self.new, kill=True)
            self._level_rises()
        finally:
            self._calm()

    def _roll(self, how: str, build: Path, kill: bool, keep: str = "0") -> None:
        leader = self.ensemble.leader()
        order = [number for number in SERVERS if number != leader] + [leader]
        for number in order:
            began = time.monotonic()
            server = self.ensemble.servers[number]
            if kill:
                server.kill9()
            else:
                nemesis.stop_in_order(server)
            server.binary = build
            # The old build does not know the key, and says so in a warning.
            server.configure(featureLevelMax=keep if number == leader else "0")
            server.spawn()
            self.ensemble.wait_for(number)
            self._goes_on()
            took = time.monotonic() - began
            print(
                f"  {how}: server {number} replaced in {took:.1f} s; {self._mixture()}", flush=True
            )
            time.sleep(self.seconds)
            for other in SERVERS:
                found = self.ensemble.servers[other]
                assert found.running(), f"server {other} ended; its log: {found.log_tail(3)}"

    def _level_rises(self) -> None:
        """Once all know more than the old build did, and none keeps it."""

        def level() -> int:
            leader = self.ensemble.servers[self.ensemble.leader()]
            return int(leader.look("mntr", "zk_feature_level\t") or 0)

        lab.wait_until(lambda: level() > int(FIRST_LEVEL), "a higher feature level")
        print(f"  the feature level is {level()}", flush=True)

    def _mixture(self) -> str:
        """Who runs what, and who leads."""
        leader = self.ensemble.leader()
        name = {self.old: "old", self.new: "new"}
        builds = ", ".join(f"{n} {name[s.binary]}" for n, s in self.ensemble.servers.items())
        level = self.ensemble.servers[leader].look("mntr", "zk_feature_level\t") or "not told"
        return f"{builds}; server {leader} leads; feature level {level}"

    def lost_sessions(self) -> list[str]:
        return [
            f"{actor.name} lost {actor.expired} sessions"
            for actor in self.load.actors
            if actor.expired
        ]


class Healer:
    """For a trial without faults: all servers run at its end."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def heal(self) -> None:
        for server in self.ensemble.servers.values():
            if not server.running():
                server.spawn()


def run(report: lab.Report, commit: str, seconds: float, seed: int) -> None:
    name = f"from {commit[:12]}"
    try:
        builds = (lab.zkraft_of(commit), lab.zkraft_binary())
    except lab.Skipped as why:
        report.skip(name, str(why))
        return
    checker.finds_what_is_planted(report)
    with Ensemble("zkraft", Loopback(), nemesis.CONFIG, name="upgrade") as ensemble:
        trial = Upgrade(ensemble, builds, seconds, seed)
        failed = report.failed
        with report.case(f"{name}: servers of both builds serve together"):
            trial.run()
        if report.failed > failed:
            ensemble.keep_logs()
    for what, judge in {**trial.judgements(), "no session was lost": trial.lost_sessions}.items():
        with report.case(f"{name}: {what}"):
            checker.raise_if_any(judge())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="commit", default=FIRST, help="the earlier build's commit")
    parser.add_argument("--seconds", type=float, default=4, help="between two replacements")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the clients")
    arguments = parser.parse_args()
    if network.INSIDE not in os.environ:
        # What comes from the network, which the suite's own does not reach.
        with contextlib.suppress(lab.Skipped):
            # Said again, and counted, where cases are.
            lab.zkraft_of(arguments.commit)
        lab.zkraft_binary()
        network.enter(__file__)
    lab.end_cleanly_on_sigterm()
    report = lab.Report("upgrade", "zkraft")
    print(f"  seed {arguments.seed}")
    run(report, arguments.commit, arguments.seconds, arguments.seed)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
