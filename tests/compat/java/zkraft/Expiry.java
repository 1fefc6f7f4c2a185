package zkraft;

import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Watcher.Event.KeeperState;

/** Sessions that end because nobody heard of their client for too long (spec section 8.2). */
final class Expiry {
    private Expiry() {}

    @Case
    static void aSilentSessionExpires(Lab lab) throws Exception {
        Link link = lab.link();
        Client lost = lab.connect(link.address(), Lab.SHORT_SESSION_MS);
        Client other = lab.connect();
        String at = other.make(lab.path());
        String ephemeral = lost.make(at + "/e", CreateMode.EPHEMERAL);
        var events = new Events();
        other.exists(ephemeral, events);
        other.getChildren(at, events);
        long began = System.nanoTime();
        link.cut();
        events.expect("NodeDeleted " + ephemeral, "NodeChildrenChanged " + at);
        long silentMs = (System.nanoTime() - began) / 1_000_000;
        // The last touch was at most one ping before the cut: a third of the timeout (spec 8.3).
        Check.that(silentMs > Lab.SHORT_SESSION_MS / 2, "not expired early: " + silentMs + " ms");
        link.mend();
        lost.session.await(KeeperState.Expired);
        Check.fails(Code.SESSIONEXPIRED, () -> lost.exists(at, false));
    }

    @Case
    static void anExpiredSessionCannotBeRenewed(Lab lab) throws Exception {
        Link link = lab.link();
        Client lost = lab.connect(link.address(), Lab.SHORT_SESSION_MS);
        String at = lost.make(lab.path(), CreateMode.EPHEMERAL);
        Client other = lab.connect();
        link.cut();
        Check.until("the session expires", () -> !other.has(at));
        var events = new Events();
        lab.keep(new Client(lab.address(), Lab.SHORT_SESSION_MS, events,
                lost.getSessionId(), lost.getSessionPasswd()));
        events.await(KeeperState.Expired);
    }
}
