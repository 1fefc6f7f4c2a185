package zkraft;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/**
 * The plain Java client with its session events, and the few calls that every case repeats.
 *
 * <p>The cases expect to read what another of their clients has done. One server gives them that;
 * of several, each may be behind, so that synchronous reads go behind a sync then.
 */
final class Client extends ZooKeeper {
    /** Whether there are several servers. */
    static boolean behindSync;

    /** What the default watcher of this session is told. */
    final Events session;

    Client(String connect, int timeoutMs, Events session) throws IOException {
        super(connect, timeoutMs, session);
        this.session = session;
    }

    /** Takes over the session of another handle. */
    Client(String connect, int timeoutMs, Events session, long id, byte[] password)
            throws IOException {
        super(connect, timeoutMs, session, id, password);
        this.session = session;
    }

    Client(String connect, int timeoutMs, Events session, boolean canBeReadOnly)
            throws IOException {
        super(connect, timeoutMs, session, canBeReadOnly);
        this.session = session;
    }

    Client connected() throws InterruptedException {
        session.await(KeeperState.SyncConnected);
        return this;
    }

    /** Creates an open persistent node with empty data, and returns its path. */
    String make(String path) throws KeeperException, InterruptedException {
        return make(path, CreateMode.PERSISTENT);
    }

    String make(String path, CreateMode mode) throws KeeperException, InterruptedException {
        return create(path, new byte[0], Ids.OPEN_ACL_UNSAFE, mode);
    }

    String text(String path) throws KeeperException, InterruptedException {
        return new String(getData(path, false, null), StandardCharsets.UTF_8);
    }

    boolean has(String path) throws KeeperException, InterruptedException {
        return exists(path, false) != null;
    }

    /**
     * Returns when every event that the server sent before now has been handed to its watcher:
     * callbacks and events pass through one thread of the client, in order.
     */
    void fence() throws InterruptedException {
        var done = new CountDownLatch(1);
        sync("/", (code, path, context) -> done.countDown(), null);
        Check.that(done.await(Check.WAIT_SECONDS, TimeUnit.SECONDS), "sync is answered");
    }

    @Override
    public Stat exists(String path, Watcher watcher)
            throws KeeperException, InterruptedException {
        catchUp();
        return super.exists(path, watcher);
    }

    @Override
    public byte[] getData(String path, Watcher watcher, Stat stat)
            throws KeeperException, InterruptedException {
        catchUp();
        return super.getData(path, watcher, stat);
    }

    @Override
    public List<String> getChildren(String path, Watcher watcher)
            throws KeeperException, InterruptedException {
        catchUp();
        return super.getChildren(path, watcher);
    }

    @Override
    public List<String> getChildren(String path, Watcher watcher, Stat stat)
            throws KeeperException, InterruptedException {
        catchUp();
        return super.getChildren(path, watcher, stat);
    }

    @Override
    public List<ACL> getACL(String path, Stat stat) throws KeeperException, InterruptedException {
        catchUp();
        return super.getACL(path, stat);
    }

    private void catchUp() throws InterruptedException {
        if (behindSync) {
            // If the sync fails, so will the read.
            fence();
        }
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
