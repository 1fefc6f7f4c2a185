//! Permissions, ACL lists and the ids of a connection (spec §3.3, §7).

use crate::client::{
    Acl, Body, Client, Reader, acl, code, event, mode, op, open_acl, perm, record,
};
use crate::server::Server;

/// The id of `u:p`: the first of the specification's test vectors (spec §7.6).
const U: &str = "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=";

fn client_at(path: &str) -> Client {
    let mut client = Server::plain().client();
    client.make(path);
    client
}

/// Everybody has these permissions, and nobody any other.
fn anyone(perms: i32) -> [Acl; 1] {
    [acl(perms, "world", "anyone")]
}

fn sorted(mut list: Vec<Acl>) -> Vec<Acl> {
    list.sort_by(|one, other| (&one.scheme, &one.id).cmp(&(&other.scheme, &other.id)));
    list
}

#[test]
fn s69_the_digest_of_a_user() {
    let mut client = client_at("/s69");
    assert_eq!(client.auth("digest", b"u:p"), 0);
    client
        .set_acl("/s69", &[acl(perm::ALL, "auth", "")], -1)
        .unwrap();
    assert_eq!(
        client.get_acl("/s69").unwrap().0,
        [acl(perm::ALL, "digest", U)]
    );
    let expected = [
        ("digest".into(), "u".into()),
        ("ip".into(), "127.0.0.1".into()),
    ];
    assert_eq!(client.who_am_i(), expected);

    // And that id opens the door to whoever knows the password, and to nobody else.
    let server = Server::plain();
    assert_eq!(server.client().get("/s69"), Err(code::NO_AUTH));
    for (data, expected) in [
        ("u:p", true),
        ("u:wrong", false),
        ("U:p", false),
        ("u:p:x", false),
    ] {
        let mut other = server.client();
        assert_eq!(other.auth("digest", data.as_bytes()), 0);
        assert_eq!(other.get("/s69").is_ok(), expected, "{data}");
    }
}

#[test]
fn s70_an_unknown_scheme_fails_and_ends_the_connection() {
    let server = Server::plain();
    for scheme in ["nonsense", "world", "auth", "super", ""] {
        let mut client = server.client();
        assert_eq!(
            client.auth(scheme, b"anyone"),
            code::AUTH_FAILED,
            "{scheme:?}"
        );
        let hello = client.hello_again();
        client.into_connection().closes();
        // The session is not concerned (spec §7.6).
        server.client_with(&hello);
    }
}

#[test]
fn s71_auth_becomes_every_authenticated_id() {
    let mut client = client_at("/s71");
    let auth = [
        acl(perm::READ | perm::ADMIN, "auth", "ignored"),
        acl(perm::CREATE, "world", "anyone"),
    ];
    assert_eq!(client.set_acl("/s71", &auth, -1), Err(code::INVALID_ACL));
    assert_eq!(
        client.create_with("/s71/x", None, &auth, 0),
        Err(code::INVALID_ACL)
    );

    assert_eq!(client.auth("digest", b"u:p"), 0);
    assert_eq!(client.auth("digest", b"v:q"), 0);
    // The same again adds nothing.
    assert_eq!(client.auth("digest", b"u:p"), 0);
    client.create_with("/s71/x", None, &auth, 0).unwrap();
    let list = sorted(client.get_acl("/s71/x").unwrap().0);
    assert_eq!(list.len(), 3, "{list:?}");
    assert_eq!(list[0], acl(perm::READ | perm::ADMIN, "digest", U));
    assert!(list[1].scheme == "digest" && list[1].id.starts_with("v:"));
    assert_eq!(list[2], acl(perm::CREATE, "world", "anyone"));
}

#[test]
fn s71_the_id_of_an_auth_entry_may_be_null() {
    let mut client = client_at("/s71-null");
    assert_eq!(client.auth("digest", b"u:p"), 0);
    let entry = Body::new().int(1).int(perm::ALL).string("auth").null();
    let body = Body::new()
        .string("/s71-null")
        .raw(&entry.into_bytes())
        .int(-1);
    assert_eq!(client.call(op::SET_ACL, body).err, 0);
    assert_eq!(
        client.get_acl("/s71-null").unwrap().0,
        [acl(perm::ALL, "digest", U)]
    );
}

#[test]
fn s71_an_address_is_no_authentication() {
    let mut client = client_at("/s71-ip");
    assert_eq!(client.auth("ip", b""), 0);
    assert_eq!(client.who_am_i().len(), 1);
    let auth = [acl(perm::ALL, "auth", "")];
    assert_eq!(client.set_acl("/s71-ip", &auth, -1), Err(code::INVALID_ACL));
}

#[test]
fn s72_which_ids_an_acl_may_name() {
    let mut client = client_at("/s72");
    let refused = [
        ("world", "x"),
        ("world", ""),
        ("digest", "nocolon"),
        ("digest", "user:"),
        ("digest", "a:b:c"),
        ("digest", ""),
        ("ip", "1.2.3"),
        ("ip", "1.2.3.4.5"),
        ("ip", "1.2.3.256"),
        ("ip", "1.2.3.x"),
        ("ip", "127.0.0.0/33"),
        ("ip", "127.0.0.0/-1"),
        ("ip", ""),
        ("super", ""),
        ("super", "admin"),
        ("nonsense", "x"),
        ("", ""),
    ];
    for (scheme, id) in refused {
        // A good entry beside it does not help.
        let list = [
            acl(perm::ALL, "world", "anyone"),
            acl(perm::ALL, scheme, id),
        ];
        let answer = client.set_acl("/s72", &list, -1);
        assert_eq!(answer, Err(code::INVALID_ACL), "{scheme}:{id}");
    }
    let accepted = [
        ("digest", ":x"),
        ("digest", "a:b"),
        ("ip", "127.0.0.0/8"),
        ("ip", "10.1.2.3"),
        ("ip", "1.2.3.4/0"),
        ("ip", "1.2.3.4/32"),
    ];
    for (scheme, id) in accepted {
        let list = [
            acl(perm::READ, scheme, id),
            acl(perm::ALL, "world", "anyone"),
        ];
        client
            .set_acl("/s72", &list, -1)
            .unwrap_or_else(|code| panic!("{scheme}:{id} {code}"));
        assert_eq!(client.get_acl("/s72").unwrap().0, list);
    }
}

#[test]
fn s72_null_ids_are_refused() {
    let mut client = client_at("/s72-null");
    let mut refusal = |entry: Body| {
        let body = Body::new()
            .string("/s72-null")
            .int(1)
            .int(31)
            .raw(&entry.into_bytes())
            .int(-1);
        client.call(op::SET_ACL, body).done()
    };
    assert_eq!(
        refusal(Body::new().null().string("anyone")),
        Err(code::INVALID_ACL)
    );
    // A null id is an invalid one (spec §7.3), or a null where a value is needed (spec §1.1).
    for scheme in ["world", "digest"] {
        let answer = refusal(Body::new().string(scheme).null());
        assert!(
            [Err(code::INVALID_ACL), Err(code::MARSHALLING)].contains(&answer),
            "{answer:?}"
        );
    }
}

#[test]
fn s72_ipv6_addresses() {
    let server = Server::plain();
    let mut client = client_at("/s72-ipv6");
    for id in [
        "::1",
        "fe80::/10",
        "2001:db8:0:0:0:0:0:1",
        "0:0:0:0:0:0:0:1/128",
    ] {
        let list = [acl(perm::READ, "ip", id), acl(perm::ALL, "world", "anyone")];
        let answer = client.set_acl("/s72-ipv6", &list, -1);
        match server.is_zookeeper_38() {
            // Only IPv4 up to 3.9.3.
            true => assert_eq!(answer, Err(code::INVALID_ACL), "{id}"),
            false => assert!(answer.is_ok(), "{id}: {answer:?}"),
        }
    }
    for id in [
        "::1/129",
        "::1/-1",
        ":::",
        "1::2::3",
        "12345::",
        "1:2:3:4:5:6:7",
        "g::1",
    ] {
        let answer = client.set_acl("/s72-ipv6", &[acl(perm::ALL, "ip", id)], -1);
        assert_eq!(answer, Err(code::INVALID_ACL), "{id}");
    }
}

#[test]
fn s73_permission_bits_are_not_validated() {
    let mut client = client_at("/s73");
    for perms in [0, 64, -1, 1 << 30] {
        let path = format!("/s73/{perms}");
        client
            .create_with(&path, Some(b"x"), &anyone(perms), 0)
            .unwrap();
        let readable = perms & perm::READ != 0;
        assert_eq!(client.get(&path).is_ok(), readable, "perms {perms}");
        assert_eq!(client.get_acl(&path).is_ok(), readable);
        if !readable {
            assert_eq!(client.get(&path), Err(code::NO_AUTH));
            assert_eq!(client.get_acl(&path), Err(code::NO_AUTH));
        }
        // Deletion is a matter of the parent.
        assert_eq!(client.delete(&path, 0), Ok(()));
    }
}

#[test]
fn s74_the_hash_is_shown_to_admins_only() {
    let mut owner = client_at("/s74");
    assert_eq!(owner.auth("digest", b"u:p"), 0);
    let list = [
        acl(perm::ALL, "digest", U),
        acl(perm::READ, "digest", "bob:hash"),
        acl(perm::READ, "world", "anyone"),
        acl(perm::READ, "ip", "10.0.0.0/8"),
    ];
    owner.set_acl("/s74", &list, -1).unwrap();
    assert_eq!(owner.get_acl("/s74").unwrap().0, list);

    let masked = [
        acl(perm::ALL, "digest", "u:x"),
        acl(perm::READ, "digest", "bob:x"),
        acl(perm::READ, "world", "anyone"),
        acl(perm::READ, "ip", "10.0.0.0/8"),
    ];
    assert_eq!(Server::plain().client().get_acl("/s74").unwrap().0, masked);
    assert_eq!(
        Server::plain().super_client().get_acl("/s74").unwrap().0,
        list
    );
}

#[test]
fn s75_get_acl_needs_read_or_admin() {
    let mut client = client_at("/s75");
    for (perms, expected) in [
        (perm::READ, true),
        (perm::ADMIN, true),
        (perm::WRITE | perm::CREATE | perm::DELETE, false),
    ] {
        let path = format!("/s75/{perms}");
        client.create_with(&path, None, &anyone(perms), 0).unwrap();
        assert_eq!(client.get_acl(&path).is_ok(), expected, "perms {perms}");
    }
}

#[test]
fn s76_set_acl_compares_with_aversion() {
    let mut client = client_at("/s76");
    client.set("/s76", b"y", -1).unwrap();
    client.set("/s76", b"y", -1).unwrap();
    assert_eq!(
        client.set_acl("/s76", &open_acl(), 2),
        Err(code::BAD_VERSION)
    );
    assert_eq!(client.set_acl("/s76", &open_acl(), 0).unwrap().aversion, 1);
    assert_eq!(
        client.set_acl("/s76", &open_acl(), 0),
        Err(code::BAD_VERSION)
    );
    assert_eq!(client.set_acl("/s76", &open_acl(), -1).unwrap().aversion, 2);
}

#[test]
fn s76_an_invalid_acl_beats_a_missing_node() {
    let mut client = client_at("/s76-order");
    assert_eq!(
        client.set_acl("/s76-order/x", &[], -1),
        Err(code::INVALID_ACL)
    );
    assert_eq!(
        client.set_acl("/s76-order/x", &open_acl(), -1),
        Err(code::NO_NODE)
    );
    // And a bad path beats both.
    assert_eq!(
        client.set_acl("/s76-order/", &[], -1),
        Err(code::BAD_ARGUMENTS)
    );
}

#[test]
fn s77_sync_needs_no_permission() {
    let mut client = client_at("/s77");
    client.create_with("/s77/x", None, &anyone(0), 0).unwrap();
    assert_eq!(client.sync("/s77/x").as_deref(), Ok("/s77/x"));
    assert_eq!(client.sync("/s77/missing").as_deref(), Ok("/s77/missing"));
    let null = client.call(op::SYNC, Body::new().null());
    assert_eq!(null.read(Reader::buffer), Ok(None));
}

#[test]
fn s78_exists_needs_read_if_there_is_something() {
    let server = Server::plain();
    let mut client = client_at("/s78");
    client
        .create_with("/s78/x", None, &anyone(perm::ALL - perm::READ), 0)
        .unwrap();
    let answer = client.exists("/s78/x");
    match server.is_zookeeper_38() {
        // The check came with 3.8.4 and 3.9.2.
        true => assert!(answer.is_ok()),
        false => assert_eq!(answer, Err(code::NO_AUTH)),
    }
    client
        .set_acl("/s78", &anyone(perm::ALL - perm::READ), -1)
        .unwrap();
    assert_eq!(client.exists("/s78/missing"), Err(code::NO_NODE));
    assert_eq!(client.exists("/s78/x/missing"), Err(code::NO_NODE));
}

#[test]
fn s79_only_a_super_user_may_write_the_config() {
    let server = Server::plain();
    let config = "/zookeeper/config";
    let mut client = server.client();
    assert_eq!(client.auth("digest", b"u:p"), 0);
    assert_eq!(client.set(config, b"x", -1), Err(code::NO_AUTH));

    let mut admin = server.super_client();
    let expected = [
        ("digest".into(), "super".into()),
        ("ip".into(), "127.0.0.1".into()),
        ("super".into(), "".into()),
    ];
    assert_eq!(admin.who_am_i(), expected);
    let (data, stat) = admin.get(config).unwrap();
    let written = admin.set(config, b"server.1=x", stat.version).unwrap();
    assert_eq!(written.version, stat.version + 1);
    admin.set(config, &data.unwrap_or_default(), -1).unwrap();
}

#[test]
fn a_super_user_passes_every_acl_and_no_other_check() {
    let mut owner = client_at("/super");
    owner
        .create_with("/super/x", Some(b"x"), &anyone(0), 0)
        .unwrap();
    owner.set_acl("/super", &anyone(0), -1).unwrap();
    let mut admin = Server::plain().super_client();
    assert!(admin.get("/super/x").is_ok());
    assert!(admin.set("/super/x", b"y", -1).is_ok());
    assert!(admin.get_acl("/super/x").is_ok());
    assert!(admin.create("/super/y", 0).is_ok());
    assert_eq!(admin.delete("/super", -1), Err(code::NOT_EMPTY));
    assert_eq!(admin.delete("/super/y", 9), Err(code::BAD_VERSION));
    // "auth" means the id behind the super user, not the super user.
    admin
        .set_acl("/super", &[acl(perm::ALL, "auth", "")], -1)
        .unwrap();
    let digest = "super:lK75jTNcA+U9vtVEw5vB51mj/w4=";
    assert_eq!(
        admin.get_acl("/super").unwrap().0,
        [acl(perm::ALL, "digest", digest)]
    );
}

#[test]
fn s80_sasl_without_a_configuration() {
    let mut client = Server::plain().client();
    for token in [Some(&b""[..]), Some(b"anything")] {
        let reply = client.call(op::SASL, Body::new().buffer(token));
        assert_eq!(reply.zxid, 0);
        assert_eq!(reply.read(Reader::buffer), Ok(None));
    }
    assert_eq!(client.who_am_i().len(), 1);
}

#[test]
fn s96_create_needs_create_on_the_parent_even_for_what_exists() {
    let mut client = client_at("/s96");
    client.make("/s96/x");
    client
        .set_acl("/s96", &anyone(perm::ALL - perm::CREATE), -1)
        .unwrap();
    assert_eq!(client.create("/s96/y", 0), Err(code::NO_AUTH));
    assert_eq!(client.create("/s96/x", 0), Err(code::NO_AUTH));
    assert_eq!(client.create("/s96/.", 0), Err(code::NO_AUTH));
    assert_eq!(client.create("/s96/y/z", 0), Err(code::NO_NODE));
}

#[test]
fn s97_the_permission_is_checked_before_the_version() {
    let mut client = client_at("/s97");
    client.set_acl("/s97", &anyone(perm::READ), -1).unwrap();
    assert_eq!(client.set("/s97", b"y", 9), Err(code::NO_AUTH));
    assert_eq!(client.set_acl("/s97", &open_acl(), 9), Err(code::NO_AUTH));
    // Deletion: DELETE on the parent comes before everything about the node.
    assert_eq!(client.delete("/s97/missing", -1), Err(code::NO_AUTH));
}

#[test]
fn each_operation_needs_its_own_permission() {
    let mut owner = client_at("/needs");
    let mut client = Server::plain().client();
    let read = |path: &str| record::path_and_watch(path, false);
    for perms in [
        perm::READ,
        perm::WRITE,
        perm::CREATE,
        perm::DELETE,
        perm::ADMIN,
    ] {
        let path = &format!("/needs/{perms}");
        let child = &format!("{path}/child");
        owner.make(path);
        owner.make(child);
        owner.set_acl(path, &anyone(perms), -1).unwrap();
        let needs = [
            (perm::READ, op::GET_DATA, read(path)),
            (perm::READ, op::GET_CHILDREN, read(path)),
            (perm::READ, op::GET_CHILDREN2, read(path)),
            (
                perm::READ,
                op::GET_ALL_CHILDREN_NUMBER,
                Body::new().string(path),
            ),
            (
                perm::READ | perm::ADMIN,
                op::GET_ACL,
                Body::new().string(path),
            ),
            (perm::WRITE, op::SET_DATA, record::set_data(path, None, -1)),
            (
                perm::CREATE,
                op::CREATE,
                record::create(&format!("{path}/new"), None, &open_acl(), 0),
            ),
            (perm::DELETE, op::DELETE, record::path_and_int(child, -1)),
            (
                perm::ADMIN,
                op::SET_ACL,
                Body::new().string(path).acl(&anyone(perms)).int(-1),
            ),
        ];
        for (needed, operation, body) in needs {
            let expected = if perms & needed != 0 {
                0
            } else {
                code::NO_AUTH
            };
            let reply = client.call(operation, body);
            assert_eq!(
                reply.err, expected,
                "operation {operation} with permission {perms}"
            );
        }
    }
}

#[test]
fn an_acl_is_not_inherited() {
    let mut client = client_at("/inherit");
    client.make("/inherit/x");
    client.set_acl("/inherit", &anyone(0), -1).unwrap();
    assert!(client.get("/inherit/x").is_ok());
    assert!(client.set("/inherit/x", b"y", -1).is_ok());
}

#[test]
fn duplicates_in_an_acl_are_dropped() {
    let mut client = client_at("/duplicates");
    let (one, two) = (
        acl(perm::ALL, "world", "anyone"),
        acl(perm::READ, "ip", "10.0.0.1"),
    );
    let list = [
        one.clone(),
        two.clone(),
        one.clone(),
        two.clone(),
        one.clone(),
    ];
    client.set_acl("/duplicates", &list, -1).unwrap();
    assert_eq!(
        client.get_acl("/duplicates").unwrap().0,
        [one.clone(), two.clone()]
    );
    // Two entries for one id that differ in their permissions are no duplicates.
    let list = [acl(perm::READ, "world", "anyone"), one];
    client.set_acl("/duplicates", &list, -1).unwrap();
    assert_eq!(client.get_acl("/duplicates").unwrap().0, list);
}

#[test]
fn an_address_matches_by_its_bits() {
    let mut owner = client_at("/ip");
    for (id, expected) in [
        ("127.0.0.1", true),
        ("127.0.0.2", false),
        ("127.0.0.0/8", true),
        ("126.0.0.0/7", true),
        ("126.0.0.0/8", false),
        ("1.2.3.4/0", true),
        ("127.0.0.3/31", false),
        ("127.0.0.0/31", true),
    ] {
        owner
            .set_acl(
                "/ip",
                &[acl(perm::READ, "ip", id), acl(16, "world", "anyone")],
                -1,
            )
            .unwrap();
        assert_eq!(owner.get("/ip").is_ok(), expected, "{id}");
    }
}

#[test]
fn a_digest_without_a_colon_is_a_user_too() {
    let mut client = client_at("/colonless");
    assert_eq!(client.auth("digest", b"word"), 0);
    client
        .set_acl("/colonless", &[acl(perm::ALL, "auth", "")], -1)
        .unwrap();
    let list = client.get_acl("/colonless").unwrap().0;
    // base64 of the SHA-1 of "word".
    assert_eq!(
        list,
        [acl(
            perm::ALL,
            "digest",
            "word:PLzZCtxLGSqHpiWFC38jHK3fDrM="
        )]
    );
}

#[test]
fn ids_belong_to_the_connection_and_not_to_the_session() {
    let mut client = client_at("/ids");
    assert_eq!(client.auth("digest", b"u:p"), 0);
    client
        .set_acl("/ids", &[acl(perm::ALL, "auth", "")], -1)
        .unwrap();
    let hello = client.hello_again();
    client.vanish();
    let mut client = Server::plain().client_with(&hello);
    assert_eq!(client.get("/ids"), Err(code::NO_AUTH));
    assert_eq!(client.who_am_i().len(), 1);
    // An auth packet with an ordinary xid, as the Go client sends it, in front of the read.
    let auth = client.send(op::AUTH, record::auth("digest", b"u:p"));
    let read = client.send(op::GET_DATA, record::path_and_watch("/ids", false));
    assert_eq!(client.reply(auth).done(), Ok(()));
    assert_eq!(client.reply(read).err, 0);
}

#[test]
fn a_refused_read_sets_no_watch() {
    let mut client = client_at("/refused");
    client
        .create_with("/refused/x", None, &anyone(perm::ALL - perm::READ), 0)
        .unwrap();
    assert_eq!(client.get_watch("/refused/x"), Err(code::NO_AUTH));
    assert_eq!(client.children_watch("/refused/x"), Err(code::NO_AUTH));
    if !Server::plain().is_zookeeper_38() {
        // exists asks for READ since 3.8.4 and 3.9.2.
        assert_eq!(client.exists_watch("/refused/x"), Err(code::NO_AUTH));
    }
    client.set_acl("/refused/x", &open_acl(), -1).unwrap();
    client.set("/refused/x", b"y", -1).unwrap();
    client.create("/refused/e", mode::EPHEMERAL).unwrap();
    client.exists_watch("/refused/e").unwrap();
    let delete = client.send(op::DELETE, record::path_and_int("/refused/e", -1));
    client.events(&[(event::DELETED, "/refused/e")]);
    client.reply(delete);
}
