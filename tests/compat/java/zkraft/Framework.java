package zkraft;

import static zkraft.Client.bytes;

import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.AuthInfo;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.WatcherRemoveCuratorFramework;
import org.apache.curator.framework.api.ACLProvider;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.framework.api.transaction.OperationType;
import org.apache.curator.retry.RetryOneTime;
import org.apache.curator.utils.ZKPaths;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/** CuratorFramework itself: builders, background calls, transactions, retries and ACLs. */
final class Framework {
    private Framework() {}

    @Case
    static void createReadUpdateDelete(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        var stat = new Stat();
        Check.equal(at, client.create().storingStatIn(stat).forPath(at, bytes("1")), "path");
        Check.equal(stat, client.checkExists().forPath(at), "stat");
        Check.equal(1, client.setData().withVersion(0).forPath(at, bytes("2")).getVersion(), "v");
        Check.equal(bytes("2"), client.getData().storingStatIn(stat).forPath(at), "data");
        client.create().orSetData().forPath(at, bytes("3"));
        Check.equal(bytes("3"), client.getData().forPath(at), "data");
        Check.fails(Code.BADVERSION, () -> client.delete().withVersion(0).forPath(at));
        client.delete().withVersion(2).forPath(at);
        client.delete().quietly().forPath(at);
        Check.equal(null, client.checkExists().forPath(at), "stat of a deleted node");
    }

    @Case
    static void parentsAreMadeAndSubtreesDeleted(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        client.create().creatingParentsIfNeeded().forPath(at + "/a/b/c");
        client.create().forPath(at + "/a/d");
        ZKPaths.mkdirs(client.getZookeeperClient().getZooKeeper(), at + "/e/f");
        Check.equal(List.of("a", "e"), client.getChildren().forPath(at).stream().sorted().toList(),
                "children");
        client.delete().deletingChildrenIfNeeded().forPath(at);
        Check.equal(null, client.checkExists().forPath(at), "stat of the deleted tree");
    }

    @Case
    static void containerParentsVanishWithTheirChildren(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        client.create().creatingParentContainersIfNeeded().forPath(at + "/a/b");
        client.delete().forPath(at + "/a/b");
        Check.until("the containers are removed", () -> client.checkExists().forPath(at) == null);
    }

    @Case
    static void aNamespaceIsASubtree(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String space = lab.path().substring(1);
        CuratorFramework inside = client.usingNamespace(space);
        Check.equal("/a", inside.create().forPath("/a", bytes("x")), "path");
        Check.equal(bytes("x"), client.getData().forPath(lab.path() + "/a"), "data");
        CuratorFramework other = lab.curator(builder -> builder.namespace(space + "/deeper"));
        other.create().forPath("/b");
        fence(client);
        Check.that(client.checkExists().forPath(lab.path() + "/deeper/b") != null, "nested");
        var events = new Events();
        inside.checkExists().usingWatcher(events).forPath("/c");
        client.create().forPath(lab.path() + "/c");
        events.expect("NodeCreated /c");
    }

    @Case(steady = "each of the requests that are under way must be answered")
    static void backgroundCallsAnswerInOrder(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        BlockingQueue<String> answers = new LinkedBlockingQueue<>();
        client.create().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at);
        client.create().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at);
        client.getData().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at);
        client.getChildren().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at + "/no");
        client.sync().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at);
        client.delete().inBackground((c, event) ->
                answers.add(event.getType() + " " + event.getResultCode())).forPath(at);
        for (String answer : List.of("CREATE 0", "CREATE " + Code.NODEEXISTS.intValue(),
                "GET_DATA 0", "CHILDREN " + Code.NONODE.intValue(), "SYNC 0", "DELETE 0")) {
            Check.equal(answer, Check.next(answers, answer), "answer");
        }
    }

    @Case
    static void aTransactionReportsEachResult(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        List<CuratorTransactionResult> results = client.transaction().forOperations(
                client.transactionOp().create().forPath(at, bytes("state")),
                client.transactionOp().create().forPath(at + "/locks"),
                client.transactionOp().create().withMode(CreateMode.EPHEMERAL)
                        .forPath(at + "/locks/lock"),
                client.transactionOp().check().withVersion(0).forPath(at),
                client.transactionOp().setData().withVersion(0).forPath(at, bytes("next")));
        Check.equal(List.of(OperationType.CREATE, OperationType.CREATE, OperationType.CREATE,
                        OperationType.CHECK, OperationType.SET_DATA),
                results.stream().map(CuratorTransactionResult::getType).toList(), "types");
        Check.equal(at + "/locks/lock", results.get(2).getResultPath(), "path");
        Check.equal(1, results.get(4).getResultStat().getVersion(), "version");

        KeeperException failure = Check.fails(Code.NOTEMPTY, () -> client.transaction()
                .forOperations(
                        client.transactionOp().delete().forPath(at + "/locks/lock"),
                        client.transactionOp().delete().forPath(at),
                        client.transactionOp().delete().forPath(at + "/locks")));
        Check.equal(3, failure.getResults().size(), "results of the failed transaction");
        Check.that(client.checkExists().forPath(at + "/locks/lock") != null, "nothing changed");
    }

    @Case
    static void aProtectedCreateFindsItsNodeAfterALostReply(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = other.make(lab.path());
        String made = withLostReply(link,
                () -> client.create().withProtection().withMode(CreateMode.EPHEMERAL_SEQUENTIAL)
                        .forPath(at + "/node-"),
                () -> other.exists(at, false).getNumChildren() == 1);
        List<String> children = other.getChildren(at, false);
        Check.equal(1, children.size(), "nodes after the retry: " + children);
        Check.equal(made, at + "/" + children.get(0), "path");
        Check.that(children.get(0).matches("_c_[0-9a-f-]{36}-node-0000000000"), "name " + made);
    }

    @Case
    static void idempotentWritesSettleAfterALostReply(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b.connectString(link.address()));
        Client other = lab.connect();
        String at = lab.path();
        withLostReply(link, () -> client.create().idempotent().forPath(at, bytes("1")),
                () -> other.has(at));
        Stat stat = withLostReply(link,
                () -> client.setData().idempotent().withVersion(0).forPath(at, bytes("2")),
                () -> other.exists(at, false).getVersion() == 1);
        Check.equal(1, stat.getVersion(), "version: written exactly once");
        withLostReply(link, () -> client.delete().idempotent().withVersion(1).forPath(at),
                () -> !other.has(at));
    }

    @Case
    static void aGuaranteedDeleteHappensInTheEnd(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b
                .connectString(link.address())
                .connectionTimeoutMs(1_000)
                .retryPolicy(new RetryOneTime(100)));
        Client other = lab.connect();
        String at = other.make(lab.path());
        link.cut();
        Check.fails(Code.CONNECTIONLOSS, () -> client.delete().guaranteed().forPath(at));
        Check.that(other.has(at), "not deleted while cut off");
        link.mend();
        Check.until("the node is deleted later", () -> !other.has(at));
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void aRetryOutlastsAKilledServer(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        lab.kill();
        var call = CompletableFuture.supplyAsync(() -> {
            try {
                return client.create().forPath(lab.path());
            } catch (Exception failure) {
                throw new IllegalStateException(failure);
            }
        });
        lab.restart();
        Check.equal(lab.path(), call.get(Check.WAIT_SECONDS, TimeUnit.SECONDS), "path");
    }

    @Case
    static void creatorAclsAreSetAsFlinkDoes(Lab lab) throws Exception {
        CuratorFramework client = lab.curator(builder -> builder
                .authorization(List.of(new AuthInfo("digest", bytes("flink:secret"))))
                .aclProvider(new CreatorAcls()));
        CuratorFramework stranger = lab.curator();
        String at = lab.path();
        client.create().creatingParentContainersIfNeeded()
                .withMode(CreateMode.EPHEMERAL).forPath(at + "/leader/info", bytes("x"));
        fence(stranger);
        for (String node : List.of(at, at + "/leader", at + "/leader/info")) {
            ACL acl = client.getACL().forPath(node).get(0);
            Check.equal("digest", acl.getId().getScheme(), "scheme at " + node);
            Check.that(acl.getId().getId().startsWith("flink:"), "id at " + node);
            Check.fails(Code.NOAUTH, () -> stranger.getData().forPath(node));
            Check.fails(Code.NOAUTH, () -> stranger.create().forPath(node + "/child"));
        }
        CuratorFramework mate = lab.curator(builder -> builder
                .authorization("digest", bytes("flink:secret")));
        Check.equal(bytes("x"), mate.getData().forPath(at + "/leader/info"), "data");
    }

    @Case
    static void watchersAreAddedAndRemoved(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        String at = lab.path();
        var recursive = new Events();
        client.watchers().add().withMode(AddWatchMode.PERSISTENT_RECURSIVE)
                .usingWatcher(recursive).forPath(at);
        client.create().creatingParentsIfNeeded().forPath(at + "/a");
        recursive.expect("NodeCreated " + at, "NodeCreated " + at + "/a");
        client.watchers().remove(recursive).forPath(at);
        recursive.expect("PersistentWatchRemoved " + at);
        client.setData().forPath(at, bytes("x"));
        fence(client);
        recursive.expectNoMore();
    }

    @Case
    static void aWatcherRemoveClientTakesItsWatchesAway(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        Client other = lab.connect();
        String at = other.make(lab.path());
        fence(client);
        WatcherRemoveCuratorFramework scoped = client.newWatcherRemoveCuratorFramework();
        var removed = new Events();
        var kept = new Events();
        scoped.getData().usingWatcher(removed).forPath(at);
        scoped.getChildren().usingWatcher(removed).forPath(at);
        scoped.checkExists().usingWatcher(removed).forPath(at + "/missing");
        client.getData().usingWatcher(kept).forPath(at);
        scoped.removeWatchers();
        removed.expectInAnyOrder("DataWatchRemoved " + at, "ChildWatchRemoved " + at,
                "DataWatchRemoved " + at + "/missing");
        other.setData(at, bytes("x"), -1);
        other.make(at + "/missing");
        kept.expect("NodeDataChanged " + at);
        fence(client);
        removed.expectNoMore();
    }

    @Case
    static void ttlNodesAreMadeWithTheBuilder(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        client.create().withTtl(500).withMode(CreateMode.PERSISTENT_WITH_TTL).forPath(lab.path());
        Check.until("the TTL node is removed",
                () -> client.checkExists().forPath(lab.path()) == null);
    }

    /** As {@link Client#fence}. */
    static void fence(CuratorFramework client) throws Exception {
        var done = new CompletableFuture<Void>();
        client.sync().inBackground((from, event) -> done.complete(null)).forPath("/");
        done.get(Check.WAIT_SECONDS, TimeUnit.SECONDS);
    }

    /** Flink's provider for {@code acl: creator}: every node belongs to who creates it. */
    private static final class CreatorAcls implements ACLProvider {
        @Override
        public List<ACL> getDefaultAcl() {
            return Ids.CREATOR_ALL_ACL;
        }

        @Override
        public List<ACL> getAclForPath(String path) {
            return Ids.CREATOR_ALL_ACL;
        }
    }

    /** A call that Curator makes. */
    private interface Call<T> {
        T run() throws Exception;
    }

    /** Runs the call so that it takes effect but its reply is lost with the connection. */
    private static <T> T withLostReply(
            Link link, Call<T> call, Callable<Boolean> effect)
            throws Exception {
        link.mute();
        var result = new CompletableFuture<T>();
        var thread = new Thread(() -> {
            try {
                result.complete(call.run());
            } catch (Throwable failure) {
                result.completeExceptionally(failure);
            }
        });
        thread.setDaemon(true);
        thread.start();
        Check.until("the write takes effect", effect);
        Check.equal(false, result.isDone(), "the reply has arrived");
        link.cut();
        link.mend();
        return result.get(Check.WAIT_SECONDS, TimeUnit.SECONDS);
    }
}
