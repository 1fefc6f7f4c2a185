package zkraft;

import static zkraft.Client.bytes;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.admin.ZooKeeperAdmin;
import org.apache.zookeeper.data.Stat;

/**
 * Changes of an ensemble by ZooKeeperAdmin, and what getConfig tells of them (spec section 12.5).
 * It is the second one, and each case leaves it with three members, also when it fails.
 */
final class Ensembles {
    /** Who may change the ensemble, as the driver has configured it. */
    static final String SUPER = "super:secret";

    private static final long POLL_MS = 20;
    private static final String CHANGED = "NodeDataChanged /zookeeper/config";
    private static final Set<Integer> ALL = Set.of(1, 2, 3);
    private static final Pattern SERVER = Pattern.compile("(?m)^server\\.(\\d+)=([^;\n]+)");
    private static final Pattern VERSION = Pattern.compile("(?m)^version=([0-9a-f]+)$");

    private Ensembles() {}

    @Case(steady = Case.OTHER_ENSEMBLE, threeServers = true)
    static void aServerIsRemovedAndAddedBack(Lab lab) throws Exception {
        Lab.Ensemble ensemble = lab.second();
        int leader = leader(lab, ensemble);
        List<Integer> followers = others(leader);
        int home = followers.get(0);
        int gone = followers.get(1);
        var session = new Events();
        ZooKeeperAdmin admin = admin(lab, ensemble.server(home), session);
        Client watcher = lab.connect(ensemble.server(leader), Lab.LONG_SESSION_MS);
        Client there = lab.connect(ensemble.server(gone), Lab.LONG_SESSION_MS);
        List<String> lines = lines(admin.getConfig(false, null), ensemble.advertised());
        var events = new Events();
        var stat = new Stat();
        long version = version(watcher.getConfig(events, null));
        try {
            ZooKeeperAdmin nobody = lab.keep(
                    new ZooKeeperAdmin(ensemble.server(home), Lab.LONG_SESSION_MS, new Events()));
            String leaving = Integer.toString(gone);
            Check.fails(Code.NOAUTH,
                    () -> judged(() -> nobody.reconfigure(null, leaving, null, -1, null)));
            Check.fails(Code.BADVERSION,
                    () -> admin.reconfigure(null, leaving, null, version - 1, null));
            Check.equal(ALL, members(admin.getConfig(false, null)), "members when refused");

            byte[] told = judged(() -> admin.reconfigure(null, leaving, null, version, stat));
            Check.equal(Set.of(leader, home), members(told), "members that are answered");
            Check.equal(stat.getMzxid(), version(told), "version");
            Check.that(stat.getMzxid() > version, "the version rises");
            events.expect(CHANGED);
            Check.equal(told, watcher.getConfig(events, null), "what the watcher reads");
            Check.until("two servers vote", () -> voters(lab, ensemble).equals("2"));
            boolean letsGo = lab.isZkraft();
            if (letsGo) {
                // ZooKeeper's goes on to serve without a vote.
                there.session.await(KeeperState.Disconnected);
            }
            admin.create(lab.path(), bytes("x"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);

            String joining = lines.get(gone - 1);
            Check.fails(Code.BADVERSION,
                    () -> admin.reconfigure(joining, null, null, version, null));
            told = judged(() -> admin.reconfigure(joining, null, null, stat.getMzxid(), stat));
            Check.equal(ALL, members(told), "members that are answered");
            events.expect(CHANGED);
            if (letsGo) {
                there.session.await(KeeperState.SyncConnected);
            }
            Check.equal("x", there.text(lab.path()), "what was written without it");
            Check.until("three servers vote", () -> voters(lab, ensemble).equals("3"));
            Check.equal(false, session.saw(KeeperState.Disconnected),
                    "a client of a server that stayed was disconnected");

            // Its vote counts: without it there is no majority now.
            lab.killSecond(leader);
            Check.answered(() -> admin.setData(lab.path(), bytes("y"), -1));
        } finally {
            restore(lab, ensemble, lines);
        }
    }

    @Case(steady = Case.OTHER_ENSEMBLE, threeServers = true)
    static void allMembersAreNamedAtOnce(Lab lab) throws Exception {
        Lab.Ensemble ensemble = lab.second();
        int leader = leader(lab, ensemble);
        // A leader that goes costs clients of the others nothing. ZooKeeper's breaks connections.
        int gone = lab.isZkraft() ? leader : others(leader).get(0);
        List<Integer> stay = others(gone);
        var session = new Events();
        ZooKeeperAdmin admin = admin(lab, ensemble.server(stay.get(0)), session);
        Client watcher = lab.connect(ensemble.server(stay.get(1)), Lab.LONG_SESSION_MS);
        List<String> lines = lines(admin.getConfig(false, null), ensemble.advertised());
        var events = new Events();
        var stat = new Stat();
        long version = version(watcher.getConfig(events, null));
        try {
            List<String> two = stay.stream().map(number -> lines.get(number - 1)).toList();
            Check.fails(Code.BADVERSION,
                    () -> admin.reconfigure(null, null, two, version + 1, null));
            byte[] told = judged(() -> admin.reconfigure(null, null, two, version, stat));
            Check.equal(Set.copyOf(stay), members(told), "members that are answered");
            events.expect(CHANGED);
            Check.equal(told, watcher.getConfig(events, null), "what the watcher reads");
            Check.until("two servers vote", () -> voters(lab, ensemble).equals("2"));
            Check.that(stay.contains(leader(lab, ensemble)), "one of the members leads");
            admin.create(lab.path(), bytes("x"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);

            told = judged(() -> admin.reconfigure(null, null, lines, stat.getMzxid(), stat));
            Check.equal(ALL, members(told), "members that are answered");
            events.expect(CHANGED);
            Check.until("three servers vote", () -> voters(lab, ensemble).equals("3"));
            Client late = lab.connect(ensemble.server(gone), Lab.LONG_SESSION_MS);
            Check.equal("x", late.text(lab.path()), "what the two wrote");
            for (Events states : List.of(session, watcher.session)) {
                Check.equal(false, states.saw(KeeperState.Disconnected),
                        "a client of a server that stayed was disconnected");
            }
        } finally {
            restore(lab, ensemble, lines);
        }
    }

    /**
     * Asks for a change until there is a majority of those that stay. The leader may miss one for a
     * moment (-13), just after a server came back or another one led.
     */
    static <T> T judged(Callable<T> request) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Check.WAIT_SECONDS);
        while (true) {
            try {
                return request.call();
            } catch (KeeperException.NewConfigNoQuorum missing) {
                if (System.nanoTime() > deadline) {
                    throw missing;
                }
                Thread.sleep(POLL_MS);
            }
        }
    }

    static Set<Integer> members(byte[] config) {
        Set<Integer> numbers = new TreeSet<>();
        Matcher server = SERVER.matcher(new String(config, StandardCharsets.UTF_8));
        while (server.find()) {
            numbers.add(Integer.parseInt(server.group(1)));
        }
        return numbers;
    }

    static long version(byte[] config) {
        Matcher version = VERSION.matcher(new String(config, StandardCharsets.UTF_8));
        Check.that(version.find(), "the configuration has a version");
        return Long.parseLong(version.group(1), 16);
    }

    /** The lines of a configuration with these addresses for clients, sorted by number. */
    static List<String> lines(byte[] config, List<String> clients) {
        List<String> lines = new ArrayList<>();
        Matcher server = SERVER.matcher(new String(config, StandardCharsets.UTF_8));
        while (server.find()) {
            lines.add(server.group() + ";" + clients.get(lines.size()));
        }
        return lines;
    }

    private static ZooKeeperAdmin admin(Lab lab, String server, Events session) throws Exception {
        var admin = lab.keep(new ZooKeeperAdmin(server, Lab.LONG_SESSION_MS, session));
        session.await(KeeperState.SyncConnected);
        admin.addAuthInfo("digest", bytes(SUPER));
        return admin;
    }

    private static void restore(Lab lab, Lab.Ensemble ensemble, List<String> lines)
            throws Exception {
        ZooKeeperAdmin admin = admin(lab, ensemble.all(), new Events());
        judged(() -> admin.reconfigure(null, null, lines, -1, null));
        Check.until("three servers vote", () -> voters(lab, ensemble).equals("3"));
    }

    private static List<Integer> others(int number) {
        return ALL.stream().filter(other -> other != number).sorted().toList();
    }

    /** The server that leads, as soon as one says so. */
    private static int leader(Lab lab, Lab.Ensemble ensemble) throws Exception {
        var found = new int[1];
        Check.until("a leader", () -> {
            for (int number : ALL) {
                if (lab.ask(ensemble.server(number), "srvr").contains("Mode: leader")) {
                    found[0] = number;
                }
            }
            return found[0] != 0;
        });
        return found[0];
    }

    /** How many servers vote, as the leader says. */
    private static String voters(Lab lab, Lab.Ensemble ensemble) throws Exception {
        String told = lab.ask(ensemble.server(leader(lab, ensemble)), "mntr");
        Matcher voters = Pattern.compile("(?m)^zk_quorum_size\t(\\d+)").matcher(told);
        return voters.find() ? voters.group(1) : "";
    }
}
