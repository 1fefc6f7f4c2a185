"""What every kazoo case is given, and how a case is declared.

A case is a function `claim_in_words(bench)` marked with `@case`; its name is its claim. It raises
when the claim does not hold. One that is marked with `@steady` too is not run while servers are
killed, and one with `@three_servers` not against a single one. `Bench` hands out clients and a
path of its own to each case, so cases share one server without seeing each other. Nothing here may
wait without a bound.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss
from kazoo.protocol.states import WatchedEvent

import lab
from cluster.service import Service

TICK_MS = 500
SESSION_SECONDS_MIN = 2 * TICK_MS / 1000
EVENT_SECONDS_MAX = 15

Case = Callable[["Bench"], None]

CASES: list[Case] = []
# Why a case cannot be run while servers are killed.
STEADY: dict[Case, str] = {}
THREE_SERVERS: set[Case] = set()

ENDS_SERVERS = "it ends the servers itself"
ONE_SERVER = "it looks at one server through several connections"
NEEDS_THREE = "it needs three servers (--servers 3)"

# Who may change the ensemble, and the line that says so. With one server nobody may.
SUPER = "super:secret"
ENSEMBLE_CONFIG = {
    "reconfigEnabled": "true",
    "DigestAuthenticationProvider.superDigest": "super:lK75jTNcA+U9vtVEw5vB51mj/w4=",
}


def case(function: Case) -> Case:
    """Adds the function to the suite."""
    CASES.append(function)
    return function


def steady(why: str) -> Callable[[Case], Case]:
    """Keeps the function out of runs in which servers are killed."""

    def mark(function: Case) -> Case:
        STEADY[function] = why
        return function

    return mark


def three_servers(function: Case) -> Case:
    """Keeps the function out of runs against one server."""
    THREE_SERVERS.add(function)
    return function


def was_lost(error: BaseException | None) -> bool:
    """Whether a request was under way when its connection broke."""
    while error is not None:
        if isinstance(error, ConnectionLoss):
            return True
        error = error.__cause__ or error.__context__
    return False


def claim_of(function: Case) -> str:
    module = function.__module__.rpartition(".")[2]
    return f"{module}: {function.__name__.replace('_', ' ')}"


class Fresh:
    """A client of several servers that reads behind a sync.

    The cases expect to read what another of their clients has done. One server gives them that;
    of several, each may be behind. Recipes are made by the client itself and read as they do.
    """

    def __init__(self, client: KazooClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get(self, path: str, *options: Any, **named: Any) -> Any:
        self._client.sync("/")
        return self._client.get(path, *options, **named)

    def exists(self, path: str, *options: Any, **named: Any) -> Any:
        self._client.sync("/")
        return self._client.exists(path, *options, **named)

    def get_children(self, path: str, *options: Any, **named: Any) -> Any:
        self._client.sync("/")
        return self._client.get_children(path, *options, **named)

    def get_acls(self, path: str) -> Any:
        self._client.sync("/")
        return self._client.get_acls(path)


def connect(client: KazooClient) -> None:
    """Starts it. `KazooClient.start` says that time is out, whatever there is left, if the connection
    is gone again before it looks: servers are killed."""
    connected = client.start_async().wait(lab.START_SECONDS_MAX)
    assert connected, f"no connection within {lab.START_SECONDS_MAX} s"


@dataclass
class Bench:
    """One case's view of the server under test."""

    server: lab.Server | Service
    root: str
    _open: list[KazooClient] = field(default_factory=list)

    def client(self, timeout: float = 10.0, chroot: str = "", **options: Any) -> KazooClient:
        """A connected client, closed at the end of the case. `timeout` is the session's, in s."""
        return self.client_of(self.server.address + chroot, timeout, **options)

    def client_of(self, hosts: str, timeout: float = 10.0, **options: Any) -> KazooClient:
        """The same by connection string, for a client behind a relay."""
        client = self.new_client(hosts, timeout, **options)
        connect(client)
        return client

    def new_client(self, hosts: str, timeout: float = 10.0, **options: Any) -> KazooClient:
        """A client that is not started yet. It reconnects every 50 to 200 ms, for ever."""
        retry = {"max_tries": -1, "delay": 0.05, "backoff": 1, "max_delay": 0.2}
        client = KazooClient(hosts, timeout=timeout, connection_retry=retry, **options)
        self._open.append(client)
        return client if len(self.server.places) == 1 else Fresh(client)

    def folder(self, client: KazooClient, name: str = "") -> str:
        """Creates and returns a path that no other case uses."""
        path = f"{self.root}/{name}" if name else self.root
        client.ensure_path(path)
        return path

    def close(self) -> None:
        for client in self._open:
            client.stop()
            client.close()


def expect_gone(reader: KazooClient, path: str) -> None:
    """The ephemeral of a session that its client has closed is gone.

    At once from one server. Of several, one that is killed may take the request to close with it,
    and the session is left to its timeout.
    """
    if isinstance(reader, Fresh):
        lab.wait_until(lambda: reader.exists(path) is None, f"{path} to go")
    else:
        equal(reader.exists(path), None, "the ephemeral of a closed session")


class Events:
    """Watch events in the order of their arrival; an instance is a kazoo watch function."""

    def __init__(self) -> None:
        self._arrived: queue.Queue[WatchedEvent] = queue.Queue()

    def __call__(self, event: WatchedEvent) -> None:
        self._arrived.put(event)

    def next(self, seconds_max: float = EVENT_SECONDS_MAX) -> WatchedEvent:
        event = self._arrived.get(timeout=seconds_max)
        if event.type == "NONE":
            # kazoo forgets its one-shot watches when a connection breaks.
            raise ConnectionLoss(f"the watch is gone: {event}")
        return event

    def expect(self, kind: str, path: str) -> None:
        event = self.next()
        equal((event.type, event.path), (kind, path), "the event")

    def expect_nothing_more(self) -> None:
        """To be called once a later event of the same connection has arrived."""
        with contextlib.suppress(queue.Empty):
            raise AssertionError(f"a further event: {self.next(0)}")


class States:
    """The connection states that a client goes through from now on."""

    def __init__(self, client: KazooClient) -> None:
        self.seen: list[str] = []
        self._changed = threading.Condition()
        client.add_listener(self._add)

    def wait_for(self, state: str, seconds_max: float = 30) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: state in self.seen, seconds_max):
                raise TimeoutError(f"waited {seconds_max:g} s for {state}; saw {self.seen}")

    def wait_for_newest(self, state: str, seconds_max: float = 30) -> None:
        """Waits until the client is in this state now."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.seen[-1:] == [state], seconds_max):
                raise TimeoutError(f"waited {seconds_max:g} s to be {state}; saw {self.seen}")

    def _add(self, state: str) -> None:
        with self._changed:
            self.seen.append(state)
            self._changed.notify_all()


def equal(actual: Any, expected: Any, what: str) -> None:
    if actual != expected:
        raise AssertionError(f"{what}: {actual!r}, expected {expected!r}")


def at_least(actual: Any, bound: Any, what: str) -> None:
    if actual < bound:
        raise AssertionError(f"{what}: {actual!r}, expected at least {bound!r}")


def above(actual: Any, bound: Any, what: str) -> None:
    if actual <= bound:
        raise AssertionError(f"{what}: {actual!r}, expected more than {bound!r}")


def contains(whole: Any, part: Any, what: str) -> None:
    if part not in whole:
        raise AssertionError(f"{what}: {part!r} is not in {whole!r}")


def raises(kind: type[Exception], action: Callable[..., Any], *args: Any, **named: Any) -> None:
    """Runs the action, which must raise exactly this kind of exception."""
    try:
        value = action(*args, **named)
    except Exception as error:  # any other kind is the finding
        if type(error) is not kind:
            raise AssertionError(f"raised {error!r}, expected {kind.__name__}") from error
        return
    raise AssertionError(f"returned {value!r}, expected {kind.__name__}")


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """Runs the actions at once and returns their results in order; the first error is raised."""
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = actions[index]()
        except BaseException as error:  # handed to the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_SECONDS_MAX * 2)
        if thread.is_alive():
            raise TimeoutError("an action of the case did not end")
    if errors:
        raise errors[0]
    return results
