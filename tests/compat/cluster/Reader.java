import java.io.BufferedReader;
import java.io.InputStreamReader;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.ZooKeeper;

/**
 * A Java client that only wants to read, driven by lines on standard input.
 *
 * <p>It prints {@code state STATE} whenever that changes, and {@code answer …} for each line {@code
 * get PATH} or {@code create PATH}, until its input ends.
 */
public final class Reader {
    private Reader() {}

    public static void main(String[] args) throws Exception {
        Watcher tell = event -> {
            if (event.getType() == Watcher.Event.EventType.None) {
                say("state " + event.getState());
            }
        };
        try (var client = new ZooKeeper(args[0], 10_000, tell, true);
                var input = new BufferedReader(new InputStreamReader(System.in))) {
            for (String line = input.readLine(); line != null; line = input.readLine()) {
                String[] words = line.split(" ");
                say("answer " + done(client, words[0], words[1]));
            }
        }
    }

    private static String done(ZooKeeper client, String word, String path) throws Exception {
        try {
            if (word.equals("get")) {
                return new String(client.getData(path, false, null));
            }
            var open = ZooDefs.Ids.OPEN_ACL_UNSAFE;
            return client.create(path, new byte[0], open, CreateMode.PERSISTENT);
        } catch (KeeperException error) {
            return error.getClass().getSimpleName();
        }
    }

    private static synchronized void say(String line) {
        System.out.println(line);
    }
}
