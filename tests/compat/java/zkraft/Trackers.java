package zkraft;

import static zkraft.Client.bytes;

import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.data.Stat;

/**
 * Curator's ensemble tracker, which replaces the connect string by the addresses for clients in
 * /zookeeper/config. In the second ensemble each server has one: that of a relay in front of it,
 * which no client was given. What the tracker does where
 * there are none is a case of {@link ConnectionStates}.
 */
final class Trackers {
    private Trackers() {}

    @Case(steady = Case.OTHER_ENSEMBLE, threeServers = true)
    static void oneAddressLeadsToTheOthers(Lab lab) throws Exception {
        lab.skipAgainstZooKeeper("it has no advertisedClientAddress");
        Lab.Ensemble ensemble = lab.second();
        CuratorFramework client = lab.curator(builder -> builder
                .connectString(ensemble.server(1)).ensembleTracker(true));
        BlockingQueue<ConnectionState> states = ConnectionStates.listen(client);
        untilConnectStringIs(client, Set.copyOf(ensemble.advertised()));
        client.create().withMode(CreateMode.EPHEMERAL).forPath(lab.path());
        long id = client.getZookeeperClient().getZooKeeper().getSessionId();
        // It may have moved when it learned of the others.
        states.clear();
        int home = at(lab, ensemble, id);
        lab.killSecond(home);
        Check.equal(ConnectionState.SUSPENDED, Check.next(states, "SUSPENDED"), "state");
        Check.equal(ConnectionState.RECONNECTED, Check.next(states, "RECONNECTED"), "state");
        Check.that(at(lab, ensemble, id) != home, "the session is at another server");
        Check.equal(id, client.checkExists().forPath(lab.path()).getEphemeralOwner(), "owner");
    }

    @Case(steady = Case.OTHER_ENSEMBLE, threeServers = true)
    static void theConnectStringFollowsTheMembers(Lab lab) throws Exception {
        lab.skipAgainstZooKeeper("it has no advertisedClientAddress");
        Lab.Ensemble ensemble = lab.second();
        List<String> advertised = ensemble.advertised();
        CuratorFramework client = lab.curator(builder -> builder
                .connectString(ensemble.server(1)).ensembleTracker(true));
        untilConnectStringIs(client, Set.copyOf(advertised));
        // Not at the one that goes: it lets its clients go, and Curator would ask again.
        CuratorFramework admin = lab.curator(builder -> builder
                .connectString(ensemble.server(1) + "," + ensemble.server(2))
                .ensembleTracker(false)
                .authorization("digest", bytes(Ensembles.SUPER)));
        byte[] before = admin.getConfig().forEnsemble();
        List<String> lines = Ensembles.lines(before, advertised);
        var stat = new Stat();
        byte[] told = Ensembles.judged(() -> admin.reconfig().leaving("3").storingStatIn(stat)
                .fromConfig(Ensembles.version(before)).forEnsemble());
        Check.equal(Set.of(1, 2), Ensembles.members(told), "members that are answered");
        untilConnectStringIs(client, Set.copyOf(advertised.subList(0, 2)));
        told = Ensembles.judged(() -> admin.reconfig().joining(lines.get(2))
                .fromConfig(stat.getMzxid()).forEnsemble());
        Check.equal(Set.of(1, 2, 3), Ensembles.members(told), "members that are answered");
        untilConnectStringIs(client, Set.copyOf(advertised));
    }

    private static void untilConnectStringIs(CuratorFramework client, Set<String> servers)
            throws Exception {
        Check.until("the connect string has " + servers, () -> servers.equals(
                Set.of(client.getZookeeperClient().getCurrentConnectionString().split(","))));
    }

    /** The server at which the session is. */
    private static int at(Lab lab, Lab.Ensemble ensemble, long id) throws Exception {
        var found = new int[1];
        String session = "sid=0x" + Long.toHexString(id) + ",";
        Check.until("the session is at a server", () -> {
            for (int number = 1; number <= ensemble.servers().size(); number++) {
                if (lab.ask(ensemble.server(number), "cons").contains(session)) {
                    found[0] = number;
                }
            }
            return found[0] != 0;
        });
        return found[0];
    }
}
