/* ACLs and authentication. */

#include "bench.h"

/* Spec section 7.6: the id that digest authentication with "u:p" yields. */
static char id_of_u_p[] = "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=";
static char digest[] = "digest";

static void authenticate(struct client *client, const char *credentials)
{
    struct reply reply = {0};
    CHECK_OK(zoo_add_auth(client->handle, "digest", credentials, (int)strlen(credentials),
                          reply_void, &reply));
    CHECK_OK(reply_wait(&reply));
}

static int read_rc(struct client *client, const char *path)
{
    char data[16];
    int bytes = sizeof data;
    return zoo_get(client->handle, path, 0, data, &bytes, NULL);
}

static void digest_authentication_opens_what_its_id_may_see(void)
{
    struct client *owner = client_open(bench_address, SESSION_MS, NULL);
    struct client *stranger = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("private");
    struct ACL entry = {ZOO_PERM_ALL, {digest, id_of_u_p}};
    struct ACL_vector acl = {1, &entry};
    authenticate(owner, "u:p");
    CHECK_OK(zoo_create(owner->handle, path, "x", 1, &acl, ZOO_PERSISTENT, NULL, 0));
    CHECK_OK(read_rc(owner, path));
    CHECK_RC(ZNOAUTH, read_rc(stranger, path));
    CHECK_RC(ZNOAUTH, zoo_set(stranger->handle, path, "", 0, -1));
    CHECK_RC(ZNOAUTH, zoo_set_acl(stranger->handle, path, -1, &ZOO_OPEN_ACL_UNSAFE));
    authenticate(stranger, "u:wrong");
    CHECK_RC(ZNOAUTH, read_rc(stranger, path));
    authenticate(stranger, "u:p");
    CHECK_OK(read_rc(stranger, path));
    client_close(stranger);
    client_close(owner);
}

static void creator_acl_becomes_the_digest_id(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    struct ACL_vector acl;
    struct Stat stat;
    CHECK_RC(ZINVALIDACL, zoo_create(client->handle, path, "", 0, &ZOO_CREATOR_ALL_ACL,
                                     ZOO_PERSISTENT, NULL, 0));
    authenticate(client, "u:p");
    CHECK_OK(zoo_create(client->handle, path, "", 0, &ZOO_CREATOR_ALL_ACL, ZOO_PERSISTENT, NULL,
                        0));
    CHECK_OK(zoo_get_acl(client->handle, path, &acl, &stat));
    CHECK_INT(1, acl.count);
    CHECK_INT(ZOO_PERM_ALL, acl.data[0].perms);
    CHECK_TEXT("digest", acl.data[0].id.scheme);
    CHECK_TEXT(id_of_u_p, acl.data[0].id.id);
    client_close(client);
}

static void set_acl_is_guarded_by_aversion(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    const char *path = bench_path("node");
    struct ACL_vector acl;
    struct Stat before, after;
    client_create(client, path, "");
    CHECK_OK(zoo_exists(client->handle, path, 0, &before));
    CHECK_OK(zoo_set_acl(client->handle, path, 0, &ZOO_READ_ACL_UNSAFE));
    CHECK_OK(zoo_get_acl(client->handle, path, &acl, &after));
    CHECK_INT(ZOO_PERM_READ, acl.data[0].perms);
    CHECK_INT(1, after.aversion);
    CHECK_INT(before.mzxid, after.mzxid);
    CHECK_INT(before.version, after.version);
    /* ADMIN is no longer granted to anyone. */
    CHECK_RC(ZNOAUTH, zoo_set_acl(client->handle, path, 1, &ZOO_OPEN_ACL_UNSAFE));
    CHECK_RC(ZNOAUTH, zoo_set(client->handle, path, "", 0, -1));
    client_create(client, bench_path("open"), "");
    CHECK_RC(ZBADVERSION, zoo_set_acl(client->handle, bench_path("open"), 7,
                                      &ZOO_OPEN_ACL_UNSAFE));
    client_close(client);
}

static void malformed_acls_are_refused(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    static char *const refused[][2] = {
        {"world", "x"}, {"digest", "nocolon"}, {"ip", "1.2.3"}, {"nonsense", "x"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct ACL entry = {ZOO_PERM_ALL, {refused[i][0], refused[i][1]}};
        struct ACL_vector acl = {1, &entry};
        CHECK_RC(ZINVALIDACL, zoo_create(client->handle, bench_path("node"), "", 0, &acl,
                                         ZOO_PERSISTENT, NULL, 0));
    }
    client_close(client);
}

static void credentials_are_sent_again_after_a_reconnect(void)
{
    struct client *client = client_open(bench_relay, SESSION_MS, NULL);
    const char *path = bench_path("private");
    authenticate(client, "u:p");
    CHECK_OK(zoo_create(client->handle, path, "x", 1, &ZOO_CREATOR_ALL_ACL, ZOO_PERSISTENT, NULL,
                        0));
    bench_ask("cut");
    client_wait_state(client, ZOO_CONNECTING_STATE);
    bench_ask("mend");
    client_wait_state(client, ZOO_CONNECTED_STATE);
    CHECK_OK(read_rc(client, path));
    client_close(client);
}

static void an_unknown_scheme_fails_the_authentication(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    struct reply reply = {0};
    CHECK_OK(zoo_add_auth(client->handle, "nonsense", "x", 1, reply_void, &reply));
    CHECK_RC(ZAUTHFAILED, reply_wait(&reply));
    client_wait_state(client, ZOO_AUTH_FAILED_STATE);
    zookeeper_close(client->handle);
}

const struct test security_cases[] = {
    CASE(digest_authentication_opens_what_its_id_may_see),
    CASE(creator_acl_becomes_the_digest_id),
    CASE(set_acl_is_guarded_by_aversion),
    CASE(malformed_acls_are_refused),
    CASE(credentials_are_sent_again_after_a_reconnect),
    CASE(an_unknown_scheme_fails_the_authentication),
    NO_MORE_CASES,
};
