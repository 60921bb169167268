/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Split migration, from its beginning to its end, and what goes wrong.
 */
#include <sys/mman.h>
#include "split-fixture.h"

#define ROUNDS 4

/* What came from elsewhere was never evicted here: to fetch it is no refault. */
static void check_no_refaults(Move *m, MemxRegion *region)
{
    MemxStats stats;

    for (uint64_t at = 0; at < m->vm->n_pages * PAGE_BYTES;
         at += MIB / 2) {
        (void)*(volatile uint8_t *)(m->base + at);
        memx_region_stats(region, &stats);
        if (stats.evicted_pages) {
            return;
        }
        g_assert_cmpuint(stats.refaults, ==, 0);
    }
}

/* The VM goes on with the destination's memory. */
static void moved(Move *m, MemxRegion *region)
{
    MemxStats stats;
    MemxSplitStats split;

    memx_split_stats(m->source, &split);
    g_test_message("%" G_GUINT64_FORMAT " pages by the stream, %"
                   G_GUINT64_FORMAT " to servers, %" G_GUINT64_FORMAT
                   " were there, %" G_GUINT64_FORMAT " zero, %"
                   G_GUINT64_FORMAT " spilled; hot %u, cold %u chunks",
                   m->streamed, split.sent_pages, split.left_pages,
                   split.zero_pages, split.spilled_pages, split.hot_chunks,
                   split.cold_chunks);
    g_assert_cmpuint(split.main_pages, <=, split.main_pages_max);
    m->vm->base = m->base;
    check_no_refaults(m, region);
    vm_check(m->vm);
    vm_start(m->vm);
    g_usleep(200000);
    vm_stop(m->vm);
    vm_check(m->vm);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.local_bytes, <=,
                     stats.local_limit_bytes + 2 * MIB);
}

#define SIZE (96 * MIB)

static MemxRegion *paged(ServerProcess **servers, Vm **vm)
{
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = SIZE, .local = 40 * MIB, .chunk = MIB / 2,
        .servers = servers, .n_servers = 2,
    });

    *vm = vm_new(memx_region_base(region), SIZE, g_random_int());
    vm_fill(*vm, 1);
    return region;
}

static MemxRegion *passive(ServerProcess **servers, uint64_t main_bytes,
                           Vm **vm)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    const char *address[] = { server_process_address(servers[0]),
                              server_process_address(servers[1]), NULL };
    g_autofree uint64_t *touched = NULL;
    MemxRegion *region;

    o.size_bytes = SIZE;
    o.local_bytes = main_bytes;
    o.chunk_bytes = MIB / 2;
    o.base = move_map(SIZE);
    o.passive = true;
    o.servers = address;
    region = memx_region_new(&o, &error);
    g_assert_no_error(error);
    *vm = vm_new(o.base, SIZE, g_random_int());
    vm_fill(*vm, 1);
    touched = g_new0(uint64_t, SIZE / o.chunk_bytes / 64 + 1);
    touched[0] = 0xffff;
    memx_region_touched(region, touched);
    return region;
}

/* Used memory fits the main host, though the VM doesn't: all of it goes
 * there. */
static void test_sparse(void)
{
    ServerProcess *servers[2];
    MemxRegion *region;
    MemxSplitStats split;
    Move m = { .main_bytes = 64 * MIB, .sparse = true };

    servers[0] = server_process_new("160M");
    servers[1] = server_process_new("160M");
    m.source = passive(servers, m.main_bytes, &m.vm);
    for (uint64_t page = 0; page < m.vm->n_pages; page++) {
        if (page % 256 >= 128) { /* every second chunk was never used */
            madvise(m.vm->base + page * PAGE_BYTES, PAGE_BYTES,
                    MADV_DONTNEED);
            m.vm->generation[page] = 0;
        }
    }
    move_transfer(&m);
    vm_start(m.vm);
    move_pass(&m);
    vm_stop(m.vm);
    move_drain(&m);
    memx_split_stats(m.source, &split);
    g_assert_cmpuint(split.cold_chunks, ==, 0);
    g_assert_cmpuint(split.sent_pages, ==, 0);
    move_offer(&m);
    region = move_finish(&m);
    move_commit(region);
    moved(&m, region);
    memx_split_leave(m.source);
    memx_region_free(m.source);
    memx_region_free(region);
    vm_free(m.vm);
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

static void servers_new(ServerProcess **servers, const char *capacity)
{
    servers[0] = server_process_new(capacity);
    servers[1] = server_process_new(capacity);
}

static void servers_free(ServerProcess **servers)
{
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

static MemxRegion *source_new(ServerProcess **servers, bool is_passive,
                              Move *m)
{
    m->main_bytes = 32 * MIB;
    m->source = is_passive ? passive(servers, m->main_bytes, &m->vm)
                           : paged(servers, &m->vm);
    return m->source;
}

/* A sampler of ordinary memory, in the middle of its work; paused, as a VM's
 * is when it begins to migrate: then nothing may be away. */
static MemxTracker *sampler_new(const Move *m)
{
    MemxRange range = { m->vm->base, SIZE };
    MemxTrackerOptions options = MEMX_TRACKER_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxTrackerStats stats;
    MemxTracker *tracker;

    options.kind = MEMX_TRACKER_SAMPLE;
    options.period_ms = 1000;
    tracker = memx_tracker_new(&range, 1, MIB / 2, &options, &error);
    g_assert_no_error(error);
    do {
        g_usleep(10000);
        memx_tracker_stats(tracker, &stats);
    } while (stats.periods < 1);
    g_usleep(100000);
    memx_tracker_pause(tracker, true);
    memx_tracker_await_paused(tracker);
    return tracker;
}

static void test_moves(const void *kind)
{
    bool is_passive = !g_str_equal(kind, "memx");
    ServerProcess *servers[2];
    MemxTracker *tracker = NULL;
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };
    MemxStats stats;

    servers_new(servers, "160M");
    source = source_new(servers, is_passive, &m);
    m.sparse = is_passive;
    if (g_str_equal(kind, "sampled")) {
        tracker = sampler_new(&m);
    }
    vm_start(m.vm);
    move_transfer(&m);
    vm_stop(m.vm);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.faults, ==, 0);
    move_commit(region);
    move_commit(region); /* again: the same */
    moved(&m, region);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
    g_test_message("%s", error->message);
    memx_split_leave(source);
    memx_tracker_free(tracker);
    memx_region_free(source);
    vm_check(m.vm);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

static bool some_came(const MemxStats *stats, uint64_t argument)
{
    return stats->prefetched_pages >= argument;
}

/* What the source knew to be in use, but was more than the stream might bring,
 * comes of itself when the destination has room for it. */
static void test_hot_comes_by_itself(void)
{
    g_autofree uint8_t *hot = g_malloc(SIZE / MIB * 2);
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };
    MemxStats stats;

    servers_new(servers, "160M");
    source = source_new(servers, true, &m);
    memset(hot, 0xff, SIZE / MIB * 2);
    memx_region_set_history(source, hot, SIZE / MIB * 2);
    m.sparse = true;
    m.local_bytes = m.main_bytes + 16 * MIB;
    vm_start(m.vm);
    move_transfer(&m);
    vm_stop(m.vm);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.prefetched_pages, ==, 0);
    move_commit(region);
    await_stats(region, &stats, some_came, 100);
    g_assert_cmpuint(stats.faults, ==, 0);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    vm_check(m.vm);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* ... and again, from there to a third one. */
static void test_moves_again(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    for (unsigned i = 0; i < 3; i++) {
        vm_start(m.vm);
        move_transfer(&m);
        vm_stop(m.vm);
        move_drain(&m);
        move_offer(&m);
        region = move_finish(&m);
        move_commit(region);
        moved(&m, region);
        memx_split_leave(source);
        memx_region_free(source);
        m.source = source = region;
        m.main_bytes = (48 - 8 * i) * MIB;
    }
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_cancelled(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, !!is_passive, &m);
    vm_start(m.vm);
    move_transfer(&m);
    memx_split_cancel(source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    vm_stop(m.vm);
    vm_check(m.vm);
    /* With the VM stopped, and offered. */
    vm_start(m.vm);
    move_transfer(&m);
    vm_stop(m.vm);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    memx_region_free(region);
    vm_check(m.vm);
    /* Not asked: the last byte was never sent. */
    vm_start(m.vm);
    move_transfer(&m);
    vm_stop(m.vm);
    move_drain(&m);
    move_offer(&m);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    g_assert_cmpint(memx_split_reclaim(source, false, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    vm_start(m.vm);
    g_usleep(300000);
    /* And now it goes. */
    move_transfer(&m);
    vm_stop(m.vm);
    vm_check(m.vm);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    move_commit(region);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* A server is killed in every phase, and comes back with its pages. */
static void test_server_restarted(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, !!is_passive, &m);
    vm_start(m.vm);
    move_begin(&m);
    for (unsigned i = 0; i < ROUNDS; i++) {
        server_process_kill(servers[i % 2]);
        move_pass(&m);
        server_process_restart(servers[i % 2], true);
        move_pass(&m);
    }
    vm_stop(m.vm);
    server_process_kill(servers[1]);
    server_process_restart(servers[1], true);
    move_drain(&m);
    server_process_kill(servers[0]);
    server_process_restart(servers[0], true);
    move_offer(&m);
    region = move_finish(&m);
    server_process_kill(servers[1]);
    server_process_restart(servers[1], true);
    move_commit(region);
    server_process_kill(servers[0]);
    server_process_restart(servers[0], true);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* The arbiter is away when it is asked: nobody has it, until it is back. */
static void test_arbiter_away(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    move_transfer(&m);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    server_process_kill(servers[0]);
    g_assert_cmpint(memx_region_commit(region, true, 300, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    g_assert_cmpint(memx_split_reclaim(source, true, 300, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_clear_error(&error);
    server_process_restart(servers[0], true);
    move_commit(region);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* The other server hears of it when it is back, before it gets a page. */
static void test_second_server_away(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    move_transfer(&m);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    server_process_kill(servers[1]);
    move_commit(region);
    memx_split_leave(source);
    server_process_restart(servers[1], true);
    moved(&m, region);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_server_comes_back_empty(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, true, &m);
    move_transfer(&m);
    while (memx_split_check(source, NULL)) {
        server_process_kill(servers[0]);
        server_process_restart(servers[0], false);
        memx_split_wait(source, 100);
        g_usleep(100000);
    }
    g_assert_cmpint(memx_split_drain(source, WAIT_MS, &error), ==, -1);
    g_test_message("%s", error->message);
    memx_split_cancel(source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

static bool is_stalled(const MemxStats *stats, uint64_t server)
{
    return stats->servers[server].health == MEMX_SERVER_STALLED;
}

/* What is sent there goes unanswered for so long that its server counts as
 * stalled; cancelled, and begun again as soon as it answers. */
static void test_begins_after_stall(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    MemxStats stats;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, true, &m);
    move_begin(&m);
    server_process_stop(servers[1]);
    move_pass(&m);
    await_stats(source, &stats, is_stalled, 1);
    memx_split_cancel(source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    server_process_continue(servers[1]);
    move_transfer(&m);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    move_commit(region);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_too_small(void)
{
    ServerProcess *servers[2];
    g_autoptr(GError) error = NULL;
    Move m = { 0 };
    MemxRegion *source;
    uint8_t buf[MEMX_SPLIT_RECORD_MAX];
    size_t bytes;

    servers_new(servers, "44M");
    source = source_new(servers, false, &m);
    m.main_bytes = 8 * MIB; /* 88 MiB and staging don't fit */
    g_assert_false(move_try(&m, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    m.main_bytes = MIB;
    g_assert_false(move_try(&m, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    m.main_bytes = 36 * MIB;
    m.local_bytes = 32 * MIB; /* the destination has less than that */
    m.arrival = move_arrival(&m);
    g_assert_true(move_try(&m, &error));
    bytes = memx_split_record(source, false, buf);
    g_assert_false(memx_arrival_record(m.arrival, buf, bytes, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_test_message("%s", error->message);
    memx_arrival_free(m.arrival);
    memx_split_cancel(source);
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

int main(int argc, char **argv)
{
    static const char yes[] = "yes";

    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/split/moves/memx", "memx", test_moves);
    g_test_add_data_func("/split/moves/ordinary", "ordinary", test_moves);
    g_test_add_data_func("/split/moves/sampled", "sampled", test_moves);
    g_test_add_func("/split/moves-again", test_moves_again);
    g_test_add_data_func("/split/cancelled/memx", NULL, test_cancelled);
    g_test_add_data_func("/split/cancelled/ordinary", yes, test_cancelled);
    g_test_add_data_func("/split/server-restarted/memx", NULL,
                         test_server_restarted);
    g_test_add_data_func("/split/server-restarted/ordinary", yes,
                         test_server_restarted);
    g_test_add_func("/split/arbiter-away", test_arbiter_away);
    g_test_add_func("/split/second-server-away", test_second_server_away);
    g_test_add_data_func("/split/server-comes-back-empty", NULL,
                         test_server_comes_back_empty);
    g_test_add_func("/split/begins-after-stall", test_begins_after_stall);
    g_test_add_func("/split/too-small", test_too_small);
    g_test_add_func("/split/hot-comes-by-itself", test_hot_comes_by_itself);
    g_test_add_func("/split/sparse", test_sparse);
    return g_test_run();
}
