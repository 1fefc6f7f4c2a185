"""Znodes: create, read, change, delete, stat fields, versions, transactions, sizes, order."""

from __future__ import annotations

import time

from kazoo.exceptions import (
    BadArgumentsError,
    BadVersionError,
    ConnectionLoss,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    QuotaExceededError,
    RolledBackError,
    RuntimeInconsistency,
)

from .bench import EVENT_SECONDS_MAX, Bench, Events, above, at_least, case, contains, equal, raises

# The frame limit is 1048575 bytes (spec section 1.3); this leaves room for the other fields.
PAYLOAD_BYTES_NEAR_LIMIT = 1_048_000
FRAME_BYTES_MAX = 1_048_575


# --- Create, read, change, delete ---------------------------------------------------------------


@case
def a_node_is_created_read_changed_and_deleted(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    equal(client.create(path, b"first"), path, "the created path")
    equal(client.get(path)[0], b"first", "data after create")
    equal(client.set(path, b"second").version, 1, "version after set")
    equal(client.get(path)[0], b"second", "data after set")
    equal(client.delete(path), True, "the result of delete")
    equal(client.exists(path), None, "exists after delete")


@case
def errors_name_what_is_missing_or_in_the_way(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/here")
    raises(NodeExistsError, client.create, f"{root}/here")
    raises(NoNodeError, client.create, f"{root}/missing/child")
    raises(NoNodeError, client.get, f"{root}/missing")
    raises(NoNodeError, client.set, f"{root}/missing", b"")
    raises(NoNodeError, client.delete, f"{root}/missing")
    raises(NoNodeError, client.get_children, f"{root}/missing")
    raises(NoNodeError, client.get_acls, f"{root}/missing")


@case
def makepath_and_ensure_path_create_the_ancestors(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/a/b/c", b"deep", makepath=True)
    equal(client.get(f"{root}/a/b/c")[0], b"deep", "data of the deep node")
    equal(client.get(f"{root}/a/b")[0], b"", "data of its parent")
    client.ensure_path(f"{root}/a/b/x/y")
    client.ensure_path(f"{root}/a/b/x/y")
    equal(sorted(client.get_children(f"{root}/a/b")), ["c", "x"], "children")


@case
def data_may_be_null_empty_or_any_bytes(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    for name, data in (("null", None), ("empty", b""), ("bytes", bytes(range(256)))):
        client.create(f"{root}/{name}", data)
        read, stat = client.get(f"{root}/{name}")
        equal(read, data, f"{name} data after create")
        equal(stat.dataLength, len(data or b""), f"dataLength of {name} data")
    client.set(f"{root}/bytes", None)
    equal(client.get(f"{root}/bytes")[0], None, "data set to null")


@case
def children_are_listed_with_and_without_the_stat(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    names = [f"child{i:03}" for i in range(150)]
    for result in [client.create_async(f"{root}/{name}") for name in names]:
        result.get(timeout=EVENT_SECONDS_MAX)
    equal(sorted(client.get_children(root)), names, "children")
    listed, stat = client.get_children(root, include_data=True)
    equal(sorted(listed), names, "children with stat")
    equal(stat.numChildren, len(names), "numChildren")
    equal(client.get_children(f"{root}/child000"), [], "children of a leaf")


@case
def a_subtree_is_deleted_recursively(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    for path in ("a/b/c", "a/d", "a/e/f/g"):
        client.ensure_path(f"{root}/tree/{path}")
    raises(NotEmptyError, client.delete, f"{root}/tree")
    client.delete(f"{root}/tree", recursive=True)
    equal(client.get_children(root), [], "what is left")


@case
def sequential_names_count_every_child_ever_created(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/a")
    client.create(f"{root}/b")
    client.delete(f"{root}/a")
    equal(client.create(f"{root}/n-", sequence=True), f"{root}/n-0000000002", "first name")
    equal(client.create(f"{root}/m-", sequence=True), f"{root}/m-0000000003", "second name")
    equal(client.create(f"{root}/", sequence=True), f"{root}/0000000004", "name of digits only")
    both = client.create(f"{root}/e-", ephemeral=True, sequence=True)
    equal(both, f"{root}/e-0000000005", "ephemeral sequential name")


@case
def an_ephemeral_belongs_to_its_session_and_has_no_children(bench: Bench) -> None:
    owner, watcher = bench.client(), bench.client()
    path = f"{bench.folder(owner)}/ephemeral"
    owner.create(path, b"x", ephemeral=True)
    watcher.sync(path)
    equal(watcher.exists(path).owner_session_id, owner.client_id[0], "owner")
    raises(NoChildrenForEphemeralsError, watcher.create, f"{path}/child")
    gone = Events()
    watcher.exists(path, watch=gone)
    owner.stop()
    gone.expect("DELETED", path)


@case
def create_with_include_data_returns_the_stat(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    path, stat = client.create(f"{root}/node", b"four", include_data=True)
    equal(path, f"{root}/node", "path")
    equal(client.exists(path), stat, "stat read back")
    equal((stat.version, stat.dataLength, stat.numChildren), (0, 4, 0), "fresh stat")
    name, stat = client.create(
        f"{root}/s-", ephemeral=True, sequence=True, makepath=True, include_data=True
    )
    equal(name, f"{root}/s-0000000001", "sequential path")
    equal(stat.ephemeralOwner, client.client_id[0], "ephemeralOwner")


# --- Stat and versions --------------------------------------------------------------------------


@case
def stat_fields_move_as_specified(bench: Bench) -> None:
    client = bench.client()
    parent = bench.folder(client)
    before = client.exists(parent)
    client.create(f"{parent}/node", b"12345")
    born = client.exists(f"{parent}/node")
    equal((born.version, born.cversion, born.aversion), (0, 0, 0), "versions at birth")
    equal((born.mzxid, born.pzxid), (born.czxid, born.czxid), "zxids at birth")
    equal(born.mtime, born.ctime, "times at birth")
    equal(abs(time.time() - born.created) < 60, True, "ctime is near the clock")

    client.set(f"{parent}/node", b"123")
    changed = client.exists(f"{parent}/node")
    equal((changed.version, changed.dataLength, changed.czxid), (1, 3, born.czxid), "after set")
    above(changed.mzxid, born.mzxid, "mzxid after set")
    at_least(changed.mtime, born.mtime, "mtime after set")
    equal(changed.pzxid, born.pzxid, "pzxid after set")

    after = client.exists(parent)
    equal(after.cversion, before.cversion + 1, "the parent's cversion after a create")
    equal(after.pzxid, born.czxid, "the parent's pzxid after a create")
    equal((after.version, after.mzxid), (before.version, before.mzxid), "the parent otherwise")
    client.delete(f"{parent}/node")
    equal(client.exists(parent).cversion, before.cversion + 2, "cversion after a delete")
    above(client.exists(parent).pzxid, after.pzxid, "pzxid after a delete")
    equal(client.exists(parent).numChildren, 0, "numChildren after a delete")


@case
def versions_guard_set_and_delete(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    client.create(path)
    equal(client.set(path, b"a", version=0).version, 1, "set with the right version")
    raises(BadVersionError, client.set, path, b"b", version=0)
    raises(BadVersionError, client.set, path, b"b", version=-2)
    equal(client.set(path, b"c", version=-1).version, 2, "set with any version")
    raises(BadVersionError, client.delete, path, version=1)
    client.create(f"{path}/child")
    raises(BadVersionError, client.delete, path, version=1)
    raises(NotEmptyError, client.delete, path, version=2)
    client.delete(f"{path}/child")
    client.delete(path, version=2)
    equal(client.get_children(bench.root), [], "what is left")


@case
def only_one_of_two_writers_with_the_same_version_wins(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    path = f"{bench.folder(first)}/contended"
    first.create(path)
    for version in range(20):
        attempts = [c.set_async(path, b"", version) for c in (first, second)]
        outcomes = [attempt.exception is None for attempt in attempts if attempt.wait(15)]
        equal(sorted(outcomes), [False, True], f"winners at version {version}")


# --- Names --------------------------------------------------------------------------------------


@case
def names_may_be_any_legal_unicode(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    names = ["größe", "日本語", "Ελλάδα", "עברית", "a b", "...", ".x", "x..", "%s", "\u00a0"]
    for name in names:
        equal(client.create(f"{root}/{name}", name.encode()), f"{root}/{name}", "path")
    equal(sorted(client.get_children(root)), sorted(names), "children")
    for name in names:
        equal(client.get(f"{root}/{name}")[0], name.encode(), f"data of {name!r}")
    sequential = client.create(f"{root}/ñ-", sequence=True)
    equal(sequential, f"{root}/ñ-{len(names):010}", "sequential name")


@case
def illegal_names_are_bad_arguments(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    for name in ("\u0001", "a\u007f", "\ue000", "\ufffd", "smile \U0001f600"):
        raises(BadArgumentsError, client.create, f"{root}/{name}")
    equal(client.get_children(root), [], "what was created")


@case
def system_nodes_are_there_and_stay(bench: Bench) -> None:
    client = bench.client()
    contains(client.get_children("/"), "zookeeper", "children of the root")
    equal(sorted(client.get_children("/zookeeper")), ["config", "quota"], "system nodes")
    raises(BadArgumentsError, client.delete, "/zookeeper")
    raises(BadArgumentsError, client.delete, "/zookeeper/config")
    raises(NodeExistsError, client.create, "/")


@case
def a_chroot_hides_everything_above_it(bench: Bench) -> None:
    plain = bench.client()
    root = bench.folder(plain)
    inside = bench.client(chroot=root)
    equal(inside.create("/a/b", b"in", makepath=True), "/a/b", "path in the chroot")
    equal(plain.get(f"{root}/a/b")[0], b"in", "the same node from outside")
    sequential = inside.create("/a/n-", sequence=True)
    equal(sequential, "/a/n-0000000001", "sequential path in the chroot")
    seen = Events()
    inside.get("/a/b", watch=seen)
    plain.set(f"{root}/a/b", b"out")
    seen.expect("CHANGED", "/a/b")
    equal(inside.get_children("/"), ["a"], "children of the chroot")


@case
def a_quota_counts_its_subtree_and_refuses_what_exceeds_it(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/node", b"12345")
    quota = f"/zookeeper/quota{root}"
    client.ensure_path(quota)
    limits = b"count=-1,bytes=-1=;byteHardLimit=20;countHardLimit=3"
    client.create(f"{quota}/zookeeper_limits", limits)
    client.create(f"{quota}/zookeeper_stats", b"count=0,bytes=0")

    def usage() -> dict[str, str]:
        text = client.get(f"{quota}/zookeeper_stats")[0].decode()
        return dict(part.split("=") for part in text.split(","))

    equal(usage(), {"count": "2", "bytes": "5"}, "usage at first")
    client.create(f"{root}/other", b"12")
    equal(usage(), {"count": "3", "bytes": "7"}, "usage after a create")
    raises(QuotaExceededError, client.create, f"{root}/third")
    raises(QuotaExceededError, client.set, f"{root}/other", bytes(20))
    client.set(f"{root}/other", b"123")
    client.delete(f"{root}/node")
    equal(usage(), {"count": "2", "bytes": "3"}, "usage after a set and a delete")
    client.create(f"{root}/third")


# --- Sizes and order ----------------------------------------------------------------------------


@case
def payloads_up_to_the_frame_limit_round_trip(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/big"
    payload = bytes(i * 7 & 0xFF for i in range(PAYLOAD_BYTES_NEAR_LIMIT))
    client.create(path, payload)
    equal(client.get(path)[0] == payload, True, "the payload is the same after create")
    client.set(path, payload[::-1])
    equal(client.get(path)[0] == payload[::-1], True, "the payload is the same after set")


@case
def an_oversized_request_costs_the_connection_but_not_the_session(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/huge"
    session = client.client_id[0]
    mark = client.create(f"{bench.root}/mark", ephemeral=True)
    raises(ConnectionLoss, client.create, path, bytes(FRAME_BYTES_MAX))
    equal(client.retry(client.exists, path), None, "the refused node")
    equal(client.client_id[0], session, "session")
    equal(client.retry(client.exists, mark).owner_session_id, session, "owner of the ephemeral")


@case
def pipelined_requests_are_answered_in_order(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    answered: list[int] = []
    pending = []
    for number in range(1000):
        result = client.create_async(f"{root}/n-", b"%d" % number, sequence=True)
        result.rawlink(lambda _, number=number: answered.append(number))
        pending.append(result)
    names = [result.get(timeout=30) for result in pending]
    expected = [f"{root}/n-{number:010}" for number in range(1000)]
    equal(names == expected, True, "names are in the order of the requests")
    equal(answered, sorted(answered), "order of the answers")


@case
def a_pipelined_read_sees_the_writes_before_it(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    client.create(path)
    pairs = []
    for number in range(1, 301):
        write = client.set_async(path, b"%d" % number)
        pairs.append((number, write, client.get_async(path)))
    for number, write, read in pairs:
        equal(write.get(timeout=30).version, number, "version of the write")
        equal(read.get(timeout=30)[0], b"%d" % number, "data of the read behind it")


@case
def sync_echoes_the_path_and_then_reads_see_other_clients(bench: Bench) -> None:
    writer, reader = bench.client(), bench.client()
    path = f"{bench.folder(writer)}/node"
    equal(reader.sync(f"{bench.root}/missing"), f"{bench.root}/missing", "path of sync")
    writer.create(path)
    for number in range(50):
        writer.set(path, b"%d" % number)
        reader.sync(path)
        equal(reader.get(path)[0], b"%d" % number, "data behind a sync")


# --- Transactions -------------------------------------------------------------------------------


@case
def a_transaction_applies_all_or_reports_each(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/old", b"old")
    transaction = client.transaction()
    transaction.check(f"{root}/old", 0)
    transaction.create(f"{root}/new", b"new")
    transaction.set_data(f"{root}/old", b"newer", 0)
    transaction.create(f"{root}/new/s-", sequence=True)
    transaction.create(f"{root}/new/s-", ephemeral=True, sequence=True)
    transaction.create(f"{root}/short")
    transaction.delete(f"{root}/short", 0)
    results = transaction.commit()
    equal(results[0], True, "result of check")
    equal(results[1], f"{root}/new", "result of create")
    equal((results[2].version, results[2].dataLength), (1, 5), "result of set_data")
    equal(results[3], f"{root}/new/s-0000000000", "first sequential name")
    equal(results[4], f"{root}/new/s-0000000001", "second sequential name")
    equal(results[5:], [f"{root}/short", True], "create and delete of one node")
    zxids = {client.exists(p).czxid for p in (f"{root}/new", results[3], results[4])}
    equal(zxids, {results[2].mzxid}, "zxids of the transaction")
    equal(client.exists(results[4]).owner_session_id, client.client_id[0], "owner")


@case
def a_failing_transaction_changes_nothing_and_names_the_culprit(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    client.create(f"{root}/node")
    failures = (
        (lambda t: t.check(f"{root}/node", 9), BadVersionError),
        (lambda t: t.create(f"{root}/node"), NodeExistsError),
        (lambda t: t.create(f"{root}/no/child"), NoNodeError),
        (lambda t: t.set_data(f"{root}/node", b"", 7), BadVersionError),
        (lambda t: t.delete(f"{root}/missing"), NoNodeError),
    )
    for add_failing, kind in failures:
        transaction = client.transaction()
        transaction.create(f"{root}/before")
        transaction.set_data(f"{root}/node", b"changed")
        add_failing(transaction)
        transaction.create(f"{root}/after")
        transaction.delete(f"{root}/node")
        kinds = [type(result) for result in transaction.commit()]
        expected = [RolledBackError, RolledBackError, kind]
        expected += [RuntimeInconsistency, RuntimeInconsistency]
        equal(kinds, expected, "results")
    equal(client.get_children(root), ["node"], "children")
    equal(client.get(f"{root}/node")[0], b"", "data")


@case
def an_empty_transaction_succeeds(bench: Bench) -> None:
    client = bench.client()
    equal(client.transaction().commit(), [], "results")


@case
def a_transaction_of_many_operations_is_one_change(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    transaction = client.transaction()
    for number in range(500):
        transaction.create(f"{root}/{number}", b"x" * 100)
    equal(len(transaction.commit()), 500, "results")
    children, stat = client.get_children(root, include_data=True)
    equal((len(children), stat.cversion), (500, 500), "children and cversion")
    equal(client.exists(f"{root}/0").czxid, client.exists(f"{root}/499").czxid, "czxid")
