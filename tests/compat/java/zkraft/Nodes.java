package zkraft;

import static zkraft.Client.bytes;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.Stat;

/** The znode operations of the plain client: create to delete, Stat, sizes, containers and TTL. */
final class Nodes {
    /** The default of jute.maxbuffer: a request frame of this many bytes is still accepted. */
    private static final int FRAME_BYTES_MAX = 0xfffff;

    private Nodes() {}

    @Case
    static void createReadUpdateDelete(Lab lab) throws Exception {
        Client client = lab.connect();
        String path = lab.path();
        String made =
                client.create(path, bytes("one"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        Check.equal(path, made, "created path");
        Check.equal("one", client.text(path), "data");
        Stat stat = client.setData(path, bytes("two"), 0);
        Check.equal(1, stat.getVersion(), "version");
        Check.equal("two", client.text(path), "data");
        client.delete(path, 1);
        Check.equal(null, client.exists(path, false), "stat of a deleted node");
    }

    @Case
    static void errorsAreTheDocumentedOnes(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        String missing = at + "/missing";
        Check.fails(Code.NONODE, () -> client.getData(missing, false, null));
        Check.fails(Code.NONODE, () -> client.getChildren(missing, false));
        Check.fails(Code.NONODE, () -> client.setData(missing, bytes(""), -1));
        Check.fails(Code.NONODE, () -> client.delete(missing, -1));
        Check.fails(Code.NONODE, () -> client.make(missing + "/child"));
        Check.fails(Code.NODEEXISTS, () -> client.make(at));
        Check.fails(Code.BADVERSION, () -> client.setData(at, bytes(""), 7));
        Check.fails(Code.BADVERSION, () -> client.delete(at, 7));
        client.make(at + "/child");
        Check.fails(Code.NOTEMPTY, () -> client.delete(at, 0));
        Check.fails(Code.BADVERSION, () -> client.delete(at, 1));
        String ephemeral = client.make(at + "/ephemeral", CreateMode.EPHEMERAL);
        Check.fails(Code.NOCHILDRENFOREPHEMERALS, () -> client.make(ephemeral + "/child"));
        Check.fails(Code.INVALIDACL,
                () -> client.create(at + "/x", null, List.of(), CreateMode.PERSISTENT));
        Check.fails(Code.BADARGUMENTS, () -> client.delete("/zookeeper", -1));
    }

    @Case
    static void everyModeMakesItsKind(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        int created = 0;
        for (CreateMode mode : CreateMode.values()) {
            String asked = at + "/" + mode + "-";
            var stat = new Stat();
            String made = mode.isTTL()
                    ? client.create(asked, bytes("x"), Ids.OPEN_ACL_UNSAFE, mode, stat, 600_000)
                    : client.create(asked, bytes("x"), Ids.OPEN_ACL_UNSAFE, mode, stat);
            String suffix = mode.isSequential() ? String.format("%010d", created) : "";
            Check.equal(asked + suffix, made, "path of " + mode);
            long owner = mode.isEphemeral() ? client.getSessionId() : 0;
            Check.equal(owner, stat.getEphemeralOwner(), "owner of " + mode);
            Check.equal(stat, client.exists(made, false), "stat returned for " + mode);
            created++;
        }
    }

    @Case
    static void sequenceNumbersCountEveryCreation(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.make(at + "/a");
        client.make(at + "/b");
        client.delete(at + "/a", -1);
        Check.equal(at + "/n-0000000002",
                client.make(at + "/n-", CreateMode.PERSISTENT_SEQUENTIAL), "third creation");
        Check.equal(at + "/0000000003",
                client.make(at + "/", CreateMode.EPHEMERAL_SEQUENTIAL), "name that is a number");
    }

    @Case
    static void statFollowsEachChange(Lab lab) throws Exception {
        Client client = lab.connect();
        var first = new Stat();
        String at = client.create(
                lab.path(), bytes("abc"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT, first);
        Check.equal(first.getCzxid(), first.getMzxid(), "mzxid at creation");
        Check.equal(first.getCzxid(), first.getPzxid(), "pzxid at creation");
        Check.equal(first.getCtime(), first.getMtime(), "mtime at creation");
        Check.equal(3, first.getDataLength(), "data length");
        Check.equal(0, first.getVersion() + first.getCversion() + first.getAversion(), "versions");

        Stat changed = client.setData(at, bytes("defgh"), 0);
        Check.equal(first.getCzxid(), changed.getCzxid(), "czxid never changes");
        Check.that(changed.getMzxid() > first.getMzxid(), "setData moves mzxid");
        Check.equal(first.getPzxid(), changed.getPzxid(), "setData leaves pzxid");
        Check.equal(5, changed.getDataLength(), "data length");

        Stat guarded = client.setACL(at, Ids.OPEN_ACL_UNSAFE, 0);
        Check.equal(1, guarded.getAversion(), "aversion");
        Check.equal(changed.getMzxid(), guarded.getMzxid(), "setACL leaves mzxid");
        Check.equal(1, guarded.getVersion(), "setACL leaves version");

        var child = new Stat();
        client.create(at + "/c", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT, child);
        Stat parent = client.exists(at, false);
        Check.equal(child.getCzxid(), parent.getPzxid(), "a child's creation is the pzxid");
        Check.equal(1, parent.getCversion(), "cversion after one creation");
        Check.equal(1, parent.getNumChildren(), "children");
        Check.equal(changed.getMzxid(), parent.getMzxid(), "children leave mzxid");

        client.delete(at + "/c", -1);
        Stat after = client.exists(at, false);
        Check.equal(2, after.getCversion(), "cversion counts the deletion too");
        Check.equal(0, after.getNumChildren(), "children");
        Check.that(after.getPzxid() > parent.getPzxid(), "a deletion moves pzxid");
    }

    @Case
    static void nullDataIsNotEmptyData(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.create(at + "/null", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        var stat = new Stat();
        Check.equal(null, client.getData(at + "/null", false, stat), "null data");
        Check.equal(0, stat.getDataLength(), "length of null data");
        Check.equal(0, client.getData(at, false, null).length, "empty data");
    }

    @Case
    static void namesMayBeAnyText(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        for (String name : List.of("größe", "座標", "...", "a b", "x..", "%2F")) {
            client.make(at + "/" + name);
            Check.that(client.getChildren(at, false).contains(name), name + " is listed");
        }
    }

    @Case(steady = "each of the requests that are under way must be answered")
    static void childrenAreListedCompletely(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        int count = 2_000;
        var answered = new CountDownLatch(count);
        Set<String> expected = new HashSet<>();
        for (int i = 0; i < count; i++) {
            String name = "a-child-with-a-name-of-ordinary-length-" + i;
            expected.add(name);
            client.create(at + "/" + name, null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT,
                    (code, path, context, made) -> answered.countDown(), null);
        }
        Check.that(answered.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "creates are answered");
        var stat = new Stat();
        Check.equal(expected, new HashSet<>(client.getChildren(at, false, stat)), "children");
        Check.equal(count, stat.getNumChildren(), "numChildren");
        Check.equal(count, client.getAllChildrenNumber(at), "getAllChildrenNumber");
    }

    @Case
    static void getAllChildrenNumberCountsDescendants(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.make(at + "/a");
        client.make(at + "/a/b");
        client.make(at + "/a/b/c");
        client.make(at + "/d");
        Check.equal(4, client.getAllChildrenNumber(at), "descendants");
        Check.equal(0, client.getAllChildrenNumber(at + "/d"), "descendants of a leaf");
        Check.fails(Code.NONODE, () -> client.getAllChildrenNumber(at + "/no"));
    }

    @Case
    static void getEphemeralsListsTheCallersOwn(Lab lab) throws Exception {
        Client client = lab.connect();
        Client other = lab.connect();
        String at = client.make(lab.path());
        String one = client.make(at + "/e1", CreateMode.EPHEMERAL);
        String ten = client.make(at + "/e10", CreateMode.EPHEMERAL);
        String two = client.make(at + "/e2", CreateMode.EPHEMERAL);
        other.make(at + "/e1-of-another", CreateMode.EPHEMERAL);
        Check.equal(Set.of(one, ten, two), Set.copyOf(client.getEphemerals()), "all");
        Check.equal(Set.of(one, ten), Set.copyOf(client.getEphemerals(at + "/e1")), "prefix");
        Check.equal(List.of(), client.getEphemerals(at + "/e3"), "prefix that none has");
    }

    @Case(steady = "each of the requests that are under way must be answered")
    static void callbacksComeInTheOrderOfRequests(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        BlockingQueue<String> answers = new LinkedBlockingQueue<>();
        List<String> expected = new ArrayList<>();
        for (int i = 0; i < 200; i++) {
            int step = i;
            String node = at + "/" + (i / 2);
            client.create(node, bytes("v0"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT,
                    (code, path, context, made) -> answers.add(step + " create " + code), null);
            client.setData(node, bytes("v" + i), i % 2,
                    (code, path, context, stat) -> answers.add(step + " set " + code), null);
            client.getData(node, false, (code, path, context, data, stat) ->
                    answers.add(step + " get " + new String(data, StandardCharsets.UTF_8)), null);
            client.exists(node + "-no", false,
                    (code, path, context, stat) -> answers.add(step + " exists " + code), null);
            int created = i % 2 == 0 ? Code.OK.intValue() : Code.NODEEXISTS.intValue();
            expected.add(i + " create " + created);
            expected.add(i + " set " + Code.OK.intValue());
            expected.add(i + " get v" + i);
            expected.add(i + " exists " + Code.NONODE.intValue());
        }
        for (String answer : expected) {
            Check.equal(answer, Check.next(answers, answer), "callback");
        }
    }

    @Case
    static void syncMakesAnothersWriteVisible(Lab lab) throws Exception {
        Client reader = lab.connect();
        Client writer = lab.connect();
        String at = writer.make(lab.path());
        for (int i = 0; i < 20; i++) {
            writer.setData(at, bytes("v" + i), i);
            reader.fence();
            Check.equal("v" + i, reader.text(at), "data behind a sync");
        }
    }

    @Case
    static void configNodeIsReadable(Lab lab) throws Exception {
        Client client = lab.connect();
        var stat = new Stat();
        byte[] config = client.getConfig(false, stat);
        Check.that(config != null, "config has data");
        Check.equal(-1, stat.getAversion(), "aversion of the config node");
        Check.fails(Code.NOAUTH, () -> client.setData("/zookeeper/config", bytes("x"), -1));
    }

    @Case
    static void chrootIsStrippedFromPathsAndEvents(Lab lab) throws Exception {
        Client outside = lab.connect();
        String root = outside.make(lab.path());
        Client inside = lab.connect(lab.address() + root, Lab.LONG_SESSION_MS);
        var events = new Events();
        inside.exists("/a", events);
        Check.equal("/a", inside.make("/a"), "created path");
        events.expect("NodeCreated /a");
        Check.that(outside.has(root + "/a"), "the node is below the chroot");
        Check.equal(List.of("a"), inside.getChildren("/", false), "children of the chroot");
        Check.equal("/s-0000000001",
                inside.make("/s-", CreateMode.PERSISTENT_SEQUENTIAL), "sequential path");
        Check.that(inside.getConfig(false, null) != null, "the config node is not chrooted");

        Client nowhere = lab.connect(lab.address() + root + "/none", Lab.LONG_SESSION_MS);
        Check.fails(Code.NONODE, () -> nowhere.make("/a"));
    }

    @Case
    static void dataOfAMillionBytesComesBack(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        byte[] data = new byte[1_000_000];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (i * 31 + i / 251);
        }
        Check.equal(data.length, client.setData(at, data, 0).getDataLength(), "data length");
        Check.equal(data, client.getData(at, false, null), "data");
    }

    @Case
    static void theFrameLimitIsExact(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        // Request header 8, path length 4 and path, data length 4, version 4 (spec 1.2, 3.2).
        int largest = FRAME_BYTES_MAX - 8 - 4 - at.length() - 4 - 4;
        Stat stat = client.setData(at, new byte[largest], 0);
        Check.equal(largest, stat.getDataLength(), "data of the largest frame");
        Check.fails(Code.CONNECTIONLOSS, () -> client.setData(at, new byte[largest + 1], 1));
        Stat after = Check.answered(() -> client.exists(at, false));
        Check.equal(stat, after, "stat after the refused frame");
        // The next case must not inherit a node that is too large for this client to read.
        Check.answered(() -> client.setData(at, new byte[0], -1));
    }

    @Case
    static void aClientThatAcceptsReadOnlyGetsAFullSession(Lab lab) throws Exception {
        var events = new Events();
        Client client = lab.keep(
                new Client(lab.address(), Lab.LONG_SESSION_MS, events, true)).connected();
        Check.equal(ZooKeeper.States.CONNECTED, client.getState(), "state");
        client.make(lab.path());
    }

    @Case
    static void anEmptiedContainerIsRemoved(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        String used = client.make(at + "/used", CreateMode.CONTAINER);
        String unused = client.make(at + "/unused", CreateMode.CONTAINER);
        String full = client.make(at + "/full", CreateMode.CONTAINER);
        client.make(full + "/child");
        client.make(used + "/child");
        var events = new Events();
        client.exists(used, events);
        client.delete(used + "/child", -1);
        events.expect("NodeDeleted " + used);
        Check.that(client.has(unused), "a container that never had a child stays");
        Check.that(client.has(full), "a container with a child stays");
    }

    @Case
    static void aTtlNodeIsRemovedOnceItIsOldAndEmpty(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        String parent = makeTtl(client, at + "/parent", 500);
        client.make(parent + "/child");
        String lasting = makeTtl(client, at + "/lasting", 600_000);
        String brief = makeTtl(client, at + "/brief", 500);
        var events = new Events();
        client.exists(brief, events);
        events.expect("NodeDeleted " + brief);
        Check.that(client.has(parent), "a TTL node with a child stays");
        Check.that(client.has(lasting), "a TTL node stays until its time is over");
        client.exists(parent, events);
        client.delete(parent + "/child", -1);
        events.expect("NodeDeleted " + parent);
    }

    @Case
    static void aWriteRenewsATtlNode(Lab lab) throws Exception {
        Client client = lab.connect();
        long ttlMs = 1_500;
        String path = makeTtl(client, lab.path(), ttlMs);
        long began = System.nanoTime();
        var stat = new Stat();
        while (TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began) < ttlMs + 1_000) {
            stat = client.setData(path, bytes("again"), -1);
            Thread.sleep(100);
        }
        Check.that(stat.getMtime() - stat.getCtime() > ttlMs, "it outlived its TTL");
        Check.until("it is removed when writes end", () -> !client.has(path));
    }

    private static String makeTtl(Client client, String path, long ttlMs) throws Exception {
        return client.create(path, null, Ids.OPEN_ACL_UNSAFE,
                CreateMode.PERSISTENT_WITH_TTL, new Stat(), ttlMs);
    }
}
