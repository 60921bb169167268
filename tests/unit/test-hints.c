/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A thread that waits for a page of which prefetch has a hint: the hint comes
 * first, as much of it as there is room for; and nobody waits for ever.
 */
#include <string.h>
#include "region-fixture.h"
#include "region.h"

#define SIZE (64 * MIB)
#define LOCAL (16 * MIB)

typedef struct Fixture {
    ServerProcess *server;
    MemxRegion *region;
    uint8_t *base;
} Fixture;

/* With room for a hint, or for some. */
static bool at_rest(const MemxStats *stats, uint64_t unused)
{
    return !stats->staged_bytes && !stats->servers[0].queue_depth &&
           stats->servers[0].health == MEMX_SERVER_UP &&
           stats->local_bytes + LOCAL / 64 <= stats->local_limit_bytes;
}

static void set_up(Fixture *f, gconstpointer keep_copies)
{
    MemxStats stats;

    f->server = server_process_new("80M");
    f->region = region_fixture_new(&(RegionFixture) {
        .size = SIZE, .local = LOCAL, .servers = &f->server, .n_servers = 1,
        .keep_copies = GPOINTER_TO_INT(keep_copies),
        .server_timeout_ms = 5000,
        .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = { .kind = MEMX_TRACKER_OFF, .cpu_percent = 2 },
    });
    f->base = memx_region_base(f->region);
    for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
        pattern_write(f->base, page, 1);
    }
    await_stats(f->region, &stats, at_rest, 0);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    memx_region_free(f->region);
    server_process_free(f->server);
}

/* One that is wholly remote, after @g. */
static uint64_t remote_group_locked(MemxRegion *r, uint64_t g)
{
    do {
        g_assert_cmpuint(++g, <, r->table.n_groups);
    } while (r->table.present[g] || r->table.stored[g] != UINT64_MAX ||
             memx_staging_find(&r->staging, g, true) ||
             memx_staging_find(&r->staging, g, false));
    return g;
}

static MemxHint hurry_locked(MemxRegion *r, uint64_t page)
{
    return memx_prefetch_hurry_locked(r, &r->server[0], page);
}

static const MemxPrefetch *hint(const MemxRegion *r, unsigned i)
{
    return &r->prefetch[(r->prefetch_head + i) % MEMX_PREFETCH_QUEUE];
}

typedef bool LockedFunc(const MemxRegion *r, uint64_t g, uint64_t mask);

static bool pages_are_there(const MemxRegion *r, uint64_t g, uint64_t mask)
{
    return (r->table.present[g] & mask) == mask;
}

static void await(MemxRegion *r, LockedFunc *done, uint64_t g, uint64_t mask)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    bool yes;

    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
        g_mutex_lock(&r->lock);
        yes = done(r, g, mask);
        g_mutex_unlock(&r->lock);
    } while (!yes);
}

static void await_pages(MemxRegion *r, uint64_t g, uint64_t mask)
{
    await(r, pages_are_there, g, mask);
}

static void test_first(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    uint64_t a, b, c;

    g_mutex_lock(&r->lock);
    a = remote_group_locked(r, 0);
    b = remote_group_locked(r, a);
    c = remote_group_locked(r, b);
    g_assert_cmpint(hurry_locked(r, b * 64 + 3), ==, MEMX_HINT_NONE);
    memx_prefetch_push_locked(r, a, 0xff, 1);
    memx_prefetch_push_locked(r, b, 0xff, 1);
    g_assert_cmpint(hurry_locked(r, c * 64 + 3), ==, MEMX_HINT_NONE);
    g_assert_cmpint(hurry_locked(r, b * 64 + 9), ==, MEMX_HINT_NONE);
    g_assert_cmpint(hurry_locked(r, b * 64 + 3), ==, MEMX_HINT_FOLLOWED);
    g_assert_cmpuint(hint(r, 0)->group, ==, b);
    g_assert_cmphex(hint(r, 0)->mask, ==, 0xff);
    g_assert_cmphex(hint(r, 0)->waited, ==, 1 << 3);
    g_assert_cmpuint(r->prefetch_n, ==, 2);
    /* One at a time; of the same one more. */
    g_assert_cmpint(hurry_locked(r, a * 64 + 3), ==, MEMX_HINT_QUEUED);
    g_assert_cmpint(hurry_locked(r, b * 64 + 4), ==, MEMX_HINT_FOLLOWED);
    g_assert_cmphex(hint(r, 0)->waited, ==, 3 << 3);
    g_mutex_unlock(&r->lock);
    await_pages(r, b, 0xff);
    await_pages(r, a, 0xff);
}

/* Asks for a page where @room pages beyond those that are kept are free. */
static MemxHint hurry_with_room_locked(MemxRegion *r, uint64_t page,
                                       uint64_t room)
{
    uint64_t held = r->held;
    MemxHint result;

    r->held = r->limit - r->low / 8 - room;
    result = hurry_locked(r, page);
    r->held = held;
    return result;
}

/* In the stream's direction, from the page that is waited for. */
static void test_part(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    unsigned per_page = r->fill_by_move ? 1 : 2;
    uint64_t up, down, few;

    g_mutex_lock(&r->lock);
    up = remote_group_locked(r, 0);
    down = remote_group_locked(r, up);
    few = remote_group_locked(r, down);
    memx_prefetch_push_locked(r, up, UINT64_MAX, 1);
    g_assert_cmpint(hurry_with_room_locked(r, up * 64 + 20, 16 * per_page),
                    ==, MEMX_HINT_FOLLOWED);
    g_assert_cmphex(hint(r, 0)->mask, ==, 0xffffull << 20);
    g_assert_cmpuint(r->prefetch_n, ==, 2);
    g_assert_cmphex(hint(r, 1)->mask, ==, ~(0xffffull << 20));
    r->prefetch_n = 0;
    memx_prefetch_push_locked(r, down, UINT64_MAX, -1);
    g_assert_cmpint(hurry_with_room_locked(r, down * 64 + 20, 16 * per_page),
                    ==, MEMX_HINT_FOLLOWED);
    g_assert_cmphex(hint(r, 0)->mask, ==, 0xffffull << 5);
    r->prefetch_n = 0;
    memx_prefetch_push_locked(r, few, UINT64_MAX, 1);
    g_assert_cmpint(hurry_with_room_locked(r, few * 64, 7 * per_page), ==,
                    MEMX_HINT_QUEUED);
    r->prefetch_n = 0;
    memx_prefetch_push_locked(r, down, UINT64_MAX, -1);
    g_assert_cmpint(hurry_with_room_locked(r, down * 64 + 63, 0), ==,
                    MEMX_HINT_QUEUED);
    g_mutex_unlock(&r->lock);
    await_pages(r, down, UINT64_MAX);
}

/* However many hints come after it. */
static void test_not_overwritten(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    uint64_t g, other;

    g_mutex_lock(&r->lock);
    g = remote_group_locked(r, 0);
    memx_prefetch_push_locked(r, g, UINT64_MAX, 1);
    g_assert_cmpint(hurry_locked(r, g * 64), ==, MEMX_HINT_FOLLOWED);
    for (unsigned i = 0; i < 2 * MEMX_PREFETCH_QUEUE; i++) {
        other = remote_group_locked(r, g);
        memx_prefetch_push_locked(r, other, UINT64_MAX, 1);
    }
    g_assert_cmpuint(hint(r, 0)->group, ==, g);
    g_mutex_unlock(&r->lock);
    await_pages(r, g, UINT64_MAX);
}

static void *read_page(void *opaque)
{
    const volatile uint8_t *page = opaque;

    return GUINT_TO_POINTER(page[0]);
}

static bool has_waiting(const MemxStats *stats, uint64_t unused)
{
    return stats->faults_waiting;
}

static bool is_stalled(const MemxRegion *r, uint64_t g, uint64_t mask)
{
    return r->stalled;
}

static bool clock_stops(const MemxRegion *r, uint64_t g, uint64_t mask)
{
    return !r->server[0].waiting_since_ns;
}

/* Nor does the clock run on for a moment. */
static bool nobody_waits(const MemxRegion *r, uint64_t g, uint64_t mask)
{
    const MemxServer *s = &r->server[0];
    bool nobody = !s->waited_in && !s->faults && !s->dropped;

    g_assert_false(nobody && s->waiting_since_ns);
    return nobody;
}

/* The server is silent, and a thread reads the fourth of eight pages that are
 * hinted; it faults as soon as the lock, which is held then, is free. */
static GThread *read_hinted_and_lock(Fixture *f, GThreadFunc read,
                                     uint64_t *g)
{
    MemxRegion *r = f->region;
    GThread *thread;

    server_process_stop(f->server);
    g_mutex_lock(&r->lock);
    *g = remote_group_locked(r, 0);
    memx_prefetch_push_locked(r, *g, 0xff, 1);
    thread = g_thread_new("reader", read,
                          f->base + (*g * 64 + 3) * PAGE_BYTES);
    g_usleep(20000);
    return thread;
}

/* Whoever waits for a hint is seen to wait; others of its group are not asked
 * for meanwhile; and when the server is back both come. */
static void test_silent_server(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    MemxStats stats;
    uint64_t g;
    GThread *thread = read_hinted_and_lock(f, read_page, &g);

    g_assert_cmpint(hurry_locked(r, g * 64 + 3), ==, MEMX_HINT_FOLLOWED);
    g_mutex_unlock(&r->lock);
    await_stats(r, &stats, has_waiting, 0);
    g_mutex_lock(&r->lock);
    memx_prefetch_push_locked(r, g, 0xff00, 1);
    g_assert_cmpint(hurry_locked(r, g * 64 + 9), ==, MEMX_HINT_QUEUED);
    g_mutex_unlock(&r->lock);
    await(r, is_stalled, 0, 0);
    server_process_continue(f->server);
    g_thread_join(thread);
    pattern_check(f->base, g * 64 + 3, 1);
    pattern_check(f->base, g * 64 + 9, 1);
    await(r, nobody_waits, 0, 0);
}

/* One waits for a hint, another for its own request; both are answered at
 * once, by two threads of the engine. */
static void test_clock(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    MemxStats stats;

    for (unsigned i = 0; i < 30; i++) {
        uint64_t g, other;
        GThread *hinted = read_hinted_and_lock(f, read_page, &g), *alone;

        other = remote_group_locked(r, g);
        g_mutex_unlock(&r->lock);
        alone = g_thread_new("alone", read_page,
                             f->base + other * 64 * PAGE_BYTES);
        await_stats(r, &stats, has_waiting, 0);
        server_process_continue(f->server);
        g_thread_join(hinted);
        g_thread_join(alone);
        await(r, nobody_waits, 0, 0);
        await_stats(r, &stats, at_rest, 0);
    }
}

/* Whoever waits for a server that is gone needs it no more. */
static void test_discarded(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    MemxStats stats;
    GThread *thread;
    uint64_t g;

    server_process_kill(f->server);
    g_mutex_lock(&r->lock);
    g = remote_group_locked(r, 0);
    g_mutex_unlock(&r->lock);
    thread = g_thread_new("reader", read_page, f->base + g * 64 * PAGE_BYTES);
    await_stats(r, &stats, has_waiting, 0);
    g_assert_cmpint(memx_region_discard(r, g * 64 * PAGE_BYTES, PAGE_BYTES),
                    ==, 0);
    g_assert_null(g_thread_join(thread)); /* zeros */
    await(r, clock_stops, 0, 0);
    memx_region_stats(r, &stats);
    g_assert_cmpuint(stats.faults_waiting, ==, 0);
}

static bool fault_is_out(const MemxRegion *r, uint64_t g, uint64_t mask)
{
    return r->server[0].faults;
}

/* Whoever waits for an answer of one that is silent doesn't wait for it. */
static void test_discarded_silent(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    GThread *thread;
    uint64_t g;

    server_process_stop(f->server);
    g_mutex_lock(&r->lock);
    g = remote_group_locked(r, 0);
    g_mutex_unlock(&r->lock);
    thread = g_thread_new("reader", read_page, f->base + g * 64 * PAGE_BYTES);
    await(r, fault_is_out, 0, 0);
    g_assert_cmpint(memx_region_discard(r, g * 64 * PAGE_BYTES, PAGE_BYTES),
                    ==, 0);
    g_assert_null(g_thread_join(thread)); /* zeros */
    server_process_continue(f->server);
    await(r, nobody_waits, 0, 0);
}

static gint came;

static void *read_and_tell(void *opaque)
{
    read_page(opaque);
    g_atomic_int_set(&came, 1);
    return NULL;
}

/* It must not go on with zeros, so it sleeps on, until this process ends. */
static void test_freed(Fixture *f, gconstpointer unused)
{
    MemxRegion *r = f->region;
    MemxStats stats;
    uint64_t g;

    g_thread_unref(read_hinted_and_lock(f, read_and_tell, &g));
    g_mutex_unlock(&r->lock);
    await_stats(r, &stats, has_waiting, 0);
    memx_region_free(r);
    f->region = NULL;
    g_usleep(100000);
    g_assert_cmpint(g_atomic_int_get(&came), ==, 0);
    server_process_continue(f->server);
}

typedef struct Reader {
    uint8_t *base;
    uint64_t first, n;
    bool backward, write;
} Reader;

static void *read_all(void *opaque)
{
    const Reader *reader = opaque;

    for (uint64_t i = 0; i < reader->n; i++) {
        uint64_t page = reader->first + (reader->backward ? reader->n - 1 - i
                                                          : i);

        pattern_check(reader->base, page, 1);
        if (reader->write) {
            pattern_write(reader->base, page, 1);
        }
    }
    return NULL;
}

/* Every page that comes has another one sent, so room is what they wait for. */
static void test_streams_without_room(Fixture *f, gconstpointer unused)
{
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    uint64_t part = SIZE / PAGE_BYTES / 3, hurried;
    unsigned rounds = 0;

    do {
        GThread *thread[3];
        Reader reader[3];

        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        for (unsigned i = 0; i < 3; i++) {
            reader[i] = (Reader) { f->base, i * part, part, i == 1, i == 2 };
            thread[i] = g_thread_new("reader", read_all, &reader[i]);
        }
        for (unsigned i = 0; i < 3; i++) {
            g_thread_join(thread[i]);
        }
        await(f->region, nobody_waits, 0, 0);
        g_mutex_lock(&f->region->lock);
        hurried = f->region->count.hurried;
        g_mutex_unlock(&f->region->lock);
        rounds++;
    } while (hurried < 20 || rounds < 4);
    g_test_message("%" G_GUINT64_FORMAT " waited for a hint, in %u rounds",
                   hurried, rounds);
}

int main(int argc, char **argv)
{
#define ADD(path, keep, function) \
    g_test_add("/hints/" path, Fixture, GINT_TO_POINTER(keep), set_up, \
               function, tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("waited-for-comes-first", MEMX_KEEP_COPIES_AUTO, test_first);
    ADD("as-much-as-there-is-room-for", MEMX_KEEP_COPIES_AUTO, test_part);
    ADD("waited-for-is-not-overwritten", MEMX_KEEP_COPIES_AUTO,
        test_not_overwritten);
    ADD("silent-server", MEMX_KEEP_COPIES_AUTO, test_silent_server);
    ADD("clock-stops", MEMX_KEEP_COPIES_AUTO, test_clock);
    ADD("discarded-while-somebody-waits", MEMX_KEEP_COPIES_AUTO,
        test_discarded);
    ADD("discarded-while-a-server-is-silent", MEMX_KEEP_COPIES_AUTO,
        test_discarded_silent);
    ADD("freed-while-somebody-waits", MEMX_KEEP_COPIES_AUTO, test_freed);
    ADD("streams-without-room", MEMX_KEEP_COPIES_OFF,
        test_streams_without_room);
    return g_test_run();
}
