"""Three servers as one ensemble: what clients may rely on while servers and networks fail.

    python3 tests/compat/cluster_suite.py --against zkraft|zookeeper
        [--only basics,reads,failover,pods,nemesis] [--kills 10] [--judge] [--versus]
        [--minutes 4] [--seed N]

    basics    starting in any order, moving sessions, minorities, crashes, rolling restarts
    reads     linearizable reads, read-only mode, local sessions, observers
    failover  leaders are killed, fall silent and are cut off under load: how long nobody is served
    pods      the manifest for Kubernetes: names that come late, addresses that change, its probes, more pods
    nemesis   faults drawn from a seed, while clients record what they do; a checker judges it

Times are only judged with --judge, which needs a quiet machine. --versus measures failover of
ZooKeeper as well, and puts both into one table.

Faults of the network need namespaces and nftables (fetched if it is not installed), and pods need
root; cases that cannot have them are SKIPPED. The logs of servers that failed are in
target/cluster-suite.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import lab
from cluster import basics, failover, nemesis, network, reads
from manifest_suite import VALIDATOR

PARTS = ("basics", "reads", "failover", "pods", "nemesis")


def main() -> int:
    arguments = parse_arguments()
    if network.INSIDE not in os.environ:
        network.enter(__file__, fetch(arguments))
    lab.end_cleanly_on_sigterm()
    report = lab.Report("cluster", arguments.against)
    print(f"  seed {arguments.seed}")
    filters, why = network.filters()
    if "basics" in arguments.only:
        basics.run(report, arguments.against)
    if "reads" in arguments.only:
        reads.run(report, arguments.against)
    if "failover" in arguments.only:
        kinds = (arguments.against, "zookeeper") if arguments.versus else (arguments.against,)
        done = []
        for kind in dict.fromkeys(kinds):
            faults = dict.fromkeys(arguments.faults, arguments.kills)
            done += failover.run(
                report, kind, filters, why, faults, arguments.judge, arguments.seed
            )
        failover.show(done)
    if "pods" in arguments.only:
        # Reads the manifest, for which it needs a module that the other parts do without.
        from cluster import pods

        pods.run(report, arguments.against)
    if "nemesis" in arguments.only:
        minutes = arguments.minutes
        nemesis.run(report, arguments.against, filters, why, minutes, arguments.seed)
    return report.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), default="zkraft")
    parser.add_argument("--only", type=listed(PARTS), default=PARTS, help="parts, by commas")
    parser.add_argument("--kills", type=int, default=10, help="faults of each kind of failover")
    parser.add_argument("--faults", type=listed(tuple(failover.KINDS)), default=failover.KINDS)
    parser.add_argument("--judge", action="store_true", help="judge times too")
    parser.add_argument("--versus", action="store_true", help="measure ZooKeeper as well")
    parser.add_argument("--minutes", type=float, default=4, help="how long the nemesis goes on")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats a schedule")
    return parser.parse_args()


def listed(known: tuple[str, ...]):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"{text} is not a list of {', '.join(known)}")
        return names

    return parse


def fetch(arguments: argparse.Namespace) -> str:
    """What comes from the network, which the suite's own does not reach. Returns the Python to go
    on with."""
    if "zookeeper" == arguments.against or arguments.versus:
        lab.zookeeper_class_path()
    else:
        lab.zkraft_binary()
    if "reads" in arguments.only:
        reads.fetch()
    try:
        network.Filters()
    except (LookupError, OSError, RuntimeError) as error:
        print(f"  nftables cannot be fetched: {error}")
    return str(lab.venv(VALIDATOR)) if "pods" in arguments.only else sys.executable


if __name__ == "__main__":
    sys.exit(main())
