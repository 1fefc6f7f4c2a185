/* Sessions: negotiation, expiry, re-attachment, and a killed server. */

#include "bench.h"

static void create_ephemeral(struct client *client, const char *path)
{
    CHECK_OK(zoo_create(client->handle, path, "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_EPHEMERAL, NULL,
                        0));
}

static int64_t session_of(struct client *client)
{
    return zoo_client_id(client->handle)->client_id;
}

static void the_timeout_is_clamped(void)
{
    static const struct {
        int asked_ms, granted_ms;
    } rows[] = {
        {SESSION_MS_MIN - 300, SESSION_MS_MIN},
        {3000, 3000},
        {1000000, SESSION_MS_GRANTED_MAX},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct client *client = client_open(bench_address, rows[i].asked_ms, NULL);
        CHECK_INT(rows[i].granted_ms, zoo_recv_timeout(client->handle));
        client_close(client);
    }
}

static void a_read_only_handle_is_served_in_full_by_a_healthy_server(void)
{
    struct client *client = client_start_with(bench_address, SESSION_MS, NULL, ZOO_READONLY);
    client_wait_state(client, ZOO_CONNECTED_STATE);
    client_create(client, bench_path("node"), "");
    client_close(client);
}

static void a_new_handle_takes_over_a_session(void)
{
    struct client *first = client_open(bench_relay, SESSION_MS, NULL);
    const char *path = bench_path("ephemeral");
    clientid_t id = *zoo_client_id(first->handle);
    struct Stat stat;
    create_ephemeral(first, path);
    /* Two living handles would take the session from each other for ever. */
    bench_ask("cut");
    struct client *second = client_open(bench_address, SESSION_MS, &id);
    CHECK_INT(id.client_id, session_of(second));
    CHECK_OK(zoo_exists(second->handle, path, 0, &stat));
    CHECK_INT(id.client_id, stat.ephemeralOwner);
    client_close(second);
    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    client_wait_gone(other, path);
    client_close(other);
}

static void a_wrong_password_reads_as_expiry(void)
{
    struct client *owner = client_open(bench_address, SESSION_MS, NULL);
    clientid_t id = *zoo_client_id(owner->handle);
    create_ephemeral(owner, bench_path("ephemeral"));
    memset(id.passwd, 0x5a, sizeof id.passwd);
    struct client *thief = client_start(bench_address, SESSION_MS, &id);
    client_wait_state(thief, ZOO_EXPIRED_SESSION_STATE);
    zookeeper_close(thief->handle);
    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    CHECK_OK(zoo_exists(other->handle, bench_path("ephemeral"), 0, NULL));
    client_close(other);
}

static void an_unknown_session_reads_as_expiry(void)
{
    clientid_t id = {0x123456789abc, {0}};
    struct client *client = client_start(bench_address, SESSION_MS, &id);
    client_wait_state(client, ZOO_EXPIRED_SESSION_STATE);
    CHECK_RC(ZINVALIDSTATE, is_unrecoverable(client->handle));
    CHECK_RC(ZINVALIDSTATE, zoo_exists(client->handle, "/", 0, NULL));
    zookeeper_close(client->handle);
}

static void a_client_cut_off_for_too_long_is_told_of_its_expiry(void)
{
    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    struct client *client = client_open(bench_relay, SESSION_MS_MIN, NULL);
    const char *path = bench_path("ephemeral");
    struct events *gone = events_new();
    create_ephemeral(client, path);
    client_sync(other, path);
    CHECK_OK(zoo_wexists(other->handle, path, events_watch, gone, NULL));
    bench_ask("cut");
    events_expect(gone, ZOO_DELETED_EVENT, path);
    bench_ask("mend");
    client_wait_state(client, ZOO_EXPIRED_SESSION_STATE);
    CHECK_RC(ZINVALIDSTATE, is_unrecoverable(client->handle));
    zookeeper_close(client->handle);
    client_close(other);
}

static void a_short_cut_keeps_session_and_ephemeral(void)
{
    struct client *client = client_open(bench_relay, SESSION_MS, NULL);
    const char *path = bench_path("ephemeral");
    int64_t session = session_of(client);
    struct Stat before, after;
    create_ephemeral(client, path);
    CHECK_OK(zoo_exists(client->handle, path, 0, &before));
    bench_ask("cut");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    bench_ask("mend");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    CHECK_INT(session, session_of(client));
    CHECK_OK(zoo_exists(client->handle, path, 0, &after));
    check_same_stat(&before, &after);
    client_close(client);
}

static void session_and_ephemeral_survive_a_killed_server(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("ephemeral");
    int64_t session = session_of(client);
    struct Stat before, after;
    create_ephemeral(client, path);
    CHECK_OK(zoo_exists(client->handle, path, 0, &before));
    bench_ask("kill");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    bench_ask("start");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    CHECK_INT(session, session_of(client));
    CHECK_OK(zoo_exists(client->handle, path, 0, &after));
    check_same_stat(&before, &after);

    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    client_close(client);
    client_wait_gone(other, path);
    client_close(other);
}

static void a_session_closed_before_the_kill_stays_closed(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    clientid_t id = *zoo_client_id(client->handle);
    create_ephemeral(client, bench_path("ephemeral"));
    client_close(client);
    bench_ask("kill");
    bench_ask("start");
    struct client *heir = client_start(bench_address, SESSION_MS, &id);
    client_wait_state(heir, ZOO_EXPIRED_SESSION_STATE);
    zookeeper_close(heir->handle);
    struct client *other = client_open(bench_address, SESSION_MS, NULL);
    CHECK_RC(ZNONODE, zoo_exists(other->handle, bench_path("ephemeral"), 0, NULL));
    client_close(other);
}

static void calls_on_a_lost_connection_report_the_loss(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    bench_ask("kill");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    CHECK_RC(ZCONNECTIONLOSS, zoo_exists(client->handle, "/", 0, NULL));
    bench_ask("start");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    CHECK_OK(zoo_exists(client->handle, "/", 0, NULL));
    client_close(client);
}

static void a_client_moves_to_its_other_address(void)
{
    char hosts[2 * PATH_BYTES_MAX];
    /* Tries the relay first. */
    zoo_deterministic_conn_order(1);
    snprintf(hosts, sizeof hosts, "%s,%s", bench_relay, bench_address);
    struct client *client = client_open(hosts, SESSION_MS, NULL);
    int64_t session = session_of(client);
    create_ephemeral(client, bench_path("ephemeral"));
    bench_ask("cut");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    client_wait_state(client, ZOO_CONNECTED_STATE);
    CHECK_INT(session, session_of(client));
    CHECK_OK(zoo_exists(client->handle, bench_path("ephemeral"), 0, NULL));
    client_close(client);
}

const struct test session_cases[] = {
    CASE(the_timeout_is_clamped),
    CASE(a_read_only_handle_is_served_in_full_by_a_healthy_server),
    CASE(a_new_handle_takes_over_a_session),
    CASE(a_wrong_password_reads_as_expiry),
    CASE(an_unknown_session_reads_as_expiry),
    CASE(a_client_cut_off_for_too_long_is_told_of_its_expiry),
    CASE(a_short_cut_keeps_session_and_ephemeral),
    STEADY_CASE(session_and_ephemeral_survive_a_killed_server, ENDS_SERVERS),
    STEADY_CASE(a_session_closed_before_the_kill_stays_closed, ENDS_SERVERS),
    STEADY_CASE(calls_on_a_lost_connection_report_the_loss, ENDS_SERVERS),
    CASE(a_client_moves_to_its_other_address),
    NO_MORE_CASES,
};
