package zkraft;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;

/** Marks a static method, taking one {@link Lab}, as a case of the suite; its name is the claim. */
@Retention(RetentionPolicy.RUNTIME)
@Target(ElementType.METHOD)
@interface Case {
    /** It stops and starts the servers. */
    String ENDS_SERVERS = "it ends the servers itself";

    String OTHER_ENSEMBLE = "it has servers of its own";

    /** Why it cannot be run while servers are killed; empty if it can. */
    String steady() default "";

    /** Whether it cannot be run against a single one. */
    boolean threeServers() default false;
}
