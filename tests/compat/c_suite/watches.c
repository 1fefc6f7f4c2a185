/* Watches: each kind, their removal, and their re-registration after a reconnect.
 *
 * The C client re-registers its watches itself: after each reconnect it sends setWatches with
 * xid -8 and the last zxid it has seen (spec sections 2.5 and 6.6).
 */

#include "bench.h"

static void get_watched(struct client *client, const char *path, struct events *seen)
{
    char data[16];
    int bytes = sizeof data;
    CHECK_OK(zoo_wget(client->handle, path, events_watch, seen, data, &bytes, NULL));
}

static void list_watched(struct client *client, const char *path, struct events *seen)
{
    struct String_vector names;
    CHECK_OK(zoo_wget_children(client->handle, path, events_watch, seen, &names));
    deallocate_String_vector(&names);
}

static void each_kind_of_watch_fires_once(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct events *exists = events_new(), *data = events_new(), *child = events_new();
    const char *path = bench_path("node"), *below = bench_path("node/child");

    CHECK_RC(ZNONODE, zoo_wexists(client->handle, path, events_watch, exists, NULL));
    client_create(client, path, "");
    events_expect(exists, ZOO_CREATED_EVENT, path);
    get_watched(client, path, data);
    list_watched(client, path, child);
    CHECK_OK(zoo_set(client->handle, path, "x", 1, -1));
    CHECK_OK(zoo_set(client->handle, path, "y", 1, -1));
    events_expect(data, ZOO_CHANGED_EVENT, path);
    client_create(client, below, "");
    CHECK_OK(zoo_delete(client->handle, below, -1));
    events_expect(child, ZOO_CHILD_EVENT, path);
    CHECK_OK(zoo_wexists(client->handle, path, events_watch, exists, NULL));
    list_watched(client, path, child);
    CHECK_OK(zoo_delete(client->handle, path, -1));
    events_expect(exists, ZOO_DELETED_EVENT, path);
    events_expect(child, ZOO_DELETED_EVENT, path);
    CHECK_INT(0, events_waiting(exists) + events_waiting(data) + events_waiting(child));
    client_close(client);
}

static void watches_set_by_flag_reach_the_global_watcher(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    struct String_vector names;
    struct Stat stat;
    CHECK_RC(ZNONODE, zoo_exists(client->handle, path, 1, &stat));
    CHECK_OK(zoo_get_children2(client->handle, bench_root, 1, &names, &stat));
    client_create(client, path, "");
    events_expect(client->legacy, ZOO_CREATED_EVENT, path);
    events_expect(client->legacy, ZOO_CHILD_EVENT, bench_root);
    client_close(client);
}

static void an_event_comes_before_the_reply_that_shows_the_change(void)
{
    struct client *watching = client_open(bench_address, SESSION_MS, NULL);
    struct client *writing = client_open(bench_address, SESSION_MS, NULL);
    struct events *seen = events_new();
    char text[16];
    for (int i = 0; i < 50; i++) {
        get_watched(watching, bench_root, seen);
        int bytes = snprintf(text, sizeof text, "%d", i);
        CHECK_OK(zoo_set(writing->handle, bench_root, text, bytes, -1));
        /* The client hands events and replies to one thread, in the order of their arrival. */
        struct reply reply = {0};
        CHECK_OK(zoo_async(watching->handle, bench_root, reply_string, &reply));
        CHECK_OK(reply_wait(&reply));
        CHECK_INT(1, events_waiting(seen));
        events_expect(seen, ZOO_CHANGED_EVENT, bench_root);
    }
    client_close(writing);
    client_close(watching);
}

static void removed_watches_stay_silent(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct events *data = events_new(), *child = events_new(), *kept = events_new();
    const char *path = bench_path("node");
    client_create(client, path, "");
    get_watched(client, path, data);
    list_watched(client, path, child);
    list_watched(client, path, kept);
    CHECK_OK(zoo_remove_watches(client->handle, path, ZWATCHTYPE_DATA, events_watch, data, 0));
    CHECK_OK(zoo_remove_watches(client->handle, path, ZWATCHTYPE_CHILD, events_watch, child, 0));
    CHECK_OK(zoo_set(client->handle, path, "x", 1, -1));
    client_create(client, bench_path("node/child"), "");
    events_expect(kept, ZOO_CHILD_EVENT, path);
    CHECK_INT(0, events_waiting(data) + events_waiting(child));
    CHECK_RC(ZNOWATCHER,
             zoo_remove_watches(client->handle, path, ZWATCHTYPE_ANY, events_watch, data, 0));
    client_close(client);
}

static void all_watches_of_a_path_can_be_removed(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct events *seen = events_new(), *control = events_new();
    const char *path = bench_path("node");
    client_create(client, path, "");
    get_watched(client, path, seen);
    list_watched(client, path, seen);
    list_watched(client, bench_root, control);
    CHECK_OK(zoo_remove_all_watches(client->handle, path, ZWATCHTYPE_ANY, 0));
    CHECK_OK(zoo_delete(client->handle, path, -1));
    events_expect(control, ZOO_CHILD_EVENT, bench_root);
    CHECK_INT(0, events_waiting(seen));
    client_close(client);
}

/* The nodes of the reconnect cases, and one event queue for the watch on each. */
enum { CHANGED, DELETED, CREATED, LISTED, LIST_DELETED, QUIET_DATA, QUIET_LIST, QUIET_ABSENT,
       WATCHED };

static const char *const watched_names[WATCHED] = {
    "changed", "deleted", "created", "listed", "list-deleted", "quiet-data", "quiet-list",
    "quiet-absent",
};

/* Creates the nodes through `writer` and watches them through `client`, whose paths have the
 * prefix `base` (empty for a chroot). */
static void watch_all(struct client *client, const char *base, struct client *writer,
                      struct events **seen, char paths[WATCHED][PATH_BYTES_MAX])
{
    for (int i = 0; i < WATCHED; i++) {
        seen[i] = events_new();
        snprintf(paths[i], PATH_BYTES_MAX, "%s/%s", base, watched_names[i]);
        if (i != CREATED && i != QUIET_ABSENT)
            client_create(writer, bench_path(watched_names[i]), "");
    }
    client_sync(client, "/");
    get_watched(client, paths[CHANGED], seen[CHANGED]);
    get_watched(client, paths[DELETED], seen[DELETED]);
    get_watched(client, paths[QUIET_DATA], seen[QUIET_DATA]);
    list_watched(client, paths[LISTED], seen[LISTED]);
    list_watched(client, paths[LIST_DELETED], seen[LIST_DELETED]);
    list_watched(client, paths[QUIET_LIST], seen[QUIET_LIST]);
    static const int absent[] = {CREATED, QUIET_ABSENT};
    for (int i = 0; i < 2; i++)
        CHECK_RC(ZNONODE, zoo_wexists(client->handle, paths[absent[i]], events_watch,
                                      seen[absent[i]], NULL));
}

static void change_some(struct client *writer)
{
    CHECK_OK(zoo_set(writer->handle, bench_path("changed"), "x", 1, -1));
    CHECK_OK(zoo_delete(writer->handle, bench_path("deleted"), -1));
    client_create(writer, bench_path("created"), "");
    client_create(writer, bench_path("listed/child"), "");
    CHECK_OK(zoo_delete(writer->handle, bench_path("list-deleted"), -1));
}

static void change_the_quiet(struct client *writer)
{
    CHECK_OK(zoo_set(writer->handle, bench_path("quiet-data"), "x", 1, -1));
    client_create(writer, bench_path("quiet-list/child"), "");
    client_create(writer, bench_path("quiet-absent"), "");
}

static void expect_some(struct events **seen, char paths[WATCHED][PATH_BYTES_MAX])
{
    events_expect(seen[CHANGED], ZOO_CHANGED_EVENT, paths[CHANGED]);
    events_expect(seen[DELETED], ZOO_DELETED_EVENT, paths[DELETED]);
    events_expect(seen[CREATED], ZOO_CREATED_EVENT, paths[CREATED]);
    events_expect(seen[LISTED], ZOO_CHILD_EVENT, paths[LISTED]);
    events_expect(seen[LIST_DELETED], ZOO_DELETED_EVENT, paths[LIST_DELETED]);
}

static void expect_the_quiet(struct events **seen, char paths[WATCHED][PATH_BYTES_MAX])
{
    events_expect(seen[QUIET_DATA], ZOO_CHANGED_EVENT, paths[QUIET_DATA]);
    events_expect(seen[QUIET_LIST], ZOO_CHILD_EVENT, paths[QUIET_LIST]);
    events_expect(seen[QUIET_ABSENT], ZOO_CREATED_EVENT, paths[QUIET_ABSENT]);
}

static void expect_silence(struct events **seen)
{
    for (int i = 0; i < WATCHED; i++)
        CHECK_INT(0, events_waiting(seen[i]));
}

static void reconnect_and_check(const char *hosts, const char *base)
{
    struct events *seen[WATCHED];
    char paths[WATCHED][PATH_BYTES_MAX];
    struct client *writer = client_open(bench_address, SESSION_MS, NULL);
    struct client *client = client_open(hosts, SESSION_MS, NULL);
    watch_all(client, base, writer, seen, paths);
    bench_ask("cut");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    change_some(writer);
    bench_ask("mend");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    expect_some(seen, paths);
    /* Behind the reply of a request, nothing of setWatches can be outstanding. */
    client_sync(client, "/");
    expect_silence(seen);
    change_the_quiet(writer);
    expect_the_quiet(seen, paths);
    expect_silence(seen);
    client_close(client);
    client_close(writer);
}

static void a_reconnect_reports_what_was_missed_and_keeps_the_rest(void)
{
    reconnect_and_check(bench_relay, bench_root);
}

static void a_reconnect_within_a_chroot_does_the_same(void)
{
    char hosts[2 * PATH_BYTES_MAX];
    snprintf(hosts, sizeof hosts, "%s%s", bench_relay, bench_root);
    reconnect_and_check(hosts, "");
}

static void watches_live_on_after_the_server_was_killed(void)
{
    struct events *seen[WATCHED];
    char paths[WATCHED][PATH_BYTES_MAX];
    struct client *writer = client_open(bench_address, SESSION_MS, NULL);
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    watch_all(client, bench_root, writer, seen, paths);
    bench_ask("kill");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    client_wait_state(writer, ZOO_CONNECTING_STATE);
    bench_ask("start");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    client_wait_state(writer, ZOO_CONNECTED_STATE);
    client_sync(client, "/");
    expect_silence(seen);
    change_some(writer);
    expect_some(seen, paths);
    change_the_quiet(writer);
    expect_the_quiet(seen, paths);
    client_close(client);
    client_close(writer);
}

static void thousands_of_watches_are_set_again_at_once(void)
{
    enum { NODES = 3000 };
    struct client *writer = client_open(bench_address, SESSION_MS, NULL);
    struct client *client = client_open(bench_relay, SESSION_MS, NULL);
    struct events *seen = events_new();
    static struct reply replies[NODES];
    static const char *paths[NODES];
    char name[16];
    for (int i = 0; i < NODES; i++) {
        snprintf(name, sizeof name, "n%04d", i);
        paths[i] = bench_path(name);
        CHECK_OK(zoo_awexists(client->handle, paths[i], events_watch, seen, reply_stat,
                              &replies[i]));
    }
    for (int i = 0; i < NODES; i++)
        CHECK_RC(ZNONODE, reply_wait(&replies[i]));
    bench_ask("cut");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    client_create(writer, paths[NODES - 1], "");
    bench_ask("mend");
    events_expect(seen, ZOO_CREATED_EVENT, paths[NODES - 1]);
    for (int i = 0; i < 10; i++) {
        client_create(writer, paths[i * 100], "");
        events_expect(seen, ZOO_CREATED_EVENT, paths[i * 100]);
    }
    client_close(client);
    client_close(writer);
}

const struct test watch_cases[] = {
    CASE(each_kind_of_watch_fires_once),
    CASE(watches_set_by_flag_reach_the_global_watcher),
    CASE(an_event_comes_before_the_reply_that_shows_the_change),
    CASE(removed_watches_stay_silent),
    CASE(all_watches_of_a_path_can_be_removed),
    CASE(a_reconnect_reports_what_was_missed_and_keeps_the_rest),
    CASE(a_reconnect_within_a_chroot_does_the_same),
    STEADY_CASE(watches_live_on_after_the_server_was_killed, ENDS_SERVERS),
    CASE(thousands_of_watches_are_set_again_at_once),
    NO_MORE_CASES,
};
