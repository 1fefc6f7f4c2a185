package zkraft;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.RetryNTimes;

/** What one case works with: clients, links and the server. Closes all that it opened. */
final class Lab {
    /** Longer than a restart of any server takes; sessions of this length survive one. */
    static final int LONG_SESSION_MS = 30_000;

    /** Short enough to wait for an expiry. */
    static final int SHORT_SESSION_MS = 3_000;

    /** The bounds of a session timeout that the driver configures on the server. */
    static final int MIN_SESSION_MS = 2_000;

    static final int MAX_SESSION_MS = 60_000;

    private static final int WORD_LIMIT_MS = 2_000;

    /** Thrown by a case that cannot be judged here; its message says why. */
    static final class Skip extends RuntimeException {
        private static final long serialVersionUID = 1;

        Skip(String why) {
            super(why);
        }
    }

    private final String name;
    private final String address;
    private final String against;
    private final Orders orders;
    private final Deque<AutoCloseable> opened = new ArrayDeque<>();

    Lab(String name, String address, String against, Orders orders) {
        this.name = name;
        this.address = address;
        this.against = against;
        this.orders = orders;
    }

    /** The subtree of this case. Not created. */
    String path() {
        return "/" + name;
    }

    String address() {
        return address;
    }

    boolean isZkraft() {
        return against.equals("zkraft");
    }

    /**
     * Whether exists asks for READ, as ZooKeeper does since 3.8.4 and 3.9.2 (spec 3.3). Debian's
     * 3.8.0, which we compare with, does not; its event delivery does, by a backported patch.
     */
    boolean existsChecksTheAcl() {
        return isZkraft();
    }

    Client connect() throws Exception {
        return connect(address, LONG_SESSION_MS);
    }

    Client connect(String where, int timeoutMs) throws Exception {
        return keep(new Client(where, timeoutMs, new Events())).connected();
    }

    CuratorFramework curator() throws Exception {
        return curator(builder -> builder);
    }

    /** A started and connected Curator client, by default one that retries long enough. */
    CuratorFramework curator(UnaryOperator<CuratorFrameworkFactory.Builder> settings)
            throws Exception {
        var builder = CuratorFrameworkFactory.builder()
                .connectString(address)
                .sessionTimeoutMs(LONG_SESSION_MS)
                .connectionTimeoutMs(10_000)
                .retryPolicy(new RetryNTimes(100, 200));
        CuratorFramework client = keep(settings.apply(builder).build());
        client.getConnectionStateListenable().addListener((from, state) -> {
            if (state == ConnectionState.SUSPENDED) {
                Events.DISCONNECTIONS.incrementAndGet();
            }
        });
        client.start();
        Check.that(client.blockUntilConnected((int) Check.WAIT_SECONDS, TimeUnit.SECONDS),
                "Curator connects");
        return client;
    }

    /** Runs a task in a thread of its own, which ends with the case. */
    <T> Future<T> inBackground(Callable<T> task) {
        ExecutorService thread = Executors.newSingleThreadExecutor();
        keep(thread::shutdownNow);
        return thread.submit(task);
    }

    Link link() throws IOException {
        List<InetSocketAddress> servers = new ArrayList<>();
        for (String server : address.split(",")) {
            int colon = server.lastIndexOf(':');
            int port = Integer.parseInt(server.substring(colon + 1));
            servers.add(new InetSocketAddress(server.substring(0, colon), port));
        }
        return keep(new Link(servers));
    }

    /** Ends the case unjudged where real ZooKeeper is known to deviate from the spec. */
    void skipAgainstZooKeeper(String why) {
        if (against.equals("zookeeper")) {
            throw new Skip(why);
        }
    }

    /** Has it closed at the end of the case, before whatever was opened earlier. */
    <T extends AutoCloseable> T keep(T closeable) {
        opened.push(closeable);
        return closeable;
    }

    void kill() throws IOException {
        orders.kill();
    }

    /** Where the servers of an ensemble listen, and the addresses that they are said to have. */
    record Ensemble(List<String> servers, List<String> advertised) {
        /** They are counted from 1. */
        String server(int number) {
            return servers.get(number - 1);
        }

        String all() {
            return String.join(",", servers);
        }
    }

    /** The second ensemble, of which all servers run. */
    Ensemble second() throws IOException {
        String[] both = orders.second().split(" ");
        return new Ensemble(List.of(both[0].split(",")), List.of(both[1].split(",")));
    }

    void killSecond(int number) throws IOException {
        orders.killSecond(number);
    }

    /** The answer to a four-letter word; empty if there is none. */
    String ask(String server, String word) {
        int colon = server.lastIndexOf(':');
        int port = Integer.parseInt(server.substring(colon + 1));
        try (var socket = new Socket(server.substring(0, colon), port)) {
            socket.setSoTimeout(WORD_LIMIT_MS);
            socket.getOutputStream().write(word.getBytes(StandardCharsets.US_ASCII));
            return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException noAnswer) {
            return "";
        }
    }

    void restart() throws IOException {
        orders.restart();
    }

    /** Null, or what went wrong first. */
    Throwable close() {
        Throwable failure = null;
        try {
            orders.restartIfDown();
        } catch (IOException broken) {
            failure = broken;
        }
        for (AutoCloseable closeable : opened) {
            try {
                closeable.close();
            } catch (Exception broken) {
                failure = failure == null ? broken : failure;
            }
        }
        return failure;
    }
}
