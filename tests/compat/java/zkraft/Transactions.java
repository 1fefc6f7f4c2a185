package zkraft;

import static zkraft.Client.bytes;

import java.util.ArrayList;
import java.util.List;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Op;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.data.Stat;

/** multi and multiRead through the plain client (spec section 4). */
final class Transactions {
    private Transactions() {}

    @Case
    static void aMultiAppliesAllAndReportsEach(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        List<OpResult> results = client.multi(List.of(
                create(at + "/a"),
                Op.setData(at + "/a", bytes("one"), 0),
                Op.check(at + "/a", 1),
                create(at + "/b"),
                Op.delete(at + "/b", 0)));
        Check.equal(5, results.size(), "results");
        Check.equal(at + "/a", ((OpResult.CreateResult) results.get(0)).getPath(), "path");
        Stat set = ((OpResult.SetDataResult) results.get(1)).getStat();
        Check.equal(1, set.getVersion(), "version in the result");
        Check.that(results.get(2) instanceof OpResult.CheckResult, "third is a check");
        Check.that(results.get(4) instanceof OpResult.DeleteResult, "fifth is a delete");

        Stat stat = client.exists(at + "/a", false);
        Check.equal(stat.getCzxid(), stat.getMzxid(), "one zxid for the whole multi");
        Check.equal(stat.getMzxid(), set.getMzxid(), "zxid in the result");
        Check.equal(false, client.has(at + "/b"), "b was created and deleted");
    }

    @Case
    static void aMultiTakesEveryKindOfCreate(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        List<Op> ops = new ArrayList<>();
        for (CreateMode mode : CreateMode.values()) {
            ops.add(mode.isTTL()
                    ? Op.create(at + "/" + mode, null, Ids.OPEN_ACL_UNSAFE, mode, 600_000)
                    : Op.create(at + "/" + mode, null, Ids.OPEN_ACL_UNSAFE, mode));
        }
        List<OpResult> results = client.multi(ops);
        for (int i = 0; i < results.size(); i++) {
            CreateMode mode = CreateMode.values()[i];
            String suffix = mode.isSequential() ? String.format("%010d", i) : "";
            String made = ((OpResult.CreateResult) results.get(i)).getPath();
            Check.equal(at + "/" + mode + suffix, made, "path");
            long owner = mode.isEphemeral() ? client.getSessionId() : 0;
            Check.equal(owner, client.exists(made, false).getEphemeralOwner(), "owner of " + mode);
        }
    }

    @Case
    static void aFailedMultiChangesNothingAndNamesTheCulprit(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.make(at + "/there");
        var events = new Events();
        client.addWatch(at, events, AddWatchMode.PERSISTENT_RECURSIVE);
        KeeperException failure = Check.fails(Code.NODEEXISTS, () -> client.multi(List.of(
                create(at + "/new"),
                create(at + "/there"),
                Op.delete(at + "/there", -1),
                Op.check(at, 0))));
        List<Integer> codes = failure.getResults().stream()
                .map(result -> ((OpResult.ErrorResult) result).getErr())
                .toList();
        int inconsistent = Code.RUNTIMEINCONSISTENCY.intValue();
        Check.equal(List.of(Code.OK.intValue(), Code.NODEEXISTS.intValue(), inconsistent,
                inconsistent), codes, "codes");
        Check.equal(List.of("there"), client.getChildren(at, false), "children");
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void multiErrorsKeepTheirCode(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.make(at + "/child");
        Check.fails(Code.BADVERSION, () -> client.multi(List.of(Op.check(at, 9))));
        Check.fails(Code.NONODE, () -> client.multi(List.of(Op.check(at + "/no", -1))));
        Check.fails(Code.NOTEMPTY, () -> client.multi(List.of(Op.delete(at, -1))));
        Check.fails(Code.BADVERSION, () -> client.multi(List.of(
                Op.setData(at, bytes("x"), 0), Op.setData(at, bytes("y"), 0))));
        Check.equal(0, client.exists(at, false).getVersion(), "version after failed multis");
        Check.equal(List.of(), client.multi(List.of()), "results of an empty multi");
    }

    @Case
    static void aTransactionBuilderIsAMulti(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        List<OpResult> results = client.transaction()
                .create(at + "/a", bytes("1"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT)
                .check(at + "/a", 0)
                .setData(at + "/a", bytes("2"), 0)
                .commit();
        Check.equal(3, results.size(), "results");
        Check.equal("2", client.text(at + "/a"), "data");
    }

    @Case
    static void eventsOfAMultiFollowItsOperations(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        var events = new Events();
        client.addWatch(at, events, AddWatchMode.PERSISTENT_RECURSIVE);
        client.multi(List.of(
                create(at + "/b"),
                create(at + "/a"),
                Op.setData(at + "/b", bytes("x"), 0),
                Op.delete(at + "/a", 0)));
        events.expect("NodeCreated " + at + "/b", "NodeCreated " + at + "/a",
                "NodeDataChanged " + at + "/b", "NodeDeleted " + at + "/a");
        client.fence();
        events.expectNoMore();
    }

    @Case
    static void aMultiReadAnswersEachByItself(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.make(lab.path());
        client.create(at + "/a", bytes("data"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        List<OpResult> results = client.multi(List.of(
                Op.getData(at + "/a"), Op.getData(at + "/no"), Op.getChildren(at)));
        var data = (OpResult.GetDataResult) results.get(0);
        Check.equal(bytes("data"), data.getData(), "data");
        Check.equal(client.exists(at + "/a", false), data.getStat(), "stat");
        Check.equal(Code.NONODE.intValue(),
                ((OpResult.ErrorResult) results.get(1)).getErr(), "error of the second");
        Check.equal(List.of("a"),
                ((OpResult.GetChildrenResult) results.get(2)).getChildren(), "children");
    }

    private static Op create(String path) {
        return Op.create(path, new byte[0], Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
    }
}
