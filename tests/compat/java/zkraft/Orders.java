package zkraft;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.PrintStream;

/** The line protocol to the driver, which owns the server process. */
final class Orders {
    private final PrintStream out;
    private final BufferedReader in;
    private boolean down;

    Orders(PrintStream out, BufferedReader in) {
        this.out = out;
        this.in = in;
    }

    synchronized void say(String line) {
        out.println(line);
        out.flush();
    }

    /** Ends the server at once (SIGKILL). */
    synchronized void kill() throws IOException {
        down = true;
        order("@kill");
    }

    /** Starts the killed server again, same port and data; returns when it accepts sessions. */
    synchronized void restart() throws IOException {
        order("@restart");
        down = false;
    }

    /** A case that failed half-way must not leave the next one without a server. */
    synchronized void restartIfDown() throws IOException {
        if (down) {
            restart();
        }
    }

    private void order(String line) throws IOException {
        say(line);
        String answer = in.readLine();
        if (!"ok".equals(answer)) {
            throw new IOException("the driver answered " + answer + " to " + line);
        }
    }
}
