package zkraft;

import static zkraft.Client.bytes;

import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooDefs.Perms;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;

/** ACLs and digest authentication through the plain client (spec section 7). */
final class Acls {
    /** The digest id of "u:p" (spec section 7.6). */
    private static final Id U = new Id("digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=");

    private Acls() {}

    @Case
    static void whoAmIListsTheIdsOfTheConnection(Lab lab) throws Exception {
        Client client = lab.connect();
        Check.equal(Set.of("ip 127.0.0.1"), ids(client), "ids of a new connection");
        client.addAuthInfo("digest", bytes("u:p"));
        client.addAuthInfo("digest", bytes("v:q"));
        Check.equal(Set.of("ip 127.0.0.1", "digest u", "digest v"), ids(client), "ids");
    }

    @Case
    static void aNodeOfItsCreatorIsClosedToOthers(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        Client stranger = lab.connect();
        String at = owner.create(
                lab.path(), bytes("secret"), Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        owner.create(at + "/child", null, Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        Check.fails(Code.NOAUTH, () -> stranger.getData(at, false, null));
        Check.fails(Code.NOAUTH, () -> stranger.setData(at, bytes("x"), -1));
        Check.fails(Code.NOAUTH, () -> stranger.getChildren(at, false));
        Check.fails(Code.NOAUTH, () -> stranger.getACL(at, null));
        Check.fails(Code.NOAUTH, () -> stranger.setACL(at, Ids.OPEN_ACL_UNSAFE, -1));
        Check.fails(Code.NOAUTH, () -> stranger.make(at + "/other"));
        Check.fails(Code.NOAUTH, () -> stranger.delete(at + "/child", -1));
        Check.fails(Code.NOAUTH, () -> stranger.delete(at + "/missing", -1));
        stranger.addAuthInfo("digest", bytes("u:p"));
        Check.equal("secret", stranger.text(at), "data, once authenticated");
        Check.equal("secret", owner.text(at), "data");
    }

    @Case
    static void creatorAclExpandsToTheDigestId(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        String at = owner.create(lab.path(), null, Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        Check.equal(List.of(new ACL(Perms.ALL, U)), owner.getACL(at, null), "ACL");
        Client nobody = lab.connect();
        Check.fails(Code.INVALIDACL, () -> nobody.create(
                lab.path() + "-nobody", null, Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT));
    }

    @Case
    static void getAclHidesDigestsFromNonAdmins(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        ACL all = new ACL(Perms.ALL, U);
        ACL read = new ACL(Perms.READ, Ids.ANYONE_ID_UNSAFE);
        String at = owner.create(
                lab.path(), null, Arrays.asList(all, read), CreateMode.PERSISTENT);
        Check.equal(List.of(all, read), owner.getACL(at, null), "ACL for the admin");
        ACL masked = new ACL(Perms.ALL, new Id("digest", "u:x"));
        Check.equal(List.of(masked, read), lab.connect().getACL(at, null), "ACL for others");
    }

    @Case
    static void setAclComparesTheAclVersion(Lab lab) throws Exception {
        Client client = authenticated(lab);
        String at = client.make(lab.path());
        client.setData(at, bytes("x"), 0);
        Check.equal(1, client.setACL(at, Ids.CREATOR_ALL_ACL, 0).getAversion(), "aversion");
        Check.fails(Code.BADVERSION, () -> client.setACL(at, Ids.OPEN_ACL_UNSAFE, 0));
        var stat = new Stat();
        client.getACL(at, stat);
        Check.equal(1, stat.getAversion(), "aversion from getACL");
        Check.fails(Code.INVALIDACL,
                () -> client.setACL(at, only(Perms.ALL, new Id("digest", "u")), 1));
    }

    @Case
    static void ipAclsMatchTheAddress(Lab lab) throws Exception {
        Client client = lab.connect();
        String here = client.create(lab.path(), bytes("here"),
                only(Perms.READ, new Id("ip", "127.0.0.0/8")), CreateMode.PERSISTENT);
        Check.equal("here", client.text(here), "data");
        Check.fails(Code.NOAUTH, () -> client.setData(here, bytes("x"), -1));
        String elsewhere = client.create(lab.path() + "-elsewhere", null,
                only(Perms.ALL, new Id("ip", "10.0.0.1")), CreateMode.PERSISTENT);
        Check.fails(Code.NOAUTH, () -> client.getData(elsewhere, false, null));
    }

    @Case
    static void readUnsafeAllowsReadingOnly(Lab lab) throws Exception {
        Client client = lab.connect();
        String at = client.create(
                lab.path(), bytes("open"), Ids.READ_ACL_UNSAFE, CreateMode.PERSISTENT);
        Check.equal("open", client.text(at), "data");
        Check.equal(List.of(), client.getChildren(at, false), "children");
        Check.fails(Code.NOAUTH, () -> client.setData(at, bytes("x"), 9));
        Check.fails(Code.NOAUTH, () -> client.make(at + "/child"));
        // DELETE is asked of the parent, which is the open root.
        client.delete(at, -1);
    }

    @Case
    static void nobodyIsSuperWithoutConfiguration(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        String at = owner.create(lab.path(), null, Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        Client impostor = lab.connect();
        impostor.addAuthInfo("digest", bytes("super:secret"));
        Check.equal(Set.of("ip 127.0.0.1", "digest super"), ids(impostor), "ids");
        Check.fails(Code.NOAUTH, () -> impostor.getData(at, false, null));
        Check.fails(Code.NOAUTH, () -> impostor.setData("/zookeeper/config", bytes("x"), -1));
    }

    @Case
    static void anUnknownSchemeEndsTheClient(Lab lab) throws Exception {
        Client client = lab.connect();
        client.addAuthInfo("nonsense", bytes("x"));
        client.session.await(KeeperState.AuthFailed);
        Check.fails(Code.AUTHFAILED, () -> client.exists("/", false));
    }

    @Case
    static void authenticationIsRenewedAfterAReconnect(Lab lab) throws Exception {
        Link link = lab.link();
        Client owner = lab.connect(link.address(), Lab.LONG_SESSION_MS);
        owner.addAuthInfo("digest", bytes("u:p"));
        String at = owner.create(
                lab.path(), bytes("mine"), Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        link.cut();
        owner.session.await(KeeperState.Disconnected);
        link.mend();
        owner.connected();
        Check.equal("mine", owner.text(at), "data");
    }

    @Case
    static void existsAsksForReadWhereTheServerIsNewEnough(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        String at = owner.create(lab.path(), null, Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        Client stranger = lab.connect();
        if (lab.existsChecksTheAcl()) {
            Check.fails(Code.NOAUTH, () -> stranger.exists(at, false));
        } else {
            Check.that(stranger.has(at), "exists without READ, as before 3.8.4");
        }
        Check.equal(null, stranger.exists(at + "-no", false), "stat of a missing node");
    }

    @Case
    static void eventsAskForRead(Lab lab) throws Exception {
        Client owner = authenticated(lab);
        String at = owner.create(lab.path(), null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        Client stranger = lab.connect();
        var events = new Events();
        stranger.getData(at, events, null);
        owner.setACL(at, Ids.CREATOR_ALL_ACL, -1);
        owner.setData(at, bytes("x"), -1);
        // The watch was consumed by the event that was held back (spec 6.4): with READ regained,
        // the next change is not told either.
        owner.setACL(at, Ids.OPEN_ACL_UNSAFE, -1);
        owner.setData(at, bytes("y"), -1);
        stranger.fence();
        events.expectNoMore();
    }

    private static Client authenticated(Lab lab) throws Exception {
        Client client = lab.connect();
        client.addAuthInfo("digest", bytes("u:p"));
        return client;
    }

    /** The client asks a list whether it contains null, which lists of List.of refuse. */
    private static List<ACL> only(int perms, Id id) {
        return Arrays.asList(new ACL(perms, id));
    }

    private static Set<String> ids(Client client) throws Exception {
        return client.whoAmI().stream()
                .map(info -> info.getAuthScheme() + " " + info.getUser())
                .collect(Collectors.toSet());
    }
}
