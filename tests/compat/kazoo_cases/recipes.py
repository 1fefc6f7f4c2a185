"""kazoo's recipes: locks, election, barriers, queues, counter, party, partitioner, cache, lease."""

from __future__ import annotations

import datetime
import queue
import threading
from typing import Any

from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState
from kazoo.recipe.cache import TreeCache, TreeEvent
from kazoo.recipe.lease import MultiNonBlockingLease

import lab

from .bench import ENDS_SERVERS, EVENT_SECONDS_MAX, Bench, States, case, equal, in_threads, steady

# What kazoo's recipes do not survive.
LOST_ENTRY = "an entry is nobody's if the answer to its removal is lost"
LOST_WATCH = "the recipe waits for an event of a watch that is gone with its connection"

# --- Locks --------------------------------------------------------------------------------------


@case
def a_lock_excludes_and_is_handed_over(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = bench.folder(first, "lock")
    held = first.Lock(path, "first")
    wanted = second.Lock(path, "second")
    equal(held.acquire(timeout=EVENT_SECONDS_MAX), True, "first acquire")
    equal(wanted.acquire(blocking=False), False, "acquire without blocking")
    first.sync(path)
    equal(held.contenders(), ["first"], "contenders")
    waiting = _start(lambda: wanted.acquire(timeout=EVENT_SECONDS_MAX))
    lab.wait_until(lambda: held.contenders() == ["first", "second"], "the second contender")
    held.release()
    equal(_result(waiting), True, "acquire after the release")
    wanted.release()
    equal(first.get_children(path), [], "what is left")


@case
def a_lock_keeps_a_plain_counter_right(bench: Bench) -> None:
    clients = [bench.client() for _ in range(4)]
    path = bench.folder(clients[0], "lock")
    counter = clients[0].create(f"{bench.root}/counter", b"0")

    def work(client: KazooClient) -> None:
        for _ in range(10):
            with client.Lock(path):
                value = int(client.get(counter)[0])
                client.set(counter, b"%d" % (value + 1))

    in_threads(*[lambda c=client: work(c) for client in clients])
    equal(clients[0].get(counter)[0], b"40", "counter")


@case
def a_lock_is_freed_when_its_holder_closes(bench: Bench) -> None:
    holder, heir = bench.client(), bench.client()
    path = bench.folder(holder, "lock")
    holder.Lock(path).acquire(timeout=EVENT_SECONDS_MAX)
    lock = heir.Lock(path)
    waiting = _start(lambda: lock.acquire(timeout=EVENT_SECONDS_MAX))
    lab.wait_until(lambda: len(heir.get_children(path)) == 2, "the second contender")
    holder.stop()
    equal(_result(waiting), True, "acquire after the holder closed")
    lock.release()


@case
def readers_share_and_a_writer_excludes(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    path = bench.folder(clients[0], "lock")
    reader, other_reader = clients[0].ReadLock(path), clients[1].ReadLock(path)
    writer = clients[2].WriteLock(path)
    equal(reader.acquire(timeout=EVENT_SECONDS_MAX), True, "first reader")
    equal(other_reader.acquire(timeout=EVENT_SECONDS_MAX), True, "second reader")
    equal(writer.acquire(blocking=False), False, "writer beside readers")
    waiting = _start(lambda: writer.acquire(timeout=EVENT_SECONDS_MAX))
    lab.wait_until(lambda: len(clients[0].get_children(path)) == 3, "the writer in the queue")
    reader.release()
    other_reader.release()
    equal(_result(waiting), True, "writer after the readers")
    equal(reader.acquire(blocking=False), False, "reader beside the writer")
    writer.release()
    equal(reader.acquire(timeout=EVENT_SECONDS_MAX), True, "reader after the writer")
    reader.release()


@case
def a_semaphore_admits_as_many_as_it_has_leases(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    path = f"{bench.folder(clients[0])}/semaphore"
    leases = [c.Semaphore(path, f"holder{i}", max_leases=2) for i, c in enumerate(clients)]
    equal(leases[0].acquire(timeout=EVENT_SECONDS_MAX), True, "first lease")
    equal(leases[1].acquire(timeout=EVENT_SECONDS_MAX), True, "second lease")
    equal(leases[2].acquire(blocking=False), False, "third lease of two")
    clients[0].sync(path)
    equal(sorted(leases[0].lease_holders()), ["holder0", "holder1"], "holders")
    waiting = _start(lambda: leases[2].acquire(timeout=EVENT_SECONDS_MAX))
    leases[0].release()
    equal(_result(waiting), True, "third lease after a release")
    leases[1].release()
    leases[2].release()
    clients[0].sync(path)
    equal(leases[0].lease_holders(), [], "holders at the end")


# --- Election, barriers, party, partitioner -----------------------------------------------------


@case
def an_election_has_one_leader_at_a_time_and_goes_on(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    path = f"{bench.folder(clients[0])}/election"
    elections = [c.Election(path, f"candidate{i}") for i, c in enumerate(clients)]
    elected: queue.Queue[int] = queue.Queue()
    resign = [threading.Event() for _ in clients]

    def lead(number: int) -> None:
        elected.put(number)
        resign[number].wait(EVENT_SECONDS_MAX)

    for number, election in enumerate(elections):
        _start(lambda e=election, n=number: e.run(lead, n))
        names = [f"candidate{i}" for i in range(number + 1)]
        lab.wait_until(lambda n=names: elections[0].contenders() == n, f"contenders {names}")
    equal(elected.get(timeout=EVENT_SECONDS_MAX), 0, "first leader")
    equal(elected.qsize(), 0, "further leaders meanwhile")
    elections[1].cancel()
    lab.wait_until(lambda: len(elections[0].contenders()) == 2, "the cancelled one to leave")
    # The leader's session ends: the third candidate takes over.
    clients[0].stop()
    equal(elected.get(timeout=EVENT_SECONDS_MAX), 2, "second leader")
    resign[0].set()
    resign[2].set()


@case
@steady(LOST_WATCH)
def a_barrier_holds_until_it_is_removed(bench: Bench) -> None:
    keeper, walker = bench.client(), bench.client()
    path = f"{bench.folder(keeper)}/barrier"
    keeper.Barrier(path).create()
    walker.sync(path)
    equal(walker.Barrier(path).wait(0.1), False, "wait at the closed barrier")
    waiting = _start(lambda: walker.Barrier(path).wait(EVENT_SECONDS_MAX))
    equal(keeper.Barrier(path).remove(), True, "remove")
    equal(_result(waiting), True, "wait after the removal")
    equal(keeper.Barrier(path).remove(), False, "remove again")


@case
@steady(LOST_WATCH)
def a_double_barrier_starts_and_ends_together(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    path = f"{bench.folder(clients[0])}/barrier"
    entered: queue.Queue[int] = queue.Queue()
    left: queue.Queue[int] = queue.Queue()
    may_leave = [threading.Event() for _ in clients]

    def walk(number: int) -> None:
        barrier = clients[number].DoubleBarrier(path, len(clients))
        barrier.enter()
        entered.put(number)
        may_leave[number].wait(EVENT_SECONDS_MAX)
        barrier.leave()
        left.put(number)

    walks = [_start(lambda n=number: walk(n)) for number in (0, 1)]
    lab.wait_until(lambda: len(_children(clients[0], path)) == 2, "two at the barrier")
    equal(entered.qsize(), 0, "entered before the third came")
    walks.append(_start(lambda: walk(2)))
    numbers = sorted(entered.get(timeout=EVENT_SECONDS_MAX) for _ in clients)
    equal(numbers, [0, 1, 2], "entered")
    may_leave[0].set()
    may_leave[1].set()
    may_leave[2].set()
    for walker in walks:
        _result(walker)
    equal(left.qsize(), 3, "left")


@case
def a_party_lists_its_members(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/party"
    party, other = first.Party(path, "first"), second.Party(path, "second")
    party.join()
    other.join()
    first.sync(path)
    equal((sorted(party), len(party)), (["first", "second"], 2), "members")
    other.leave()
    first.sync(path)
    equal(list(party), ["first"], "members after one left")
    first.stop()
    lab.wait_until(lambda: len(other) == 0, "the closed member to go")


@case
def a_shallow_party_carries_its_names_in_the_nodes(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/party"
    parties = [first.ShallowParty(path, "first"), second.ShallowParty(path, "second")]
    for party in parties:
        party.join()
    first.sync(path)
    equal(sorted(parties[0]), ["first", "second"], "members")


@case
@steady("a partitioner gives up if it loses an answer")
def a_set_is_partitioned_again_when_members_come_and_go(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/partition"
    items = [f"item{i}" for i in range(7)]

    def join(client: KazooClient, name: str) -> Any:
        return client.SetPartitioner(path, items, identifier=name, time_boundary=0.2)

    one = join(first, "one")
    _drive([one], lambda: one.acquired)
    equal(sorted(one), items, "everything belongs to the only member")
    two = join(second, "two")
    both = [one, two]
    _drive(both, lambda: one.acquired and two.acquired and len(list(one)) < len(items))
    equal(sorted([*one, *two]), items, "together they hold each item once")
    two.finish()
    _drive([one], lambda: one.acquired and len(list(one)) == len(items))
    one.finish()


# --- Queues, counter, lease ---------------------------------------------------------------------


@case
@steady(LOST_ENTRY)
def a_queue_gives_back_by_priority_then_age(bench: Bench) -> None:
    client = bench.client()
    jobs = client.Queue(f"{bench.folder(client)}/queue")
    for value, priority in ((b"late", 200), (b"one", 100), (b"two", 100), (b"urgent", 5)):
        jobs.put(value, priority=priority)
    equal(len(jobs), 4, "length")
    equal([jobs.get() for _ in range(5)], [b"urgent", b"one", b"two", b"late", None], "order")


@case
@steady(LOST_ENTRY)
def a_queue_gives_each_entry_to_one_consumer(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    path = f"{bench.folder(clients[0])}/queue"
    producer = clients[0].Queue(path)
    for number in range(30):
        producer.put(b"%d" % number)

    def drain(client: KazooClient) -> list[bytes]:
        client.sync(path)
        jobs = client.Queue(path)
        taken = []
        while (value := jobs.get()) is not None:
            taken.append(value)
        return taken

    taken = in_threads(*[lambda c=client: drain(c) for client in clients])
    everything = sorted(int(value) for part in taken for value in part)
    equal(everything, list(range(30)), "entries taken")


@case
@steady(LOST_WATCH)
def a_locking_queue_returns_what_was_not_consumed(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/queue"
    one, two = first.LockingQueue(path), second.LockingQueue(path)
    one.put_all([b"a", b"b"])
    one.put(b"first", priority=1)
    equal(one.get(EVENT_SECONDS_MAX), b"first", "the entry of the best priority")
    equal(one.holds_lock(), True, "the lock is held")
    equal(two.get(EVENT_SECONDS_MAX), b"a", "the next entry for the other")
    equal(two.consume(), True, "consume")
    equal(one.release(), True, "release")
    second.sync(path)
    equal(two.get(EVENT_SECONDS_MAX), b"first", "the released entry")
    equal(two.consume(), True, "consume")
    # An entry whose holder's session ends is free again.
    equal(two.get(EVENT_SECONDS_MAX), b"b", "the last entry")
    second.stop()
    equal(one.get(EVENT_SECONDS_MAX), b"b", "the last entry again")
    equal(one.consume(), True, "consume")
    equal(len(one), 0, "length")


@case
@steady("an increment whose answer is lost is done twice")
def counters_add_up_across_clients(bench: Bench) -> None:
    clients = [bench.client() for _ in range(4)]
    path = f"{bench.folder(clients[0])}/counter"

    def count(client: KazooClient) -> None:
        counter = client.Counter(path)
        for _ in range(10):
            counter += 3
            counter -= 1

    in_threads(*[lambda c=client: count(c) for client in clients])
    clients[0].sync(path)
    equal(clients[0].Counter(path).value, 80, "integer counter")
    real = clients[0].Counter(f"{path}-real", default=1.5)
    real += 0.25
    equal((real.value, real.pre_value, real.post_value), (1.75, 1.5, 1.75), "real counter")
    curator = clients[0].Counter(f"{path}-curator", support_curator=True)
    curator += 7
    equal(clients[0].get(f"{path}-curator")[0], b"\0\0\0\7", "bytes of a Curator counter")


@case
def a_lease_has_one_holder(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/lease"
    hour = datetime.timedelta(hours=1)
    equal(bool(first.NonBlockingLease(path, hour, "first")), True, "the first lease")
    equal(bool(second.NonBlockingLease(path, hour, "second")), False, "the second lease")
    equal(bool(first.NonBlockingLease(path, hour, "first")), True, "the renewed lease")

    def in_two_hours() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + 2 * hour

    late = second.NonBlockingLease(path, hour, "second", utcnow=in_two_hours)
    equal(bool(late), True, "a lease after the end of the first")


@case
def a_multi_lease_has_as_many_holders_as_asked(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/leases"
    hour = datetime.timedelta(hours=1)
    holders = [bool(MultiNonBlockingLease(client, 2, path, hour, f"h{i}")) for i in range(3)]
    equal(holders, [True, True, False], "leases")


# --- TreeCache ----------------------------------------------------------------------------------


@case
def a_tree_cache_mirrors_a_subtree(bench: Bench) -> None:
    client, writer = bench.client(), bench.client()
    root = bench.folder(client, "tree")
    client.ensure_path(f"{root}/a/b")
    cache, events = _cache(client, root)
    _wait_for_event(events, TreeEvent.INITIALIZED)
    equal(cache.get_children(f"{root}/a"), frozenset({"b"}), "cached children")

    writer.set(f"{root}/a/b", b"changed")
    _wait_for_event(events, TreeEvent.NODE_UPDATED, f"{root}/a/b")
    equal(cache.get_data(f"{root}/a/b").data, b"changed", "cached data")
    writer.create(f"{root}/a/c", b"new")
    _wait_for_event(events, TreeEvent.NODE_ADDED, f"{root}/a/c")
    equal(cache.get_data(f"{root}/a/c").data, b"new", "cached data of the new node")
    writer.delete(f"{root}/a/b")
    _wait_for_event(events, TreeEvent.NODE_REMOVED, f"{root}/a/b")
    equal(cache.get_data(f"{root}/a/b"), None, "cached data of the deleted node")
    cache.close()


@case
@steady(ENDS_SERVERS)
def a_tree_cache_catches_up_after_the_server_was_killed(bench: Bench) -> None:
    client, writer = bench.client(timeout=4), bench.client(timeout=4)
    root = bench.folder(client, "tree")
    client.create(f"{root}/kept", b"kept")
    cache, events = _cache(client, root)
    _wait_for_event(events, TreeEvent.INITIALIZED)
    writer_states = States(writer)

    bench.server.kill9()
    _wait_for_event(events, TreeEvent.CONNECTION_SUSPENDED)
    bench.server.restart()
    _wait_for_event(events, TreeEvent.CONNECTION_RECONNECTED)
    writer_states.wait_for(KazooState.CONNECTED)
    writer.retry(writer.set, f"{root}/kept", b"changed")
    writer.retry(writer.create, f"{root}/added", b"added")
    lab.wait_until(lambda: _data(cache, f"{root}/kept") == b"changed", "the changed data")
    lab.wait_until(lambda: _data(cache, f"{root}/added") == b"added", "the added node")
    cache.close()


# --- Helpers ------------------------------------------------------------------------------------


def _start(action: Any) -> queue.Queue[Any]:
    """Runs the action in a thread; its result or its exception comes through the queue."""
    outcome: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            outcome.put(action())
        except Exception as error:  # handed to the waiting case
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _result(outcome: queue.Queue[Any]) -> Any:
    value = outcome.get(timeout=EVENT_SECONDS_MAX * 2)
    if isinstance(value, Exception):
        raise value
    return value


def _children(client: KazooClient, path: str) -> list[str]:
    """The children, or none if the node is not there yet."""
    return client.get_children(path) if client.exists(path) else []


def _drive(partitioners: list[Any], done: Any) -> None:
    """Does what the owner of a partitioner must do, until the condition holds."""

    def step() -> bool:
        for partitioner in partitioners:
            if partitioner.failed:
                raise AssertionError("a partitioner failed")
            if partitioner.release:
                partitioner.release_set()
            elif partitioner.allocating:
                partitioner.wait_for_acquire(timeout=0.05)
        return bool(done())

    lab.wait_until(step, "the partitions to settle", seconds_max=30)


def _cache(client: KazooClient, root: str) -> tuple[TreeCache, queue.Queue[TreeEvent]]:
    events: queue.Queue[TreeEvent] = queue.Queue()
    cache = TreeCache(client, root)
    cache.listen(events.put)
    cache.start()
    return cache, events


def _wait_for_event(events: queue.Queue[TreeEvent], kind: int, path: str | None = None) -> None:
    while True:
        event = events.get(timeout=EVENT_SECONDS_MAX)
        if event.event_type == kind and (path is None or event.event_data.path == path):
            return


def _data(cache: TreeCache, path: str) -> bytes | None:
    node = cache.get_data(path)
    return node.data if node else None
