package zkraft;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A TCP relay in front of the first server that is there, to break the connection of one client
 * and of no other.
 *
 * <p>While cut, it closes every connection at once. While mute, requests reach the server but
 * nothing comes back, so a client cannot know what became of its request. Only the answer to its
 * connect request does: should its server be killed meanwhile, the client must be able to send its
 * request again.
 */
final class Link implements AutoCloseable {
    private final ServerSocket listener;
    private final List<InetSocketAddress> servers;
    private final Set<Socket> sockets = ConcurrentHashMap.newKeySet();
    private volatile boolean cut;
    private volatile boolean mute;

    Link(List<InetSocketAddress> servers) throws IOException {
        this.servers = servers;
        listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        start("accept", this::accept);
    }

    String address() {
        return "127.0.0.1:" + listener.getLocalPort();
    }

    synchronized void cut() {
        cut = true;
        sockets.forEach(Link::closeQuietly);
    }

    synchronized void mend() {
        mute = false;
        cut = false;
    }

    void mute() {
        mute = true;
    }

    @Override
    public void close() {
        cut();
        closeQuietly(listener);
    }

    private void accept() {
        while (!listener.isClosed()) {
            try {
                relay(listener.accept());
            } catch (IOException broken) {
                // The server is down or the relay was closed: the client's connection is gone.
            }
        }
    }

    private void relay(Socket client) throws IOException {
        if (cut) {
            client.close();
            return;
        }
        sockets.add(client);
        Socket server;
        try {
            server = connect();
        } catch (IOException refused) {
            closeQuietly(client);
            throw refused;
        }
        sockets.add(server);
        synchronized (this) {
            if (cut) {
                closeQuietly(client);
                closeQuietly(server);
                return;
            }
        }
        start("to-server", () -> pump(client, server, false));
        start("to-client", () -> pump(server, client, true));
    }

    private Socket connect() throws IOException {
        IOException refused = null;
        for (InetSocketAddress server : servers) {
            try {
                return new Socket(server.getAddress(), server.getPort());
            } catch (IOException next) {
                refused = next;
            }
        }
        throw refused;
    }

    private void pump(Socket from, Socket to, boolean mayBeMute) {
        byte[] buffer = new byte[1 << 16];
        try (from; to) {
            InputStream in = from.getInputStream();
            OutputStream out = to.getOutputStream();
            boolean first = true;
            for (int count = in.read(buffer); count >= 0; count = in.read(buffer)) {
                if (first || !(mayBeMute && mute)) {
                    out.write(buffer, 0, count);
                }
                first = false;
            }
        } catch (IOException closed) {
            // Either end closed; try-with-resources closes the other.
        } finally {
            sockets.remove(from);
            sockets.remove(to);
        }
    }

    private static void start(String name, Runnable body) {
        var thread = new Thread(body, "link-" + name);
        thread.setDaemon(true);
        thread.start();
    }

    private static void closeQuietly(AutoCloseable closeable) {
        try {
            closeable.close();
        } catch (Exception alreadyClosed) {
            // Closing is all that was wanted.
        }
    }
}
