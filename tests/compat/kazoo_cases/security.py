"""ACLs and authentication: digest, auth, ip and world entries, and what each permission guards."""

from __future__ import annotations

from kazoo.exceptions import (
    AuthFailedError,
    BadVersionError,
    InvalidACLError,
    NoAuthError,
    NoNodeError,
)
from kazoo.protocol.states import KazooState
from kazoo.security import (
    ACL,
    CREATOR_ALL_ACL,
    OPEN_ACL_UNSAFE,
    READ_ACL_UNSAFE,
    Id,
    Permissions,
    make_acl,
    make_digest_acl,
    make_digest_acl_credential,
)

from .bench import ENDS_SERVERS, Bench, States, case, equal, raises, steady

# Spec section 7.6: the id that digest authentication with "u:p" yields.
ID_OF_U_P = Id("digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=")


@case
def a_new_node_is_open_to_the_world(bench: Bench) -> None:
    client = bench.client()
    acls, stat = client.get_acls(bench.folder(client))
    equal(acls, OPEN_ACL_UNSAFE, "ACL")
    equal(stat.aversion, 0, "aversion")


@case
def a_digest_acl_admits_its_user_only(bench: Bench) -> None:
    owner, stranger = bench.client(), bench.client()
    owner.add_auth("digest", "bob:secret")
    path = f"{bench.folder(owner)}/private"
    owner.create(path, b"x", acl=[make_digest_acl("bob", "secret", all=True)])
    equal(owner.get(path)[0], b"x", "data read by the owner")
    owner.create(f"{path}/child", acl=[make_digest_acl("bob", "secret", all=True)])
    for action in (
        lambda: stranger.get(path),
        lambda: stranger.set(path, b""),
        lambda: stranger.get_children(path),
        lambda: stranger.create(f"{path}/other"),
        lambda: stranger.delete(f"{path}/child"),
        lambda: stranger.get_acls(path),
        lambda: stranger.set_acls(path, OPEN_ACL_UNSAFE),
    ):
        raises(NoAuthError, action)
    stranger.add_auth("digest", "bob:wrong")
    raises(NoAuthError, stranger.get, path)
    stranger.add_auth("digest", "bob:secret")
    equal(stranger.get(path)[0], b"x", "data read after authentication")


@case
def each_permission_guards_its_operations(bench: Bench) -> None:
    owner, user = bench.client(), bench.client()
    owner.add_auth("digest", "root:root")
    user.add_auth("digest", "user:user")
    all_for_root = make_digest_acl("root", "root", all=True)

    def node(name: str, **permissions: bool) -> str:
        path = f"{bench.folder(owner)}/{name}"
        owner.create(path, acl=[all_for_root, make_digest_acl("user", "user", **permissions)])
        owner.create(f"{path}/child")
        return path

    def allowed(path: str) -> set[str]:
        attempts = {
            "read": lambda: user.get(path),
            "list": lambda: user.get_children(path),
            "write": lambda: user.set(path, b""),
            "create": lambda: user.create(f"{path}/new"),
            "delete": lambda: user.delete(f"{path}/child"),
            "show": lambda: user.get_acls(path),
            "admin": lambda: user.set_acls(path, [all_for_root]),
        }
        return {name for name, attempt in attempts.items() if _permitted(attempt)}

    equal(allowed(node("read", read=True)), {"read", "list", "show"}, "with READ")
    equal(allowed(node("write", write=True)), {"write"}, "with WRITE")
    equal(allowed(node("create", create=True)), {"create"}, "with CREATE")
    equal(allowed(node("delete", delete=True)), {"delete"}, "with DELETE")
    equal(allowed(node("admin", admin=True)), {"show", "admin"}, "with ADMIN")
    equal(allowed(node("none")), set(), "with no permission")


@case
def the_auth_scheme_stands_for_all_ids_of_the_creator(bench: Bench) -> None:
    owner, stranger = bench.client(), bench.client()
    root = bench.folder(owner)
    raises(InvalidACLError, owner.create, f"{root}/early", acl=CREATOR_ALL_ACL)
    owner.add_auth("digest", "u:p")
    owner.create(f"{root}/one", acl=CREATOR_ALL_ACL)
    equal(owner.get_acls(f"{root}/one")[0], [ACL(Permissions.ALL, ID_OF_U_P)], "one id")
    raises(NoAuthError, stranger.get, f"{root}/one")
    owner.add_auth("digest", "v:q")
    owner.create(f"{root}/two", acl=CREATOR_ALL_ACL)
    ids = {acl.id for acl in owner.get_acls(f"{root}/two")[0]}
    second = Id("digest", make_digest_acl_credential("v", "q"))
    equal(ids, {ID_OF_U_P, second}, "both ids")


@case
def digest_hashes_are_hidden_from_those_without_admin(bench: Bench) -> None:
    owner, stranger = bench.client(), bench.client()
    owner.add_auth("digest", "u:p")
    path = f"{bench.folder(owner)}/node"
    owner.create(path, acl=[*READ_ACL_UNSAFE, *CREATOR_ALL_ACL])
    equal(owner.get_acls(path)[0][1].id, ID_OF_U_P, "what the owner sees")
    equal(stranger.get_acls(path)[0][1].id, Id("digest", "u:x"), "what a stranger sees")


@case
def set_acls_counts_aversion_and_nothing_else(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    client.create(path)
    before = client.exists(path)
    stat = client.set_acls(path, READ_ACL_UNSAFE + OPEN_ACL_UNSAFE, version=0)
    equal(stat, before._replace(aversion=1), "stat after set_acls")
    equal(client.get_acls(path)[0], READ_ACL_UNSAFE + OPEN_ACL_UNSAFE, "ACL")
    raises(BadVersionError, client.set_acls, path, OPEN_ACL_UNSAFE, version=0)
    equal(client.set_acls(path, OPEN_ACL_UNSAFE).aversion, 2, "aversion")
    raises(NoNodeError, client.set_acls, f"{path}/missing", OPEN_ACL_UNSAFE)


@case
def malformed_acls_are_refused(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/node"
    client.create(path)
    for scheme, name in (
        ("world", "x"),
        ("digest", "nocolon"),
        ("ip", "1.2.3"),
        ("ip", "127.0.0.0/33"),
        ("nonsense", "x"),
        ("super", ""),
    ):
        acls = [make_acl(scheme, name, all=True)]
        raises(InvalidACLError, client.create, f"{path}/child", acl=acls)
        raises(InvalidACLError, client.set_acls, path, acls)
    raises(InvalidACLError, client.set_acls, path, [])
    equal(client.get_children(path), [], "what was created")
    equal(client.exists(path).aversion, 0, "aversion")


@case
def an_ip_acl_matches_the_address(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    for name, address, fits in (
        ("exact", "127.0.0.1", True),
        ("net", "127.0.0.0/8", True),
        ("other", "10.1.2.3", False),
        ("other-net", "10.0.0.0/8", False),
    ):
        client.create(f"{root}/{name}", acl=[make_acl("ip", address, read=True)])
        equal(_permitted(lambda n=name: client.get(f"{root}/{n}")), fits, address)


@case
def acls_are_not_inherited_and_delete_belongs_to_the_parent(bench: Bench) -> None:
    owner, stranger = bench.client(), bench.client()
    owner.add_auth("digest", "u:p")
    path = f"{bench.folder(owner)}/open"
    owner.create(path)
    owner.create(f"{path}/closed", acl=CREATOR_ALL_ACL)
    raises(NoAuthError, stranger.get, f"{path}/closed")
    owner.create(f"{path}/closed/inner")
    equal(stranger.get(f"{path}/closed/inner")[0], b"", "an open node below a closed one")
    owner.delete(f"{path}/closed/inner")
    stranger.delete(f"{path}/closed")
    equal(owner.get_children(path), [], "what is left")


@case
def a_transaction_checks_permissions_per_operation(bench: Bench) -> None:
    owner, stranger = bench.client(), bench.client()
    owner.add_auth("digest", "u:p")
    root = bench.folder(owner)
    owner.create(f"{root}/closed", acl=CREATOR_ALL_ACL)
    transaction = stranger.transaction()
    transaction.create(f"{root}/new")
    transaction.set_data(f"{root}/closed", b"")
    results = transaction.commit()
    equal(type(results[1]), NoAuthError, "result of the forbidden operation")
    equal(owner.get_children(root), ["closed"], "what was created")


@case
def an_unknown_scheme_ends_the_client_with_auth_failed(bench: Bench) -> None:
    client = bench.client()
    states = States(client)
    raises(AuthFailedError, client.add_auth, "nonsense", "x")
    states.wait_for(KazooState.LOST)


@case
@steady(ENDS_SERVERS)
def credentials_and_acls_survive_a_killed_server(bench: Bench) -> None:
    acl = [make_digest_acl("bob", "secret", all=True)]
    owner = bench.client(timeout=4, auth_data=[("digest", "bob:secret")], default_acl=acl)
    stranger = bench.client(timeout=4)
    root = bench.folder(stranger)
    path = owner.create(f"{root}/private", b"x")
    equal(owner.get_acls(path)[0], acl, "default ACL")
    states, others = States(owner), States(stranger)
    bench.server.kill9()
    states.wait_for(KazooState.SUSPENDED)
    bench.server.restart()
    states.wait_for_newest(KazooState.CONNECTED)
    others.wait_for_newest(KazooState.CONNECTED)
    equal(owner.retry(owner.get, path)[0], b"x", "data read by the owner")
    raises(NoAuthError, stranger.retry, stranger.get, path)


def _permitted(attempt) -> bool:
    try:
        attempt()
    except NoAuthError:
        return False
    return True
