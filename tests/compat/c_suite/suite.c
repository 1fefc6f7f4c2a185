/* Interop suite over ZooKeeper's own C client; started by c_suite.py.
 *
 *     suite list                          the names of the cases, one per line, and behind a tab
 *                                         why one cannot be run while servers are killed
 *     suite CASE ADDRESS RELAY ROOT       runs one case; its last line says `ok` or `FAILED why`
 *
 * The cases are in the other files of this folder, one table per field.
 */

#include "bench.h"

#include <unistd.h>

extern const struct test node_cases[], asynchronous_cases[], multi_cases[], watch_cases[],
    security_cases[], session_cases[];

static const struct test *const tables[] = {
    node_cases, asynchronous_cases, multi_cases, watch_cases, security_cases, session_cases,
};

static const struct test *next_case(const struct test *after)
{
    size_t table = 0;
    const struct test *test = tables[0];
    int found = after == NULL;
    for (;;) {
        while (test->name == NULL) {
            if (++table == sizeof tables / sizeof tables[0])
                return NULL;
            test = tables[table];
        }
        if (found)
            return test;
        found = test == after;
        test++;
    }
}

static void list_cases(void)
{
    for (const struct test *test = next_case(NULL); test; test = next_case(test))
        printf("%s\t%s\n", test->name, test->steady ? test->steady : "");
}

static void create_root(void)
{
    struct client *client = client_open(bench_address, SESSION_MS, NULL);
    client_create(client, bench_root, "");
    client_close(client);
}

int main(int count, char **words)
{
    if (count == 2 && strcmp(words[1], "list") == 0) {
        list_cases();
        return 0;
    }
    if (count != 5) {
        fprintf(stderr, "usage: suite list | suite CASE ADDRESS RELAY ROOT\n");
        return 2;
    }
    bench_address = words[2];
    bench_relay = words[3];
    bench_root = words[4];
    zoo_set_debug_level(ZOO_LOG_LEVEL_WARN);
    for (const struct test *test = next_case(NULL); test; test = next_case(test)) {
        if (strcmp(test->name, words[1]) == 0) {
            create_root();
            test->run();
            puts("ok");
            fflush(stdout);
            _exit(0);
        }
    }
    fprintf(stderr, "no such case: %s\n", words[1]);
    return 2;
}
