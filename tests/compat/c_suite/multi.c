/* zoo_multi and zoo_amulti: all or nothing, and what each operation reports. */

#include "bench.h"

static void init_create(zoo_op_t *op, const char *path, int mode, char *real, int real_bytes)
{
    zoo_create_op_init(op, path, "", 0, &ZOO_OPEN_ACL_UNSAFE, mode, real, real_bytes);
}

static void a_multi_applies_all_and_reports_each(void)
{
    enum { OPS = 7 };
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *old = bench_path("old"), *node = bench_path("node");
    char real[OPS][PATH_BYTES_MAX];
    zoo_op_t ops[OPS];
    zoo_op_result_t results[OPS];
    struct Stat set, created;
    client_create(client, old, "old");

    zoo_check_op_init(&ops[0], old, 0);
    init_create(&ops[1], node, ZOO_PERSISTENT, real[1], PATH_BYTES_MAX);
    zoo_set_op_init(&ops[2], old, "newer", 5, 0, &set);
    init_create(&ops[3], bench_path("node/s-"), ZOO_PERSISTENT_SEQUENTIAL, real[3],
                PATH_BYTES_MAX);
    init_create(&ops[4], bench_path("node/s-"), ZOO_EPHEMERAL_SEQUENTIAL, real[4],
                PATH_BYTES_MAX);
    init_create(&ops[5], bench_path("brief"), ZOO_PERSISTENT, real[5], PATH_BYTES_MAX);
    zoo_delete_op_init(&ops[6], bench_path("brief"), 0);
    CHECK_OK(zoo_multi(client->handle, OPS, ops, results));

    for (int i = 0; i < OPS; i++)
        CHECK_OK(results[i].err);
    CHECK_TEXT(node, results[1].value);
    CHECK_INT(1, results[2].stat->version);
    CHECK_INT(5, results[2].stat->dataLength);
    CHECK_TEXT(bench_path("node/s-0000000000"), results[3].value);
    CHECK_TEXT(bench_path("node/s-0000000001"), results[4].value);
    CHECK_OK(zoo_exists(client->handle, real[4], 0, &created));
    CHECK_INT(results[2].stat->mzxid, created.czxid);
    CHECK_INT(zoo_client_id(client->handle)->client_id, created.ephemeralOwner);
    CHECK_RC(ZNONODE, zoo_exists(client->handle, bench_path("brief"), 0, NULL));
    client_close(client);
}

/* Runs [create, failing operation, delete, set]; the failing one must be reported with `code`. */
static void check_failure(struct client *client, const zoo_op_t *failing, int code)
{
    zoo_op_t ops[4];
    zoo_op_result_t results[4];
    struct Stat stat;
    char real[PATH_BYTES_MAX];
    init_create(&ops[0], bench_path("new"), ZOO_PERSISTENT, real, sizeof real);
    ops[1] = *failing;
    zoo_delete_op_init(&ops[2], bench_path("node"), -1);
    zoo_set_op_init(&ops[3], bench_root, "", 0, -1, &stat);
    CHECK_RC(code, zoo_multi(client->handle, 4, ops, results));
    CHECK_OK(results[0].err);
    CHECK_RC(code, results[1].err);
    CHECK_RC(ZRUNTIMEINCONSISTENCY, results[2].err);
    CHECK_RC(ZRUNTIMEINCONSISTENCY, results[3].err);
    CHECK_RC(ZNONODE, zoo_exists(client->handle, bench_path("new"), 0, NULL));
    CHECK_TEXT("kept", client_read(client, bench_path("node")));
}

static void a_failing_multi_changes_nothing_and_names_the_culprit(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    char real[PATH_BYTES_MAX];
    struct Stat stat;
    zoo_op_t failing;
    client_create(client, bench_path("node"), "kept");
    zoo_check_op_init(&failing, bench_path("node"), 9);
    check_failure(client, &failing, ZBADVERSION);
    zoo_set_op_init(&failing, bench_path("node"), "x", 1, 9, &stat);
    check_failure(client, &failing, ZBADVERSION);
    zoo_delete_op_init(&failing, bench_path("missing"), -1);
    check_failure(client, &failing, ZNONODE);
    init_create(&failing, bench_path("node"), ZOO_PERSISTENT, real, sizeof real);
    check_failure(client, &failing, ZNODEEXISTS);
    init_create(&failing, bench_path("no/child"), ZOO_PERSISTENT, real, sizeof real);
    check_failure(client, &failing, ZNONODE);
    client_close(client);
}

static void operations_see_those_before_them(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    char real[PATH_BYTES_MAX];
    zoo_op_t ops[3];
    zoo_op_result_t results[3];
    struct Stat stat;
    init_create(&ops[0], path, ZOO_PERSISTENT, real, sizeof real);
    zoo_set_op_init(&ops[1], path, "x", 1, 0, &stat);
    zoo_check_op_init(&ops[2], path, 1);
    CHECK_OK(zoo_multi(client->handle, 3, ops, results));
    CHECK_TEXT("x", client_read(client, path));
    client_close(client);
}

static void amulti_completes_in_order_with_other_calls(void)
{
    enum { COUNT = 50 };
    static zoo_op_t ops[COUNT];
    static zoo_op_result_t results[COUNT];
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct reply multi = {0}, list = {0};
    char name[16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "n%d", i);
        init_create(&ops[i], bench_path(name), ZOO_PERSISTENT, NULL, 0);
    }
    CHECK_OK(zoo_amulti(client->handle, COUNT, ops, results, reply_void, &multi));
    CHECK_OK(zoo_aget_children2(client->handle, bench_root, 0, reply_strings_stat, &list));
    CHECK_OK(reply_wait(&multi));
    CHECK_OK(reply_wait(&list));
    CHECK_INT(COUNT, list.count);
    CHECK_INT(COUNT, list.stat.cversion);
    client_close(client);
}

static void a_multi_fires_watches_and_a_failed_one_none(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct events *seen = events_new();
    const char *path = bench_path("node");
    zoo_op_t ops[2];
    zoo_op_result_t results[2];
    CHECK_RC(ZNONODE, zoo_wexists(client->handle, path, events_watch, seen, NULL));
    init_create(&ops[0], path, ZOO_PERSISTENT, NULL, 0);
    zoo_check_op_init(&ops[1], path, 9);
    CHECK_RC(ZBADVERSION, zoo_multi(client->handle, 2, ops, results));
    CHECK_INT(0, events_waiting(seen));
    zoo_check_op_init(&ops[1], path, 0);
    CHECK_OK(zoo_multi(client->handle, 2, ops, results));
    events_expect(seen, ZOO_CREATED_EVENT, path);
    client_close(client);
}

const struct test multi_cases[] = {
    CASE(a_multi_applies_all_and_reports_each),
    CASE(a_failing_multi_changes_nothing_and_names_the_culprit),
    CASE(operations_see_those_before_them),
    CASE(amulti_completes_in_order_with_other_calls),
    CASE(a_multi_fires_watches_and_a_failed_one_none),
    NO_MORE_CASES,
};
