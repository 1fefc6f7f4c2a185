package zkraft;

import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.zookeeper.CreateMode;

/** What Curator's state listeners are told when the server goes away (spec section 15.2). */
final class ConnectionStates {
    private ConnectionStates() {}

    @Case(steady = Case.ENDS_SERVERS)
    static void aRestartWithinTheTimeoutIsOnlyASuspension(Lab lab) throws Exception {
        CuratorFramework client = lab.curator();
        BlockingQueue<ConnectionState> states = listen(client);
        client.create().withMode(CreateMode.EPHEMERAL).forPath(lab.path());
        long id = client.getZookeeperClient().getZooKeeper().getSessionId();
        lab.kill();
        Check.equal(ConnectionState.SUSPENDED, Check.next(states, "SUSPENDED"), "state");
        lab.restart();
        Check.equal(ConnectionState.RECONNECTED, Check.next(states, "RECONNECTED"), "state");
        Check.equal(id, client.getZookeeperClient().getZooKeeper().getSessionId(), "session");
        Check.equal(id, client.checkExists().forPath(lab.path()).getEphemeralOwner(), "owner");
        Check.equal(List.of(), List.copyOf(states), "further states");
    }

    @Case(steady = Case.ENDS_SERVERS)
    static void aLongAbsenceLosesTheSession(Lab lab) throws Exception {
        CuratorFramework client = lab.curator(b -> b.sessionTimeoutMs(Lab.SHORT_SESSION_MS));
        BlockingQueue<ConnectionState> states = listen(client);
        long id = client.getZookeeperClient().getZooKeeper().getSessionId();
        lab.kill();
        Check.equal(ConnectionState.SUSPENDED, Check.next(states, "SUSPENDED"), "state");
        Check.equal(ConnectionState.LOST, Check.next(states, "LOST"), "state");
        lab.restart();
        Check.equal(ConnectionState.RECONNECTED, Check.next(states, "RECONNECTED"), "state");
        long next = client.getZookeeperClient().getZooKeeper().getSessionId();
        Check.that(next != id, "it is a new session");
        client.create().forPath(lab.path());
    }

    @Case(steady = "it tells how often the connection breaks")
    static void anExpiredSessionIsLostAndReplaced(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b
                .connectString(link.address()).sessionTimeoutMs(Lab.SHORT_SESSION_MS));
        BlockingQueue<ConnectionState> states = listen(client);
        client.create().withMode(CreateMode.EPHEMERAL).forPath(lab.path());
        Client other = lab.connect();
        link.cut();
        Check.equal(ConnectionState.SUSPENDED, Check.next(states, "SUSPENDED"), "state");
        Check.equal(ConnectionState.LOST, Check.next(states, "LOST"), "state");
        Check.until("the ephemeral is removed", () -> !other.has(lab.path()));
        link.mend();
        Check.equal(ConnectionState.RECONNECTED, Check.next(states, "RECONNECTED"), "state");
        client.create().withMode(CreateMode.EPHEMERAL).forPath(lab.path());
    }

    @Case(steady = "it tells how often the connection breaks")
    static void theEnsembleTrackerKeepsTheConnectString(Lab lab) throws Exception {
        Link link = lab.link();
        CuratorFramework client = lab.curator(b -> b
                .connectString(link.address()).ensembleTracker(true));
        BlockingQueue<ConnectionState> states = listen(client);
        String asked = client.getZookeeperClient().getCurrentConnectionString();
        Check.equal(link.address(), asked, "connect string");
        for (int i = 0; i < 3; i++) {
            link.cut();
            Check.equal(ConnectionState.SUSPENDED, Check.next(states, "SUSPENDED"), "state");
            link.mend();
            Check.equal(ConnectionState.RECONNECTED, Check.next(states, "RECONNECTED"), "state");
            // The tracker reads the config at every connection; a wrong address shows at the next.
            client.getConfig().forEnsemble();
            Framework.fence(client);
            Check.equal(asked, client.getZookeeperClient().getCurrentConnectionString(),
                    "connect string after a reconnect");
        }
    }

    static BlockingQueue<ConnectionState> listen(CuratorFramework client) {
        BlockingQueue<ConnectionState> states = new LinkedBlockingQueue<>();
        client.getConnectionStateListenable().addListener((from, state) -> {
            // The first connection may be reported late, or before this listener was added.
            if (state != ConnectionState.CONNECTED) {
                states.add(state);
            }
        });
        return states;
    }
}
