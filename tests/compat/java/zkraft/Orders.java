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

    /**
     * Starts what does not run of a second ensemble, whose members may be changed; returns where
     * its servers listen and, after a blank, what addresses they are said to have.
     */
    synchronized String second() throws IOException {
        return order("@second");
    }

    /** Ends one server of the second ensemble; they are counted from 1. */
    synchronized void killSecond(int number) throws IOException {
        order("@kill-second " + number);
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

    private String order(String line) throws IOException {
        say(line);
        String answer = in.readLine();
        if (answer == null || !answer.startsWith("ok")) {
            throw new IOException("the driver answered " + answer + " to " + line);
        }
        return answer.substring("ok".length()).strip();
    }
}
