package zkraft;

import static zkraft.Client.bytes;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.locks.InterProcessLock;
import org.apache.curator.framework.recipes.locks.InterProcessMultiLock;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreMutex;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;
import org.apache.curator.framework.recipes.locks.Revoker;
import org.apache.curator.framework.recipes.shared.SharedCount;

/** Curator's lock recipes between two clients. */
final class Locks {
    /** How long an acquisition that must not succeed is tried. */
    private static final long REFUSAL_MS = 300;

    private Locks() {}

    @Case
    static void aMutexIsReentrantAndExclusive(Lab lab) throws Exception {
        CuratorFramework one = lab.curator();
        CuratorFramework two = lab.curator();
        var mine = new InterProcessMutex(one, lab.path());
        var theirs = new InterProcessMutex(two, lab.path());
        mine.acquire();
        mine.acquire();
        Check.equal(false, tries(theirs), "second client acquired a held mutex");
        Framework.fence(one);
        Check.equal(1, one.getChildren().forPath(lab.path()).size(), "nodes after it gave up");
        mine.release();
        Check.equal(false, tries(theirs), "second client acquired after one of two releases");
        Future<Boolean> waiting = lab.inBackground(() -> acquires(theirs));
        Check.until("the second waits", () -> one.getChildren().forPath(lab.path()).size() == 2);
        mine.release();
        Check.equal(true, Check.get(waiting), "second client acquired");
    }

    @Case
    static void aMutexOfAnExpiredSessionIsFreed(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework lost = lab.curator(b -> b
                .connectString(link.address()).sessionTimeoutMs(Lab.SHORT_SESSION_MS));
        new InterProcessMutex(lost, lab.path()).acquire();
        var waiting = new InterProcessMutex(lab.curator(), lab.path());
        Check.equal(false, tries(waiting), "acquired a held mutex");
        link.cut();
        Check.equal(true, acquires(waiting), "acquired after the expiry");
    }

    @Case
    static void contendersNeverOverlap(Lab lab) throws Exception {
        Client observer = lab.connect();
        String counter = observer.make(lab.path());
        observer.setData(counter, bytes("0"), -1);
        int rounds = 15;
        List<Future<Boolean>> workers = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            CuratorFramework client = lab.curator();
            workers.add(lab.inBackground(() -> {
                var mutex = new InterProcessMutex(client, lab.path() + "-lock");
                for (int round = 0; round < rounds; round++) {
                    mutex.acquire();
                    addOneUnguarded(client, counter);
                    mutex.release();
                }
                return true;
            }));
        }
        for (Future<Boolean> worker : workers) {
            Check.get(worker);
        }
        Check.equal("" + rounds * 4, observer.text(counter), "sum of guarded increments");
    }

    @Case
    static void aMutexCanBeRevoked(Lab lab) throws Exception {
        CuratorFramework one = lab.curator();
        var mutex = new InterProcessMutex(one, lab.path());
        var asked = new AtomicBoolean();
        mutex.makeRevocable(lock -> asked.set(true));
        mutex.acquire();
        Collection<String> nodes = mutex.getParticipantNodes();
        Check.equal(1, nodes.size(), "participants");
        Revoker.attemptRevoke(lab.curator(), nodes.iterator().next());
        Check.until("the holder is asked to release", asked::get);
        mutex.release();
    }

    @Case
    static void readersShareAndWritersDoNot(Lab lab) throws Exception {
        var one = new InterProcessReadWriteLock(lab.curator(), lab.path());
        var two = new InterProcessReadWriteLock(lab.curator(), lab.path());
        one.readLock().acquire();
        Check.equal(true, acquires(two.readLock()), "second reader");
        Check.equal(false, tries(two.writeLock()), "writer beside readers");
        two.readLock().release();
        one.readLock().release();
        Check.equal(true, acquires(two.writeLock()), "writer alone");
        Check.equal(true, acquires(two.readLock()), "the writer reads too");
        Check.equal(false, tries(one.readLock()), "reader beside a writer");
        two.writeLock().release();
        Check.equal(true, acquires(one.readLock()), "reader beside a downgraded writer");
    }

    @Case
    static void aSemaphoreCountsItsLeases(Lab lab) throws Exception {
        CuratorFramework one = lab.curator();
        CuratorFramework two = lab.curator();
        var mine = new InterProcessSemaphoreV2(one, lab.path(), 3);
        var theirs = new InterProcessSemaphoreV2(two, lab.path(), 3);
        Collection<Lease> held = mine.acquire(2);
        Lease third = theirs.acquire();
        Check.equal(null, theirs.acquire(REFUSAL_MS, TimeUnit.MILLISECONDS), "a fourth lease");
        Future<Lease> waiting = lab.inBackground(
                () -> theirs.acquire(Check.WAIT_SECONDS, TimeUnit.SECONDS));
        mine.returnAll(held);
        Check.that(Check.get(waiting) != null, "a returned lease is passed on");
        theirs.returnLease(third);
    }

    @Case
    static void aSharedCountCanSizeASemaphore(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        var size = lab.keep(new SharedCount(client, lab.path() + "/size", 1));
        size.start();
        var semaphore = new InterProcessSemaphoreV2(client, lab.path() + "/semaphore", size);
        semaphore.acquire();
        Check.equal(null,
                semaphore.acquire(REFUSAL_MS, TimeUnit.MILLISECONDS), "a second lease of one");
        Future<Lease> waiting = lab.inBackground(
                () -> semaphore.acquire(Check.WAIT_SECONDS, TimeUnit.SECONDS));
        size.setCount(2);
        Check.that(Check.get(waiting) != null, "the larger semaphore has a second lease");
    }

    @Case
    static void aSemaphoreMutexIsExclusive(Lab lab) throws Exception {
        var mine = new InterProcessSemaphoreMutex(lab.curator(), lab.path());
        var theirs = new InterProcessSemaphoreMutex(lab.curator(), lab.path());
        mine.acquire();
        Check.equal(false, tries(theirs), "second client acquired a held mutex");
        mine.release();
        Check.equal(true, acquires(theirs), "second client acquired");
    }

    @Case
    static void aMultiLockTakesAllOrNone(Lab lab) throws Exception {
        List<String> paths = List.of(lab.path() + "/a", lab.path() + "/b");
        var both = new InterProcessMultiLock(lab.curator(), paths);
        var second = new InterProcessMutex(lab.curator(), paths.get(1));
        second.acquire();
        Check.equal(false, tries(both), "acquired both while one is held");
        var first = new InterProcessMutex(lab.curator(), paths.get(0));
        Check.equal(true, acquires(first), "the first was given back");
        first.release();
        second.release();
        Check.equal(true, acquires(both), "acquired both");
        Check.equal(false, tries(second), "acquired one of two held locks");
        both.release();
    }

    private static boolean tries(InterProcessLock lock) throws Exception {
        return lock.acquire(REFUSAL_MS, TimeUnit.MILLISECONDS);
    }

    private static boolean acquires(InterProcessLock lock) throws Exception {
        return lock.acquire(Check.WAIT_SECONDS, TimeUnit.SECONDS);
    }

    /** Reads, then writes without a version: correct only if nobody else does so meanwhile. */
    private static void addOneUnguarded(CuratorFramework client, String path) throws Exception {
        String text = new String(client.getData().forPath(path), StandardCharsets.UTF_8);
        client.setData().forPath(path, bytes("" + (Integer.parseInt(text) + 1)));
    }
}
