//! Quotas: the znodes that hold them, silent statistics and hard limits (spec §5.6).

use crate::client::{Client, code, event, kind, mode, open_acl};
use crate::multi::{Multi, Outcome};
use crate::server::Server;

/// A znode under quota, with the texts of its two quota znodes as an administrator writes them.
struct Quota {
    admin: Client,
    stats: String,
}

impl Quota {
    fn new(path: &str, limits: &str) -> Self {
        let mut admin = Server::brisk().client();
        create(&mut admin, path, "root");
        let holder = format!("/zookeeper/quota{path}");
        admin.make(&holder);
        let stats = format!("{holder}/zookeeper_stats");
        create(&mut admin, &format!("{holder}/zookeeper_limits"), limits);
        create(&mut admin, &stats, "count=0,bytes=0");
        Self { admin, stats }
    }

    fn stats(&mut self) -> String {
        let (data, stat) = self.admin.get(&self.stats).expect("the stats znode");
        // However often the server rewrites the text, the Stat stays that of the creation.
        assert_eq!((stat.version, stat.mzxid), (0, stat.czxid));
        let text = text_of(data);
        assert_eq!(stat.data_length as usize, text.len());
        text
    }
}

#[test]
fn s88_the_stats_znode_gets_the_real_counts() {
    let mut client = Server::brisk().client();
    client
        .create_with("/s88", Some(b"12345"), &open_acl(), 0)
        .unwrap();
    client
        .create_with("/s88/a", Some(b"67"), &open_acl(), 0)
        .unwrap();
    client
        .create_with("/s88/a/b", None, &open_acl(), 0)
        .unwrap();
    client.make("/zookeeper/quota/s88");
    let limits = "/zookeeper/quota/s88/zookeeper_limits";
    let text = &b"count=100,bytes=-1"[..];
    client
        .create_with(limits, Some(text), &open_acl(), 0)
        .unwrap();
    assert_eq!(
        client.get(limits).unwrap().0.as_deref(),
        Some(text),
        "the limits are left alone"
    );

    let stats = "/zookeeper/quota/s88/zookeeper_stats";
    client
        .create_with(stats, Some(b"count=0,bytes=0"), &open_acl(), 0)
        .unwrap();
    let created = client.zxid;
    let (data, stat) = client.get(stats).unwrap();
    assert_eq!(text_of(data), "count=3,bytes=7");
    assert_eq!(
        (stat.version, stat.mzxid, stat.czxid),
        (0, created, created)
    );
    assert_eq!(stat.data_length, "count=3,bytes=7".len() as i32);
}

#[test]
fn s89_hard_limits_reject_and_soft_limits_do_not() {
    let mut soft = Quota::new("/s89-soft", "count=1,bytes=1");
    soft.admin.make("/s89-soft/x");
    soft.admin.set("/s89-soft/x", b"many bytes", -1).unwrap();
    assert_eq!(soft.stats(), "count=2,bytes=14");

    let mut count = Quota::new(
        "/s89-count",
        "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=2",
    );
    count.admin.make("/s89-count/a");
    assert_eq!(
        count.admin.create("/s89-count/b", 0),
        Err(code::QUOTA_EXCEEDED)
    );
    let sequential = count.admin.create("/s89-count/b", mode::SEQUENTIAL);
    assert_eq!(sequential, Err(code::QUOTA_EXCEEDED));
    count.admin.delete("/s89-count/a", -1).unwrap();
    count.admin.make("/s89-count/b");

    // "root" has 4 bytes already.
    let mut bytes = Quota::new(
        "/s89-bytes",
        "count=-1,bytes=-1=;byteHardLimit=10;countHardLimit=-1",
    );
    let over = bytes
        .admin
        .create_with("/s89-bytes/a", Some(b"1234567"), &open_acl(), 0);
    assert_eq!(over, Err(code::QUOTA_EXCEEDED));
    bytes
        .admin
        .create_with("/s89-bytes/a", Some(b"123456"), &open_acl(), 0)
        .unwrap();
    assert_eq!(
        bytes.admin.set("/s89-bytes/a", b"1234567", -1),
        Err(code::QUOTA_EXCEEDED)
    );
    assert_eq!(
        bytes
            .admin
            .set("/s89-bytes/a", b"abcdef", -1)
            .unwrap()
            .version,
        1
    );
    assert_eq!(bytes.admin.set("/s89-bytes", b"r", -1).unwrap().version, 1);
    assert_eq!(
        bytes
            .admin
            .set("/s89-bytes/a", b"123456789", -1)
            .unwrap()
            .version,
        2
    );
}

#[test]
fn s89_a_hard_limit_holds_inside_a_multi() {
    let limits = "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=1";
    let mut quota = Quota::new("/s89-multi", limits);
    let multi = Multi::new().set("/s89-multi", -1).create("/s89-multi/x", 0);
    let outcomes = multi.call(&mut quota.admin).unwrap();
    assert_eq!(
        outcomes,
        [Outcome::Error(0), Outcome::Error(code::QUOTA_EXCEEDED)]
    );
}

#[test]
fn s90_counts_and_bytes_follow_every_change() {
    let mut quota = Quota::new("/s90", "count=100,bytes=1000");
    assert_eq!(quota.stats(), "count=1,bytes=4");
    quota
        .admin
        .create_with("/s90/a", Some(b"12345"), &open_acl(), 0)
        .unwrap();
    assert_eq!(quota.stats(), "count=2,bytes=9");
    quota
        .admin
        .create_with("/s90/a/deep", None, &open_acl(), 0)
        .unwrap();
    assert_eq!(quota.stats(), "count=3,bytes=9");
    quota.admin.set("/s90/a", b"1", -1).unwrap();
    assert_eq!(quota.stats(), "count=3,bytes=5");
    quota.admin.delete("/s90/a/deep", -1).unwrap();
    quota.admin.delete("/s90/a", -1).unwrap();
    assert_eq!(quota.stats(), "count=1,bytes=4");

    let mut session = Server::brisk().client();
    session.create("/s90/e", mode::EPHEMERAL).unwrap();
    assert_eq!(quota.stats(), "count=2,bytes=5");
    session.close();
    assert_eq!(quota.stats(), "count=1,bytes=4");
    // A neighbour whose name begins alike is no descendant.
    quota.admin.make("/s90-neighbour");
    assert_eq!(quota.stats(), "count=1,bytes=4");
}

#[test]
fn statistics_fire_no_watch() {
    let mut quota = Quota::new("/quota-quiet", "count=100,bytes=1000");
    let path = quota.stats.clone();
    quota.admin.get_watch(&path).unwrap();
    quota.admin.make("/quota-quiet/x");
    quota.admin.no_event();
    assert_eq!(quota.admin.check_watches(&path, kind::DATA), Ok(()));
    assert_eq!(quota.stats(), "count=2,bytes=5");
    // A write of an administrator is an ordinary one.
    let set = quota.admin.send(
        crate::client::op::SET_DATA,
        crate::client::record::set_data(&path, Some(b"count=2,bytes=5"), -1),
    );
    quota.admin.events(&[(event::DATA, &path)]);
    quota.admin.reply(set);
}

#[test]
fn a_quota_ends_with_its_limits_znode() {
    let limits = "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=1";
    let mut quota = Quota::new("/quota-ends", limits);
    assert_eq!(
        quota.admin.create("/quota-ends/x", 0),
        Err(code::QUOTA_EXCEEDED)
    );
    quota
        .admin
        .delete("/zookeeper/quota/quota-ends/zookeeper_limits", -1)
        .unwrap();
    quota.admin.make("/quota-ends/x");
}

#[test]
fn what_is_over_its_limit_may_not_change_its_size() {
    let limits = "count=-1,bytes=-1=;byteHardLimit=2;countHardLimit=-1";
    // "root" has 4 bytes: the quota came too late.
    let mut quota = Quota::new("/quota-late", limits);
    assert_eq!(
        quota.admin.set("/quota-late", b"bigger", -1),
        Err(code::QUOTA_EXCEEDED)
    );
    assert_eq!(
        quota.admin.set("/quota-late", b"abc", -1),
        Err(code::QUOTA_EXCEEDED)
    );
    assert_eq!(
        quota.admin.set("/quota-late", b"same", -1).unwrap().version,
        1
    );
    assert_eq!(
        quota.admin.set("/quota-late", b"ok", -1).unwrap().version,
        2
    );
    assert_eq!(quota.stats(), "count=1,bytes=2");
}

#[test]
fn the_deepest_quota_governs() {
    let mut outer = Quota::new(
        "/quota-nest",
        "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=9",
    );
    let limits = "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=2";
    let mut inner = Quota::new("/quota-nest/inner", limits);
    inner.admin.make("/quota-nest/inner/a");
    assert_eq!(
        inner.admin.create("/quota-nest/inner/b", 0),
        Err(code::QUOTA_EXCEEDED)
    );
    outer.admin.make("/quota-nest/b");
    assert_eq!(inner.stats(), "count=2,bytes=5");
}

fn create(client: &mut Client, path: &str, text: &str) {
    let created = client.create_with(path, Some(text.as_bytes()), &open_acl(), 0);
    assert_eq!(created.as_deref(), Ok(path));
}

fn text_of(data: Option<Vec<u8>>) -> String {
    String::from_utf8(data.expect("data")).expect("text")
}
