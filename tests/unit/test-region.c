/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A region as a program uses it: memx.h and a memserver, nothing else.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "region-fixture.h"

static uint64_t pages_of(uint64_t bytes)
{
    return bytes / PAGE_BYTES;
}

static void write_all(void *base, uint64_t bytes, unsigned generation)
{
    for (uint64_t page = 0; page < pages_of(bytes); page++) {
        pattern_write(base, page, generation);
    }
}

static void check_all(const void *base, uint64_t bytes, unsigned generation)
{
    for (uint64_t page = 0; page < pages_of(bytes); page++) {
        pattern_check(base, page, generation);
    }
}

/* Four times the local size, twice over: written, changed, verified. */
static void test_write_verify(void)
{
    g_autoptr(GTimer) timer = g_timer_new();
    ServerProcess *server = server_process_new("160M");
    uint64_t n = pages_of(128 * MIB);
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = 128 * MIB, .local = 32 * MIB, .chunk = MIB,
        .servers = &server, .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    write_all(base, 128 * MIB, 1);
    await_stats(region, &stats, stats_all_written, 0);
    g_assert_cmpuint(stats.local_bytes, <=, 32 * MIB);
    g_assert_cmpuint(stats.remote_bytes + stats.staged_bytes, >=, 96 * MIB);
    check_all(base, 128 * MIB, 1);
    for (uint64_t page = 0; page < n; page += 3) {
        pattern_write(base, page, 2);
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = i * 7919 % n;

        pattern_check(base, page, page % 3 ? 1 : 2);
    }
    memx_region_stats(region, &stats);
    g_test_message("%.2f s; %" G_GUINT64_FORMAT " faults, %"
                   G_GUINT64_FORMAT " remote, %" G_GUINT64_FORMAT
                   " prefetched, %" G_GUINT64_FORMAT " evicted, fill by %s",
                   g_timer_elapsed(timer, NULL), stats.faults,
                   stats.faults_remote, stats.prefetched_pages,
                   stats.evicted_pages, stats.fill);
    memx_region_free(region);
    server_process_free(server);
}

/* A page never written costs nothing, neither here nor there. */
static void test_never_written_costs_nothing(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = 64 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    for (uint64_t page = 0; page < pages_of(64 * MIB); page += 64) {
        pattern_check(base, page, 0);
    }
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.remote_bytes, ==, 0);
    g_assert_cmpuint(stats.servers[0].stored_bytes, ==, 0);
    /* One page in 64 was touched. */
    g_assert_cmpuint(stats.never_written_bytes, >=, 60 * MIB);
    memx_region_free(region);
    server_process_free(server);
}

/* Zeros that were written leave without being sent. */
static void test_zeros_are_not_sent(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = 64 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    for (uint64_t page = 0; page < pages_of(64 * MIB); page++) {
        *(volatile uint64_t *)(base + page * PAGE_BYTES) = 0;
    }
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.evicted_zero_pages, >=, pages_of(55 * MIB));
    g_assert_cmpuint(stats.servers[0].stored_bytes, ==, 0);
    g_assert_cmpuint(stats.remote_bytes, ==, 0);
    for (uint64_t page = 0; page < pages_of(64 * MIB); page++) {
        pattern_check(base, page, 0);
    }
    memx_region_free(region);
    server_process_free(server);
}

/* What is given back reads as zeros, wherever it was, and can be written. */
static void test_discard(void)
{
    ServerProcess *server = server_process_new("80M");
    uint64_t size = 64 * MIB, n = pages_of(size);
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 8 * MIB, .servers = &server, .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    g_assert_cmpint(memx_region_discard(region, 1, 4096), ==, -EINVAL);
    g_assert_cmpint(memx_region_discard(region, 0, 4095), ==, -EINVAL);
    g_assert_cmpint(memx_region_discard(region, size, 4096), ==, -EINVAL);
    g_assert_cmpint(memx_region_discard(region, 4096, UINT64_MAX - 4095), ==,
                    -EINVAL);
    g_assert_cmpint(memx_region_discard(region, size, 0), ==, 0);

    write_all(base, size, 1);
    /* All but a page at each end of every odd run of 100. */
    for (uint64_t page = 100; page + 100 <= n; page += 200) {
        g_assert_cmpint(memx_region_discard(region, (page + 1) * PAGE_BYTES,
                                            98 * PAGE_BYTES), ==, 0);
    }
    for (uint64_t page = 0; page < n; page++) {
        uint64_t run = page / 100 * 100, at = page % 100;
        bool gone = run / 100 % 2 && run + 100 <= n && at && at < 99;

        pattern_check(base, page, gone ? 0 : 1);
    }
    write_all(base, size, 2);
    check_all(base, size, 2);
    g_assert_cmpint(memx_region_discard(region, 0, size), ==, 0);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.never_written_bytes, ==, size);
    g_assert_cmpuint(stats.remote_bytes, ==, 0);
    memx_region_free(region);
    server_process_free(server);
}

static bool server_is_free(const MemxStats *stats, uint64_t bytes)
{
    return stats->servers[0].free_bytes >= bytes;
}

/* Also with chunks of more groups than drops fit in flight. */
static void test_discard_gives_room(uint64_t size, uint64_t local,
                                    uint64_t chunk)
{
    ServerProcess *server = server_process_new("200M");
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = local, .chunk = chunk,
        .keep_copies = MEMX_KEEP_COPIES_ON, .servers = &server,
        .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    g_autoptr(GError) error = NULL;
    uint64_t reserved, held;
    MemxStats stats;

    write_all(base, size, 1);
    check_all(base, size, 1);
    memx_region_stats(region, &stats);
    held = stats.servers[0].remote_bytes + stats.servers[0].kept_bytes;
    g_assert_cmpint(memx_region_discard(region, 0, size), ==, 0);
    /* Little is reserved now, so that what is free is what isn't held. */
    memx_region_set_local_bytes(region, size, &error);
    g_assert_no_error(error);
    memx_region_stats(region, &stats);
    reserved = stats.servers[0].reserved_bytes;
    g_assert_cmpuint(held, >, 3 * reserved);
    /* A MiB of it for the server's own tables. */
    await_stats(region, &stats, server_is_free, 199 * MIB - reserved);
    memx_region_free(region);
    server_process_free(server);
}

static void test_discard_small_chunks(void)
{
    test_discard_gives_room(160 * MIB, 64 * MIB, 256 << 10);
}

static void test_discard_large_chunks(void)
{
    test_discard_gives_room(608 * MIB, 512 * MIB, 32 * MIB);
}

/* Memory of the caller's: it is looked after, and left as it is. */
static void test_memory_of_the_caller(void)
{
    ServerProcess *server = server_process_new("80M");
    const char *servers[] = { server_process_address(server), NULL };
    uint64_t size = 32 * MIB;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    o.size_bytes = size;
    o.local_bytes = 8 * MIB;
    o.chunk_bytes = 256 * 1024;
    o.base = base;
    o.servers = servers;
    region = memx_region_new(&o, &error);
    g_assert_no_error(error);
    g_assert_true(memx_region_base(region) == base);
    write_all(base, size, 3);
    check_all(base, size, 3);
    memx_region_free(region);
    /* Still mapped, no longer registered: a missing page reads as zeros. */
    for (uint64_t page = 0; page < pages_of(size); page++) {
        uint64_t word = *(volatile uint64_t *)(base + page * PAGE_BYTES);

        g_assert_true(!word || word == pattern_word(page, 3, 0));
    }
    munmap(base, size);
    server_process_free(server);
}

/* A region's end gives all room back on its servers. */
static void test_free_drops_the_space(void)
{
    ServerProcess *server = server_process_new("96M");

    for (unsigned i = 0; i < 3; i++) {
        /* 64 - 8 MiB and staging: no two fit. */
        MemxRegion *region = region_fixture_new(&(RegionFixture) {
            .size = 64 * MIB, .local = 8 * MIB, .servers = &server,
            .n_servers = 1,
        });

        write_all(memx_region_base(region), 64 * MIB, 1);
        memx_region_free(region);
    }
    server_process_free(server);
}

/* Unchanged pages leave without being sent again; with copies kept off, the
 * server gives up what was fetched. */
static void test_keep_copies(gconstpointer keep)
{
    MemxKeepCopies keep_copies = GPOINTER_TO_INT(keep);
    ServerProcess *server = server_process_new("128M");
    uint64_t size = 48 * MIB;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 8 * MIB, .keep_copies = keep_copies,
        .servers = &server, .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    write_all(base, size, 1);
    for (unsigned i = 0; i < 3; i++) {
        check_all(base, size, 1);
    }
    memx_region_stats(region, &stats);
    if (keep_copies == MEMX_KEEP_COPIES_OFF) {
        g_assert_cmpuint(stats.servers[0].kept_bytes, ==, 0);
        g_assert_cmpuint(stats.evicted_unchanged_pages, ==, 0);
    } else {
        g_assert_cmpuint(stats.servers[0].kept_bytes, >, 0);
        /* Three rounds of 40 MiB that never changed, less some that came
         * back while they were on their way. */
        g_assert_cmpuint(stats.evicted_unchanged_pages, >,
                         pages_of(60 * MIB));
        g_assert_cmpuint(stats.servers[0].stored_bytes, <, 80 * MIB);
    }
    memx_region_free(region);
    server_process_free(server);
}

/* A region that keeps copies doesn't stand in another one's way: its copies
 * go when the other one wants to reserve. */
static void test_copies_give_way(void)
{
    ServerProcess *server = server_process_new("72M");
    RegionFixture keeps = {
        .size = 64 * MIB, .local = 60 * MIB, .servers = &server,
        .n_servers = 1, .keep_copies = MEMX_KEEP_COPIES_ON,
    };
    RegionFixture wants = {
        .size = 48 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    };
    MemxRegion *first = region_fixture_new(&keeps);
    uint8_t *base = memx_region_base(first);
    g_autoptr(GError) error = NULL;
    MemxRegion *second;
    MemxStats stats;

    write_all(base, keeps.size, 1);
    g_assert_true(memx_region_set_local_bytes(first, 8 * MIB, &error));
    await_stats(first, &stats, stats_local_at_most, 8 * MIB);
    g_assert_true(memx_region_set_local_bytes(first, 60 * MIB, &error));
    check_all(base, keeps.size, 1);
    memx_region_stats(first, &stats);
    g_assert_cmpuint(stats.servers[0].kept_bytes, >, 30 * MIB);

    second = region_fixture_try(&wants, &error);
    g_assert_no_error(error);
    write_all(memx_region_base(second), wants.size, 2);
    check_all(memx_region_base(second), wants.size, 2);
    check_all(base, keeps.size, 1);
    memx_region_free(second);
    memx_region_free(first);
    server_process_free(server);
}

/* Sequential reading is fetched ahead, random reading is not. */
static void test_prefetch_adapts(void)
{
    ServerProcess *server = server_process_new("160M");
    uint64_t size = 128 * MIB, n = pages_of(size);
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 32 * MIB, .chunk = MIB, .servers = &server,
        .n_servers = 1,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats before, after;
    uint64_t fetched, remote;
    int64_t deadline;

    write_all(base, size, 1);
    memx_region_stats(region, &before);
    for (uint64_t i = 0; i < 4000; i++) {
        pattern_check(base, (uint64_t)g_test_rand_int() % n, 1);
    }
    memx_region_stats(region, &after);
    remote = after.faults_remote - before.faults_remote;
    g_assert_cmpuint(remote, >, 2000);
    g_assert_cmpuint(after.prefetched_pages - before.prefetched_pages, <,
                     remote / 2);
    /* On a machine that is busy with other things the reader may be first. */
    deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        memx_region_stats(region, &before);
        check_all(base, size, 1);
        memx_region_stats(region, &after);
        remote = after.faults_remote - before.faults_remote;
        fetched = after.prefetched_pages - before.prefetched_pages;
        g_test_message("sequential: %" G_GUINT64_FORMAT " faults, %"
                       G_GUINT64_FORMAT " pages prefetched", remote, fetched);
    } while (fetched <= remote);
    memx_region_free(region);
    server_process_free(server);
}

/* Room that holds no page of its own; that of copies on their way out, too. */
static uint64_t idle_frames(MemxRegion *region)
{
    MemxStats s;

    memx_region_stats(region, &s);
    return s.local_bytes - MIN(s.local_bytes, s.size_bytes - s.remote_bytes -
                               s.never_written_bytes);
}

/* A little prefetch is no reason to hold frames of what was evicted: that is
 * room for which more would be evicted. */
static void test_frames_not_hoarded(void)
{
    ServerProcess *server = server_process_new("300M");
    uint64_t size = 256 * MIB, evicted;
    unsigned looks = 0, much = 0;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 128 * MIB, .chunk = MIB, .servers = &server,
        .n_servers = 1, .huge_pages = MEMX_HUGE_PAGES_OFF,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    write_all(base, size, 1);
    memx_region_stats(region, &stats);
    evicted = stats.evicted_pages;
    for (unsigned i = 0; i < 20000 && stats.evicted_pages < evicted + 4096;
         i++) {
        /* Three in a row, which have the next fetched, and elsewhere. */
        uint64_t page = (i * 37 % 256) * 256 + i / 256 * 5 % 250;

        for (unsigned n = 0; n < 3; n++) {
            pattern_check(base, page + n, 1);
        }
        g_usleep(2000);
        looks++;
        much += idle_frames(region) > 4 * MIB;
        memx_region_stats(region, &stats);
    }
    g_test_message("much is idle in %u of %u looks, %" G_GUINT64_FORMAT
                   " pages prefetched, %" G_GUINT64_FORMAT " evicted", much,
                   looks, stats.prefetched_pages,
                   stats.evicted_pages - evicted);
    g_assert_cmpuint(stats.evicted_pages, >=, evicted + 4096);
    /* Now and then a busy machine has much on its way at a time. */
    g_assert_cmpuint(much, <=, looks / 8);
    memx_region_free(region);
    server_process_free(server);
}

/* Nor are all of them kept when a stream ends: no more than what is to be free
 * anyway. */
static void test_few_frames_after_stream(void)
{
    ServerProcess *server = server_process_new("300M");
    uint64_t size = 256 * MIB;
    unsigned many = 0;
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = size, .local = 128 * MIB, .chunk = MIB, .servers = &server,
        .n_servers = 1, .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = { .kind = MEMX_TRACKER_OFF, .cpu_percent = 2 },
    });
    uint8_t *base = memx_region_base(region);

    write_all(base, size, 1);
    for (unsigned round = 0; round < 10; round++) {
        uint64_t least = size;

        for (uint64_t page = 0; page < size / PAGE_BYTES; page++) {
            pattern_check(base, page, 1);
        }
        /* Less than the time after which all are given back; what was on its
         * way arrives. */
        for (unsigned i = 0; i < 50; i++) {
            least = MIN(least, idle_frames(region));
            g_usleep(1000);
        }
        g_test_message("%" G_GUINT64_FORMAT " KiB are idle", least / 1024);
        many += least > 3 * MIB; /* 2 are to be free */
    }
    /* Some may be on their way yet, where a server did not get to run. */
    g_assert_cmpuint(many, <=, 1);
    memx_region_free(region);
    server_process_free(server);
}

static bool stats_home(const MemxStats *stats, uint64_t argument)
{
    bool home = !stats->remote_bytes && !stats->staged_bytes;

    for (unsigned i = 0; i < stats->n_servers; i++) {
        home &= !stats->servers[i].kept_bytes &&
                !stats->servers[i].reserved_bytes &&
                stats->servers[i].free_bytes ==
                stats->servers[i].capacity_bytes;
    }
    return home;
}

static bool stats_up(const MemxStats *stats, uint64_t argument)
{
    return stats->servers[0].health == MEMX_SERVER_UP &&
           stats->servers[1].health == MEMX_SERVER_UP &&
           stats->servers[argument % 2].reconnects > argument / 2;
}

/* All comes home; the servers hold nothing and may go; and out again. */
static void test_home(void)
{
    g_autoptr(GError) error = NULL;
    ServerProcess *servers[2] = { server_process_new("96M"),
                                  server_process_new("96M") };
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = 64 * MIB, .local = 16 * MIB, .servers = servers,
        .n_servers = 2,
    });
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    write_all(base, 60 * MIB, 1);
    for (unsigned turn = 0; turn < 2; turn++) {
        g_assert_true(memx_region_set_local_bytes(region, 64 * MIB, &error));
        await_stats(region, &stats, stats_home, 0);
        g_assert_cmpuint(stats.local_limit_bytes, ==, 64 * MIB);
        g_assert_cmpuint(stats.local_bytes, <=, 66 * MIB);
        server_process_kill(servers[turn]);
        check_all(base, 60 * MIB, 1);
        server_process_restart(servers[turn], false);
        await_stats(region, &stats, stats_up, turn);
        g_assert_true(memx_region_set_local_bytes(region, 16 * MIB, &error));
        g_assert_no_error(error);
        await_stats(region, &stats, stats_local_at_most, 16 * MIB);
        check_all(base, 60 * MIB, 1);
    }
    memx_region_free(region);
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/region/write-verify", test_write_verify);
    g_test_add_func("/region/never-written-costs-nothing",
                    test_never_written_costs_nothing);
    g_test_add_func("/region/zeros-are-not-sent", test_zeros_are_not_sent);
    g_test_add_func("/region/discard", test_discard);
    g_test_add_func("/region/discard-gives-room/small-chunks",
                    test_discard_small_chunks);
    g_test_add_func("/region/discard-gives-room/large-chunks",
                    test_discard_large_chunks);
    g_test_add_func("/region/memory-of-the-caller",
                    test_memory_of_the_caller);
    g_test_add_func("/region/free-drops-the-space",
                    test_free_drops_the_space);
    g_test_add_data_func("/region/keep-copies/auto",
                         GINT_TO_POINTER(MEMX_KEEP_COPIES_AUTO),
                         test_keep_copies);
    g_test_add_data_func("/region/keep-copies/on",
                         GINT_TO_POINTER(MEMX_KEEP_COPIES_ON),
                         test_keep_copies);
    g_test_add_data_func("/region/keep-copies/off",
                         GINT_TO_POINTER(MEMX_KEEP_COPIES_OFF),
                         test_keep_copies);
    g_test_add_func("/region/keep-copies/give-way", test_copies_give_way);
    g_test_add_func("/region/prefetch-adapts", test_prefetch_adapts);
    g_test_add_func("/region/frames-not-hoarded", test_frames_not_hoarded);
    g_test_add_func("/region/few-frames-after-stream",
                    test_few_frames_after_stream);
    g_test_add_func("/region/home", test_home);
    return g_test_run();
}
