/* Znodes over the synchronous API. */

#include "bench.h"

static int create(struct client *client, const char *path, int mode, char *real, int real_bytes)
{
    return zoo_create(client->handle, path, "", 0, &ZOO_OPEN_ACL_UNSAFE, mode, real, real_bytes);
}

static void a_node_is_created_read_changed_and_deleted(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    char real[PATH_BYTES_MAX];
    struct Stat stat;
    CHECK_OK(zoo_create(client->handle, path, "one", 3, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                        real, sizeof real));
    CHECK_TEXT(path, real);
    CHECK_TEXT("one", client_read(client, path));
    CHECK_OK(zoo_set(client->handle, path, "three", 5, 0));
    CHECK_TEXT("three", client_read(client, path));
    CHECK_OK(zoo_set2(client->handle, path, "3", 1, 1, &stat));
    CHECK_INT(2, stat.version);
    CHECK_INT(1, stat.dataLength);
    CHECK_RC(ZBADVERSION, zoo_delete(client->handle, path, 1));
    CHECK_OK(zoo_delete(client->handle, path, 2));
    CHECK_RC(ZNONODE, zoo_exists(client->handle, path, 0, &stat));
    client_close(client);
}

static void errors_name_what_is_missing_or_in_the_way(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    struct String_vector names;
    char data[8];
    int bytes = sizeof data;
    client_create(client, path, "");
    client_create(client, bench_path("node/child"), "");
    CHECK_RC(ZNODEEXISTS, create(client, path, ZOO_PERSISTENT, NULL, 0));
    CHECK_RC(ZNONODE, create(client, bench_path("no/child"), ZOO_PERSISTENT, NULL, 0));
    CHECK_RC(ZNOTEMPTY, zoo_delete(client->handle, path, -1));
    CHECK_RC(ZBADVERSION, zoo_set(client->handle, path, "", 0, 7));
    CHECK_RC(ZNONODE, zoo_get(client->handle, bench_path("no"), 0, data, &bytes, NULL));
    CHECK_RC(ZNONODE, zoo_set(client->handle, bench_path("no"), "", 0, -1));
    CHECK_RC(ZNONODE, zoo_get_children(client->handle, bench_path("no"), 0, &names));
    CHECK_RC(ZBADARGUMENTS, zoo_delete(client->handle, "/zookeeper", -1));
    client_close(client);
}

static void create2_returns_the_stat(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    char real[PATH_BYTES_MAX];
    struct Stat created, read;
    CHECK_OK(zoo_create2(client->handle, path, "four", 4, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                         real, sizeof real, &created));
    CHECK_TEXT(path, real);
    CHECK_OK(zoo_exists(client->handle, path, 0, &read));
    check_same_stat(&created, &read);
    CHECK_INT(4, created.dataLength);
    CHECK_INT(created.czxid, created.mzxid);
    CHECK_OK(zoo_create2(client->handle, bench_path("e-"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                         ZOO_EPHEMERAL_SEQUENTIAL, real, sizeof real, &created));
    CHECK_TEXT(bench_path("e-0000000001"), real);
    CHECK_INT(zoo_client_id(client->handle)->client_id, created.ephemeralOwner);
    client_close(client);
}

static void sequential_names_count_every_child_ever_created(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    char real[PATH_BYTES_MAX];
    client_create(client, bench_path("a"), "");
    client_create(client, bench_path("b"), "");
    CHECK_OK(zoo_delete(client->handle, bench_path("a"), -1));
    CHECK_OK(create(client, bench_path("n-"), ZOO_PERSISTENT_SEQUENTIAL, real, sizeof real));
    CHECK_TEXT(bench_path("n-0000000002"), real);
    CHECK_OK(create(client, bench_path(""), ZOO_PERSISTENT_SEQUENTIAL, real, sizeof real));
    CHECK_TEXT(bench_path("0000000003"), real);
    CHECK_OK(create(client, bench_path("n-"), ZOO_EPHEMERAL_SEQUENTIAL, real, sizeof real));
    CHECK_TEXT(bench_path("n-0000000004"), real);
    client_close(client);
}

static void ephemerals_go_with_their_session_and_have_no_children(void)
{
    struct client *owner = client_open(bench_address, SESSION_MS, NULL);
    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("ephemeral");
    struct Stat stat;
    CHECK_OK(create(owner, path, ZOO_EPHEMERAL, NULL, 0));
    client_sync(other, path);
    CHECK_OK(zoo_exists(other->handle, path, 0, &stat));
    CHECK_INT(zoo_client_id(owner->handle)->client_id, stat.ephemeralOwner);
    CHECK_RC(ZNOCHILDRENFOREPHEMERALS,
             create(other, bench_path("ephemeral/child"), ZOO_PERSISTENT, NULL, 0));
    client_close(owner);
    client_wait_gone(other, path);
    client_close(other);
}

static void a_container_goes_once_its_last_child_went(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *used = bench_path("used"), *unused = bench_path("unused");
    struct Stat stat;
    CHECK_OK(create(client, unused, ZOO_CONTAINER, NULL, 0));
    CHECK_OK(zoo_create2(client->handle, used, "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_CONTAINER, NULL,
                         0, &stat));
    CHECK_INT(0, stat.ephemeralOwner);
    client_create(client, bench_path("used/child"), "");
    CHECK_OK(zoo_delete(client->handle, bench_path("used/child"), -1));
    client_wait_gone(client, used);
    /* A container that never had a child stays. */
    CHECK_OK(zoo_exists(client->handle, unused, 0, &stat));
    client_close(client);
}

static void a_ttl_node_goes_after_its_time(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *brief = bench_path("brief"), *lasting = bench_path("lasting");
    char real[PATH_BYTES_MAX];
    struct Stat stat;
    CHECK_OK(zoo_create2_ttl(client->handle, brief, "", 0, &ZOO_OPEN_ACL_UNSAFE,
                             ZOO_PERSISTENT_WITH_TTL, 100, NULL, 0, &stat));
    CHECK_INT(0, stat.ephemeralOwner);
    CHECK_OK(zoo_create_ttl(client->handle, lasting, "", 0, &ZOO_OPEN_ACL_UNSAFE,
                            ZOO_PERSISTENT_WITH_TTL, 1000000, NULL, 0));
    CHECK_OK(zoo_create_ttl(client->handle, bench_path("s-"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                            ZOO_PERSISTENT_SEQUENTIAL_WITH_TTL, 1000000, real, sizeof real));
    CHECK_TEXT(bench_path("s-0000000002"), real);
    client_wait_gone(client, brief);
    CHECK_OK(zoo_exists(client->handle, lasting, 0, &stat));
    client_close(client);
}

static void a_ttl_out_of_range_is_a_bad_argument(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    static const int64_t refused[] = {0, -1, INT64_C(1) << 40};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        CHECK_RC(ZBADARGUMENTS,
                 zoo_create_ttl(client->handle, bench_path("node"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                                ZOO_PERSISTENT_WITH_TTL, refused[i], NULL, 0));
    CHECK_OK(zoo_create_ttl(client->handle, bench_path("node"), "", 0, &ZOO_OPEN_ACL_UNSAFE,
                            ZOO_PERSISTENT_WITH_TTL, (INT64_C(1) << 40) - 1, NULL, 0));
    client_close(client);
}

static void children_are_listed_with_and_without_the_stat(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct String_vector names;
    struct Stat stat;
    char name[16];
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "n%03d", i);
        client_create(client, bench_path(name), "");
    }
    CHECK_OK(zoo_get_children(client->handle, bench_root, 0, &names));
    CHECK_INT(100, names.count);
    deallocate_String_vector(&names);
    CHECK_OK(zoo_get_children2(client->handle, bench_root, 0, &names, &stat));
    CHECK_INT(100, names.count);
    CHECK_INT(100, stat.numChildren);
    CHECK_INT(100, stat.cversion);
    deallocate_String_vector(&names);
    CHECK_OK(zoo_get_children(client->handle, bench_path("n000"), 0, &names));
    CHECK_INT(0, names.count);
    client_close(client);
}

static void data_may_be_null_or_empty(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    char data[8];
    int bytes = sizeof data;
    CHECK_OK(zoo_create(client->handle, path, NULL, -1, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                        NULL, 0));
    CHECK_OK(zoo_get(client->handle, path, 0, data, &bytes, NULL));
    CHECK_INT(-1, bytes);
    bytes = sizeof data;
    CHECK_OK(zoo_set(client->handle, path, "", 0, -1));
    CHECK_OK(zoo_get(client->handle, path, 0, data, &bytes, NULL));
    CHECK_INT(0, bytes);
    client_close(client);
}

static void a_payload_near_the_frame_limit_round_trips(void)
{
    enum { BYTES = 1048000 };
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("big");
    char *sent = malloc(BYTES), *read = malloc(BYTES);
    int bytes = BYTES;
    CHECK(sent && read);
    for (int i = 0; i < BYTES; i++)
        sent[i] = (char)(i * 7);
    CHECK_OK(zoo_create(client->handle, path, sent, BYTES, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                        NULL, 0));
    CHECK_OK(zoo_get(client->handle, path, 0, read, &bytes, NULL));
    CHECK_INT(BYTES, bytes);
    CHECK(memcmp(sent, read, BYTES) == 0);
    client_close(client);
}

static void a_chroot_hides_everything_above_it(void)
{
    char hosts[2 * PATH_BYTES_MAX], real[PATH_BYTES_MAX];
    struct client *plain = client_open(bench_address, SESSION_MS, NULL);
    struct events *seen = events_new();
    struct String_vector names;
    snprintf(hosts, sizeof hosts, "%s%s", bench_address, bench_root);
    struct client *inside = client_open(hosts, SESSION_MS, NULL);
    CHECK_OK(zoo_create(inside->handle, "/node", "in", 2, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT,
                        real, sizeof real));
    CHECK_TEXT("/node", real);
    client_sync(plain, "/");
    CHECK_TEXT("in", client_read(plain, bench_path("node")));
    CHECK_OK(zoo_wexists(inside->handle, "/node", events_watch, seen, NULL));
    CHECK_OK(zoo_set(plain->handle, bench_path("node"), "out", 3, -1));
    events_expect(seen, ZOO_CHANGED_EVENT, "/node");
    CHECK_OK(zoo_get_children(inside->handle, "/", 0, &names));
    CHECK_INT(1, names.count);
    client_close(inside);
    client_close(plain);
}

static void getconfig_reads_the_configuration_node(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    char data[4096];
    int bytes = sizeof data - 1;
    struct Stat stat;
    CHECK_OK(zoo_getconfig(client->handle, 0, data, &bytes, &stat));
    data[bytes < 0 ? 0 : bytes] = '\0';
    CHECK_INT(-1, stat.aversion);
    CHECK_INT(bytes < 0 ? 0 : bytes, stat.dataLength);
    /* A standalone ZooKeeper leaves it empty; otherwise it ends with the version. */
    CHECK(bytes <= 0 || strstr(data, "\nversion=") != NULL);
    client_close(client);
}

static void reconfig_is_disabled_by_default(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    char data[4096];
    int bytes = sizeof data;
    CHECK_RC(ZRECONFIGDISABLED, zoo_reconfig(client->handle, NULL, "9", NULL, -1, data, &bytes,
                                             NULL));
    client_close(client);
}

const struct test node_cases[] = {
    CASE(a_node_is_created_read_changed_and_deleted),
    CASE(errors_name_what_is_missing_or_in_the_way),
    CASE(create2_returns_the_stat),
    CASE(sequential_names_count_every_child_ever_created),
    CASE(ephemerals_go_with_their_session_and_have_no_children),
    CASE(a_container_goes_once_its_last_child_went),
    CASE(a_ttl_node_goes_after_its_time),
    CASE(a_ttl_out_of_range_is_a_bad_argument),
    CASE(children_are_listed_with_and_without_the_stat),
    CASE(data_may_be_null_or_empty),
    CASE(a_payload_near_the_frame_limit_round_trips),
    CASE(a_chroot_hides_everything_above_it),
    CASE(getconfig_reads_the_configuration_node),
    CASE(reconfig_is_disabled_by_default),
    NO_MORE_CASES,
};
