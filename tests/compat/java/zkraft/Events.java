package zkraft;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;

/**
 * Keeps what a watcher is told, in order: node events as {@code "NodeCreated /path"}, and session
 * states apart from them, because the client tells every watcher about those too.
 */
final class Events implements Watcher {
    /** How often any client of this program lost its connection. */
    static final AtomicInteger DISCONNECTIONS = new AtomicInteger();

    private final BlockingQueue<String> nodes = new LinkedBlockingQueue<>();
    private final BlockingQueue<Event.KeeperState> states = new LinkedBlockingQueue<>();

    @Override
    public void process(WatchedEvent event) {
        if (event.getType() == Event.EventType.None) {
            if (event.getState() == Event.KeeperState.Disconnected) {
                DISCONNECTIONS.incrementAndGet();
            }
            states.add(event.getState());
        } else {
            nodes.add(event.getType() + " " + event.getPath());
        }
    }

    /** The next node events are these, in this order. */
    void expect(String... events) throws InterruptedException {
        for (String event : events) {
            Check.equal(event, Check.next(nodes, event), "event");
        }
    }

    /** The next node events are these, in any order. */
    void expectInAnyOrder(String... events) throws InterruptedException {
        List<String> seen = new ArrayList<>();
        while (seen.size() < events.length) {
            int missing = events.length - seen.size();
            seen.add(Check.next(nodes, missing + " more events after " + seen));
        }
        Check.equal(Arrays.stream(events).sorted().toList(),
                seen.stream().sorted().toList(), "events");
    }

    /** No further node event was delivered. Meaningful only after {@link Client#fence}. */
    void expectNoMore() {
        Check.equal(List.of(), List.copyOf(nodes), "further events");
    }

    /** Waits for a session state, passing over others. */
    void await(Event.KeeperState wanted) throws InterruptedException {
        while (Check.next(states, "session state " + wanted) != wanted) {}
    }

    /** True if the session passed through this state and {@link #await} did not consume it. */
    boolean saw(Event.KeeperState state) {
        return states.contains(state);
    }
}
