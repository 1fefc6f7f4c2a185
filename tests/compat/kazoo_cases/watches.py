"""Watches: one-shot watches of each kind, and kazoo's DataWatch and ChildrenWatch."""

from __future__ import annotations

import queue
from typing import Any

from kazoo.exceptions import NoNodeError
from kazoo.protocol.states import KazooState
from kazoo.recipe.watchers import PatientChildrenWatch

from relay import Relay

from .bench import (
    ENDS_SERVERS,
    EVENT_SECONDS_MAX,
    Bench,
    Events,
    States,
    case,
    equal,
    raises,
    steady,
)


class Calls:
    """The arguments of each call of a DataWatch or ChildrenWatch function, in order."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Any, ...]] = queue.Queue()

    def __call__(self, *arguments: Any) -> None:
        self._calls.put(arguments)

    def next(self) -> tuple[Any, ...]:
        return self._calls.get(timeout=EVENT_SECONDS_MAX)

    def wait_for(self, first: Any) -> None:
        """Waits for a call with this first argument; intermediate values may be skipped."""
        while self.next()[0] != first:
            pass


# --- One-shot watches ---------------------------------------------------------------------------


@case
def a_data_watch_fires_once_for_a_change(bench: Bench) -> None:
    watching, writing = bench.client(), bench.client()
    path = f"{bench.folder(writing)}/node"
    writing.create(path)
    watching.sync(path)
    seen = Events()
    watching.get(path, watch=seen)
    writing.set(path, b"1")
    seen.expect("CHANGED", path)
    writing.set(path, b"2")
    # An event of the second change would come before the one that ends the case.
    watching.sync(path)
    last = Events()
    watching.exists(path, watch=last)
    writing.delete(path)
    last.expect("DELETED", path)
    seen.expect_nothing_more()


@case
def an_exists_watch_sees_creation_change_and_deletion(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    seen = Events()
    for act, kind in (
        (lambda: client.create(path), "CREATED"),
        (lambda: client.set(path, b"x"), "CHANGED"),
        (lambda: client.delete(path), "DELETED"),
        (lambda: client.create(path), "CREATED"),
    ):
        client.exists(path, watch=seen)
        act()
        seen.expect(kind, path)


@case
def a_child_watch_sees_the_list_change_and_its_node_go(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/parent"
    client.create(path)
    seen = Events()
    for act, kind in (
        (lambda: client.create(f"{path}/child"), "CHILD"),
        (lambda: client.delete(f"{path}/child"), "CHILD"),
        (lambda: client.delete(path), "DELETED"),
    ):
        client.get_children(path, watch=seen)
        act()
        seen.expect(kind, path)


@case
def a_child_watch_ignores_data_and_grandchildren(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client, "parent")
    client.create(f"{path}/child")
    seen = Events()
    client.get_children(path, watch=seen, include_data=True)
    client.set(path, b"x")
    client.set(f"{path}/child", b"x")
    client.create(f"{path}/child/grandchild")
    client.create(f"{path}/other")
    seen.expect("CHILD", path)
    seen.expect_nothing_more()


@case
def a_failed_read_sets_no_watch(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    seen, control = Events(), Events()
    raises(NoNodeError, client.get, path, watch=seen)
    raises(NoNodeError, client.get_children, path, watch=seen)
    client.exists(path, watch=control)
    client.create(path)
    control.expect("CREATED", path)
    seen.expect_nothing_more()


@case
def a_transaction_fires_its_watches_and_a_failed_one_none(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/changed")
    seen = Events()
    client.get(f"{root}/changed", watch=seen)
    client.exists(f"{root}/created", watch=seen)

    failing = client.transaction()
    failing.set_data(f"{root}/changed", b"x")
    failing.create(f"{root}/created")
    failing.check(f"{root}/changed", 9)
    failing.commit()

    good = client.transaction()
    good.create(f"{root}/created")
    good.set_data(f"{root}/changed", b"x")
    good.commit()
    seen.expect("CREATED", f"{root}/created")
    seen.expect("CHANGED", f"{root}/changed")
    seen.expect_nothing_more()


@case
def events_of_many_nodes_come_in_the_order_of_the_changes(bench: Bench) -> None:
    watching, writing = bench.client(), bench.client()
    root = bench.folder(writing)
    paths = [f"{root}/{number}" for number in range(200)]
    seen = Events()
    asked = [watching.exists_async(path, watch=seen) for path in paths]
    watching.sync(root)
    made = [writing.create_async(path) for path in paths]
    for result in asked + made:
        result.get(timeout=EVENT_SECONDS_MAX)
    equal([seen.next().path for _ in paths], paths, "order of the events")


# --- Recipes over watches -----------------------------------------------------------------------


@case
def data_watch_follows_a_node_through_its_life(bench: Bench) -> None:
    client, writer = bench.client(), bench.client()
    path = f"{bench.folder(client)}/node"
    calls = Calls()
    client.DataWatch(path, calls)
    equal(calls.next()[:2], (None, None), "the call for the missing node")
    writer.create(path, b"1")
    equal(calls.next()[0], b"1", "data after create")
    writer.set(path, b"2")
    data, stat, event = calls.next()
    equal((data, stat.version), (b"2", 1), "data and version after set")
    equal(event.type, "CHANGED", "the event handed on with it")
    writer.delete(path)
    equal(calls.next()[:2], (None, None), "the call for the deletion")
    writer.create(path, b"3")
    equal(calls.next()[0], b"3", "data after the second create")


@case
def a_data_watch_ends_when_its_function_returns_false(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    client.create(path, b"0")
    calls = Calls()

    @client.DataWatch(path)
    def follow(data: bytes, _stat: Any) -> bool:
        calls(data)
        return data != b"1"

    other = Calls()
    client.DataWatch(path, other)
    for number in (b"1", b"2"):
        client.set(path, number)
        other.wait_for(number)
    equal([calls.next()[0], calls.next()[0]], [b"0", b"1"], "calls")
    equal(calls._calls.qsize(), 0, "further calls")


@case
def children_watch_follows_a_list(bench: Bench) -> None:
    client, writer = bench.client(), bench.client()
    path = bench.folder(client, "parent")
    calls = Calls()
    client.ChildrenWatch(path, calls)
    equal(calls.next(), ([],), "the first list")
    writer.create(f"{path}/a")
    equal(calls.next(), (["a"],), "the list after create")
    writer.create(f"{path}/b")
    equal(sorted(calls.next()[0]), ["a", "b"], "the list after a second create")
    writer.delete(f"{path}/a")
    equal(calls.next(), (["b"],), "the list after delete")


@case
def children_watch_hands_on_the_event(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client, "parent")
    calls = Calls()
    client.ChildrenWatch(path, calls, send_event=True)
    equal(calls.next(), ([], None), "the first call")
    client.create(f"{path}/a")
    children, event = calls.next()
    equal((children, event.type, event.path), (["a"], "CHILD", path), "the second call")


@case
def patient_children_watch_waits_for_quiet(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client, "parent")
    watch = PatientChildrenWatch(client, path, time_boundary=0.3)
    result = watch.start()
    for name in ("a", "b", "c"):
        client.create(f"{path}/{name}")
    children, changed = result.get(timeout=EVENT_SECONDS_MAX)
    equal(sorted(children), ["a", "b", "c"], "the settled list")
    client.create(f"{path}/d")
    equal(changed.wait(EVENT_SECONDS_MAX), True, "the change after it is announced")


@case
@steady(ENDS_SERVERS)
def watch_recipes_work_on_after_the_server_was_killed(bench: Bench) -> None:
    client, writer = bench.client(timeout=4), bench.client(timeout=4)
    path = bench.folder(client, "parent")
    states, writer_states = States(client), States(writer)
    data, children = Calls(), Calls()
    client.DataWatch(path, data)
    client.ChildrenWatch(path, children)
    equal((data.next()[0], children.next()[0]), (b"", []), "before")

    bench.server.kill9()
    states.wait_for(KazooState.SUSPENDED)
    bench.server.restart()
    states.wait_for_newest(KazooState.CONNECTED)
    writer_states.wait_for_newest(KazooState.CONNECTED)

    writer.set(path, b"changed")
    data.wait_for(b"changed")
    writer.create(f"{path}/child")
    children.wait_for(["child"])


@case
def watch_recipes_notice_what_changed_while_they_were_cut_off(bench: Bench) -> None:
    writer = bench.client()
    path = bench.folder(writer, "parent")
    with Relay(bench.server.places) as relay:
        client = bench.client_of(relay.address)
        states = States(client)
        data, children = Calls(), Calls()
        client.DataWatch(path, data)
        client.ChildrenWatch(path, children)
        equal((data.next()[0], children.next()[0]), (b"", []), "before")

        relay.cut()
        states.wait_for(KazooState.SUSPENDED)
        writer.set(path, b"changed")
        writer.create(f"{path}/child")
        relay.mend()
        data.wait_for(b"changed")
        children.wait_for(["child"])
        client.stop()
