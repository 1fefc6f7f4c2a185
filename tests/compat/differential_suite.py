"""Sends one stream of random requests to zkraft and to Apache ZooKeeper and compares the answers.

    python3 tests/compat/differential_suite.py --against 3.8.0 [--operations N] [--seed S]

The comparison is `tests/differential`, whose documentation says how it works; this fetches the
server to compare with (Debian's 3.8.0, or 3.9.5), builds, and counts its tests as cases. The
release build of zkraft is compared. A seed that is not given is drawn, and printed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys

import lab

# What is compared, by the name of its test.
CASES = {
    "random requests": "random_requests_are_answered_alike",
    "Flink's conversation": "flink_is_answered_alike",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="the same requests to zkraft and to ZooKeeper")
    parser.add_argument("--against", choices=["3.8.0", lab.BASELINE], default="3.8.0")
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.getrandbits(32) if arguments.seed is None else arguments.seed
    lab.end_cleanly_on_sigterm()

    environment = {
        **os.environ,
        "ZKRAFT_BIN": str(lab.zkraft_binary()),
        "ZKRAFT_DIFFERENTIAL_AGAINST": "zookeeper",
        "ZKRAFT_DIFFERENTIAL_OPERATIONS": str(arguments.operations),
        "ZKRAFT_DIFFERENTIAL_SEED": str(seed),
    }
    if arguments.against == lab.BASELINE:
        environment["ZKRAFT_WIRE_JARS"] = str(lab.zookeeper_baseline())
    else:
        environment.pop("ZKRAFT_WIRE_JARS", None)
        lab.zookeeper_class_path()

    report = lab.Report(f"differential test, seed {seed},", f"ZooKeeper {arguments.against}")
    for name, test in CASES.items():
        with report.case(name):
            command = ["cargo", "test", "--quiet", "--test", "differential", "--", "--exact"]
            done = subprocess.run(
                [*command, "--nocapture", test],
                cwd=lab.REPO,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            print(done.stderr, end="", flush=True)
            if done.returncode != 0:
                raise AssertionError(f"{test} failed with {done.returncode}, see above")
            assert one_passed(done.stdout), (
                f"cargo did not run the test {test}; its output ends: {done.stdout[-300:]}"
            )
    return report.close()


def one_passed(output: str) -> bool:
    """Whether a test program says that it ran one test, which passed.

    A name that no test has is not an error: nothing is run, and that passes.
    """
    verdicts = re.findall(r"^test result: (.*)$", output, flags=re.MULTILINE)
    return len(verdicts) == 1 and verdicts[0].startswith("ok. 1 passed; 0 failed; 0 ignored;")


if __name__ == "__main__":
    sys.exit(main())
