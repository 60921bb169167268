/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Servers come and go while the memory is in use: chunks are moved from server
 * to server, and none of their bytes is lost, whoever fails in the middle.
 *
 * A thread goes on writing and verifying all the time.
 */
#include <string.h>
#include <unistd.h>
#include <glib/gstdio.h>
#include "region-fixture.h"
#include "region.h"

#define SIZE (24 * MIB)
#define LOCAL (8 * MIB)
#define PAGES (SIZE / PAGE_BYTES)
#define SERVERS 4

/* Writes pages, at random, and verifies what it wrote before. */
typedef struct Writer {
    uint8_t *base;
    GThread *thread;
    int stop;                   /* atomic */
    unsigned generation[PAGES];
    int rounds;                 /* atomic */
} Writer;

static void *writer_thread(void *opaque)
{
    Writer *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(g_test_rand_int());

    while (!g_atomic_int_get(&w->stop)) {
        uint64_t page = g_rand_int_range(rand, 0, PAGES);

        pattern_check(w->base, page, w->generation[page]);
        if (g_rand_int_range(rand, 0, 3) == 0) {
            pattern_write(w->base, page, ++w->generation[page]);
        }
        g_atomic_int_inc(&w->rounds);
    }
    return NULL;
}

static void writer_start(Writer *w)
{
    g_atomic_int_set(&w->stop, 0);
    w->thread = g_thread_new("writer", writer_thread, w);
}

static void writer_stop(Writer *w)
{
    g_atomic_int_set(&w->stop, 1);
    g_thread_join(w->thread);
}

typedef struct Test {
    ServerProcess *server[SERVERS];
    MemxRegion *region;
    Writer writer;
    int events[MEMX_EVENT_BUG + 1]; /* atomic */
} Test;

static const char *address(const Test *test, unsigned i)
{
    return server_process_address(test->server[i]);
}

static void on_event(const MemxEvent *event, void *opaque)
{
    Test *test = opaque;

    g_test_message("%s", event->message);
    g_atomic_int_inc(&test->events[event->type]);
}

/* A region on the first @n of SERVERS servers, all of it written. */
static Test *test_new(unsigned n, const char *const capacity[SERVERS])
{
    Test *test = g_new0(Test, 1);
    RegionFixture fixture = {
        .size = SIZE, .local = LOCAL, .servers = test->server,
        .n_servers = n, .event = on_event, .opaque = test,
    };

    for (unsigned i = 0; i < SERVERS; i++) {
        test->server[i] = server_process_new(capacity ? capacity[i] : "80M");
    }
    test->region = region_fixture_new(&fixture);
    test->writer.base = memx_region_base(test->region);
    for (uint64_t page = 0; page < PAGES; page++) {
        pattern_write(test->writer.base, page, 1);
        test->writer.generation[page] = 1;
    }
    writer_start(&test->writer);
    return test;
}

static void verify(Test *test)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        pattern_check(test->writer.base, page, test->writer.generation[page]);
    }
}

static void test_free(Test *test)
{
    writer_stop(&test->writer);
    verify(test);
    memx_region_free(test->region);
    for (unsigned i = 0; i < SERVERS; i++) {
        server_process_free(test->server[i]);
    }
    g_free(test);
}

/* @list: the servers' numbers as digits. */
static bool try_servers(Test *test, const char *list, GError **error)
{
    const char *servers[SERVERS + 1] = { NULL };

    for (unsigned i = 0; list[i]; i++) {
        servers[i] = address(test, list[i] - '0');
    }
    return memx_region_set_servers(test->region, servers, error);
}

static void set_servers(Test *test, const char *list)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    g_autoptr(GError) error = NULL;

    /* On a busy machine a server may be too slow for once. */
    while (!try_servers(test, list, &error) &&
           g_error_matches(error, MEMX_ERROR, MEMX_ERROR_CONNECT) &&
           g_get_monotonic_time() < deadline) {
        g_clear_error(&error);
    }
    g_assert_no_error(error);
}

static const MemxServerStats *find(const MemxStats *stats, const char *name)
{
    const MemxServerStats *found = NULL;

    for (unsigned i = 0; i < stats->n_servers; i++) {
        const MemxServerStats *s = &stats->servers[i];

        if (!strcmp(s->address, name) &&
            (!found || s->state != MEMX_SERVER_RELEASED)) {
            found = s;
        }
    }
    return found;
}

static bool is_released(const MemxStats *stats, uint64_t address)
{
    const MemxServerStats *s = find(stats, (const char *)(uintptr_t)address);

    return s && s->state == MEMX_SERVER_RELEASED;
}

static void await_released(Test *test, unsigned i)
{
    MemxStats stats;

    await_stats(test->region, &stats, is_released,
                (uintptr_t)address(test, i));
    g_assert_cmpuint(find(&stats, address(test, i))->chunks, ==, 0);
}

/* Every server in use has its part of the chunks. */
static bool is_balanced(const MemxStats *stats, uint64_t n)
{
    uint64_t chunks = 0, reserved = 0;

    for (unsigned i = 0; i < stats->n_servers; i++) {
        const MemxServerStats *s = &stats->servers[i];

        if (s->state == MEMX_SERVER_DRAINING ||
            s->state == MEMX_SERVER_LEAVING) {
            return false;
        }
        chunks += s->chunks;
        reserved += s->state == MEMX_SERVER_IN_USE ? s->reserved_bytes : 0;
    }
    for (unsigned i = 0; i < stats->n_servers; i++) {
        const MemxServerStats *s = &stats->servers[i];

        if (s->state == MEMX_SERVER_IN_USE &&
            (s->chunks > chunks * s->reserved_bytes / reserved + 2 ||
             s->chunks + 2 * n + 2 < chunks * s->reserved_bytes / reserved)) {
            return false;
        }
    }
    return true;
}

static void await_balanced(Test *test, unsigned n)
{
    MemxStats stats;

    await_stats(test->region, &stats, is_balanced, n);
}

static char *memxctl(Test *test, unsigned i, const char *command,
                     const char *option)
{
    return server_process_memxctl(test->server[i], command, option);
}

static void drain(Test *test, unsigned i, const char *option)
{
    g_autofree char *out = memxctl(test, i, "drain", option);

    g_assert_cmpstr(out, ==, "");
}

/* What the server itself says of its spaces. */
static void assert_no_space(Test *test, unsigned i)
{
    g_autofree char *out = memxctl(test, i, "status", "--json");

    if (!strstr(out, NO_SPACE)) {
        g_error("%s", out);
    }
}

/* --- All is well --- */

static void test_added_and_removed(void)
{
    Test *test = test_new(1, NULL);
    MemxStats stats;

    set_servers(test, "012");
    await_balanced(test, 3);
    memx_region_stats(test->region, &stats);
    g_assert_cmpuint(stats.n_servers, ==, 3);
    g_assert_cmpuint(stats.servers[1].moved_bytes, >, 0);
    g_assert_cmpuint(stats.servers[2].moved_bytes, >, 0);

    set_servers(test, "12");
    await_released(test, 0);
    assert_no_space(test, 0);

    /* Its place is taken by another one, and it comes back to a third. */
    set_servers(test, "3");
    await_released(test, 1);
    await_released(test, 2);
    set_servers(test, "30");
    await_balanced(test, 2);
    memx_region_stats(test->region, &stats);
    g_assert_cmpuint(stats.n_servers, <=, 4);
    test_free(test);
}

static void test_back_before_released(void)
{
    Test *test = test_new(2, NULL);

    server_process_stop(test->server[1]); /* it gives nothing away */
    set_servers(test, "0");
    server_process_continue(test->server[1]);
    set_servers(test, "01");
    await_balanced(test, 2);
    test_free(test);
}

static bool all_reserve_at_most(const MemxStats *stats, uint64_t bytes)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < stats->n_servers; i++) {
        sum += stats->servers[i].reserved_bytes;
    }
    return sum <= bytes;
}

static bool all_reserve_more(const MemxStats *stats, uint64_t bytes)
{
    return !all_reserve_at_most(stats, bytes);
}

/* What was begun is given up: old and new ones together, which reserve no more
 * than the old ones did. */
static void test_kept(void)
{
    Test *test = test_new(2, NULL);
    uint64_t reserved = MEMX_GROUP_BYTES; /* slack of another server */
    MemxStats stats;

    memx_region_stats(test->region, &stats);
    for (unsigned i = 0; i < 2; i++) {
        reserved += stats.servers[i].reserved_bytes;
    }
    server_process_stop(test->server[0]); /* they give nothing away */
    server_process_stop(test->server[1]);
    set_servers(test, "2");
    memx_region_stats(test->region, &stats);
    g_assert_cmpuint(find(&stats, address(test, 0))->state, ==,
                     MEMX_SERVER_LEAVING);
    g_assert_false(memx_region_servers_settle(test->region, 1));
    memx_region_keep_servers(test->region);
    server_process_continue(test->server[0]);
    server_process_continue(test->server[1]);
    g_assert_true(memx_region_servers_settle(test->region, 60000));
    memx_region_stats(test->region, &stats);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpuint(find(&stats, address(test, i))->state, ==,
                         MEMX_SERVER_IN_USE);
    }
    /* One, for the slack of another server, if it had all that it may. */
    g_assert_cmpuint(find(&stats, address(test, 0))->to_move, <=, 1);
    await_stats(test->region, &stats, all_reserve_at_most, reserved);
    g_assert_true(all_reserve_more(&stats, reserved - 2 * MEMX_GROUP_BYTES));

    /* The list is what it says. */
    set_servers(test, "12");
    await_released(test, 0);
    test_free(test);
}

static void hold_all(MemxRegion *r, int by)
{
    g_mutex_lock(&r->lock);
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        r->table.chunk[c].fetching += by;
    }
    g_mutex_unlock(&r->lock);
}

static bool reserves_less(const MemxStats *stats, uint64_t bytes)
{
    return stats->servers[0].reserved_bytes < bytes;
}

/* The local size is changed while no chunk gets to a server that was added: what
 * the old one has is still reserved there. */
static void test_resized_amid_moves(void)
{
    Test *test = test_new(1, NULL);
    g_autoptr(GError) error = NULL;
    uint64_t reserved;
    MemxStats stats;

    writer_stop(&test->writer);
    memx_region_stats(test->region, &stats);
    reserved = stats.servers[0].reserved_bytes;
    hold_all(test->region, 1); /* as if each were being fetched from */
    set_servers(test, "012");
    for (unsigned i = 0; i < 3; i++) { /* more, and less */
        memx_region_set_local_bytes(test->region, LOCAL + i % 2 * MIB,
                                    &error);
        g_assert_no_error(error);
        memx_region_stats(test->region, &stats);
        g_assert_cmpuint(stats.servers[0].reserved_bytes, ==, reserved);
    }
    hold_all(test->region, -1);
    writer_start(&test->writer);
    await_stats(test->region, &stats, reserves_less, SIZE / 2);
    await_balanced(test, 3);
    test_free(test);
}

/* One that has chunks to give is away: what is reserved on another for chunks
 * that it has given is given back all the same. */
static void test_lowered_one_by_one(void)
{
    Test *test = test_new(2, NULL);
    uint64_t reserved;
    MemxStats stats;

    writer_stop(&test->writer);
    memx_region_stats(test->region, &stats);
    reserved = stats.servers[0].reserved_bytes;
    hold_all(test->region, 1);
    set_servers(test, "012");
    server_process_stop(test->server[1]);
    hold_all(test->region, -1);
    await_stats(test->region, &stats, reserves_less, reserved);
    g_assert_cmpuint(find(&stats, address(test, 1))->reserved_bytes, >=,
                     stats.servers[0].reserved_bytes);
    server_process_continue(test->server[1]);
    writer_start(&test->writer);
    await_balanced(test, 3);
    test_free(test);
}

/* --- drain --- */

static bool pool_full_told(const MemxStats *stats, uint64_t test)
{
    return g_atomic_int_get(
        &((Test *)(uintptr_t)test)->events[MEMX_EVENT_POOL_FULL]) > 0;
}

static bool is_in_use(const MemxStats *stats, uint64_t address)
{
    return find(stats, (const char *)(uintptr_t)address)->state ==
           MEMX_SERVER_IN_USE;
}

static bool something_moved(const MemxStats *stats, uint64_t address)
{
    return find(stats, (const char *)(uintptr_t)address)->moved_bytes > 0;
}

/* In use, or it was empty before that was undone. */
static bool is_settled(const MemxStats *stats, uint64_t address)
{
    MemxServerUse state = find(stats,
                               (const char *)(uintptr_t)address)->state;

    return state != MEMX_SERVER_DRAINING && state != MEMX_SERVER_LEAVING;
}

static bool release_told(const MemxStats *stats, uint64_t test)
{
    return g_atomic_int_get(
        &((Test *)(uintptr_t)test)->events[MEMX_EVENT_SERVER_RELEASED]) > 0;
}

static void test_drained(void)
{
    Test *test = test_new(3, NULL);
    RegionFixture fixture = {
        .size = SIZE, .local = LOCAL, .servers = &test->server[1],
        .n_servers = 1,
    };
    g_autofree char *before = NULL, *after = NULL;
    g_autoptr(GError) error = NULL;
    MemxStats stats;

    drain(test, 1, NULL);
    await_released(test, 1);
    await_stats(test->region, &stats, release_told, (uintptr_t)test);
    assert_no_space(test, 1);
    before = memxctl(test, 1, "status", NULL);
    g_assert_nonnull(strstr(before, "DRAINING"));

    /* Neither a new space nor the same one again. */
    g_assert_null(region_fixture_try(&fixture, &error));
    g_assert_nonnull(strstr(error->message, "drain"));
    g_clear_error(&error);
    g_assert_false(try_servers(test, "012", &error));
    g_assert_nonnull(error);
    drain(test, 1, "--undo");
    after = memxctl(test, 1, "status", NULL);
    g_assert_null(strstr(after, "DRAINING"));
    set_servers(test, "012");
    await_balanced(test, 3);
    test_free(test);
}

static void test_drain_outlives_restart(void)
{
    Test *test = test_new(1, NULL);
    g_autofree char *killed = NULL, *taken_over = NULL;

    drain(test, 0, NULL);
    server_process_kill(test->server[0]);
    server_process_restart(test->server[0], true);
    killed = memxctl(test, 0, "status", NULL);
    g_assert_nonnull(strstr(killed, "DRAINING"));
    server_process_take_over(test->server[0]);
    taken_over = memxctl(test, 0, "status", NULL);
    g_assert_nonnull(strstr(taken_over, "DRAINING"));
    set_servers(test, "1");
    await_released(test, 0);
    test_free(test);
}

static void test_drain_without_room(void)
{
    static const char *const capacity[] = { "12M", "12M", "80M", "80M" };
    Test *test = test_new(2, capacity);
    MemxStats stats;

    drain(test, 0, NULL);
    await_stats(test->region, &stats, pool_full_told, (uintptr_t)test);
    g_assert_cmpuint(find(&stats, address(test, 0))->state, ==,
                     MEMX_SERVER_DRAINING);

    /* Undone, it is as if nothing had been. */
    drain(test, 0, "--undo");
    await_stats(test->region, &stats, is_in_use,
                (uintptr_t)address(test, 0));

    /* With another server there is room. */
    drain(test, 0, NULL);
    set_servers(test, "012");
    await_released(test, 0);
    test_free(test);
}

/* Meanwhile it takes part in moves as any other does. */
static void test_drain_without_room_moves(void)
{
    static const char *const capacity[] = { "12M", "12M", "80M", "80M" };
    Test *test = test_new(2, capacity);
    MemxServer *s = &test->region->server[0];
    MemxStats stats;

    drain(test, 0, NULL);
    await_stats(test->region, &stats, pool_full_told, (uintptr_t)test);
    g_mutex_lock(&test->region->lock);
    g_assert_true(s->no_room);
    g_assert_cmpuint(s->hold_until_ns, <=, memx_now_ns());
    g_mutex_unlock(&test->region->lock);
    test_free(test);
}

static void test_drain_undone(void)
{
    Test *test = test_new(2, NULL);
    MemxStats stats;

    drain(test, 0, NULL);
    await_stats(test->region, &stats, something_moved,
                (uintptr_t)address(test, 1));
    server_process_stop(test->server[1]); /* it can't end before that */
    drain(test, 0, "--undo");
    server_process_continue(test->server[1]);
    await_stats(test->region, &stats, is_settled,
                (uintptr_t)address(test, 0));
    drain(test, 0, NULL);
    await_released(test, 0);
    test_free(test);
}

static bool third_reserves(const MemxStats *stats, uint64_t bytes)
{
    return stats->n_servers > 2 && stats->servers[2].reserved_bytes >= bytes;
}

/* Chunks are on their way to a server that was added, and what is reserved is
 * to be lowered then; a drain that is undone leaves it at that. */
static void test_drain_undone_amid_moves(void)
{
    Test *test = test_new(2, NULL);
    uint64_t reserved = 0, slack = MEMX_GROUP_BYTES; /* of another server */
    MemxStats stats;

    writer_stop(&test->writer);
    memx_region_stats(test->region, &stats);
    for (unsigned i = 0; i < 2; i++) {
        reserved += stats.servers[i].reserved_bytes;
    }
    hold_all(test->region, 1);
    set_servers(test, "012");
    drain(test, 1, NULL);
    await_stats(test->region, &stats, third_reserves, reserved / 2);
    drain(test, 1, "--undo");
    await_stats(test->region, &stats, is_settled,
                (uintptr_t)address(test, 1));
    hold_all(test->region, -1);
    writer_start(&test->writer);
    await_stats(test->region, &stats, all_reserve_at_most, reserved + slack);
    await_balanced(test, 3);
    test_free(test);
}

/* --- Refused --- */

static void test_refused(void)
{
    static const char *const capacity[] = { "80M", "4M", "80M", "80M" };
    Test *test = test_new(1, capacity);
    g_autoptr(GError) error = NULL;
    const char *none[] = { NULL };
    const char *twice[] = { address(test, 0), address(test, 0), NULL };
    const char *bad[] = { "nonsense", NULL };
    MemxStats stats;

    g_assert_false(try_servers(test, "1", &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    g_clear_error(&error);
    server_process_kill(test->server[2]);
    g_assert_false(try_servers(test, "02", &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
    g_assert_nonnull(strstr(error->message, address(test, 2)));
    g_clear_error(&error);
    g_assert_false(memx_region_set_servers(test->region, none, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(memx_region_set_servers(test->region, twice, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(memx_region_set_servers(test->region, bad, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);

    memx_region_stats(test->region, &stats);
    g_assert_cmpuint(stats.n_servers, ==, 1);
    g_assert_cmpint(stats.servers[0].state, ==, MEMX_SERVER_IN_USE);
    assert_no_space(test, 1);
    test_free(test);
}

/* Somebody else waits for a server that doesn't answer: not for ever. */
static void test_busy(void)
{
    Test *test = test_new(1, NULL);
    g_autoptr(GError) error = NULL;

    g_mutex_lock(&test->region->resize);
    g_assert_false(memx_region_set_local_bytes(test->region, SIZE, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    g_mutex_unlock(&test->region->resize);
    memx_region_set_local_bytes(test->region, SIZE, &error);
    g_assert_no_error(error);
    test_free(test);
}

static void test_wrong_key(void)
{
    g_autofree char *path = NULL;
    g_autoptr(GError) error = NULL;
    Test *test = test_new(1, NULL);
    const char *options[] = { "--key-file", NULL, NULL };
    int fd = g_file_open_tmp("memx-key-XXXXXX", &path, &error);
    ServerProcess *keyed;

    g_assert_no_error(error);
    g_assert_cmpint(write(fd, "0123456789abcdef", 16), ==, 16);
    close(fd);
    options[1] = path;
    keyed = server_process_new_with("80M", options);
    {
        const char *servers[] = { address(test, 0),
                                  server_process_address(keyed), NULL };

        g_assert_false(memx_region_set_servers(test->region, servers,
                                               &error));
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
        g_assert_nonnull(strstr(error->message, "key"));
    }
    server_process_free(keyed);
    unlink(path);
    test_free(test);
}

/* --- In the middle --- */

/* All of server 0 is to go to 1, some of it has, and @victim of them is
 * stopped. */
static Test *in_the_middle(unsigned victim)
{
    Test *test = test_new(1, NULL);
    MemxStats stats;

    for (unsigned tries = 0; tries < 50; tries++) {
        set_servers(test, "1");
        await_stats(test->region, &stats, something_moved,
                    (uintptr_t)address(test, 1));
        server_process_stop(test->server[victim]);
        memx_region_stats(test->region, &stats);
        if (find(&stats, address(test, 0))->chunks > 2) {
            return test;
        }
        /* Too late: the other way round. */
        server_process_continue(test->server[victim]);
        await_released(test, 0);
        set_servers(test, "0");
        await_released(test, 1);
    }
    g_error("all was moved before anything could happen, each time");
}

static bool is_stalled(const MemxStats *stats, uint64_t address)
{
    return find(stats, (const char *)(uintptr_t)address)->health ==
           MEMX_SERVER_STALLED;
}

static void end_of_move(Test *test)
{
    await_released(test, 0);
    assert_no_space(test, 0);
    test_free(test);
}

static void test_target_killed(void)
{
    Test *test = in_the_middle(1);

    server_process_kill(test->server[1]);
    server_process_restart(test->server[1], true);
    end_of_move(test);
}

static void test_target_stopped(void)
{
    Test *test = in_the_middle(1);
    MemxStats stats;

    await_stats(test->region, &stats, is_stalled,
                (uintptr_t)address(test, 1));
    server_process_continue(test->server[1]);
    end_of_move(test);
}

static void test_source_killed(void)
{
    Test *test = in_the_middle(0);

    server_process_kill(test->server[0]);
    server_process_restart(test->server[0], true);
    await_released(test, 0);
    /* It could not be told at once: until then its space is orphaned. */
    server_process_await_status(test->server[0], NO_SPACE);
    test_free(test);
}

static void test_source_stopped(void)
{
    Test *test = in_the_middle(0);
    MemxStats stats;

    await_stats(test->region, &stats, is_stalled,
                (uintptr_t)address(test, 0));
    server_process_continue(test->server[0]);
    end_of_move(test);
}

static void test_freed(void)
{
    Test *test = in_the_middle(0);

    server_process_continue(test->server[0]);
    set_servers(test, "23");
    writer_stop(&test->writer);
    memx_region_free(test->region);
    for (unsigned i = 0; i < SERVERS; i++) {
        assert_no_space(test, i);
        server_process_free(test->server[i]);
    }
    g_free(test);
}

static void test_discarded(void)
{
    Test *test = in_the_middle(1);

    server_process_continue(test->server[1]);
    writer_stop(&test->writer);
    for (uint64_t page = 0; page < PAGES; page += 3) {
        g_assert_cmpint(memx_region_discard(test->region, page * PAGE_BYTES,
                                            PAGE_BYTES), ==, 0);
        test->writer.generation[page] = 0;
    }
    writer_start(&test->writer);
    end_of_move(test);
}

/* Nothing of ours is there any more; but it has not been told so. */
static bool is_empty(Test *test, unsigned i)
{
    MemxRegion *r = test->region;
    const MemxServer *s = &r->server[i];
    bool empty;

    g_mutex_lock(&r->lock);
    empty = !s->n_chunks && !s->n_old && !r->n_moves;
    g_mutex_unlock(&r->lock);
    return empty;
}

static bool is_closing(Test *test, unsigned i)
{
    bool closing;

    g_mutex_lock(&test->region->lock);
    closing = test->region->server[i].closing;
    g_mutex_unlock(&test->region->lock);
    return closing;
}

static void await(Test *test, bool (*done)(Test *test, unsigned i), unsigned i)
{
    int64_t end = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;

    while (!done(test, i)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* Servers that are to be released don't answer any more: the local size and
 * the servers can be changed nevertheless. */
static void test_released_stopped(void)
{
    Test *test = test_new(2, NULL);
    g_autoptr(GError) error = NULL;

    set_servers(test, "2");
    g_mutex_lock(&test->region->resize); /* no release before that */
    await(test, is_empty, 0);
    await(test, is_empty, 1);
    server_process_stop(test->server[0]);
    server_process_stop(test->server[1]);
    g_mutex_unlock(&test->region->resize);
    await(test, is_closing, 0);
    memx_region_set_local_bytes(test->region, LOCAL + MIB, &error);
    g_assert_no_error(error);
    set_servers(test, "23");
    server_process_continue(test->server[0]);
    server_process_continue(test->server[1]);
    await_released(test, 0);
    await_released(test, 1);
    assert_no_space(test, 0);
    assert_no_space(test, 1);
    await_balanced(test, 2);
    test_free(test);
}

/* --- At random --- */

static void test_random(void)
{
    static const char *const lists[] = {
        "0", "1", "2", "3", "01", "12", "23", "30", "012", "123", "0123",
    };
    Test *test = test_new(1, NULL);
    unsigned rounds = g_test_slow() ? 100 : 8;

    for (unsigned i = 0; i < rounds; i++) {
        const char *list = lists[g_test_rand_int_range(
            0, G_N_ELEMENTS(lists))];
        unsigned k = g_test_rand_int_range(0, SERVERS);
        g_autoptr(GError) error = NULL;

        g_test_message("servers %s", list);
        try_servers(test, list, &error); /* may be in trouble, or too many */
        g_usleep(g_test_rand_int_range(0, 500000));
        switch (g_test_rand_int_range(0, 4)) {
        case 0:
            server_process_kill(test->server[k]);
            server_process_restart(test->server[k], true);
            break;
        case 1:
            server_process_stop(test->server[k]);
            g_usleep(g_test_rand_int_range(0, 3000000));
            server_process_continue(test->server[k]);
            break;
        case 2:
            drain(test, k, NULL);
            g_usleep(g_test_rand_int_range(0, 1000000));
            drain(test, k, "--undo");
            break;
        }
    }
    {
        int64_t end = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
        g_autoptr(GError) error = NULL;

        while (!try_servers(test, "13", &error)) {
            g_assert_cmpint(g_get_monotonic_time(), <, end);
            g_clear_error(&error);
            g_usleep(100000);
        }
    }
    await_balanced(test, 2);
    test_free(test);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/servers/added-and-removed", test_added_and_removed);
    g_test_add_func("/servers/back-before-released",
                    test_back_before_released);
    g_test_add_func("/servers/kept", test_kept);
    g_test_add_func("/servers/resized-amid-moves", test_resized_amid_moves);
    g_test_add_func("/servers/lowered-one-by-one", test_lowered_one_by_one);
    g_test_add_func("/servers/drained", test_drained);
    g_test_add_func("/servers/drain-outlives-restart",
                    test_drain_outlives_restart);
    g_test_add_func("/servers/drain-without-room", test_drain_without_room);
    g_test_add_func("/servers/drain-without-room-moves",
                    test_drain_without_room_moves);
    g_test_add_func("/servers/drain-undone", test_drain_undone);
    g_test_add_func("/servers/drain-undone-amid-moves",
                    test_drain_undone_amid_moves);
    g_test_add_func("/servers/refused", test_refused);
    g_test_add_func("/servers/busy", test_busy);
    g_test_add_func("/servers/wrong-key", test_wrong_key);
    g_test_add_func("/servers/target-killed", test_target_killed);
    g_test_add_func("/servers/target-stopped", test_target_stopped);
    g_test_add_func("/servers/source-killed", test_source_killed);
    g_test_add_func("/servers/source-stopped", test_source_stopped);
    g_test_add_func("/servers/freed", test_freed);
    g_test_add_func("/servers/discarded", test_discarded);
    g_test_add_func("/servers/released-stopped", test_released_stopped);
    g_test_add_func("/servers/random", test_random);
    return g_test_run();
}
