package zkraft;

import static zkraft.Client.bytes;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.Watcher.WatcherType;
import org.apache.zookeeper.ZooDefs.Ids;

/** Watches of the plain client, on one connection and across a broken one (spec section 6). */
final class Watches {
    private Watches() {}

    @Case
    static void aDataWatchFiresOnce(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.getData(at, events, null);
        client.getData(at, events, null);
        client.setData(at, bytes("1"), -1);
        client.setData(at, bytes("2"), -1);
        events.expect("NodeDataChanged " + at);
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void anExistsWatchSeesTheCreation(Lab lab) throws Exception {
        Client client = lab.connect();
        Client other = lab.connect();
        var events = new Events();
        Check.equal(null, client.exists(lab.path(), events), "stat of a missing node");
        other.make(lab.path());
        events.expect("NodeCreated " + lab.path());
        client.exists(lab.path(), events);
        other.delete(lab.path(), -1);
        events.expect("NodeDeleted " + lab.path());
    }

    @Case
    static void aChildWatchSeesChildrenAndTheEnd(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.getChildren(at, events);
        client.make(at + "/a");
        events.expect("NodeChildrenChanged " + at);
        client.getChildren(at, events);
        client.setData(at + "/a", bytes("x"), -1);
        client.setData(at, bytes("x"), -1);
        client.delete(at + "/a", -1);
        events.expect("NodeChildrenChanged " + at);
        client.getChildren(at, events);
        client.delete(at, -1);
        events.expect("NodeDeleted " + at);
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void dataAndChildWatchGiveOneDeletion(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.getData(at, events, null);
        client.getChildren(at, events);
        client.delete(at, -1);
        events.expect("NodeDeleted " + at);
        client.fence();
        events.expectNoMore();
    }

    @Case(steady = "each of the requests that are under way must be answered")
    static void eventsComeBeforeTheReplyOfTheirCause(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        BlockingQueue<String> order = new LinkedBlockingQueue<>();
        client.exists(at + "/x", event -> order.add("event " + event.getType()));
        client.getChildren(at, event -> order.add("event " + event.getType()));
        client.create(at + "/x", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT,
                (code, path, context, name) -> order.add("reply " + code), null);
        for (String step : List.of("event NodeCreated", "event NodeChildrenChanged", "reply 0")) {
            Check.equal(step, Check.next(order, step), "next");
        }
    }

    @Case
    static void aPersistentWatchStays(Lab lab) throws Exception {
        Client client = lab.connect();
        var events = new Events();
        String at = lab.path();
        client.addWatch(at, events, AddWatchMode.PERSISTENT);
        for (int round = 0; round < 2; round++) {
            client.make(at);
            client.setData(at, bytes("1"), -1);
            client.setData(at, bytes("2"), -1);
            client.make(at + "/child");
            client.setData(at + "/child", bytes("unseen"), -1);
            client.delete(at + "/child", -1);
            client.delete(at, -1);
            events.expect("NodeCreated " + at, "NodeDataChanged " + at, "NodeDataChanged " + at,
                    "NodeChildrenChanged " + at, "NodeChildrenChanged " + at, "NodeDeleted " + at);
        }
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void aRecursiveWatchSeesTheWholeSubtree(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.addWatch(at, events, AddWatchMode.PERSISTENT_RECURSIVE);
        client.make(at + "/a");
        client.make(at + "/a/b");
        client.setData(at + "/a/b", bytes("x"), -1);
        client.delete(at + "/a/b", -1);
        client.setData(at, bytes("x"), -1);
        client.make(at + "-sibling");
        events.expect("NodeCreated " + at + "/a", "NodeCreated " + at + "/a/b",
                "NodeDataChanged " + at + "/a/b", "NodeDeleted " + at + "/a/b",
                "NodeDataChanged " + at);
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void kindsOfWatchesOnOnePathAreIndependent(Lab lab) throws Exception {
        lab.skipAgainstZooKeeper("3.8.0 keeps one kind per path and connection (spec 6.8)");
        Client client = lab.connect();
        String at = client.make(lab.path());
        var recursive = new Events();
        var once = new Events();
        client.addWatch(at, recursive, AddWatchMode.PERSISTENT_RECURSIVE);
        client.getData(at, once, null);
        client.make(at + "/a");
        client.setData(at, bytes("1"), -1);
        once.expect("NodeDataChanged " + at);
        client.setData(at, bytes("2"), -1);
        client.make(at + "/a/b");
        recursive.expect("NodeCreated " + at + "/a", "NodeDataChanged " + at,
                "NodeDataChanged " + at, "NodeCreated " + at + "/a/b");
        client.fence();
        once.expectNoMore();
        recursive.expectNoMore();
    }

    @Case
    static void removedWatchesAreSilent(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var data = new Events();
        var other = new Events();
        var children = new Events();
        client.getData(at, data, null);
        client.getData(at, other, null);
        client.getChildren(at, children);
        // The first of two watchers goes: the server still has to keep its watch for the other.
        client.removeWatches(at, data, WatcherType.Data, false);
        data.expect("DataWatchRemoved " + at);
        client.removeWatches(at, children, WatcherType.Children, false);
        children.expect("ChildWatchRemoved " + at);
        client.make(at + "/child");
        client.setData(at, bytes("x"), -1);
        other.expect("NodeDataChanged " + at);
        client.fence();
        data.expectNoMore();
        children.expectNoMore();
        Check.fails(Code.NOWATCHER,
                () -> client.removeWatches(at, data, WatcherType.Any, false));
    }

    @Case
    static void removeAllWatchesTakesEveryKind(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.getData(at, events, null);
        client.getChildren(at, events);
        client.addWatch(at, events, AddWatchMode.PERSISTENT_RECURSIVE);
        client.removeAllWatches(at, WatcherType.Any, false);
        client.fence();
        events.expectInAnyOrder("DataWatchRemoved " + at, "ChildWatchRemoved " + at,
                "PersistentWatchRemoved " + at);
        client.setData(at, bytes("x"), -1);
        client.make(at + "/child");
        client.fence();
        events.expectNoMore();
        Check.fails(Code.NOWATCHER, () -> client.removeAllWatches(at, WatcherType.Any, false));
    }

    @Case
    static void watchesReportWhatHappenedWhileDisconnected(Lab lab) throws Exception {
        Link link = lab.link();
        Client client = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        Client other = lab.connect();
        String at = other.make(lab.path());
        for (String name : List.of("same", "changed", "deleted", "parent", "emptied", "remade")) {
            other.make(at + "/" + name);
        }
        other.make(at + "/emptied/child");
        var events = new Events();
        for (String name : List.of("same", "changed", "deleted", "remade")) {
            client.getData(at + "/" + name, events, null);
        }
        client.exists(at + "/created", events);
        client.exists(at + "/never", events);
        client.getChildren(at + "/parent", events);
        client.getChildren(at + "/emptied", events);
        client.getChildren(at + "/same", events);

        link.cut();
        client.session.await(KeeperState.Disconnected);
        other.setData(at + "/changed", bytes("x"), -1);
        other.delete(at + "/deleted", -1);
        other.make(at + "/created");
        other.make(at + "/parent/child");
        other.delete(at + "/emptied/child", -1);
        other.delete(at + "/remade", -1);
        other.make(at + "/remade");
        link.mend();
        events.expectInAnyOrder("NodeDataChanged " + at + "/changed",
                "NodeDeleted " + at + "/deleted", "NodeCreated " + at + "/created",
                "NodeChildrenChanged " + at + "/parent", "NodeChildrenChanged " + at + "/emptied",
                "NodeDataChanged " + at + "/remade");

        client.connected();
        client.fence();
        events.expectNoMore();
        // One after the other: a client that is away meanwhile is told by kind.
        other.setData(at + "/same", bytes("x"), -1);
        events.expect("NodeDataChanged " + at + "/same");
        other.make(at + "/same/child");
        events.expect("NodeChildrenChanged " + at + "/same");
        other.make(at + "/never");
        events.expect("NodeCreated " + at + "/never");
    }

    @Case(steady = "a persistent watch is not told what it missed")
    static void persistentWatchesSurviveAReconnect(Lab lab) throws Exception {
        Link link = lab.link();
        Client client = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        Client other = lab.connect();
        String at = other.make(lab.path());
        var persistent = new Events();
        var recursive = new Events();
        var once = new Events();
        client.addWatch(at, persistent, AddWatchMode.PERSISTENT);
        client.addWatch(at + "/deep", recursive, AddWatchMode.PERSISTENT_RECURSIVE);
        client.exists(at + "/once", once);
        link.cut();
        client.session.await(KeeperState.Disconnected);
        other.make(at + "/once");
        link.mend();
        once.expect("NodeCreated " + at + "/once");
        client.connected();
        client.fence();
        // A persistent watch is not told what it missed (spec 6.6).
        persistent.expectNoMore();
        other.make(at + "/deep");
        other.make(at + "/deep/er");
        persistent.expect("NodeChildrenChanged " + at);
        recursive.expect("NodeCreated " + at + "/deep", "NodeCreated " + at + "/deep/er");
    }

    @Case(steady = "each of the requests that are under way must be answered")
    static void aLongListOfWatchesIsRegisteredAgain(Lab lab) throws Exception {
        Link link = lab.link();
        Client client = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        Client other = lab.connect();
        String at = other.make(lab.path());
        // 300 KiB of paths: the client splits them into several setWatches requests.
        int count = 1_500;
        var events = new Events();
        var answered = new CountDownLatch(count);
        for (int i = 0; i < count; i++) {
            client.exists(longPath(at, i), events,
                    (code, path, context, stat) -> answered.countDown(), null);
        }
        Check.that(answered.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "watches are set");
        link.cut();
        client.session.await(KeeperState.Disconnected);
        List<String> expected = new ArrayList<>();
        for (int i = 0; i < count; i += 100) {
            expected.add("NodeCreated " + other.make(longPath(at, i)));
        }
        link.mend();
        events.expectInAnyOrder(expected.toArray(String[]::new));
        client.connected();
        expected.clear();
        for (int i = 50; i < count; i += 100) {
            expected.add("NodeCreated " + other.make(longPath(at, i)));
        }
        events.expectInAnyOrder(expected.toArray(String[]::new));
    }

    @Case
    static void chrootedWatchesSurviveAReconnect(Lab lab) throws Exception {
        Link link = lab.link();
        Client other = lab.connect();
        String root = other.make(lab.path());
        Client client = lab.connect(link.address() + root, Lab.LONG_SESSION_MS);
        var events = new Events();
        client.exists("/gap", events);
        client.exists("/later", events);
        link.cut();
        client.session.await(KeeperState.Disconnected);
        other.make(root + "/gap");
        link.mend();
        events.expect("NodeCreated /gap");
        client.connected();
        other.make(root + "/later");
        events.expect("NodeCreated /later");
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void watchesSurviveAKilledServer(Lab lab) throws Exception {
        Client client = lab.connect();
        Client other = lab.connect();
        String at = other.make(lab.path());
        var once = new Events();
        var recursive = new Events();
        client.getData(at, once, null);
        client.getChildren(at, once);
        client.addWatch(at + "/a", recursive, AddWatchMode.PERSISTENT_RECURSIVE);
        lab.kill();
        client.session.await(KeeperState.Disconnected);
        lab.restart();
        client.connected();
        client.fence();
        once.expectNoMore();
        Check.answered(() -> other.exists(at, false));
        other.setData(at, bytes("x"), 0);
        other.make(at + "/a");
        once.expect("NodeDataChanged " + at, "NodeChildrenChanged " + at);
        recursive.expect("NodeCreated " + at + "/a");
    }

    private static String longPath(String at, int number) {
        return at + "/" + "x".repeat(180) + number;
    }
}
