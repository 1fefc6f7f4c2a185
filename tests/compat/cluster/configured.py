"""How the servers of an ensemble are told of each other, and what they tell clients of that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import lab

from .ensemble import ELECTION_PORT, QUORUM_PORT, Ensemble
from .network import SERVERS, Loopback

CONFIG = {"tickTime": "500", "initLimit": "20", "syncLimit": "4"}
# Two that vote, and one that does not.
VOTERS, OBSERVER = (1, 2), 4
CONFIG_PATH = "/zookeeper/config"
ADVERTISED = {n: f"zk{n}.example.com:{12180 + n}" for n in SERVERS}


def dynamic_file(kind: lab.Kind) -> None:
    """The lines of all servers are in a file of their own."""
    numbers = (*VOTERS, OBSERVER)
    network = Loopback(numbers)
    with Ensemble(kind, network, CONFIG, name=f"{kind} dynamic file", dynamic=True) as ensemble:
        for server in ensemble.servers.values():
            static = (server.home / "zoo.cfg").read_text(encoding="utf-8")
            assert "dynamicConfigFile=" in static and "server." not in static, static
        ensemble.start()
        assert ensemble.servers[OBSERVER].mode() == "observer"
        assert sorted(ensemble.servers[n].mode() for n in VOTERS) == ["follower", "leader"]
        ensemble.is_seen_through_all()
        told(ensemble, numbers, {})


def advertised(kind: lab.Kind) -> None:
    """Clients are told of the addresses that are meant for them, and of no others."""
    for numbers in (SERVERS, SERVERS[1:2], ()):
        addresses = {n: ADVERTISED[n] for n in numbers}
        keys = {f"advertisedClientAddress.{n}": address for n, address in addresses.items()}
        name = f"{kind} {len(numbers)} advertised"
        with Ensemble(kind, Loopback(), {**CONFIG, **keys}, name=name) as ensemble:
            ensemble.start()
            told(ensemble, SERVERS, addresses)


def told(ensemble: Ensemble, numbers: Sequence[int], addresses: Mapping[int, str]) -> None:
    """Each server tells clients of just these servers, with these addresses for clients."""
    expected = []
    for number in numbers:
        role = "observer" if number in ensemble.observers else "participant"
        place = f"{ensemble.network.hosts[number]}:{QUORUM_PORT}:{ELECTION_PORT}:{role}"
        client = f";{addresses[number]}" if number in addresses else ""
        expected.append(f"server.{number}={place}{client}")
    seen = set()
    for number in numbers:
        with ensemble.client(number) as client:
            client.sync()
            found = client.get(CONFIG_PATH)
            assert found is not None, f"server {number} has no {CONFIG_PATH}"
            *lines, version = found[0].decode().splitlines()
            assert lines == expected, f"server {number} tells of {lines}, and not of {expected}"
            assert re.fullmatch("version=[0-9a-f]+", version), version
            seen.add(found[0])
    assert len(seen) == 1, f"they tell of different versions: {seen}"
    print("  " + ", ".join(expected))
