"""Interop suite: the Java ZooKeeper client and Apache Curator, as applications use them.

The cases are Java (`java/zkraft`), written once and compiled twice: against Debian's ZooKeeper
3.8.0 and Curator 5.4.0 (`debian`), and against the copies inside Apache Flink's distribution
(`flink`), whose packages carry another prefix. This file builds them, owns the server, kills and
restarts it when a case asks, and reports.

    python3 tests/compat/java_suite.py --against zkraft|zookeeper [--flavour debian|flink]
        [--only PART] [--servers 3 [--nemesis [--seed N]]] [--rounds N]

With `--servers 3` the server is an ensemble of three, all in the connect string; to kill it is to
kill all. Some cases ask for a second ensemble, whose members they may change. With `--nemesis` one
of the first three is killed every few seconds, and starts again.

It must never judge a case: whatever the Java program reports is what counts, and a program that
ends early or stays silent is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lab
from cluster import service
from cluster.ensemble import CLIENT_PORT, Ensemble
from cluster.network import Loopback
from relay import Relay

SOURCES = Path(__file__).resolve().parent / "java" / "zkraft"
FLAVOURS = ("debian", "flink")
FLINK_VERSION = "2.3.0"

# The whole program of one flavour; a case has its own, smaller limit in Suite.java.
PROGRAM_SECONDS_MAX = 420

CURATOR_PACKAGES = (
    "libcurator-recipes-java",
    "libcurator-framework-java",
    "libcurator-client-java",
    "libguava-java",
)
CURATOR_JARS = ("curator-recipes.jar", "curator-framework.jar", "curator-client.jar", "guava.jar")

# Lab.java knows the bounds of the session timeout; a short tick makes expiry prompt (spec 8.2).
SERVER_CONFIG = {
    "tickTime": "500",
    "minSessionTimeout": "2000",
    "maxSessionTimeout": "60000",
    "extendedTypesEnabled": "true",
    # Containers and TTL nodes are looked at once a minute by default.
    "znode.container.checkIntervalMs": "500",
}
# Of the second ensemble: who is super:secret may change it (Ensembles.java).
CHANGED_CONFIG = {
    **SERVER_CONFIG,
    "reconfigEnabled": "true",
    "DigestAuthenticationProvider.superDigest": "super:lK75jTNcA+U9vtVEw5vB51mj/w4=",
}


@dataclass(frozen=True)
class Flavour:
    """The jars of one client, and what its packages are prefixed with ("" or "some.package.")."""

    name: str
    class_path: tuple[Path, ...]
    zookeeper_prefix: str = ""
    curator_prefix: str = ""


def flavour(name: str) -> Flavour:
    return debian_flavour() if name == "debian" else flink_flavour()


def debian_flavour() -> Flavour:
    zookeeper = tuple(Path(jar) for jar in lab.zookeeper_class_path().split(os.pathsep))
    jars = lab.debian(*CURATOR_PACKAGES) / "usr" / "share" / "java"
    return Flavour("debian", (*(jars / name for name in CURATOR_JARS), *zookeeper))


def flink_flavour() -> Flavour:
    libraries = lab.flink(FLINK_VERSION) / "lib"
    (distribution,) = libraries.glob("flink-dist-*.jar")
    with zipfile.ZipFile(distribution) as jar:
        classes = jar.namelist()
    # Flink's own logging backend wants a configuration file; the one of the other flavour does not.
    java = lab.debian("libslf4j-java") / "usr" / "share" / "java"
    return Flavour(
        "flink",
        (distribution, java / "slf4j-simple.jar"),
        prefix_of("org/apache/zookeeper/ZooKeeper.class", classes),
        prefix_of("org/apache/curator/framework/CuratorFramework.class", classes),
    )


def prefix_of(class_file: str, classes: list[str]) -> str:
    """What the shaded copy of a class has before its own package, as a package with a dot."""
    (found,) = (name for name in classes if name.endswith("/" + class_file))
    return found.removesuffix(class_file).replace("/", ".")


def build(client: Flavour) -> Path:
    """Compiles the cases for one client and returns the directory of the classes.

    It is named after what went into it, so an unchanged program is compiled once and a running one
    keeps its classes.
    """
    sources = {
        source.name: shade(source.read_text(encoding="utf-8"), client)
        for source in sorted(SOURCES.glob("*.java"))
    }
    content = repr((sources, client.class_path)).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    home = lab.CACHE / f"java-{client.name}" / digest
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        compile_into(Path(scratch) / "classes", sources, client)
        (Path(scratch) / "classes").rename(home)
    return home


def compile_into(classes: Path, sources: dict[str, str], client: Flavour) -> None:
    for name, text in sources.items():
        (classes.parent / name).write_text(text, encoding="utf-8")
    command = ["javac", "-J-Xmx512m", "-d", str(classes), "-cp", join(client.class_path), "-Werror"]
    # Not ours to mend: annotations of the jars' own dependencies, and their manifests.
    command += ["-Xlint:all,-classfile,-processing,-path,-try"]
    command += [str(classes.parent / name) for name in sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"javac failed for the {client.name} flavour:\n{done.stderr}")


def shade(source: str, client: Flavour) -> str:
    """Rewrites the imports to the packages of the flavour; the cases use no qualified names."""
    for package, prefix in (
        ("zookeeper", client.zookeeper_prefix),
        ("curator", client.curator_prefix),
    ):
        pattern = rf"^(import (?:static )?)(org\.apache\.{package}\.)"
        source = re.sub(pattern, rf"\g<1>{prefix}\g<2>", source, flags=re.MULTILINE)
    return source


def join(class_path: tuple[Path, ...]) -> str:
    return os.pathsep.join(map(str, class_path))


def run(client: Flavour, options: argparse.Namespace, report: lab.Report) -> None:
    """Runs the cases of one flavour against a fresh server."""
    against: lab.Kind = options.against
    attempts = service.ATTEMPTS_MAX if options.nemesis else 1
    classes = build(client)
    log = lab.CACHE / f"java-{client.name}" / f"client-{against}.log"
    with (
        service.served(report, against, SERVER_CONFIG, options) as server,
        Second(against) as second,
        open(log, "wb") as errors,
    ):
        command = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        command += ["-Dorg.slf4j.simpleLogger.showDateTime=true"]
        command += ["-cp", join((classes, *client.class_path)), "zkraft.Suite"]
        command += [server.address, against, str(attempts), options.only]
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        watchdog = threading.Timer(PROGRAM_SECONDS_MAX, program.kill)
        watchdog.start()
        try:
            follow(program, server, second, client.name, report, options.nemesis)
        finally:
            watchdog.cancel()
            program.kill()
            program.wait()
    print(f"# log of the {client.name} client: {log}", flush=True)


class Second:
    """A second ensemble, whose members can be changed. It runs from the first time that it is
    asked for. zkraft's tells its clients of addresses that none of them was given: those of relays
    in front of its servers."""

    def __init__(self, kind: lab.Kind) -> None:
        self._kind: lab.Kind = kind
        self._stack = contextlib.ExitStack()
        self._ensemble: Ensemble | None = None
        self._answer = ""

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> str:
        """Starts what does not run; where the servers are, and where they are said to be."""
        if self._ensemble is None:
            network = Loopback(ensemble=1)
            listening = {number: f"{host}:{CLIENT_PORT}" for number, host in network.hosts.items()}
            config, said = CHANGED_CONFIG, listening
            if self._kind == "zkraft":
                said = {number: self._relay(host) for number, host in network.hosts.items()}
                config = config | {f"advertisedClientAddress.{n}": at for n, at in said.items()}
            ensemble = Ensemble(self._kind, network, config, name=f"{self._kind} java second")
            self._ensemble = self._stack.enter_context(ensemble)
            self._answer = f"{','.join(listening.values())} {','.join(said.values())}"
        self._ensemble.start()
        self._ensemble.complete()
        return self._answer

    def kill9(self, number: int) -> None:
        assert self._ensemble is not None
        self._ensemble.servers[number].kill9()

    def _relay(self, host: str) -> str:
        return self._stack.enter_context(Relay([(host, CLIENT_PORT)])).address


def follow(
    program: subprocess.Popen[str],
    server: lab.Server | service.Service,
    second: Second,
    name: str,
    report: lab.Report,
    is_disturbed: bool,
) -> None:
    """Obeys and reports what the program says until it has said `@end`."""
    assert program.stdin is not None and program.stdout is not None
    orders: dict[str, Callable[[str], str | None]] = {
        "@kill": lambda _: server.kill9(),
        "@restart": lambda _: server.restart(),
        "@second": lambda _: second.start(),
        "@kill-second": lambda number: second.kill9(int(number)),
    }
    reported = 0
    for line in program.stdout:
        word, _, rest = line.rstrip("\n").partition(" ")
        case, _, detail = rest.partition("\t")
        if word in orders:
            answer = orders[word](rest)
            program.stdin.write(f"ok {answer or ''}".strip() + "\n")
            program.stdin.flush()
            continue
        if word == "@again":
            print(f"  again: {name}: {case}: {detail}", flush=True)
            continue
        if word == "@end" and rest == str(reported) and reported > 0:
            return
        if word not in RESULTS:
            break
        RESULTS[word](report, f"{name}: {case}", detail)
        reported += 1
        # Between cases the server always runs: a case that killed it has restarted it.
        if not is_disturbed and not server.running():
            break
    report.record_failure(
        f"{name}: the program runs to its end",
        f"after {reported} cases the program ended with {program.poll()}, the server "
        f"{'runs' if server.running() else 'is down'}; its log ends: {server.log_tail(5)}",
    )


# What the program says of a case, and how that is reported.
RESULTS: dict[str, Callable[[lab.Report, str, str], None]] = {
    "@pass": lambda report, case, seconds: report.record_pass(case, float(seconds)),
    "@fail": lambda report, case, reason: report.record_failure(case, reason),
    "@skip": lambda report, case, reason: report.skip(case, reason),
    "@leave": lambda report, case, reason: report.leave_out(case, reason),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=("zkraft", "zookeeper"), required=True)
    parser.add_argument("--flavour", choices=FLAVOURS, help="default: both")
    parser.add_argument("--only", default="", help="run only cases whose names contain this")
    service.add_options(parser)
    options = parser.parse_args()
    service.check_options(parser, options)
    lab.end_cleanly_on_sigterm()
    report = lab.Report("java", options.against)
    names = [options.flavour] if options.flavour else list(FLAVOURS)
    for name in names * options.rounds:
        try:
            run(flavour(name), options, report)
        except Exception as failure:
            report.record_failure(f"{name}: the suite runs", str(failure))
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
