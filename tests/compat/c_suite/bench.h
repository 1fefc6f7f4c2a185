/* What every case of the C suite is given: clients, event queues, replies, checks.
 *
 * One process runs one case, so a failing check may simply end the process, and a crash of the
 * client library fails one case only. The driver (c_suite.py) owns the server and the relay; a
 * case asks for what it needs by a line on standard output (`bench_ask`). Every wait is bounded.
 *
 * The cases expect to read what another of their clients has done. One server gives them that; of
 * several, each may be behind. So their synchronous reads go behind a sync then: the linker puts
 * the functions of bench.c in their place.
 */
#ifndef ZKRAFT_COMPAT_BENCH_H
#define ZKRAFT_COMPAT_BENCH_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zookeeper/zookeeper.h>

enum {
    EVENTS_MAX = 8192,
    PATH_BYTES_MAX = 256,
    TEXT_BYTES_MAX = 1 << 20,
    WAIT_SECONDS_MAX = 30,
    SESSION_MS = 8000,
    /* Twice the tick of the server under test: the least that it grants. */
    SESSION_MS_MIN = 1000,
    SESSION_MS_GRANTED_MAX = 10000,
};

/* One case: its claim, with underscores, the function that proves it, and why it cannot be run
 * while servers are killed, or NULL. */
struct test {
    const char *name;
    void (*run)(void);
    const char *steady;
};
#define CASE(function) { #function, function, NULL }
#define STEADY_CASE(function, why) { #function, function, why }
#define NO_MORE_CASES { NULL, NULL, NULL }
#define ENDS_SERVERS "it ends the servers itself"

/* The connect string of the server or of all servers, the address of the relay in front of it, and
 * a path of this case alone. */
extern const char *bench_address;
extern const char *bench_relay;
extern const char *bench_root;

/* Asks the driver to `kill` or `start` the server, or to `cut` or `mend` the relay, and waits
 * until that is done. */
void bench_ask(const char *action);

/* The path `<root>/<name>`, valid until the end of the process. */
const char *bench_path(const char *name);

/* --- Checks ----------------------------------------------------------------------------------- */

void bench_fail(const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

#define CHECK(condition) \
    do { \
        if (!(condition)) \
            bench_fail(__FILE__, __LINE__, "not so: %s", #condition); \
    } while (0)

#define CHECK_INT(expected, actual) \
    do { \
        long long expected_ = (expected), actual_ = (actual); \
        if (expected_ != actual_) \
            bench_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #actual, actual_, \
                       expected_); \
    } while (0)

#define CHECK_TEXT(expected, actual) \
    do { \
        const char *expected_ = (expected), *actual_ = (actual); \
        if (strcmp(expected_, actual_) != 0) \
            bench_fail(__FILE__, __LINE__, "%s is '%s', expected '%s'", #actual, actual_, \
                       expected_); \
    } while (0)

/* The call must return this code of the client library. */
#define CHECK_RC(expected, call) \
    do { \
        int rc_ = (call); \
        if (rc_ != (expected)) \
            bench_fail(__FILE__, __LINE__, "%s gave %d (%s), expected %d", #call, rc_, \
                       zerror(rc_), (expected)); \
    } while (0)

#define CHECK_OK(call) CHECK_RC(ZOK, call)

/* Every field of both must be equal. */
void check_same_stat(const struct Stat *expected, const struct Stat *actual);

/* --- Events ----------------------------------------------------------------------------------- */

struct event {
    int type;
    int state;
    char path[PATH_BYTES_MAX];
};

/* Events in the order of their arrival. */
struct events {
    pthread_mutex_t guard;
    pthread_cond_t arrived;
    size_t put;
    size_t taken;
    struct event list[EVENTS_MAX];
};

struct events *events_new(void);

/* A watch function; its context is a `struct events`. Node watches are also told of each change
 * of the session: those events are left out here. */
void events_watch(zhandle_t *handle, int type, int state, const char *path, void *context);

/* The next event, which must be this one. */
void events_expect(struct events *events, int type, const char *path);

/* How many events have arrived and were not taken. */
size_t events_waiting(struct events *events);

/* --- Clients ---------------------------------------------------------------------------------- */

struct client {
    zhandle_t *handle;
    /* Changes of the session. */
    struct events *session;
    /* Events of watches that were set by a flag instead of a function. */
    struct events *legacy;
};

/* A client whose session is established. `clientid` is NULL for a new session. */
struct client *client_open(const char *hosts, int timeout_ms, const clientid_t *clientid);

/* The same, without waiting for the session. */
struct client *client_start(const char *hosts, int timeout_ms, const clientid_t *clientid);

/* The same with a flag of zookeeper_init, ZOO_READONLY or 0. */
struct client *client_start_with(const char *hosts, int timeout_ms, const clientid_t *clientid,
                                 int flag);

/* Waits until the session takes this state, past any others. */
void client_wait_state(struct client *client, int state);

void client_close(struct client *client);

/* Creates a plain, open node. */
void client_create(struct client *client, const char *path, const char *data);

/* The data of a node as text in a buffer that the next call overwrites. */
const char *client_read(struct client *client, const char *path);

/* --- Replies of asynchronous calls ------------------------------------------------------------ */

/* What a completion function was given. */
struct reply {
    int done;
    int rc;
    struct Stat stat;
    /* Text of a path, data, the first child, or the first ACL id. */
    char text[PATH_BYTES_MAX];
    /* Length of the data, number of the children, or number of the ACL entries. */
    int count;
};

void reply_void(int rc, const void *reply);
void reply_stat(int rc, const struct Stat *stat, const void *reply);
void reply_data(int rc, const char *value, int bytes, const struct Stat *stat, const void *reply);
void reply_string(int rc, const char *value, const void *reply);
void reply_string_stat(int rc, const char *value, const struct Stat *stat, const void *reply);
void reply_strings(int rc, const struct String_vector *strings, const void *reply);
void reply_strings_stat(int rc, const struct String_vector *strings, const struct Stat *stat,
                        const void *reply);
void reply_acl(int rc, struct ACL_vector *acl, struct Stat *stat, const void *reply);

/* Waits for the completion and returns its code. */
int reply_wait(struct reply *reply);

/* Waits until everything the server had committed is visible to this client. */
void client_sync(struct client *client, const char *path);

/* Polls until the node is gone. */
void client_wait_gone(struct client *client, const char *path);

#endif
