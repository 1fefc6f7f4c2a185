package zkraft;

import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderLatchListener;
import org.apache.curator.framework.recipes.leader.LeaderSelector;
import org.apache.curator.framework.recipes.leader.LeaderSelectorListenerAdapter;
import org.apache.zookeeper.data.Stat;

/** Curator's leader election recipes; LeaderLatch is what Flink elects its leaders with. */
final class Elections {
    private Elections() {}

    @Case(steady = "a latch gives its leadership up when its connection breaks")
    static void aLatchIsHandedOverOnClose(Lab lab) throws Exception {
        var first = new Contender(lab, lab.address(), "first");
        first.expect("first leads");
        var second = new Contender(lab, lab.address(), "second");
        Check.until("both take part", () -> second.latch.getParticipants().size() == 2);
        Check.equal("first", second.latch.getLeader().getId(), "leader");
        Check.equal(false, second.latch.hasLeadership(), "second leads");
        first.latch.close(LeaderLatch.CloseMode.NOTIFY_LEADER);
        first.expect("first follows");
        second.expect("second leads");
        Check.equal("second", second.latch.getLeader().getId(), "leader");
    }

    @Case(steady = "a latch gives its leadership up when its connection breaks")
    static void aLatchIsHandedOverWhenItsHolderIsCutOff(Lab lab) throws Exception {
        Link link = lab.link();
        var first = new Contender(lab, link.address(), "first");
        first.expect("first leads");
        var second = new Contender(lab, lab.address(), "second");
        Check.until("both take part", () -> second.latch.getParticipants().size() == 2);
        link.cut();
        // Suspension ends leadership before the session does, so the two never lead together.
        first.expect("first follows");
        second.expect("second leads");
        link.mend();
        Check.until("the first is back in line", () -> second.latch.getParticipants().size() == 2);
        Check.equal(false, first.latch.hasLeadership(), "first leads");
        second.latch.close();
        first.expect("first leads");
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void aLatchIsWonAgainAfterAKilledServer(Lab lab) throws Exception {
        var first = new Contender(lab, lab.address(), "first");
        first.expect("first leads");
        var second = new Contender(lab, lab.address(), "second");
        Check.until("both take part", () -> second.latch.getParticipants().size() == 2);
        lab.kill();
        first.expect("first follows");
        lab.restart();
        Check.until("one leads", () -> first.latch.hasLeadership() ^ second.latch.hasLeadership());
        Check.until("both take part", () -> second.latch.getParticipants().size() == 2);
    }

    @Case(steady = "a latch gives its leadership up when its connection breaks")
    static void aLeaderOwnsItsLatchNode(Lab lab) throws Exception {
        var only = new Contender(lab, lab.address(), "only");
        only.expect("only leads");
        String node = lab.path() + "/" + only.client.getChildren().forPath(lab.path()).get(0);
        Check.that(node.matches(".*/_c_[0-9a-f-]{36}-latch-\\d{10}"), "name " + node);
        Stat stat = only.client.checkExists().forPath(node);
        Check.equal(only.client.getZookeeperClient().getZooKeeper().getSessionId(),
                stat.getEphemeralOwner(), "owner");
    }

    @Case
    static void selectorsTakeTurns(Lab lab) throws Exception {
        Set<String> led = ConcurrentHashMap.newKeySet();
        var leading = new AtomicInteger();
        var overlaps = new AtomicInteger();
        for (String name : List.of("a", "b", "c")) {
            var selector = lab.keep(new LeaderSelector(lab.curator(), lab.path(),
                    new LeaderSelectorListenerAdapter() {
                        @Override
                        public void takeLeadership(CuratorFramework client) throws Exception {
                            overlaps.addAndGet(leading.getAndIncrement());
                            led.add(name);
                            try {
                                Thread.sleep(50);
                            } finally {
                                leading.decrementAndGet();
                            }
                        }
                    }));
            selector.autoRequeue();
            selector.start();
        }
        Check.until("each has led", () -> led.size() == 3);
        Check.equal(0, overlaps.get(), "times that two led at once");
    }

    /** One client with a latch, and what its listener was told. */
    private static final class Contender {
        final CuratorFramework client;
        final LeaderLatch latch;
        private final BlockingQueue<String> told = new LinkedBlockingQueue<>();

        Contender(Lab lab, String address, String id) throws Exception {
            client = lab.curator(builder -> builder
                    .connectString(address)
                    .sessionTimeoutMs(address.equals(lab.address())
                            ? Lab.LONG_SESSION_MS : Lab.SHORT_SESSION_MS));
            latch = new LeaderLatch(client, lab.path(), id);
            latch.addListener(new LeaderLatchListener() {
                @Override
                public void isLeader() {
                    told.add(id + " leads");
                }

                @Override
                public void notLeader() {
                    told.add(id + " follows");
                }
            });
            latch.start();
            lab.keep(() -> {
                if (latch.getState() == LeaderLatch.State.STARTED) {
                    latch.close();
                }
            });
        }

        void expect(String... events) throws InterruptedException {
            for (String event : events) {
                Check.equal(event, Check.next(told, event), "leadership");
            }
        }
    }
}
