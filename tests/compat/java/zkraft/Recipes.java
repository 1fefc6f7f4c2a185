package zkraft;

import static zkraft.Client.bytes;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.atomic.PromotedToLock;
import org.apache.curator.framework.recipes.barriers.DistributedBarrier;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.nodes.GroupMember;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.framework.recipes.queue.DistributedPriorityQueue;
import org.apache.curator.framework.recipes.queue.DistributedQueue;
import org.apache.curator.framework.recipes.queue.QueueBuilder;
import org.apache.curator.framework.recipes.queue.QueueConsumer;
import org.apache.curator.framework.recipes.queue.QueueSerializer;
import org.apache.curator.framework.recipes.queue.SimpleDistributedQueue;
import org.apache.curator.framework.recipes.shared.SharedCount;
import org.apache.curator.framework.recipes.shared.SharedCountListener;
import org.apache.curator.framework.recipes.shared.SharedCountReader;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.RetryNTimes;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.data.Stat;

/** Curator's barriers, queues, counters and self-restoring nodes. */
final class Recipes {
    private Recipes() {}

    @Case
    static void aBarrierHoldsUntilItIsRemoved(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        var setter = new DistributedBarrier(lab.curator(), lab.path());
        var waiter = new DistributedBarrier(client, lab.path());
        setter.setBarrier();
        Framework.fence(client);
        Check.equal(false, waiter.waitOnBarrier(300, TimeUnit.MILLISECONDS), "passed a barrier");
        Future<Boolean> passes = lab.inBackground(
                () -> waiter.waitOnBarrier(Check.WAIT_SECONDS, TimeUnit.SECONDS));
        setter.removeBarrier();
        Check.equal(true, Check.get(passes), "passed the removed barrier");
    }

    @Case
    static void aDoubleBarrierGathersAllTwice(Lab lab) throws Exception {
        int members = 3;
        var entered = new CountDownLatch(members);
        List<Future<Boolean>> all = new ArrayList<>();
        for (int i = 0; i < members; i++) {
            var barrier = new DistributedDoubleBarrier(lab.curator(), lab.path(), members);
            all.add(lab.inBackground(() -> {
                Check.that(barrier.enter(Check.WAIT_SECONDS, TimeUnit.SECONDS), "entered");
                entered.countDown();
                return barrier.leave(Check.WAIT_SECONDS, TimeUnit.SECONDS)
                        && entered.getCount() == 0;
            }));
        }
        // One whose request is lost does not count, and says so: before the others are judged.
        List<Boolean> left = new ArrayList<>();
        for (Future<Boolean> member : all) {
            left.add(Check.get(member));
        }
        Check.equal(List.of(true, true, true), left, "left after all had entered");
    }

    @Case(steady = "an item whose answer is lost is put twice")
    static void aQueueDeliversInOrder(Lab lab) throws Exception {
        var consumer = new Consumer();
        DistributedQueue<String> reader = lab.keep(QueueBuilder
                .builder(lab.curator(), consumer, new Text(), lab.path() + "/queue")
                .lockPath(lab.path() + "/locks")
                .buildQueue());
        reader.start();
        DistributedQueue<String> writer = lab.keep(QueueBuilder
                .<String>builder(lab.curator(), null, new Text(), lab.path() + "/queue")
                .buildQueue());
        writer.start();
        for (int i = 0; i < 20; i++) {
            writer.put("item " + i);
        }
        for (int i = 0; i < 20; i++) {
            Check.equal("item " + i, Check.next(consumer.items, "item " + i), "item");
        }
    }

    @Case(steady = "an item whose answer is lost is put twice")
    static void aPriorityQueueDeliversTheLowestFirst(Lab lab) throws Exception {
        DistributedPriorityQueue<String> writer = lab.keep(QueueBuilder
                .<String>builder(lab.curator(), null, new Text(), lab.path())
                .buildPriorityQueue(0));
        writer.start();
        for (int priority : List.of(5, 1, 3, 2, 4)) {
            writer.put("p" + priority, priority);
        }
        Check.that(writer.flushPuts(Check.WAIT_SECONDS, TimeUnit.SECONDS), "puts are done");
        var consumer = new Consumer();
        DistributedPriorityQueue<String> reader = lab.keep(QueueBuilder
                .builder(lab.curator(), consumer, new Text(), lab.path())
                .buildPriorityQueue(0));
        reader.start();
        for (int priority = 1; priority <= 5; priority++) {
            Check.equal("p" + priority, Check.next(consumer.items, "p" + priority), "item");
        }
    }

    @Case(steady = "an item whose answer is lost is put twice")
    static void aSimpleQueueIsTakenFromByOne(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        var one = new SimpleDistributedQueue(lab.curator(), lab.path());
        var two = new SimpleDistributedQueue(client, lab.path());
        Check.equal(null, one.poll(), "head of an empty queue");
        Future<byte[]> waiting = lab.inBackground(two::take);
        one.offer(bytes("first"));
        Check.equal(bytes("first"), Check.get(waiting), "taken item");
        one.offer(bytes("second"));
        one.offer(bytes("third"));
        Framework.fence(client);
        Check.equal(bytes("second"), two.peek(), "head");
        Check.equal(bytes("second"), one.remove(), "removed item");
        Check.equal(bytes("third"), two.poll(Check.WAIT_SECONDS, TimeUnit.SECONDS), "third");
    }

    @Case(steady = "a count tells its value again when it is connected again")
    static void aSharedCountIsSetByVersion(Lab lab) throws Exception {
        var mine = lab.keep(new SharedCount(lab.curator(), lab.path(), 7));
        var theirs = lab.keep(new SharedCount(lab.curator(), lab.path(), 7));
        BlockingQueue<Integer> heard = new LinkedBlockingQueue<>();
        theirs.addListener(new SharedCountListener() {
            @Override
            public void countHasChanged(SharedCountReader count, int value) {
                heard.add(value);
            }

            @Override
            public void stateChanged(CuratorFramework client, ConnectionState state) {
                // Connection states have cases of their own.
            }
        });
        mine.start();
        theirs.start();
        Check.equal(7, theirs.getCount(), "initial value");
        var stale = theirs.getVersionedValue();
        Check.that(mine.trySetCount(mine.getVersionedValue(), 8), "first set");
        // The client's first CONNECTED may reach the count's own listener only after start; it then
        // tells the value that it began with.
        int told = Check.next(heard, "8");
        while (told == 7) {
            told = Check.next(heard, "8");
        }
        Check.equal(8, told, "value that the listener heard");
        Check.equal(false, theirs.trySetCount(stale, 9), "set with a stale version");
        Check.that(theirs.trySetCount(theirs.getVersionedValue(), 9), "second set");
        Check.until("the first sees it", () -> mine.getCount() == 9);
    }

    @Case(steady = "an increment whose answer is lost is done twice")
    static void anAtomicLongLosesNoIncrement(Lab lab) throws Exception {
        int rounds = 20;
        int workers = 4;
        var start = new CyclicBarrier(workers);
        List<Future<Boolean>> running = new ArrayList<>();
        for (int i = 0; i < workers; i++) {
            var counter = new DistributedAtomicLong(lab.curator(), lab.path() + "/counter",
                    new RetryNTimes(3, 1),
                    PromotedToLock.builder().lockPath(lab.path() + "/lock").build());
            running.add(lab.inBackground(() -> {
                start.await();
                for (int succeeded = 0; succeeded < rounds; ) {
                    // It may give up under contention, and then it has changed nothing.
                    succeeded += counter.increment().succeeded() ? 1 : 0;
                }
                return true;
            }));
        }
        for (Future<Boolean> worker : running) {
            Check.get(worker);
        }
        var counter = new DistributedAtomicLong(
                lab.curator(), lab.path() + "/counter", new RetryNTimes(3, 1));
        Check.equal((long) rounds * workers, counter.get().postValue(), "sum");
        Check.equal(false, counter.compareAndSet(0L, 1L).succeeded(), "compareAndSet from 0");
    }

    @Case
    static void aPersistentNodeComesBack(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b
                .connectString(link.address()).sessionTimeoutMs(Lab.SHORT_SESSION_MS));
        Client other = lab.connect();
        var node = lab.keep(new PersistentNode(
                client, CreateMode.EPHEMERAL, false, lab.path(), bytes("here")));
        node.start();
        Check.that(node.waitForInitialCreate(Check.WAIT_SECONDS, TimeUnit.SECONDS), "created");
        other.delete(lab.path(), -1);
        Check.until("it is back after a deletion", () -> other.has(lab.path()));
        long owner = other.exists(lab.path(), false).getEphemeralOwner();
        link.cut();
        Check.until("it goes with its session", () -> !other.has(lab.path()));
        link.mend();
        Check.until("it is back with a new session", () -> other.has(lab.path()));
        Stat stat = other.exists(lab.path(), false);
        Check.that(stat.getEphemeralOwner() != owner, "it has a new owner");
        Check.equal("here", other.text(lab.path()), "data");
        node.close();
        // A deletion whose answer is lost is repeated in the background.
        Check.until("it goes when it is closed", () -> !other.has(lab.path()));
    }

    @Case
    static void aPersistentTtlNodeLivesWhileItIsTouched(Lab lab) throws Exception {
        Client other = lab.connect();
        String at = lab.path();
        long ttlMs = 1_500;
        var node = lab.keep(new PersistentTtlNode(lab.curator(), at, ttlMs, bytes("x")));
        node.start();
        Check.that(node.waitForInitialCreate(Check.WAIT_SECONDS, TimeUnit.SECONDS), "created");
        String touched = at + "/" + PersistentTtlNode.DEFAULT_CHILD_NODE_NAME;
        Check.until("it is touched past its TTL", () -> {
            Stat stat = other.exists(touched, false);
            return stat != null && stat.getMtime() - stat.getCtime() > ttlMs;
        });
        node.close();
        Check.until("it goes when nobody touches it", () -> !other.has(at));
    }

    @Case
    static void groupMembersSeeEachOther(Lab lab) throws Exception {
        var one = lab.keep(new GroupMember(lab.curator(), lab.path(), "one", bytes("1")));
        var two = lab.keep(new GroupMember(lab.curator(), lab.path(), "two", bytes("2")));
        one.start();
        two.start();
        Check.until("both see both", () -> one.getCurrentMembers().keySet().equals(
                        Set.of("one", "two"))
                && two.getCurrentMembers().keySet().equals(Set.of("one", "two")));
        one.setThisData(bytes("changed"));
        Check.until("the new payload is seen", () -> "changed".equals(new String(
                two.getCurrentMembers().get("one"), StandardCharsets.UTF_8)));
        one.close();
        Check.until("one has left",
                () -> two.getCurrentMembers().keySet().equals(Set.of("two")));
    }

    /** Keeps what a queue hands it. */
    private static final class Consumer implements QueueConsumer<String> {
        final BlockingQueue<String> items = new LinkedBlockingQueue<>();

        @Override
        public void consumeMessage(String item) {
            items.add(item);
        }

        @Override
        public void stateChanged(CuratorFramework client, ConnectionState state) {
            // Connection states have cases of their own.
        }
    }

    private static final class Text implements QueueSerializer<String> {
        @Override
        public byte[] serialize(String item) {
            return bytes(item);
        }

        @Override
        public String deserialize(byte[] data) {
            return new String(data, StandardCharsets.UTF_8);
        }
    }
}
