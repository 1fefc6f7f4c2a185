/* The helpers of the C suite; bench.h says what each promises. */

#include "bench.h"

#include <stdarg.h>
#include <time.h>
#include <unistd.h>

const char *bench_address;
const char *bench_relay;
const char *bench_root;

void bench_fail(const char *file, int line, const char *format, ...)
{
    const char *name = strrchr(file, '/');
    va_list arguments;
    printf("FAILED %s:%d: ", name ? name + 1 : file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    /* Not exit(): threads of the client library still use what exit handlers would free. */
    _exit(1);
}

void bench_ask(const char *action)
{
    char answer[32];
    printf("@%s\n", action);
    fflush(stdout);
    CHECK(fgets(answer, sizeof answer, stdin) != NULL);
    CHECK_TEXT("done\n", answer);
}

const char *bench_path(const char *name)
{
    char *path = malloc(PATH_BYTES_MAX);
    CHECK(path != NULL);
    snprintf(path, PATH_BYTES_MAX, "%s/%s", bench_root, name);
    return path;
}

static struct timespec deadline(void)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += WAIT_SECONDS_MAX;
    return at;
}

static void copy_text(char *target, size_t size, const char *source)
{
    snprintf(target, size, "%s", source ? source : "");
}

void check_same_stat(const struct Stat *expected, const struct Stat *actual)
{
    CHECK_INT(expected->czxid, actual->czxid);
    CHECK_INT(expected->mzxid, actual->mzxid);
    CHECK_INT(expected->ctime, actual->ctime);
    CHECK_INT(expected->mtime, actual->mtime);
    CHECK_INT(expected->version, actual->version);
    CHECK_INT(expected->cversion, actual->cversion);
    CHECK_INT(expected->aversion, actual->aversion);
    CHECK_INT(expected->ephemeralOwner, actual->ephemeralOwner);
    CHECK_INT(expected->dataLength, actual->dataLength);
    CHECK_INT(expected->numChildren, actual->numChildren);
    CHECK_INT(expected->pzxid, actual->pzxid);
}

/* --- Events ----------------------------------------------------------------------------------- */

struct events *events_new(void)
{
    struct events *events = calloc(1, sizeof *events);
    CHECK(events != NULL);
    pthread_mutex_init(&events->guard, NULL);
    pthread_cond_init(&events->arrived, NULL);
    return events;
}

static void events_put(struct events *events, int type, int state, const char *path)
{
    pthread_mutex_lock(&events->guard);
    CHECK(events->put < EVENTS_MAX);
    struct event *event = &events->list[events->put++];
    event->type = type;
    event->state = state;
    copy_text(event->path, sizeof event->path, path);
    pthread_cond_broadcast(&events->arrived);
    pthread_mutex_unlock(&events->guard);
}

void events_watch(zhandle_t *handle, int type, int state, const char *path, void *context)
{
    (void)handle;
    if (type != ZOO_SESSION_EVENT)
        events_put(context, type, state, path);
}

static struct event events_next(struct events *events)
{
    struct timespec until = deadline();
    pthread_mutex_lock(&events->guard);
    while (events->taken == events->put) {
        if (pthread_cond_timedwait(&events->arrived, &events->guard, &until) != 0)
            bench_fail(__FILE__, __LINE__, "no event within %d s", WAIT_SECONDS_MAX);
    }
    struct event event = events->list[events->taken++];
    pthread_mutex_unlock(&events->guard);
    return event;
}

void events_expect(struct events *events, int type, const char *path)
{
    struct event event = events_next(events);
    if (event.type != type || strcmp(event.path, path) != 0)
        bench_fail(__FILE__, __LINE__, "event %d of '%s', expected %d of '%s'", event.type,
                   event.path, type, path);
}

size_t events_waiting(struct events *events)
{
    pthread_mutex_lock(&events->guard);
    size_t waiting = events->put - events->taken;
    pthread_mutex_unlock(&events->guard);
    return waiting;
}

/* --- Clients ---------------------------------------------------------------------------------- */

static void watch_globally(zhandle_t *handle, int type, int state, const char *path, void *context)
{
    struct client *client = context;
    (void)handle;
    events_put(type == ZOO_SESSION_EVENT ? client->session : client->legacy, type, state, path);
}

struct client *client_start(const char *hosts, int timeout_ms, const clientid_t *clientid)
{
    return client_start_with(hosts, timeout_ms, clientid, 0);
}

struct client *client_start_with(const char *hosts, int timeout_ms, const clientid_t *clientid,
                                 int flag)
{
    struct client *client = calloc(1, sizeof *client);
    CHECK(client != NULL);
    client->session = events_new();
    client->legacy = events_new();
    client->handle = zookeeper_init(hosts, watch_globally, timeout_ms, clientid, client,
                                    ZOO_NO_LOG_CLIENTENV | flag);
    CHECK(client->handle != NULL);
    return client;
}

struct client *client_open(const char *hosts, int timeout_ms, const clientid_t *clientid)
{
    struct client *client = client_start(hosts, timeout_ms, clientid);
    client_wait_state(client, ZOO_CONNECTED_STATE);
    return client;
}

void client_wait_state(struct client *client, int state)
{
    while (events_next(client->session).state != state)
        continue;
}

void client_close(struct client *client)
{
    CHECK_OK(zookeeper_close(client->handle));
}

void client_create(struct client *client, const char *path, const char *data)
{
    CHECK_OK(zoo_create(client->handle, path, data, (int)strlen(data), &ZOO_OPEN_ACL_UNSAFE,
                        ZOO_PERSISTENT, NULL, 0));
}

const char *client_read(struct client *client, const char *path)
{
    static char text[TEXT_BYTES_MAX + 1];
    int bytes = TEXT_BYTES_MAX;
    CHECK_OK(zoo_get(client->handle, path, 0, text, &bytes, NULL));
    text[bytes < 0 ? 0 : bytes] = '\0';
    return text;
}

void client_sync(struct client *client, const char *path)
{
    struct reply reply = {0};
    CHECK_OK(zoo_async(client->handle, path, reply_string, &reply));
    CHECK_OK(reply_wait(&reply));
}

void client_wait_gone(struct client *client, const char *path)
{
    struct timespec pause = {0, 20 * 1000 * 1000};
    time_t until = time(NULL) + WAIT_SECONDS_MAX;
    int rc;
    while ((rc = zoo_exists(client->handle, path, 0, NULL)) == ZOK) {
        if (time(NULL) > until)
            bench_fail(__FILE__, __LINE__, "%s was not removed", path);
        nanosleep(&pause, NULL);
    }
    CHECK_RC(ZNONODE, rc);
}

/* --- Replies ---------------------------------------------------------------------------------- */

static pthread_mutex_t reply_guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t reply_arrived = PTHREAD_COND_INITIALIZER;

static void complete(const void *data, int rc, const char *text, int count,
                     const struct Stat *stat)
{
    struct reply *reply = (struct reply *)data;
    pthread_mutex_lock(&reply_guard);
    reply->rc = rc;
    reply->count = count;
    copy_text(reply->text, sizeof reply->text, text);
    if (stat)
        reply->stat = *stat;
    reply->done = 1;
    pthread_cond_broadcast(&reply_arrived);
    pthread_mutex_unlock(&reply_guard);
}

int reply_wait(struct reply *reply)
{
    struct timespec until = deadline();
    pthread_mutex_lock(&reply_guard);
    while (!reply->done) {
        if (pthread_cond_timedwait(&reply_arrived, &reply_guard, &until) != 0)
            bench_fail(__FILE__, __LINE__, "no reply within %d s", WAIT_SECONDS_MAX);
    }
    pthread_mutex_unlock(&reply_guard);
    return reply->rc;
}

void reply_void(int rc, const void *reply)
{
    complete(reply, rc, NULL, 0, NULL);
}

void reply_stat(int rc, const struct Stat *stat, const void *reply)
{
    complete(reply, rc, NULL, 0, rc == ZOK ? stat : NULL);
}

void reply_data(int rc, const char *value, int bytes, const struct Stat *stat, const void *reply)
{
    char text[PATH_BYTES_MAX] = "";
    if (rc == ZOK && value && bytes > 0)
        snprintf(text, sizeof text, "%.*s", bytes, value);
    complete(reply, rc, text, bytes, rc == ZOK ? stat : NULL);
}

void reply_string(int rc, const char *value, const void *reply)
{
    complete(reply, rc, rc == ZOK ? value : NULL, 0, NULL);
}

void reply_string_stat(int rc, const char *value, const struct Stat *stat, const void *reply)
{
    complete(reply, rc, rc == ZOK ? value : NULL, 0, rc == ZOK ? stat : NULL);
}

void reply_strings(int rc, const struct String_vector *strings, const void *reply)
{
    reply_strings_stat(rc, strings, NULL, reply);
}

void reply_strings_stat(int rc, const struct String_vector *strings, const struct Stat *stat,
                        const void *reply)
{
    int count = rc == ZOK ? strings->count : 0;
    complete(reply, rc, count > 0 ? strings->data[0] : NULL, count, rc == ZOK ? stat : NULL);
}

void reply_acl(int rc, struct ACL_vector *acl, struct Stat *stat, const void *reply)
{
    int count = rc == ZOK ? acl->count : 0;
    complete(reply, rc, count > 0 ? acl->data[0].id.id : NULL, count, rc == ZOK ? stat : NULL);
}

/* --- Reads of several servers ----------------------------------------------------------------- */

static void catch_up(zhandle_t *handle)
{
    struct reply reply = {0};
    /* If it fails, so will the read. */
    if (strchr(bench_address, ',') && zoo_async(handle, "/", reply_string, &reply) == ZOK)
        reply_wait(&reply);
}

#define BEHIND_SYNC(name, parameters, ...) \
    int __real_##name parameters; \
    int __wrap_##name parameters \
    { \
        catch_up(handle); \
        return __real_##name(__VA_ARGS__); \
    }

BEHIND_SYNC(zoo_exists, (zhandle_t *handle, const char *path, int watch, struct Stat *stat), handle,
            path, watch, stat)
BEHIND_SYNC(zoo_wexists,
            (zhandle_t *handle, const char *path, watcher_fn watch, void *context,
             struct Stat *stat),
            handle, path, watch, context, stat)
BEHIND_SYNC(zoo_get,
            (zhandle_t *handle, const char *path, int watch, char *data, int *bytes,
             struct Stat *stat),
            handle, path, watch, data, bytes, stat)
BEHIND_SYNC(zoo_wget,
            (zhandle_t *handle, const char *path, watcher_fn watch, void *context, char *data,
             int *bytes, struct Stat *stat),
            handle, path, watch, context, data, bytes, stat)
BEHIND_SYNC(zoo_get_children,
            (zhandle_t *handle, const char *path, int watch, struct String_vector *names), handle,
            path, watch, names)
BEHIND_SYNC(zoo_wget_children,
            (zhandle_t *handle, const char *path, watcher_fn watch, void *context,
             struct String_vector *names),
            handle, path, watch, context, names)
BEHIND_SYNC(zoo_get_children2,
            (zhandle_t *handle, const char *path, int watch, struct String_vector *names,
             struct Stat *stat),
            handle, path, watch, names, stat)
BEHIND_SYNC(zoo_get_acl,
            (zhandle_t *handle, const char *path, struct ACL_vector *acl, struct Stat *stat),
            handle, path, acl, stat)
