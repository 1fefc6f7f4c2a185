package zkraft;

import static zkraft.Client.bytes;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.data.Stat;

/** Sessions that live on: negotiation, renewal, pings, close, a killed server (spec 2 and 8). */
final class Sessions {
    private Sessions() {}

    @Case
    static void theTimeoutIsNegotiated(Lab lab) throws Exception {
        Client usual = lab.connect();
        Check.that(usual.getSessionId() != 0, "session id is not 0");
        Check.equal(16, usual.getSessionPasswd().length, "password length");
        Check.equal(Lab.LONG_SESSION_MS, usual.getSessionTimeout(), "timeout within the bounds");
        // Not far below: the client gives each attempt to connect no longer than what it asks for.
        Client brief = lab.connect(lab.address(), Lab.MIN_SESSION_MS - 100);
        Check.equal(Lab.MIN_SESSION_MS, brief.getSessionTimeout(), "timeout below the bounds");
        Client endless = lab.connect(lab.address(), 1_000_000);
        Check.equal(Lab.MAX_SESSION_MS, endless.getSessionTimeout(), "timeout above the bounds");
    }

    @Case(steady = "the connection must not break")
    static void pingsKeepAnIdleSession(Lab lab) throws Exception {
        Client idle = lab.connect(lab.address(), Lab.SHORT_SESSION_MS);
        String at = idle.make(lab.path(), CreateMode.EPHEMERAL);
        Client other = lab.connect();
        var events = new Events();
        other.exists(at, events);
        Thread.sleep(3L * Lab.SHORT_SESSION_MS / 2);
        other.fence();
        events.expectNoMore();
        Check.that(other.has(at), "the ephemeral is there");
        Check.equal(false, idle.session.saw(KeeperState.Disconnected), "it was disconnected");
    }

    @Case
    static void closeRemovesEphemeralsInOneStep(Lab lab) throws Exception {
        Client owner = lab.connect();
        Client other = lab.connect();
        String at = other.make(lab.path());
        for (int i = 0; i < 5; i++) {
            owner.make(at + "/" + i, CreateMode.EPHEMERAL);
        }
        String stays = owner.make(at + "/stays");
        var events = new Events();
        other.getChildren(at, events);
        owner.close();
        events.expect("NodeChildrenChanged " + at);
        var stat = new Stat();
        Check.equal(List.of("stays"), other.getChildren(at, events, stat), "children");
        Check.that(other.has(stays), "a persistent node stays");
        other.fence();
        events.expectNoMore();
        Check.equal(11, stat.getCversion(), "six creations and five deletions");
    }

    @Case
    static void aSessionIsTakenOverWithIdAndPassword(Lab lab) throws Exception {
        Link link = lab.link();
        Client first = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        String at = first.make(lab.path(), CreateMode.EPHEMERAL);
        link.cut();
        first.session.await(KeeperState.Disconnected);
        Client second = lab.keep(new Client(lab.address(), Lab.LONG_SESSION_MS, new Events(),
                first.getSessionId(), first.getSessionPasswd())).connected();
        Check.equal(first.getSessionId(), second.getSessionId(), "session id");
        Stat stat = second.exists(at, false);
        Check.equal(second.getSessionId(), stat.getEphemeralOwner(), "owner");
        second.close();
        Client other = lab.connect();
        // At once, unless a server that is killed takes the request to close with it.
        Check.until("it goes with its session", () -> !other.has(at));
    }

    @Case
    static void aRenewalNegotiatesAgain(Lab lab) throws Exception {
        Link link = lab.link();
        Client first = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        link.cut();
        Client second = lab.keep(new Client(lab.address(), 5_000, new Events(),
                first.getSessionId(), first.getSessionPasswd())).connected();
        Check.equal(5_000, second.getSessionTimeout(), "timeout of the renewed session");
    }

    @Case
    static void aWrongPasswordLooksLikeExpiry(Lab lab) throws Exception {
        Client owner = lab.connect();
        String at = owner.make(lab.path(), CreateMode.EPHEMERAL);
        var events = new Events();
        lab.keep(new Client(lab.address(), Lab.LONG_SESSION_MS, events,
                owner.getSessionId(), new byte[16]));
        events.await(KeeperState.Expired);
        // The rightful handle may lose its connection over this (spec 2.2), never its session.
        Stat stat = Check.answered(() -> owner.exists(at, false));
        Check.equal(owner.getSessionId(), stat.getEphemeralOwner(), "owner");
    }

    @Case
    static void anUnknownSessionIsExpired(Lab lab) throws Exception {
        var events = new Events();
        lab.keep(new Client(lab.address(), Lab.LONG_SESSION_MS, events, 0x77L, new byte[16]));
        events.await(KeeperState.Expired);
    }

    @Case
    static void aBrokenConnectionKeepsTheSession(Lab lab) throws Exception {
        Link link = lab.link();
        Client client = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        long id = client.getSessionId();
        String at = client.make(lab.path(), CreateMode.EPHEMERAL);
        for (int i = 0; i < 3; i++) {
            link.cut();
            client.session.await(KeeperState.Disconnected);
            link.mend();
            client.connected();
            Check.equal(id, client.getSessionId(), "session id");
            Check.equal(id, client.exists(at, false).getEphemeralOwner(), "owner");
        }
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void aKilledServerForgetsNothingAcknowledged(Lab lab) throws Exception {
        Client client = lab.connect();
        Link link = lab.link();
        Client lost = lab.connect(link.address(), Lab.SHORT_SESSION_MS);
        String at = client.make(lab.path());
        String ephemeral = client.make(at + "/ephemeral", CreateMode.EPHEMERAL);
        String orphan = lost.make(at + "/orphan", CreateMode.EPHEMERAL);
        String data = client.create(
                at + "/data", bytes("x"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        Stat before = client.setData(data, bytes("y"), 0);
        Stat owned = client.exists(ephemeral, false);
        int acknowledged = writeUntilKilled(lab, client, at);
        link.cut();
        lab.restart();
        client.connected();

        Check.equal(before, client.exists(data, false), "stat");
        Check.equal("y", client.text(data), "data");
        Check.equal(owned, client.exists(ephemeral, false), "stat of the ephemeral");
        List<String> names = client.getChildren(at, false);
        for (int i = 0; i < acknowledged; i++) {
            Check.that(names.contains("w" + i), "acknowledged write " + i + " is there");
        }
        Stat next = client.setData(data, bytes("z"), 1);
        Check.that(next.getMzxid() > before.getMzxid(), "zxids go on upwards");
        // Three nodes beside those that were written, of which one may be unacknowledged.
        String sequential = client.make(at + "/s-", CreateMode.PERSISTENT_SEQUENTIAL);
        int number = Integer.parseInt(sequential.substring((at + "/s-").length()));
        Check.equal(names.stream().filter(name -> name.startsWith("w")).count() + 3,
                (long) number, "sequence number");
        Check.until("the session that never came back expires", () -> !client.has(orphan));
        Check.that(client.has(ephemeral), "the ephemeral of the living session is there");
    }

    /** Creates w0, w1 … and has the server killed meanwhile; returns how many were confirmed. */
    private static int writeUntilKilled(Lab lab, Client client, String at) throws Exception {
        List<Throwable> broken = new ArrayList<>();
        var killer = new Thread(() -> {
            try {
                TimeUnit.MILLISECONDS.sleep(300);
                lab.kill();
            } catch (Exception failure) {
                broken.add(failure);
            }
        });
        killer.start();
        int confirmed = 0;
        try {
            while (true) {
                client.make(at + "/w" + confirmed);
                confirmed++;
            }
        } catch (KeeperException.ConnectionLossException killed) {
            killer.join();
        }
        Check.equal(List.of(), broken, "failures of the kill");
        Check.that(confirmed > 0, "something was written before the kill");
        client.session.await(KeeperState.Disconnected);
        return confirmed;
    }
}
