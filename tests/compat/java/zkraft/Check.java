package zkraft;

import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;

/** Assertions, and bounded waiting. Every wait polls; none assumes how fast a server is. */
final class Check {
    /** The bound of every wait: far above what a busy machine needs, far below {@link Suite}'s. */
    static final long WAIT_SECONDS = 40;

    private static final long POLL_MS = 20;

    /** A step of a case. */
    interface Step {
        void run() throws Exception;
    }

    private Check() {}

    static void that(boolean holds, String claim) {
        if (!holds) {
            throw new AssertionError("not so: " + claim);
        }
    }

    static void equal(Object expected, Object actual, String what) {
        if (!Objects.deepEquals(expected, actual)) {
            throw new AssertionError(what + ": expected " + expected + ", got " + actual);
        }
    }

    /** The step must fail with exactly this server error. */
    static KeeperException fails(Code code, Step step) throws Exception {
        try {
            step.run();
        } catch (KeeperException error) {
            if (error.code() != code) {
                throw new AssertionError(
                        "error code: expected " + code + ", got " + error.code(), error);
            }
            return error;
        }
        throw new AssertionError("expected " + code + ", but it succeeded");
    }

    /** Waits until the condition holds. */
    static void until(String claim, Callable<Boolean> condition) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(WAIT_SECONDS);
        while (!condition.call()) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("not within " + WAIT_SECONDS + " s: " + claim);
            }
            Thread.sleep(POLL_MS);
        }
    }

    /** The next element of the queue. */
    static <T> T next(BlockingQueue<T> queue, String what) throws InterruptedException {
        T element = queue.poll(WAIT_SECONDS, TimeUnit.SECONDS);
        if (element == null) {
            throw new AssertionError("not within " + WAIT_SECONDS + " s: " + what);
        }
        return element;
    }

    static <T> T get(Future<T> future) throws Exception {
        return future.get(WAIT_SECONDS, TimeUnit.SECONDS);
    }

    /** Repeats a request on connection loss until it is answered. Only for idempotent requests. */
    static <T> T answered(Callable<T> request) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(WAIT_SECONDS);
        while (true) {
            try {
                return request.call();
            } catch (KeeperException.ConnectionLossException lost) {
                if (System.nanoTime() > deadline) {
                    throw lost;
                }
                Thread.sleep(POLL_MS);
            }
        }
    }
}
