package zkraft;

import static zkraft.Client.bytes;

import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.cache.ChildData;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.CuratorCacheListener;
import org.apache.curator.framework.recipes.cache.NodeCache;
import org.apache.curator.framework.recipes.cache.PathChildrenCache;
import org.apache.curator.framework.recipes.cache.TreeCache;
import org.apache.curator.framework.recipes.watch.PersistentWatcher;

/**
 * Curator's caches, which mirror a subtree by watches, also across a broken connection. The older
 * three are deprecated and in wide use all the same; Flink's leader retrieval is a TreeCache.
 */
@SuppressWarnings("deprecation")
final class Caches {
    private Caches() {}

    @Case(steady = "it tells how often the connection breaks")
    static void pathChildrenCacheFollowsTheChildren(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = other.make(lab.path());
        other.make(at + "/old");
        Framework.fence(client);
        var told = new Told();
        var cache = lab.keep(new PathChildrenCache(client, at, true));
        cache.getListenable().addListener((from, event) ->
                told.add(event.getType().name(), event.getData()));
        cache.start(PathChildrenCache.StartMode.POST_INITIALIZED_EVENT);
        told.expect("CHILD_ADDED /old", "INITIALIZED");
        other.make(at + "/new");
        told.expect("CHILD_ADDED /new");
        other.setData(at + "/new", bytes("x"), -1);
        told.expect("CHILD_UPDATED /new x");
        other.delete(at + "/old", -1);
        told.expect("CHILD_REMOVED /old");

        link.cut();
        told.expect("CONNECTION_SUSPENDED");
        other.setData(at + "/new", bytes("gap"), -1);
        other.make(at + "/made-in-gap");
        link.mend();
        Check.until("it catches up", () -> cache.getCurrentData().size() == 2
                && holds(cache.getCurrentData(at + "/new"), "gap"));
        other.setData(at + "/made-in-gap", bytes("later"), -1);
        Check.until("it follows again",
                () -> holds(cache.getCurrentData(at + "/made-in-gap"), "later"));
    }

    @Case
    static void nodeCacheFollowsOneNode(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = lab.path();
        var cache = lab.keep(new NodeCache(client, at));
        cache.start(true);
        Check.equal(null, cache.getCurrentData(), "data of a missing node");
        other.make(at);
        Check.until("it sees the creation", () -> holds(cache.getCurrentData(), ""));
        other.setData(at, bytes("1"), -1);
        Check.until("it sees the change", () -> holds(cache.getCurrentData(), "1"));
        link.cut();
        other.setData(at, bytes("2"), -1);
        link.mend();
        Check.until("it sees the change in the gap", () -> holds(cache.getCurrentData(), "2"));
        other.delete(at, -1);
        Check.until("it sees the deletion", () -> cache.getCurrentData() == null);
    }

    @Case(steady = "it tells how often the connection breaks")
    static void treeCacheFollowsASubtree(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = other.make(lab.path());
        other.make(at + "/a");
        other.make(at + "/a/b");
        Framework.fence(client);
        var told = new Told();
        TreeCache cache = lab.keep(TreeCache.newBuilder(client, at).build());
        cache.getListenable().addListener((from, event) ->
                told.add(event.getType().name(), event.getData()));
        cache.start();
        told.expect("NODE_ADDED", "NODE_ADDED /a", "NODE_ADDED /b", "INITIALIZED");
        other.make(at + "/a/c");
        told.expect("NODE_ADDED /c");
        other.setData(at + "/a/c", bytes("x"), -1);
        told.expect("NODE_UPDATED /c x");
        other.delete(at + "/a/b", -1);
        told.expect("NODE_REMOVED /b");
        Check.equal(List.of("c"), List.copyOf(cache.getCurrentChildren(at + "/a").keySet()), "a");

        link.cut();
        told.expect("CONNECTION_SUSPENDED");
        other.setData(at + "/a/c", bytes("gap"), -1);
        other.make(at + "/d");
        other.make(at + "/d/e");
        link.mend();
        Check.until("it catches up", () -> holds(cache.getCurrentData(at + "/a/c"), "gap")
                && cache.getCurrentData(at + "/d/e") != null);
        other.delete(at + "/d/e", -1);
        Check.until("it follows again", () -> cache.getCurrentData(at + "/d/e") == null);
    }

    @Case
    static void curatorCacheFollowsASubtree(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = other.make(lab.path());
        other.make(at + "/a");
        other.make(at + "/a/b");
        Framework.fence(client);
        var told = new Told();
        var ready = new CountDownLatch(1);
        CuratorCache cache = lab.keep(CuratorCache.build(client, at));
        cache.listenable().addListener(CuratorCacheListener.builder()
                .forInitialized(ready::countDown)
                .forCreates(node -> told.add("CREATED", node))
                .forChanges((before, node) -> told.add("CHANGED", node))
                .forDeletes(node -> told.add("DELETED", node))
                .build());
        cache.start();
        Check.that(ready.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "it is initialized");
        told.expect("CREATED", "CREATED /a", "CREATED /b");
        other.make(at + "/a/c");
        told.expect("CREATED /c");
        other.setData(at + "/a/c", bytes("x"), -1);
        told.expect("CHANGED /c x");
        other.delete(at + "/a/b", -1);
        told.expect("DELETED /b");

        link.cut();
        other.setData(at + "/a/c", bytes("gap"), -1);
        other.make(at + "/d");
        link.mend();
        Check.until("it catches up", () -> cache.get(at + "/d").isPresent()
                && cache.get(at + "/a/c").filter(node -> holds(node, "gap")).isPresent());
        other.setData(at + "/d", bytes("later"), -1);
        Check.until("it follows again",
                () -> cache.get(at + "/d").filter(node -> holds(node, "later")).isPresent());
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void cachesSurviveAKilledServer(Lab lab) throws Exception {
        Client other = lab.connect();
        String at = other.make(lab.path());
        // Not on one connection: ZooKeeper 3.8.0 confuses their two kinds of watches on one path.
        TreeCache tree = lab.keep(TreeCache.newBuilder(lab.curator(), at).build());
        CuratorCache cache = lab.keep(CuratorCache.build(lab.curator(), at));
        tree.start();
        cache.start();
        other.make(at + "/before");
        Check.until("both see the node", () -> tree.getCurrentData(at + "/before") != null
                && cache.get(at + "/before").isPresent());
        lab.kill();
        lab.restart();
        Check.answered(() -> other.exists(at, false));
        other.setData(at + "/before", bytes("changed"), 0);
        other.make(at + "/after");
        Check.until("the tree cache follows", () -> tree.getCurrentData(at + "/after") != null
                && holds(tree.getCurrentData(at + "/before"), "changed"));
        Check.until("the Curator cache follows", () -> cache.get(at + "/after").isPresent()
                && cache.get(at + "/before").filter(n -> holds(n, "changed")).isPresent());
    }

    @Case(steady = "a persistent watch is not told what it missed")
    static void persistentWatcherIsSetAgain(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = lab.path();
        var events = new Events();
        var watcher = lab.keep(new PersistentWatcher(client, at, true));
        watcher.getListenable().addListener(events);
        var set = new CountDownLatch(1);
        var setAgain = new CountDownLatch(2);
        watcher.getResetListenable().addListener(() -> {
            set.countDown();
            setAgain.countDown();
        });
        watcher.start();
        Check.that(set.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "it is set");
        other.make(at);
        other.make(at + "/a");
        events.expect("NodeCreated " + at, "NodeCreated " + at + "/a");
        link.cut();
        Check.until("it is disconnected", () -> !client.getZookeeperClient().isConnected());
        other.make(at + "/unseen");
        link.mend();
        Check.that(setAgain.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "it is set again");
        other.make(at + "/b");
        events.expect("NodeCreated " + at + "/b");
    }

    private static boolean holds(ChildData node, String data) {
        return node != null && data.equals(new String(node.getData(), StandardCharsets.UTF_8));
    }

    /** What a cache tells its listener: {@code "EVENT /last-part-of-the-path data"}. */
    private static final class Told {
        private final BlockingQueue<String> events = new LinkedBlockingQueue<>();

        synchronized void add(String event, ChildData node) {
            if (node == null) {
                events.add(event);
                return;
            }
            String path = node.getPath();
            // The first node of a case's subtree has only one component.
            String last = path.lastIndexOf('/') == 0 ? "" : path.substring(path.lastIndexOf('/'));
            String data = node.getData() == null
                    ? "" : new String(node.getData(), StandardCharsets.UTF_8);
            events.add((event + " " + last + " " + data).strip().replaceAll(" +", " "));
        }

        /** The next events are these; connection events of the start are not waited for. */
        void expect(String... wanted) throws InterruptedException {
            for (String event : wanted) {
                Check.equal(event, Check.next(events, event), "event");
            }
        }
    }
}
