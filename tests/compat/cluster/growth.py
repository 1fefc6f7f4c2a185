"""One server becomes three and one again, and nobody who is connected to it notices."""

from __future__ import annotations

import lab
import raw

from .client import Client
from .ensemble import Ensemble, Member
from .failover import Writer
from .network import SERVERS, Loopback

CONFIG = {
    "tickTime": "500",
    "maxSessionTimeout": "60000",
    "reconfigEnabled": "true",
    "skipACL": "yes",
}
SECONDS_MAX = 30
WRITES = 200


def grows_and_shrinks(kind: lab.Kind) -> None:
    """1 → 3 → 1: reconfigs at a client whose connection must not break meanwhile."""
    network = Loopback()
    with Ensemble(kind, network, CONFIG, name=f"{kind} growth") as ensemble:
        first = Member(kind, 1, only(network, 1), {**CONFIG, "standaloneEnabled": "false"}, None)
        ensemble.servers[1].close()
        ensemble.servers[1] = first
        first.spawn()
        ensemble.wait_for(1)
        assert (first.mode(), first.voters()) == ("leader", "1")

        client = Client([first.place], 60_000)
        assert client.create("/writer").error == 0
        assert client.create("/mine", b"", raw.EPHEMERAL).error == 0
        writer = Writer(first.place, "/writer")
        writer.start()
        others = [number for number in SERVERS if number != 1]
        try:
            wait_for_writes(writer)
            for number in others:
                ensemble.servers[number].spawn()
            joining = ",".join(f"{line(ensemble.servers[number])};2181" for number in others)
            assert client.reconfig(joining=joining).error == 0
            lab.wait_until(lambda: first.voters() == "3", "three votes", SECONDS_MAX)
            assert first.mode() == "leader"
            wait_for_writes(writer)
            for number in others:
                with ensemble.client(number) as reader:
                    reader.sync()
                    found = reader.get("/mine")
                    assert found and found[1].owner == client.session[0]
            # They count: without one of them the other two are enough.
            ensemble.servers[others[0]].kill9()
            wait_for_writes(writer)
            ensemble.servers[others[0]].spawn()
            ensemble.wait_for(others[0])

            leaving = ",".join(str(number) for number in others)
            assert client.reconfig(leaving=leaving).error == 0
            lab.wait_until(lambda: first.voters() == "1", "the others to go", SECONDS_MAX)
            for number in others:
                ensemble.servers[number].kill9()
            wait_for_writes(writer)
        finally:
            writer.stop()
        assert writer.wrong is None, writer.wrong
        assert writer.client.broken == client.broken == 0, "a connection broke"
        print(f"  {writer.acknowledged} writes acknowledged over one connection")

        client.leave()
        first.kill9()
        first.spawn()
        ensemble.wait_for(1)
        with ensemble.client(1) as reader:
            found = reader.get("/writer")
            # The last one may have been under way when the writer was stopped.
            assert found and int(found[0]) in (writer.acknowledged, writer.sent), found
        assert (first.mode(), first.voters()) == ("leader", "1")


def only(network: Loopback, number: int) -> Loopback:
    """The same network, as a server sees it that knows of no other."""
    alone = Loopback()
    alone.hosts = {number: network.hosts[number]}
    return alone


def line(server: Member) -> str:
    return f"server.{server.number}={server.host}:2888:3888"


def wait_for_writes(writer: Writer) -> None:
    goal = writer.acknowledged + WRITES
    lab.wait_until(lambda: writer.acknowledged >= goal, "writes to go on", SECONDS_MAX)
