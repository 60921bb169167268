/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pool: reservation, shares, quotas; and servers that come back empty.
 */
#include <string.h>
#include "region-fixture.h"

static void write_all(MemxRegion *region, uint64_t bytes, unsigned generation)
{
    for (uint64_t page = 0; page < bytes / PAGE_BYTES; page++) {
        pattern_write(memx_region_base(region), page, generation);
    }
}

static void check_all(MemxRegion *region, uint64_t bytes, unsigned generation)
{
    for (uint64_t page = 0; page < bytes / PAGE_BYTES; page++) {
        pattern_check(memx_region_base(region), page, generation);
    }
}

static uint64_t reserved(MemxRegion *region)
{
    uint64_t sum = 0;
    MemxStats s;

    memx_region_stats(region, &s);
    for (unsigned i = 0; i < s.n_servers; i++) {
        sum += s.servers[i].reserved_bytes;
    }
    return sum;
}

/* A server with three times the room gets three times as much. */
static void test_shares_by_room(void)
{
    ServerProcess *server[] = { server_process_new("64M"),
                                server_process_new("192M") };
    uint64_t size = 160 * MIB;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 16 * MIB, .servers = server, .n_servers = 2,
        .keep_copies = MEMX_KEEP_COPIES_OFF,
    });
    uint64_t a, b;
    MemxStats s;

    memx_region_stats(region, &s);
    a = s.servers[0].reserved_bytes;
    b = s.servers[1].reserved_bytes;
    g_assert_cmpuint(b, >, 2 * a);
    g_assert_cmpuint(b, <, 4 * a);
    g_assert_cmpuint(a + b, >=, size - 16 * MIB);
    write_all(region, size, 1);
    check_all(region, size, 1);
    memx_region_stats(region, &s);
    /* More than its share only as far as room is free there anyway. */
    g_assert_cmpuint(s.servers[0].remote_bytes, >, 0);
    g_assert_cmpuint(s.servers[1].remote_bytes, >, s.servers[0].remote_bytes);
    memx_region_free(region);
    server_process_free(server[0]);
    server_process_free(server[1]);
}

/* Lowering reserves first, and is refused, with nothing changed, if there is
 * no room; raising gives room back, that another region can have. */
static void test_local_size(void)
{
    ServerProcess *server = server_process_new("72M");
    uint64_t size = 64 * MIB;
    RegionFixture f = {
        .size = size, .local = 32 * MIB, .servers = &server, .n_servers = 1,
    };
    MemxRegion *region = region_fixture_new(&f), *other;
    g_autoptr(GError) error = NULL;
    uint64_t before = reserved(region);
    MemxStats s;

    other = region_fixture_new(&(RegionFixture) {
        .size = 32 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    });
    write_all(region, size, 1);
    g_assert_false(memx_region_set_local_bytes(region, 8 * MIB, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    memx_region_stats(region, &s);
    g_assert_cmpuint(s.local_limit_bytes, ==, 32 * MIB);
    g_assert_cmpuint(reserved(region), ==, before);
    g_clear_error(&error);

    memx_region_free(other);
    g_assert_true(memx_region_set_local_bytes(region, 8 * MIB, &error));
    g_assert_cmpuint(reserved(region), ==, before + 24 * MIB);
    await_stats(region, &s, stats_local_at_most, 8 * MIB);
    check_all(region, size, 1);

    g_assert_true(memx_region_set_local_bytes(region, size, &error));
    g_assert_cmpuint(reserved(region), <, before);
    g_assert_false(memx_region_set_local_bytes(region, size + 4096, NULL));
    g_assert_false(memx_region_set_local_bytes(region, 4096, NULL));
    g_assert_false(memx_region_set_local_bytes(region, 9 * MIB + 1, NULL));
    check_all(region, size, 1);
    /* Copies, if some are kept, give way. */
    other = region_fixture_new(&(RegionFixture) {
        .size = 32 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    });
    memx_region_free(other);
    memx_region_free(region);
    server_process_free(server);
}

/* What is evicted after a change that gave one server most of the new room
 * must still find its place. */
static void test_lowered_on_unequal_servers(void)
{
    ServerProcess *server[] = { server_process_new("40M"),
                                server_process_new("150M") };
    uint64_t size = 128 * MIB;
    g_autoptr(GError) error = NULL;
    MemxRegion *hog = region_fixture_new(&(RegionFixture) {
        .size = 120 * MIB, .local = 8 * MIB, .servers = server + 1,
        .n_servers = 1,
    });
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 80 * MIB, .servers = server, .n_servers = 2,
    });
    MemxStats s;

    write_all(region, size, 1);
    memx_region_free(hog);
    if (memx_region_set_local_bytes(region, 16 * MIB, &error)) {
        await_stats(region, &s, stats_local_at_most, 16 * MIB);
    } else {
        g_test_message("refused: %s", error->message);
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    }
    check_all(region, size, 1);
    write_all(region, size, 2);
    check_all(region, size, 2);
    memx_region_free(region);
    server_process_free(server[0]);
    server_process_free(server[1]);
}

static void count_event(const MemxEvent *event, void *opaque)
{
    g_atomic_int_inc(&((gint *)opaque)[event->type]);
}

static bool server_is_up_again(const MemxStats *s, uint64_t reconnects)
{
    return s->servers[0].health == MEMX_SERVER_UP &&
           s->servers[0].reconnects > reconnects;
}

/* All pages are local, and their copies are lost with the server: none is
 * ever read from there, and none taken for unchanged. */
static void test_empty_server_loses_only_copies(void)
{
    ServerProcess *server = server_process_new("128M");
    gint events[MEMX_EVENT_BUG + 1] = { 0 };
    uint64_t size = 32 * MIB;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 8 * MIB, .servers = &server, .n_servers = 1,
        .keep_copies = MEMX_KEEP_COPIES_ON, .event = count_event,
        .opaque = events,
    });
    g_autoptr(GError) error = NULL;
    uint64_t reconnects;
    int64_t deadline;
    MemxStats s;

    write_all(region, size, 1);
    /* Not all of it: then no copy would be kept. */
    g_assert_true(memx_region_set_local_bytes(region, size - MIB, &error));
    /* Room for what the engine itself holds is in local-size, too: what it
     * takes from the pages is given back. */
    g_assert_cmpint(memx_region_discard(region, 0, 8 * MIB), ==, 0);
    /* An eviction that began before that may still end after a page was
     * read: read until all are here. */
    deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    do {
        for (uint64_t page = 8 * MIB / PAGE_BYTES; page < size / PAGE_BYTES;
             page++) {
            pattern_check(memx_region_base(region), page, 1);
        }
        memx_region_stats(region, &s);
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
    } while (s.remote_bytes > 0);
    g_assert_cmpuint(s.servers[0].kept_bytes, >, 0);
    reconnects = s.servers[0].reconnects;
    server_process_kill(server);
    server_process_restart(server, false);
    await_stats(region, &s, server_is_up_again, reconnects);
    g_assert_cmpuint(s.servers[0].kept_bytes, ==, 0);
    g_assert_cmpint(g_atomic_int_get(&events[MEMX_EVENT_SERVER_EMPTY]), ==,
                    0);
    g_assert_true(memx_region_set_local_bytes(region, 8 * MIB, &error));
    await_stats(region, &s, stats_local_at_most, 8 * MIB);
    for (uint64_t page = 0; page < size / PAGE_BYTES; page++) {
        pattern_check(memx_region_base(region), page,
                      page < 8 * MIB / PAGE_BYTES ? 0 : 1);
    }
    memx_region_free(region);
    server_process_free(server);
}

static gpointer write_all_thread(gpointer region)
{
    write_all(region, 32 * MIB, 1);
    return NULL;
}

static bool somebody_waits(const MemxStats *s, uint64_t events)
{
    return s->faults_waiting > 0 &&
           g_atomic_int_get(&((gint *)(uintptr_t)events)[MEMX_EVENT_STALLED]);
}

static bool nobody_waits(const MemxStats *s, uint64_t unused)
{
    return !s->faults_waiting;
}

/* The server takes nothing and no page is there to be fetched: who waits for
 * room is counted, and told, like who waits for a page. */
static void test_waits_for_room(void)
{
    ServerProcess *server = server_process_new("64M");
    gint events[MEMX_EVENT_BUG + 1] = { 0 };
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = 32 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1, .server_timeout_ms = 1000, .event = count_event,
        .opaque = events,
    });
    GThread *writer;
    MemxStats s;

    server_process_stop(server);
    writer = g_thread_new("writer", write_all_thread, region);
    await_stats(region, &s, somebody_waits, (uintptr_t)events);
    g_assert_cmpuint(s.faults_remote, ==, 0);
    g_assert_cmpuint(s.starved, >, 0);
    server_process_continue(server);
    g_thread_join(writer);
    await_stats(region, &s, nobody_waits, 0);
    check_all(region, 32 * MIB, 1);
    memx_region_free(region);
    server_process_free(server);
}

/* Of a local size of 8 MiB: below so much the engine evicts; and so much of it
 * even pages that somebody waits for leave to others, when many are fetched. */
#define LOW_PAGES 256
#define STEADY_PAGES (LOW_PAGES / 8)

static bool has_free(const MemxStats *s, uint64_t pages)
{
    return s->local_limit_bytes - s->local_bytes >= pages * PAGE_BYTES;
}

/* Room is made before it is needed: memory is free again without anybody who
 * waits for some, and until then it does for a reader that isn't in a hurry.
 * (What else takes pages is prefetch, and a tracker that has some away.) */
static void test_never_starves(void)
{
    ServerProcess *server = server_process_new("96M");
    uint64_t size = 64 * MIB, n_pages = size / PAGE_BYTES;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 8 * MIB, .servers = &server, .n_servers = 1,
        .tracker = { .kind = MEMX_TRACKER_OFF, .cpu_percent = 2 },
    });
    g_autofree uint8_t *generation = g_malloc0(n_pages);
    void *base = memx_region_base(region);
    uint64_t remote, starved;
    MemxStats s;

    write_all(region, size, 1);
    memset(generation, 1, n_pages);
    memx_region_stats(region, &s);
    starved = s.starved; /* that was no modest rate */
    remote = s.faults_remote;
    for (unsigned round = 0; round < 400; round++) {
        await_stats(region, &s, has_free, LOW_PAGES);
        for (unsigned i = 0; i < STEADY_PAGES; i++) {
            uint64_t page = g_test_rand_int_range(0, n_pages);

            pattern_check(base, page, generation[page]);
            if (i % 2) {
                pattern_write(base, page, ++generation[page]);
            }
        }
        memx_region_stats(region, &s);
        g_assert_cmpuint(s.starved, ==, starved);
    }
    g_assert_cmpuint(s.faults_remote, >, remote + 50 * STEADY_PAGES);
    memx_region_free(region);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pool/shares-by-room", test_shares_by_room);
    g_test_add_func("/pool/local-size", test_local_size);
    g_test_add_func("/pool/lowered-on-unequal-servers",
                    test_lowered_on_unequal_servers);
    g_test_add_func("/pool/empty-server-loses-only-copies",
                    test_empty_server_loses_only_copies);
    g_test_add_func("/pool/waits-for-room", test_waits_for_room);
    g_test_add_func("/pool/never-starves", test_never_starves);
    return g_test_run();
}
