package zkraft;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;

/**
 * Runs every {@link Case} against one server, one by one, and tells the driver how each went.
 *
 * <p>Standard output belongs to the driver (java_suite.py): {@code @pass NAME<TAB>SECONDS}, {@code
 * @fail NAME<TAB>REASON}, {@code @skip NAME<TAB>REASON}, {@code @leave NAME<TAB>REASON}, {@code
 * @again NAME<TAB>REASON}, the orders of {@link Orders} and, after the last case, {@code @end
 * COUNT}. The driver answers orders with {@code ok}. Nothing else may be printed there; the
 * clients log to standard error.
 *
 * <p>Arguments: connect string, {@code zkraft} or {@code zookeeper}, how often a case may be begun
 * whose request was lost, and optionally a part of the names of the cases to run. A number above 1
 * means that servers are killed meanwhile. What was under way then may or may not be done, and a
 * case that does not expect that cannot go on; that is the only reason to begin again.
 */
public final class Suite {
    /** Longer than any case needs on a busy machine; a case that takes longer hangs. */
    private static final long CASE_LIMIT_SECONDS = 90;
    private static final long EVENT_LIMIT_MS = 500;

    private static final List<Class<?>> PLAIN =
            List.of(
                    Nodes.class,
                    Transactions.class,
                    Acls.class,
                    Watches.class,
                    Sessions.class,
                    Expiry.class,
                    Ensembles.class);

    /** Curator sends a request again by itself if the answer to it was lost. */
    private static final List<Class<?>> CURATOR =
            List.of(
                    Framework.class,
                    ConnectionStates.class,
                    Elections.class,
                    Locks.class,
                    Recipes.class,
                    Caches.class,
                    Trackers.class);

    private Suite() {}

    public static void main(String[] args) throws Exception {
        PrintStream driver = System.out;
        System.setOut(System.err);
        var orders = new Orders(driver, new BufferedReader(
                new InputStreamReader(System.in, StandardCharsets.UTF_8)));
        Client.behindSync = args[0].contains(",");
        int attempts = Integer.parseInt(args[2]);
        String part = args.length > 3 ? args[3] : "";
        int count = 0;
        for (Class<?> group : Stream.concat(PLAIN.stream(), CURATOR.stream()).toList()) {
            for (Method method : cases(group)) {
                String name = group.getSimpleName() + "." + method.getName();
                if (!name.contains(part)) {
                    continue;
                }
                Case marks = method.getAnnotation(Case.class);
                String why = "";
                if (marks.threeServers() && !Client.behindSync) {
                    why = "it needs three servers (--servers 3)";
                } else if (attempts > 1) {
                    why = marks.steady();
                }
                if (!why.isEmpty()) {
                    orders.say("@leave " + name + "\t" + why);
                    count++;
                    continue;
                }
                long began = System.nanoTime();
                Throwable failure = null;
                for (int attempt = 1; attempt <= attempts; attempt++) {
                    String path = attempt == 1 ? name : name + "-" + attempt;
                    int broken = Events.DISCONNECTIONS.get();
                    failure = run(method, new Lab(path, args[0], args[1], orders));
                    if (failure == null || !wasLost(failure, CURATOR.contains(group))) {
                        break;
                    }
                    // What tells of the broken connection may come later than what it broke.
                    Thread.sleep(EVENT_LIMIT_MS);
                    boolean isBroken = Events.DISCONNECTIONS.get() != broken;
                    if (!isBroken) {
                        break;
                    }
                    if (attempt < attempts) {
                        orders.say("@again " + name + "\t" + inOneLine(failure));
                    }
                }
                double seconds = (System.nanoTime() - began) / 1e9;
                if (failure == null) {
                    orders.say("@pass " + name + "\t" + seconds);
                } else if (failure instanceof Lab.Skip) {
                    orders.say("@skip " + name + "\t" + failure.getMessage());
                } else {
                    orders.say("@fail " + name + "\t" + inOneLine(failure));
                }
                count++;
            }
        }
        orders.say("@end " + count);
        // Threads of a case that hung must not keep the process alive.
        System.exit(0);
    }

    /** The order of reflection is unspecified, so cases run in the order of their names. */
    private static List<Method> cases(Class<?> group) {
        return Arrays.stream(group.getDeclaredMethods())
                .filter(method -> method.isAnnotationPresent(Case.class))
                .sorted(Comparator.comparing(Method::getName))
                .toList();
    }

    /**
     * Whether a request was under way when its connection broke. If it was sent again, it may fail
     * because it was done.
     */
    private static boolean wasLost(Throwable failure, boolean isSentAgain) {
        for (Throwable at = failure; at != null; at = at.getCause()) {
            if (at instanceof KeeperException error) {
                Code code = error.code();
                return code == Code.CONNECTIONLOSS
                        || (isSentAgain && code != Code.SESSIONEXPIRED);
            }
        }
        return false;
    }

    /** Null if the case passed, else why not. */
    private static Throwable run(Method method, Lab lab) throws InterruptedException {
        var failure = new Throwable[1];
        var thread = new Thread(() -> failure[0] = outcome(method, lab), method.getName());
        thread.setDaemon(true);
        thread.start();
        thread.join(TimeUnit.SECONDS.toMillis(CASE_LIMIT_SECONDS));
        if (thread.isAlive()) {
            var hung = new AssertionError("no end after " + CASE_LIMIT_SECONDS + " s");
            hung.setStackTrace(thread.getStackTrace());
            thread.interrupt();
            failure[0] = hung;
        }
        Throwable cleanup = lab.close();
        return failure[0] == null ? cleanup : failure[0];
    }

    private static Throwable outcome(Method method, Lab lab) {
        try {
            method.setAccessible(true);
            method.invoke(null, lab);
            return null;
        } catch (InvocationTargetException thrown) {
            return thrown.getCause();
        } catch (IllegalAccessException | RuntimeException broken) {
            return broken;
        }
    }

    /** The message and the line of the case it comes from; the full trace goes to the log. */
    private static String inOneLine(Throwable failure) {
        failure.printStackTrace();
        String where = Arrays.stream(failure.getStackTrace())
                .filter(frame -> frame.getClassName().startsWith("zkraft."))
                .filter(frame -> !frame.getClassName().startsWith("zkraft.Check"))
                .findFirst()
                .map(frame -> " (" + frame.getFileName() + ":" + frame.getLineNumber() + ")")
                .orElse("");
        return failure.toString().replaceAll("\\s+", " ") + where;
    }
}
