"""The files to deploy with, against what reads them: Kubernetes' schemas and the real binary.

    python3 tests/compat/manifest_suite.py

The manifests are validated by PyPI's kubernetes-validate, strictly, against the oldest schemas it
has and the newest; that a name in one place is the name that another place means is checked here.
Then `zkraft check-config` is given the arguments, the environment and the configuration of the
StatefulSet, as each of its pods would be. No cluster and no container is started: the part `pods`
of cluster_suite.py does that.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab

# Brings PyYAML.
VALIDATOR = "kubernetes-validate==1.37.0"
DEPLOY = lab.REPO / "deploy"
MANIFEST = DEPLOY / "kubernetes" / "zkraft.yaml"
FLINK = DEPLOY / "flink" / "config.yaml"
DOCKERFILE = DEPLOY / "Dockerfile"
CARGO_TOML = lab.REPO / "Cargo.toml"
NAMESPACE = "prod"
# What a server that is told to stop takes at most.
STOP_SECONDS_MAX = 15
Tree = dict[str, Any]


def main() -> int:
    _enter_venv()
    lab.end_cleanly_on_sigterm()
    report = lab.Report("manifest_suite", "Kubernetes' schemas and zkraft")
    manifest = Manifest()
    for version in _schema_versions():
        with report.case(f"the manifests are valid for Kubernetes {version}"):
            manifest.validate(version)
    with report.case("every name in the manifests is the name of something"):
        manifest.check_names()
    with report.case("the pods are as restricted as they can be"):
        manifest.check_security()
    with report.case("the number of replicas is the same in all places"):
        manifest.check_replicas()
    for ordinal in range(manifest.replicas):
        with report.case(f"zkraft knows its servers in the pod of ordinal {ordinal}"):
            check_pod(manifest, ordinal)
    with report.case("a pod that is too many is told so"):
        check_pod_too_many(manifest)
    with report.case("the probes are commands of zkraft"):
        check_probes(manifest)
    with report.case("before SIGTERM comes, a pod only waits, and then there is time to stop"):
        check_stop(manifest)
    with report.case("the image has the user, the ports and the command of the pods"):
        check_image(manifest)
    with report.case("the context of the image has what cargo needs"):
        check_context()
    with report.case("Flink connects to the pods by name"):
        check_flink(manifest)
    with report.case("the example of an ensemble is accepted"):
        check_example()
    return report.close()


def _enter_venv() -> None:
    """Continues in the venv's Python, which has the validator and a YAML reader."""
    python = lab.venv(VALIDATOR)
    if sys.prefix != str(python.parent.parent):
        sys.stdout.flush()
        os.execv(python, [str(python), __file__, *sys.argv[1:]])


def _schema_versions() -> list[str]:
    import kubernetes_validate

    versions: list[str] = kubernetes_validate.utils.all_versions()
    return [versions[0], versions[-1]]


# --- The manifests --------------------------------------------------------------------------------


class Manifest:
    """The documents of the manifest file."""

    def __init__(self) -> None:
        import yaml

        text = MANIFEST.read_text(encoding="utf-8")
        self.documents: list[Tree] = list(yaml.safe_load_all(text))
        self.stateful_set = self.only("StatefulSet")["spec"]
        self.pod: Tree = self.stateful_set["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.replicas: int = self.stateful_set["replicas"]
        self.name: str = self.only("StatefulSet")["metadata"]["name"]
        # What stands behind the name of a pod.
        service = self.stateful_set["serviceName"]
        self.domain = f"{service}.{NAMESPACE}.svc.cluster.local"

    def of_kind(self, kind: str) -> list[Tree]:
        return [document for document in self.documents if document["kind"] == kind]

    def only(self, kind: str) -> Tree:
        (document,) = self.of_kind(kind)
        return document

    def validate(self, version: str) -> None:
        import kubernetes_validate

        for document in self.documents:
            kubernetes_validate.validate(document, version, strict=True)

    def environment(self, host: str) -> dict[str, str]:
        """What Kubernetes puts into the environment of the pod `host`."""
        fields = {"metadata.namespace": NAMESPACE, "metadata.name": host}
        environment = {"HOSTNAME": host}
        for variable in self.container["env"]:
            source = variable.get("valueFrom")
            environment[variable["name"]] = (
                variable["value"] if source is None else fields[source["fieldRef"]["fieldPath"]]
            )
        return environment

    def zoo_cfg(self) -> str:
        text: str = self.only("ConfigMap")["data"]["zoo.cfg"]
        return text

    def zoo_cfg_keys(self) -> dict[str, str]:
        lines = [line for line in self.zoo_cfg().splitlines() if not line.startswith("#")]
        return dict(line.split("=", 1) for line in lines)

    def mount(self, path: str) -> Tree:
        """The volume that holds this path of the container."""
        mounts = self.container["volumeMounts"]
        (name,) = [m["name"] for m in mounts if path.startswith(m["mountPath"] + "/")]
        claims = self.stateful_set["volumeClaimTemplates"]
        claimed: list[Tree] = [{"name": c["metadata"]["name"], "claim": c["spec"]} for c in claims]
        (volume,) = [v for v in [*self.pod["volumes"], *claimed] if v["name"] == name]
        return volume

    def check_names(self) -> None:
        labels = self.stateful_set["template"]["metadata"]["labels"]
        apart = self.pod["affinity"]["podAntiAffinity"]
        (node,) = apart["requiredDuringSchedulingIgnoredDuringExecution"]
        assert node["topologyKey"] == "kubernetes.io/hostname", "a node takes a majority with it"
        selectors = [
            self.stateful_set["selector"]["matchLabels"],
            self.only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            *[service["spec"]["selector"] for service in self.of_kind("Service")],
            node["labelSelector"]["matchLabels"],
            *[
                term["podAffinityTerm"]["labelSelector"]["matchLabels"]
                for term in apart["preferredDuringSchedulingIgnoredDuringExecution"]
            ],
        ]
        for selector in selectors:
            assert selector.items() <= labels.items(), selector
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        services = {s["metadata"]["name"]: s["spec"] for s in self.of_kind("Service")}
        for name, service in services.items():
            for port in service["ports"]:
                assert ports[port["targetPort"]] == port["port"], (name, port)
        headless = services[self.stateful_set["serviceName"]]
        assert headless["clusterIP"] == "None"
        assert headless["publishNotReadyAddresses"] is True
        keys = self.zoo_cfg_keys()
        assert "claim" in self.mount(keys["dataDir"])
        secret = self.mount(keys["clusterSecretFile"])["secret"]["secretName"]
        command = next(line for line in MANIFEST.read_text().splitlines() if " secret " in line)
        assert f"generic {secret} --from-literal=secret=" in command
        config = self.mount(self.container["args"][1])
        assert config["configMap"]["name"] == self.only("ConfigMap")["metadata"]["name"]

    def check_security(self) -> None:
        assert self.pod["securityContext"]["runAsNonRoot"] is True
        assert self.pod["automountServiceAccountToken"] is False
        container = self.container["securityContext"]
        assert container["readOnlyRootFilesystem"] is True
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        # What is mounted for reading only does not have the data.
        (writable,) = [m for m in self.container["volumeMounts"] if not m.get("readOnly")]
        assert self.zoo_cfg_keys()["dataDir"].startswith(writable["mountPath"])

    def check_replicas(self) -> None:
        environment = self.environment("pod")
        assert environment["ZKRAFT_REPLICAS"] == str(self.replicas)
        assert environment["ZKRAFT_SERVICE"] == self.stateful_set["serviceName"]
        budget = self.only("PodDisruptionBudget")["spec"]["maxUnavailable"]
        assert budget == (self.replicas - 1) // 2, "a majority must stay"
        assert self.stateful_set["podManagementPolicy"] == "Parallel"


# --- What zkraft says -----------------------------------------------------------------------------


def check_config(manifest: Manifest, host: str) -> subprocess.CompletedProcess[str]:
    """`check-config` with what the pod gives to `serve`."""
    command, path, *flags = manifest.container["args"]
    assert command == "serve"
    with tempfile.TemporaryDirectory() as directory:
        zoo_cfg = Path(directory) / Path(path).name
        zoo_cfg.write_text(manifest.zoo_cfg(), encoding="utf-8")
        # The Secret is mounted in the pod alone.
        secret = Path(directory) / "secret"
        secret.write_bytes(os.urandom(32))
        flags += ["--set", f"clusterSecretFile={secret}"]
        return subprocess.run(
            [str(lab.zkraft_binary()), "check-config", str(zoo_cfg), *flags],
            env=manifest.environment(host),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


def check_pod(manifest: Manifest, ordinal: int) -> None:
    done = check_config(manifest, f"{manifest.name}-{ordinal}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Warnings" not in done.stdout, done.stdout
    expected = [
        (str(number), f"{manifest.name}-{number - 1}.{manifest.domain}", number == ordinal + 1)
        for number in range(1, manifest.replicas + 1)
    ]
    assert list(_members(done.stdout)) == expected, done.stdout
    ports = {port["name"]: port["containerPort"] for port in manifest.container["ports"]}
    here = f"clients at *:{ports['client']}, other servers at *:{ports['quorum']}"
    assert f"server number {ordinal + 1}, {here}\n" in done.stdout, done.stdout


def _members(output: str) -> Iterator[tuple[str, str, bool]]:
    """Number and host of each member, and whether it is this server."""
    line = re.compile(r"^  server\.(\d+)=([^:]+):2888:3888:participant(  \(this server\))?$", re.M)
    for match in line.finditer(output):
        yield match[1], match[2], match[3] is not None


def check_pod_too_many(manifest: Manifest) -> None:
    host = f"{manifest.name}-{manifest.replicas}"
    done = check_config(manifest, host)
    assert done.returncode == 1, done.stdout
    assert f"{host} is pod number {manifest.replicas + 1}" in done.stderr, done.stderr


def check_probes(manifest: Manifest) -> None:
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    commands = [manifest.container[probe]["exec"]["command"] for probe in probes]
    flags = {flag for command in commands for flag in command[2:]}
    assert all(command[:2] == ["zkraft", "status"] for command in commands), commands
    assert flags == {"--live", "--ready"}
    done = subprocess.run(
        [str(lab.zkraft_binary()), "status", "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    for flag in flags:
        assert flag in done.stdout, done.stdout


def check_stop(manifest: Manifest) -> None:
    """The part `pods` of cluster_suite.py sees that it is SIGTERM that hands leadership over."""
    program, seconds = manifest.container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep", program
    grace = manifest.pod["terminationGracePeriodSeconds"]
    # A container that is not done by then is killed: no reply under way is sent.
    assert 0 < float(seconds) <= grace - STOP_SECONDS_MAX, f"{seconds} s of {grace} s"
    assert _stop_seconds_max() <= STOP_SECONDS_MAX
    assert f"at most about {STOP_SECONDS_MAX};" in MANIFEST.read_text(encoding="utf-8")


def _stop_seconds_max() -> float:
    """What a server that stops waits for at most, as its source says: that somebody else leads,
    that its clients and its links are done, and a second for what is left."""
    source = (lab.REPO / "src" / "server" / "mod.rs").read_text(encoding="utf-8")
    constant = re.compile(r"^const (\w+)_PATIENCE: Duration = Duration::from_(\w+)\((.*)\);$", re.M)
    unit = {"secs": 1.0, "millis": 0.001}
    patience = {
        name: int(count.replace("_", "")) * unit[kind]
        for name, kind, count in constant.findall(source)
    }
    return patience["HAND_OVER"] + 2 * patience["STOP"] + 1


# --- The image ------------------------------------------------------------------------------------


def check_image(manifest: Manifest) -> None:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    said = dict(line.split(" ", 1) for line in lines if re.match(r"[A-Z]+ ", line))
    # Two stages of the same Debian, whose C library the binary is linked with; no compiler in the
    # second.
    stages = [line.removeprefix("FROM ") for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"rust:[\d.]+-slim-bookworm AS build", stages[0]), stages
    assert stages[1:] == ["debian:bookworm-slim"], stages
    copied = [line for line in lines if line.startswith("COPY --from=")]
    assert copied == ["COPY --from=build /src/target/release/zkraft /usr/local/bin/zkraft"], copied
    # The one that the sources need.
    rust = re.search(r'^rust-version = "([\d.]+)"', CARGO_TOML.read_text("utf-8"), re.M)
    assert rust and stages[0].startswith(f"rust:{rust[1]}-"), (rust, stages[0])
    context = manifest.pod["securityContext"]
    assert said["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert said["ENTRYPOINT"] == '["/usr/local/bin/zkraft"]'
    exposed = said["EXPOSE"].split()
    for port in manifest.container["ports"]:
        assert str(port["containerPort"]) in exposed
    assert manifest.zoo_cfg_keys()["dataDir"].startswith(said["VOLUME"] + "/")
    # What the image does without being told.
    arguments = re.findall(r'"([^"]*)"', said["CMD"])
    done = subprocess.run(
        [str(lab.zkraft_binary()), "check-config", *arguments[1:]],
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^  dataDir +{said['VOLUME']} ", done.stdout, re.M), done.stdout


def check_context() -> None:
    """Cargo finds its targets, and the build script its input, in what the image is built from."""
    rules = (lab.REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    with tempfile.TemporaryDirectory() as directory:
        for path in kept:
            target = Path(directory) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(lab.REPO / path)
        manifest = str(Path(directory) / "Cargo.toml")
        command = ["cargo", "metadata", "--no-deps", "--format-version=1", "--manifest-path"]
        done = subprocess.run(
            [*command, manifest], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert {"Cargo.lock", "proto", "src"} <= set(kept)


# --- Flink and the example ------------------------------------------------------------------------


def check_flink(manifest: Manifest) -> None:
    import yaml

    options: Tree = yaml.safe_load(FLINK.read_text(encoding="utf-8"))
    prefix = "high-availability.zookeeper."
    service = manifest.stateful_set["serviceName"]
    port = manifest.zoo_cfg_keys()["clientPort"]
    pods = [f"{manifest.name}-{n}.{service}:{port}" for n in range(manifest.replicas)]
    assert options[f"{prefix}quorum"] == ",".join(pods)
    assert options[f"{prefix}quorum"] in MANIFEST.read_text(encoding="utf-8")
    assert options["high-availability.type"] == "zookeeper"
    assert options[f"{prefix}client.tolerate-suspended-connections"] is True
    # What Flink asks for is what it gets.
    timeout = options[f"{prefix}client.session-timeout"]
    keys = manifest.zoo_cfg_keys()
    assert 2 * int(keys["tickTime"]) <= timeout <= int(keys["maxSessionTimeout"])


def check_example() -> None:
    """deploy/zoo.cfg with its commented lines."""
    text = (DEPLOY / "zoo.cfg").read_text(encoding="utf-8")
    text = re.sub(r"^#(?=[\w.]+=)", "", text, flags=re.M)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "myid").write_text("2\n", encoding="utf-8")
        zoo_cfg = Path(directory) / "zoo.cfg"
        zoo_cfg.write_text(text, encoding="utf-8")
        command = [str(lab.zkraft_binary()), "check-config", str(zoo_cfg), "--data-dir", directory]
        command += ["--client-address", "0.0.0.0"]
        done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    assert "server.2=zk2.example.com:2888:3888:participant  (this server)" in done.stdout
    assert "server.4=zk4.example.com:2888:3888:observer" in done.stdout


if __name__ == "__main__":
    sys.exit(main())
