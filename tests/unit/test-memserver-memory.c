/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory that the daemon holds over what it stores stays under 2 % and a
 * constant: its own, its page tables, and the kernel's index of the memfds
 * (reckoned, 576 bytes for 64 pages, since the kernel does not tell).
 */
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include "memserver-client.h"
#include "server-process.h"

#define GROUPS 2048u    /* 512 MiB */
#define PAGES (GROUPS * MEMX_GROUP_PAGES)
/* Binary, libraries, stacks; 4 MiB of warm frames; frames in flight. */
#define CONSTANT_BYTES (8u << 20)

typedef struct Fixture {
    ServerProcess *server;
    Client *client;
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    f->server = server_process_new("1G");
    f->client = client_new(server_process_address(f->server), NULL);
    g_assert_cmpint(client_create(f->client, PAGES * 2, PAGES), ==, 0);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    client_free(f->client);
    server_process_free(f->server);
}

static uint64_t status_kib(const char *status, const char *field)
{
    const char *at = strstr(status, field);

    g_assert_nonnull(at);
    return g_ascii_strtoull(at + strlen(field), NULL, 10);
}

static uint64_t memory_bytes(ServerProcess *server)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            server_process_pid(server));
    g_autofree char *status = NULL;
    uint64_t shared;

    g_assert_true(g_file_get_contents(path, &status, NULL, NULL));
    shared = status_kib(status, "RssShmem:") * 1024;
    return status_kib(status, "RssAnon:") * 1024 +
           status_kib(status, "VmPTE:") * 1024 + shared +
           shared / MEMX_PAGE_BYTES * 576 / 64;
}

static void check(Fixture *f, const char *when)
{
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_ORDERED), ==, 0);

    uint64_t held = f->client->reply.space_pages * MEMX_PAGE_BYTES;
    uint64_t memory = memory_bytes(f->server);

    g_test_message("%s: %" G_GUINT64_FORMAT " KiB held, %" G_GUINT64_FORMAT
                   " KiB taken (%.2f %% over)", when, held / 1024,
                   memory / 1024, held ? (memory - held) * 100.0 / held : 0);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    g_test_skip("a sanitizer's own memory is more than 2 %");
#else
    g_assert_cmpuint(memory, <=, held + held / 50 + CONSTANT_BYTES);
#endif
}

static void test_overhead(Fixture *f, gconstpointer data)
{
    GRand *rand = g_rand_new_with_seed(1);

    check(f, "empty");
    for (unsigned group = 0; group < GROUPS; group++) {
        g_assert_cmpint(client_store(f->client, group, ALL_PAGES, 1), ==, 0);
    }
    check(f, "full");
    for (unsigned i = 0; i < GROUPS / 2; i++) {
        unsigned group = g_rand_int_range(rand, 0, GROUPS);

        g_assert_cmpint(client_store(f->client, group, ALL_PAGES, 2), ==, 0);
    }
    check(f, "half overwritten");
    for (unsigned group = 0; group < GROUPS; group += 2) {
        g_assert_cmpint(client_drop(f->client, group, ALL_PAGES), ==, 0);
    }
    check(f, "every second chunk dropped");
    for (unsigned group = 1; group < GROUPS; group += 2) {
        g_assert_cmpint(client_drop(f->client, group, 0x5555555555555555),
                        ==, 0);
    }
    check(f, "every second page of the rest dropped");
    for (unsigned group = 0; group < GROUPS; group++) {
        g_assert_cmpint(client_drop(f->client, group, ALL_PAGES), ==, 0);
    }
    check(f, "all dropped");
    g_rand_free(rand);
}

static void test_taken_over(Fixture *f, gconstpointer data)
{
    for (unsigned group = 0; group < GROUPS; group += 2) {
        g_assert_cmpint(client_store(f->client, group, ALL_PAGES, 1), ==, 0);
    }
    for (unsigned group = 0; group < GROUPS; group += 4) {
        g_assert_cmpint(client_drop(f->client, group, ALL_PAGES), ==, 0);
    }
    server_process_take_over(f->server);
    client_reattach(f->client);
    /* Touches all that it has, so that its own mapping counts. */
    for (unsigned group = 2; group < GROUPS; group += 4) {
        uint64_t generation;

        g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FETCH, group,
                                     ALL_PAGES, &generation), ==, 0);
        g_assert_cmpuint(generation, ==, 1);
    }
    check(f, "taken over");
}

static void test_closed(Fixture *f, gconstpointer data)
{
    for (unsigned group = 0; group < GROUPS; group++) {
        g_assert_cmpint(client_store(f->client, group, ALL_PAGES, 1), ==, 0);
    }
    g_assert_cmpint(client_close(f->client), ==, 0);
    g_assert_cmpuint(f->client->reply.free_pages, ==,
                     f->client->reply.capacity_pages);
    check(f, "closed");
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/memory/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("overhead-under-two-percent", test_overhead);
    ADD("taken-over", test_taken_over);
    ADD("closed-space-leaves-nothing", test_closed);
    return g_test_run();
}
