/* The asynchronous API: every call once, and the order of many. */

#include "bench.h"

enum { PIPELINED = 1000 };

static void every_call_completes_with_its_result(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    zhandle_t *handle = client->handle;
    const char *path = bench_path("node");
    enum { CREATE, CREATE2, GET, SET, EXISTS, LIST, LIST2, ACL, SET_ACL, SYNC, DELETE, CALLS };
    struct reply replies[CALLS] = {0};

    CHECK_OK(zoo_acreate(handle, path, "one", 3, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                         reply_string, &replies[CREATE]));
    CHECK_OK(zoo_acreate2(handle, bench_path("node/n-"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                          ZOO_EPHEMERAL_SEQUENTIAL, reply_string_stat, &replies[CREATE2]));
    CHECK_OK(zoo_aget(handle, path, 0, reply_data, &replies[GET]));
    CHECK_OK(zoo_aset(handle, path, "12345", 5, 0, reply_stat, &replies[SET]));
    CHECK_OK(zoo_aexists(handle, path, 0, reply_stat, &replies[EXISTS]));
    CHECK_OK(zoo_aget_children(handle, path, 0, reply_strings, &replies[LIST]));
    CHECK_OK(zoo_aget_children2(handle, path, 0, reply_strings_stat, &replies[LIST2]));
    CHECK_OK(zoo_aget_acl(handle, path, reply_acl, &replies[ACL]));
    CHECK_OK(zoo_aset_acl(handle, path, 0, &ZOO_OPEN_ACL_UNSAFE, reply_void, &replies[SET_ACL]));
    CHECK_OK(zoo_async(handle, path, reply_string, &replies[SYNC]));
    CHECK_OK(zoo_adelete(handle, bench_path("node/n-0000000000"), 0, reply_void,
                         &replies[DELETE]));
    for (int i = 0; i < CALLS; i++)
        CHECK_OK(reply_wait(&replies[i]));

    CHECK_TEXT(path, replies[CREATE].text);
    CHECK_TEXT(bench_path("node/n-0000000000"), replies[CREATE2].text);
    CHECK_INT(zoo_client_id(handle)->client_id, replies[CREATE2].stat.ephemeralOwner);
    CHECK_TEXT("one", replies[GET].text);
    CHECK_INT(0, replies[GET].stat.version);
    CHECK_INT(1, replies[SET].stat.version);
    CHECK_INT(5, replies[EXISTS].stat.dataLength);
    CHECK_INT(1, replies[LIST].count);
    CHECK_TEXT("n-0000000000", replies[LIST].text);
    CHECK_INT(1, replies[LIST2].stat.numChildren);
    CHECK_TEXT("anyone", replies[ACL].text);
    CHECK_TEXT(path, replies[SYNC].text);
    client_close(client);
}

static void failures_complete_with_their_code(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    zhandle_t *handle = client->handle;
    const char *missing = bench_path("missing");
    struct reply replies[6] = {0};
    CHECK_OK(zoo_acreate(handle, bench_root, "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                         reply_string, &replies[0]));
    CHECK_OK(zoo_aget(handle, missing, 0, reply_data, &replies[1]));
    CHECK_OK(zoo_aset(handle, bench_root, "", 0, 5, reply_stat, &replies[2]));
    CHECK_OK(zoo_adelete(handle, missing, -1, reply_void, &replies[3]));
    CHECK_OK(zoo_aget_children2(handle, missing, 0, reply_strings_stat, &replies[4]));
    CHECK_OK(zoo_aget_acl(handle, missing, reply_acl, &replies[5]));
    CHECK_RC(ZNODEEXISTS, reply_wait(&replies[0]));
    CHECK_RC(ZNONODE, reply_wait(&replies[1]));
    CHECK_RC(ZBADVERSION, reply_wait(&replies[2]));
    CHECK_RC(ZNONODE, reply_wait(&replies[3]));
    CHECK_RC(ZNONODE, reply_wait(&replies[4]));
    CHECK_RC(ZNONODE, reply_wait(&replies[5]));
    client_close(client);
}

static int completed[PIPELINED];
static int completed_count;

/* Completions run on one thread of the client library, so the list needs no lock. */
static void note_completion(int rc, const char *value, const void *number)
{
    (void)value;
    CHECK_OK(rc);
    completed[completed_count++] = (int)(intptr_t)number;
}

static void pipelined_requests_complete_in_order(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct reply last = {0};
    for (intptr_t i = 0; i < PIPELINED; i++)
        CHECK_OK(zoo_acreate(client->handle, bench_path("n-"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                             ZOO_PERSISTENT_SEQUENTIAL, note_completion, (void *)i));
    CHECK_OK(zoo_aexists(client->handle, bench_path("n-0000000999"), 0, reply_stat, &last));
    CHECK_OK(reply_wait(&last));
    CHECK_INT(PIPELINED, completed_count);
    for (int i = 0; i < PIPELINED; i++)
        CHECK_INT(i, completed[i]);
    client_close(client);
}

static void a_pipelined_read_sees_the_write_before_it(void)
{
    enum { ROUNDS = 200 };
    static struct reply writes[ROUNDS], reads[ROUNDS];
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    char text[16];
    for (int i = 0; i < ROUNDS; i++) {
        int bytes = snprintf(text, sizeof text, "%d", i);
        CHECK_OK(zoo_aset(client->handle, bench_root, text, bytes, -1, reply_stat, &writes[i]));
        CHECK_OK(zoo_aget(client->handle, bench_root, 0, reply_data, &reads[i]));
    }
    for (int i = 0; i < ROUNDS; i++) {
        snprintf(text, sizeof text, "%d", i);
        CHECK_OK(reply_wait(&writes[i]));
        CHECK_OK(reply_wait(&reads[i]));
        CHECK_INT(i + 1, writes[i].stat.version);
        CHECK_TEXT(text, reads[i].text);
    }
    client_close(client);
}

static void sync_needs_no_node_and_shows_other_clients_writes(void)
{
    struct client *writer = client_open(bench_address, SESSION_MS, NULL);
    struct client *reader = client_open(bench_address, SESSION_MS, NULL);
    char text[16];
    client_sync(reader, bench_path("missing"));
    for (int i = 0; i < 50; i++) {
        int bytes = snprintf(text, sizeof text, "%d", i);
        CHECK_OK(zoo_set(writer->handle, bench_root, text, bytes, -1));
        client_sync(reader, bench_root);
        CHECK_TEXT(text, client_read(reader, bench_root));
    }
    client_close(reader);
    client_close(writer);
}

const struct test asynchronous_cases[] = {
    CASE(every_call_completes_with_its_result),
    CASE(failures_complete_with_their_code),
    CASE(pipelined_requests_complete_in_order),
    CASE(a_pipelined_read_sees_the_write_before_it),
    CASE(sync_needs_no_node_and_shows_other_clients_writes),
    NO_MORE_CASES,
};
