/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a period's end does: several threads that age one region side by side;
 * refaults, which are told by periods; calm, in which periods are longer; and
 * what happens when it comes too late.
 */
#include "ager.h"
#include "region.h"
#include "tracker-fixture.h"

#define DEADLINE_US (200 * G_USEC_PER_SEC)
#define POLL_US 1000
#define HOUR_MS 3600000
#define GIB (1024 * MIB)

/* --- the ager by itself ------------------------------------------------ */

/* Of a tracker and a client that a test provides, over memory that nobody
 * touches. */
static MemxAger *ager_new(const MemxTrackerOps *ops,
                          const MemxAgerClient *client, void *opaque,
                          uint64_t bytes, unsigned cpu_percent)
{
    MemxRange range = { (void *)(uintptr_t)(64 * GIB), bytes };
    MemxWatch watch = { .range = &range, .n_ranges = 1, .uffd = -1 };
    MemxTrackerOptions o = { .period_ms = 100, .cpu_percent = cpu_percent };
    g_autoptr(GError) error = NULL;
    MemxAger *ager = memx_ager_new(&watch, ops, opaque, g_strdup("a test"),
                                   MIB, &o, client, opaque, &error);

    g_assert_no_error(error);
    return ager;
}

#define SLICES 65       /* from 64 on they are worth a second thread */
#define BYTES ((SLICES - 1) * 64 * MIB + 3 * PAGE_BYTES)

/* A tracker and its client: which thread took which slice. */
typedef struct Slices {
    unsigned together;  /* so many threads must have one at the same time */
    GMutex lock;
    GCond came;
    GThread *thread[2];
    unsigned n_threads, n_other;
    unsigned times[SLICES], aged[SLICES];
} Slices;

static unsigned slice_number(const MemxSlice *slice)
{
    return slice->first_group / MEMX_SLICE_GROUPS;
}

static void slices_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                           uint64_t dwell_ns)
{
    memx_slice_set(slice, slice_number(slice) % 2, 1);
    slice->faults = 1;
}

static void slices_close(void *opaque)
{
}

static bool slices_begin(void *opaque, bool *pressure)
{
    return true;
}

/* Nobody goes on before all are here. */
static bool slices_want(void *opaque, MemxSlice *slice)
{
    Slices *s = opaque;
    gint64 end = g_get_monotonic_time() + DEADLINE_US;
    unsigned i;

    g_mutex_lock(&s->lock);
    for (i = 0; i < s->n_threads && s->thread[i] != g_thread_self(); i++) {
        ;
    }
    if (i == s->n_threads) {
        g_assert_cmpuint(i, <, G_N_ELEMENTS(s->thread));
        s->thread[s->n_threads++] = g_thread_self();
        g_cond_broadcast(&s->came);
    }
    while (s->n_threads < s->together) {
        g_assert_true(g_cond_wait_until(&s->came, &s->lock, end));
    }
    s->times[slice_number(slice)]++;
    g_mutex_unlock(&s->lock);
    slice->wanted[0] = 1;
    return true;
}

static void slices_age(void *opaque, const MemxSlice *slice, bool looked,
                       MemxFound *found)
{
    Slices *s = opaque;

    g_assert_true(looked);
    g_assert_cmpuint(slice->touched[0], ==, 1 + slice_number(slice) % 2);
    s->aged[slice_number(slice)]++; /* each thread has others */
    found->looked_chunks++;
    found->touched_chunks += slice->touched[0] & 1;
    found->touched_pages++;
    found->chunks[slice->n_groups % MEMX_HISTORIES]++;
}

static unsigned slices_turnover(void *opaque)
{
    return 0;
}

/* Each slice is taken once, by any of so many threads; what they find is
 * summed up. */
static void slices_pass(unsigned cpu_percent, unsigned threads)
{
    static const MemxTrackerOps ops = {
        .kind = MEMX_TRACKER_IDLE, .regions = true,
        .harvest = slices_harvest, .close = slices_close,
    };
    static const MemxAgerClient client = {
        slices_begin, slices_want, slices_age, slices_turnover,
    };
    Slices s = { .together = threads };
    MemxTrackerStats stats;
    MemxAger *ager = ager_new(&ops, &client, &s, BYTES, cpu_percent);

    for (unsigned pass = 0; pass < 3; pass++) {
        s.n_threads = 0; /* the second one is new each time */
        memx_ager_pass(ager);
        g_assert_cmpuint(s.n_threads, ==, threads);
        for (unsigned i = 0; i < SLICES; i++) {
            g_assert_cmpuint(s.times[i], ==, pass + 1);
            g_assert_cmpuint(s.aged[i], ==, pass); /* the first only begins */
        }
    }
    memx_ager_stats(ager, &stats);
    g_assert_cmpuint(stats.periods, ==, 2);
    g_assert_cmpuint(stats.extra_faults, ==, 3 * SLICES);
    g_assert_cmpuint(stats.looked_chunks, ==, SLICES);
    g_assert_cmpuint(stats.touched_chunks, ==, (SLICES + 1) / 2);
    g_assert_cmpuint(stats.touched_pages, ==, SLICES);
    g_assert_cmpuint(stats.chunks[0], ==, SLICES - 1);
    g_assert_cmpuint(stats.chunks[1], ==, 1);  /* the last is short */
    memx_ager_free(ager);
}

static void test_threads_one(void)
{
    slices_pass(100, 1);
}

static void test_threads_two(void)
{
    slices_pass(200, 2);
}

/* --- its share of a CPU changes ---------------------------------------- */

#define SECOND_NS 1000000000ull

typedef struct Shared {
    MemxAger *ager;
    uint64_t charge_ns;     /* in the first pass */
    int charged;            /* atomic */
    bool changes;           /* while its slice is looked at */
} Shared;

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* A wait ends, however much of a CPU it takes to wait. */
static void wait_hard(MemxPace *pace)
{
    uint64_t owed = memx_pace_ns(pace), end = cpu_ns() + SECOND_NS / 20;
    gint64 began = g_get_monotonic_time();

    while (cpu_ns() < end) {
        ;
    }
    g_assert_cmpuint(memx_pace_left_ns(pace), <, owed);
    owed -= (g_get_monotonic_time() - began) * 1000;
    g_assert_cmpuint(memx_pace_ns(pace), >, owed + SECOND_NS);
}

/* What it owes takes as long as the share that it has now demands. */
static void change_share(Shared *s, MemxPace *pace)
{
    uint64_t owed = s->charge_ns;

    wait_hard(pace);
    g_assert_cmpuint(memx_pace_ns(pace), >, owed * 90);
    memx_ager_set(s->ager, 100, 100);
    g_assert_cmpuint(memx_pace_ns(pace), <, owed * 2);
    memx_ager_set(s->ager, 100, 1);
    g_assert_cmpuint(memx_pace_ns(pace), >, owed * 2);
    memx_ager_pause(s->ager, true); /* it doesn't wait */
    g_assert_cmpuint(memx_pace_ns(pace), ==, 0);
}

static void shared_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                           uint64_t dwell_ns)
{
    Shared *s = opaque;

    if (g_atomic_int_get(&s->charged)) {
        return;
    }
    memx_pace_charge(slice->pace, s->charge_ns);
    if (s->changes) {
        change_share(s, slice->pace);
    }
    g_atomic_int_set(&s->charged, 1);
}

static bool shared_want(void *opaque, MemxSlice *slice)
{
    slice->wanted[0] = 1;
    return true;
}

static void shared_age(void *opaque, const MemxSlice *slice, bool looked,
                       MemxFound *found)
{
}

static MemxAger *shared_new(Shared *s)
{
    static const MemxTrackerOps ops = {
        .kind = MEMX_TRACKER_IDLE, .regions = true,
        .harvest = shared_harvest, .close = slices_close,
    };
    static const MemxAgerClient client = {
        slices_begin, shared_want, shared_age, slices_turnover,
    };

    s->ager = ager_new(&ops, &client, s, MIB, 1);
    return s->ager;
}

static void test_share_changes(void)
{
    Shared s = { .charge_ns = 10 * SECOND_NS, .changes = true };
    MemxAger *ager = shared_new(&s);

    memx_ager_pass(ager);
    g_assert_true(s.charged);
    memx_ager_free(ager);
}

/* At 1 % this would take longer than we wait. */
static void test_share_raised_asleep(void)
{
    Shared s = { .charge_ns = 5 * SECOND_NS / 2 };
    gint64 end = g_get_monotonic_time() + DEADLINE_US;
    g_autoptr(GError) error = NULL;
    MemxTrackerStats stats;
    MemxAger *ager = shared_new(&s);

    g_assert_true(memx_ager_start(ager, &error));
    while (!g_atomic_int_get(&s.charged)) {
        g_usleep(POLL_US);
    }
    g_usleep(100 * POLL_US); /* it sleeps */
    memx_ager_set(ager, 100, 1600);
    do {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(POLL_US);
        memx_ager_stats(ager, &stats);
    } while (!stats.periods);
    memx_ager_free(ager);
}

/* --- calm -------------------------------------------------------------- */

#define CALM_MS 20000   /* the longest period of calm */

typedef struct Calm {
    bool pressure;
    int is;             /* atomic */
} Calm;

static bool calm_begin(void *opaque, bool *pressure)
{
    Calm *c = opaque;

    *pressure = c->pressure;
    return true;
}

static void calm_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                         uint64_t dwell_ns)
{
}

static bool calm_is(void *opaque)
{
    Calm *c = opaque;

    return g_atomic_int_get(&c->is);
}

static const MemxTrackerOps dear = {
    .kind = MEMX_TRACKER_SAMPLE, .regions = true, .fault_ns = 20000,
    .harvest = calm_harvest, .close = slices_close,
};
static const MemxAgerClient calm_client = {
    calm_begin, shared_want, shared_age, slices_turnover, calm_is,
};

/* So many periods; how long the next one is. */
static unsigned calm_passes(MemxAger *ager, unsigned n)
{
    MemxTrackerStats stats;

    while (n--) {
        memx_ager_pass(ager);
    }
    memx_ager_stats(ager, &stats);
    return stats.period_ms;
}

/* While nothing is evicted for longer than 8 periods, one period more each time,
 * of a tracker whose faults are dear; none where somebody sets the period, or
 * needs the answers. */
static void test_calm_period(void)
{
    static const MemxTrackerOps cheap = {
        .kind = MEMX_TRACKER_IDLE, .regions = true, .harvest = calm_harvest,
        .close = slices_close,
    };
    static const MemxAgerClient curious = {
        calm_begin, shared_want, shared_age, slices_turnover, NULL,
    };
    Calm c = { .is = true };
    MemxAger *ager = ager_new(&dear, &calm_client, &c, MIB, 100);
    unsigned own;

    memx_ager_set(ager, 0, 100);
    own = calm_passes(ager, 1); /* only begins */
    g_assert_cmpuint(calm_passes(ager, 8), ==, own);
    g_assert_cmpuint(calm_passes(ager, 1), ==, 2 * own);
    g_assert_cmpuint(calm_passes(ager, 1), ==, 3 * own);
    c.pressure = true;
    g_assert_cmpuint(calm_passes(ager, 1), ==, own);
    c.pressure = false;
    g_assert_cmpuint(calm_passes(ager, 8), ==, own);
    g_assert_cmpuint(calm_passes(ager, 1), ==, 2 * own);
    g_assert_cmpuint(calm_passes(ager, 1000), ==, CALM_MS);
    memx_ager_set(ager, own, 100);
    g_assert_cmpuint(calm_passes(ager, 20), ==, own);
    memx_ager_set(ager, 0, 100);
    g_assert_cmpuint(calm_passes(ager, 0), ==, own);
    memx_ager_set(ager, HOUR_MS, 100);
    memx_ager_set(ager, 0, 100); /* it finds its own */
    g_assert_cmpuint(calm_passes(ager, 0), ==, CALM_MS);
    memx_ager_free(ager);

    ager = ager_new(&cheap, &calm_client, &c, MIB, 100);
    memx_ager_set(ager, 0, 100);
    g_assert_cmpuint(calm_passes(ager, 20), ==, own);
    memx_ager_free(ager);

    ager = ager_new(&dear, &curious, &c, MIB, 100);
    memx_ager_set(ager, 0, 100);
    g_assert_cmpuint(calm_passes(ager, 20), ==, own);
    memx_ager_free(ager);
}

/* As soon as something is evicted, not when the long period is over. */
static void test_calm_ends(void)
{
    Calm c = { .is = true };
    MemxAger *ager = ager_new(&dear, &calm_client, &c, MIB, 100);
    g_autoptr(GError) error = NULL;
    MemxTrackerStats before, after;
    gint64 began;

    memx_ager_set(ager, 0, 100);
    g_assert_cmpuint(calm_passes(ager, 1000), ==, CALM_MS);
    memx_ager_stats(ager, &before);
    began = g_get_monotonic_time();
    g_assert_true(memx_ager_start(ager, &error));
    g_usleep(100 * POLL_US); /* it sleeps */
    g_atomic_int_set(&c.is, false);
    do {
        g_usleep(POLL_US);
        memx_ager_stats(ager, &after);
    } while (after.periods == before.periods);
    g_assert_cmpint(g_get_monotonic_time() - began, <, CALM_MS * 1000);
    memx_ager_free(ager);
}

/* --- a region ---------------------------------------------------------- */

#define LARGE (4 * GIB) /* 64 slices */
#define CHECKED (LARGE - 64 * MIB)
#define APART 97        /* chunks; one in so many is touched */

/* Threads of this process that are agers. */
static unsigned agers(void)
{
    g_autoptr(GDir) tasks = g_dir_open("/proc/self/task", 0, NULL);
    const char *task;
    unsigned n = 0;

    while ((task = g_dir_read_name(tasks))) {
        g_autofree char *path = g_strdup_printf("/proc/self/task/%s/comm",
                                                task);
        g_autofree char *name = NULL;

        /* It may have ended. */
        n += g_file_get_contents(path, &name, NULL, NULL) &&
             g_str_equal(name, "memx-ager\n");
    }
    return n;
}

/* A fault in the last slice, without which `off` has nothing to learn: here and
 * there, since what follows each other comes at once. */
static void touch_new_page(MemxRegion *r)
{
    uint64_t n = 64 * MIB / PAGE_BYTES;
    uint8_t *last = (uint8_t *)memx_region_base(r) + r->size_bytes -
                    n * PAGE_BYTES;
    static uint64_t touched;
    uint64_t page = touched++ * 7919 % n;

    *(volatile uint8_t *)(last + page * PAGE_BYTES) = 1;
}

static void look(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    touch_new_page(r);
    memx_ager_ask(r->ager);
    while (!memx_ager_has_looked(r->ager)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
    }
}

/* While they are at it they are held: their lock isn't there. */
static void await_two_agers(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    unsigned n = 0;

    while (n < 2) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        touch_new_page(r);
        memx_ager_ask(r->ager);
        while (n < 2 && !memx_ager_has_looked(r->ager)) {
            g_mutex_lock(&r->lock);
            n = agers();
            g_mutex_unlock(&r->lock);
            g_thread_yield();
        }
    }
    g_assert_cmpuint(n, ==, 2);
}

static void await_periods(MemxRegion *r, unsigned n)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxTrackerStats stats;
    uint64_t until = 0;

    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        touch_new_page(r);
        g_usleep(POLL_US);
        memx_ager_stats(r->ager, &stats);
        until = until ?: stats.periods + n;
    } while (stats.periods < until);
}

/* What was touched at the same time is equally old whoever aged it. */
static void check_equal(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    g_assert_cmpuint(r->history.value[0], >, 0);
    for (uint32_t c = 0; c < CHECKED / CHUNK; c++) {
        g_assert_cmpuint(r->history.value[c], ==, c % APART ? 0 :
                         r->history.value[0]);
    }
    g_mutex_unlock(&r->lock);
}

/*
 * Of 4 GiB two threads age each some slices.  What was touched in one period is
 * equally hot after some, all of it, and nothing else is: no slice is left out,
 * and none aged twice.
 */
static void test_region_parallel(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    RegionFixture f = {
        .size = LARGE, .local = LARGE, .chunk = CHUNK,
        .servers = &server, .n_servers = 1,
        .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = {
            .kind = GPOINTER_TO_UINT(kind), .period_ms = HOUR_MS,
            .cpu_percent = 200,
        },
    };
    g_autoptr(GError) error = NULL;
    MemxRegion *r = region_fixture_try(&f, &error);

    if (r) {
        void *base = memx_region_base(r);

        for (uint32_t c = 0; c < CHECKED / CHUNK; c += APART) {
            pattern_write(base, c * (CHUNK / PAGE_BYTES), 1);
        }
        await_two_agers(r);
        g_assert_true(memx_region_set_tracking(r, 100, 200, &error));
        await_periods(r, 3);
        g_assert_true(memx_region_set_tracking(r, HOUR_MS, 200, &error));
        look(r); /* after which no period's end is under way */
        check_equal(r);
        for (uint32_t c = 0; c < CHECKED / CHUNK; c += APART) {
            pattern_check(base, c * (CHUNK / PAGE_BYTES), 1);
        }
        memx_region_free(r);
    } else {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
    }
    server_process_free(server);
}

/* --- looks that come too late ------------------------------------------ */

#define NEW_CHUNKS 16u

static void write_chunks(MemxRegion *r, uint32_t from, uint32_t to)
{
    for (uint64_t page = from * (CHUNK / PAGE_BYTES);
         page < to * (CHUNK / PAGE_BYTES); page++) {
        pattern_write(memx_region_base(r), page, 1);
    }
}

/* Reads them; how many faults that took. */
static uint64_t read_chunks(MemxRegion *r, const uint32_t *chunks)
{
    MemxStats before, after;

    memx_region_stats(r, &before);
    for (unsigned i = 0; i < NEW_CHUNKS; i++) {
        for (uint64_t page = 0; page < CHUNK / PAGE_BYTES; page++) {
            pattern_check(memx_region_base(r),
                          chunks[i] * (CHUNK / PAGE_BYTES) + page, 1);
        }
    }
    memx_region_stats(r, &after);
    return after.faults_remote - before.faults_remote;
}

/* What is local was in use in all periods, and is no more; no look tells.  What
 * the guest uses now stays local soon all the same. */
static void test_blind(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    RegionFixture f = {
        .size = 32 * MIB, .local = 8 * MIB, .chunk = CHUNK,
        .servers = &server, .n_servers = 1,
        .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = { .kind = GPOINTER_TO_UINT(kind), .period_ms = HOUR_MS,
                     .cpu_percent = 2 },
    };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    g_autoptr(GError) error = NULL;
    MemxRegion *r = region_fixture_try(&f, &error);
    uint32_t chunks[NEW_CHUNKS], n = 0;

    if (!r) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
        server_process_free(server);
        return;
    }
    write_chunks(r, 0, r->table.n_chunks);
    g_mutex_lock(&r->lock);
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        if (memx_history_listed(&r->history, c)) {
            memx_history_set(&r->history, c, 0xff);
        } else if (n < NEW_CHUNKS) {
            chunks[n++] = c;
        }
    }
    g_mutex_unlock(&r->lock);
    g_assert_cmpuint(n, ==, NEW_CHUNKS);
    while (read_chunks(r, chunks)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
    }
    memx_region_free(r);
    server_process_free(server);
}

/* --- calm, of a region ------------------------------------------------- */

#define MANY 40
#define FEW 12      /* chunks: so few that the period doesn't adapt to them */
#define LEAST 32    /* that may be local: 8 MiB */

static void await_period_ms(MemxRegion *r, unsigned least, unsigned most)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxTrackerStats stats;

    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
        memx_ager_stats(r->ager, &stats);
    } while (stats.period_ms < least || stats.period_ms > most);
}

/* It is calm until something is evicted, which is seen at once: here no pass ends
 * meanwhile. */
static void test_calm_region(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_fixture_new(&(RegionFixture) {
        .size = MANY * CHUNK, .local = MANY * CHUNK, .chunk = CHUNK,
        .servers = &server, .n_servers = 1,
        .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = { .kind = MEMX_TRACKER_SAMPLE, .cpu_percent = 100 },
    });
    g_autoptr(GError) error = NULL;

    write_chunks(r, 0, FEW);
    await_period_ms(r, 2000, CALM_MS);
    memx_region_pause_tracking(r, true);
    write_chunks(r, FEW, MANY);
    memx_region_set_local_bytes(r, LEAST * CHUNK, &error);
    g_assert_no_error(error);
    await_period_ms(r, 1000, 1000);
    memx_region_pause_tracking(r, false);
    for (uint64_t page = 0; page < MANY * CHUNK / PAGE_BYTES; page++) {
        pattern_check(memx_region_base(r), page, 1);
    }
    memx_region_free(r);
    server_process_free(server);
}

/* --- refaults ---------------------------------------------------------- */

#define SIZE (32 * MIB)
#define LOCAL (8 * MIB)
#define WRITTEN (SIZE - 4 * MIB) /* the rest is for faults */

/* A chunk all of which is remote, and was (not) evicted lately. */
static bool find_remote(MemxRegion *r, bool lately, uint64_t *page)
{
    uint64_t per = r->table.groups_per_chunk;
    bool found = false;

    g_mutex_lock(&r->lock);
    for (uint32_t c = 0; !found && c < WRITTEN / CHUNK; c++) {
        const MemxChunk *chunk = &r->table.chunk[c];

        found = !chunk->fetching && !chunk->installing &&
                lately == (chunk->evicted > 0);
        for (uint64_t g = c * per; g < (c + 1) * per; g++) {
            found &= !r->table.present[g] && r->table.stored[g] &&
                     !memx_staging_find(&r->staging, g, true) &&
                     !memx_staging_find(&r->staging, g, false);
        }
        *page = c * (CHUNK / PAGE_BYTES);
    }
    g_mutex_unlock(&r->lock);
    return found;
}

/* Reads from one; how many refaults that was. */
static uint64_t read_remote(MemxRegion *r, bool lately)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    uint8_t *base = memx_region_base(r);
    MemxStats before, after;
    uint64_t page;

    for (uint64_t n = 0; !find_remote(r, lately, &page); n++) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        if (!lately) { /* without a fault no period ends */
            *(volatile uint8_t *)(base + WRITTEN + n * 1013 * PAGE_BYTES %
                                  (SIZE - WRITTEN)) = 1;
        }
        g_usleep(10 * POLL_US);
    }
    memx_region_stats(r, &before);
    pattern_check(base, page, 1);
    memx_region_stats(r, &after);
    g_assert_cmpuint(after.faults_remote, ==, before.faults_remote + 1);
    return after.refaults - before.refaults;
}

/* A fault for what was evicted a moment ago is a refault, one for what was
 * evicted some periods ago isn't. */
static void test_refaults(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_fixture_new(&(RegionFixture) {
        .size = SIZE, .local = LOCAL, .chunk = CHUNK, .servers = &server,
        .n_servers = 1, .huge_pages = MEMX_HUGE_PAGES_OFF,
        .tracker = {
            .kind = MEMX_TRACKER_OFF, .period_ms = HOUR_MS, .cpu_percent = 2,
        },
    });
    g_autoptr(GError) error = NULL;

    for (uint64_t page = 0; page < WRITTEN / PAGE_BYTES; page++) {
        pattern_write(memx_region_base(r), page, 1);
    }
    g_assert_cmpuint(read_remote(r, true), ==, 1);
    g_assert_true(memx_region_set_tracking(r, 100, 2, &error));
    g_assert_cmpuint(read_remote(r, false), ==, 0);
    memx_region_free(r);
    server_process_free(server);
}

static void add_parallel(MemxTrackerKind kind)
{
    g_autofree char *path = g_strdup_printf("/ageing/parallel/%s",
                                            memx_tracker_kind_name(kind));

    g_test_add_data_func(path, GUINT_TO_POINTER(kind), test_region_parallel);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ageing/threads/one", test_threads_one);
    g_test_add_func("/ageing/threads/two", test_threads_two);
    g_test_add_func("/ageing/share/changes", test_share_changes);
    g_test_add_func("/ageing/share/raised-asleep", test_share_raised_asleep);
    add_parallel(MEMX_TRACKER_OFF);
    add_parallel(MEMX_TRACKER_RWP);
    add_parallel(MEMX_TRACKER_IDLE);
    g_test_add_func("/ageing/refaults", test_refaults);
    g_test_add_data_func("/ageing/blind/sample",
                         GUINT_TO_POINTER(MEMX_TRACKER_SAMPLE), test_blind);
    g_test_add_data_func("/ageing/blind/rwp",
                         GUINT_TO_POINTER(MEMX_TRACKER_RWP), test_blind);
    g_test_add_data_func("/ageing/blind/idle",
                         GUINT_TO_POINTER(MEMX_TRACKER_IDLE), test_blind);
    g_test_add_func("/ageing/calm/period", test_calm_period);
    g_test_add_func("/ageing/calm/ends", test_calm_ends);
    g_test_add_func("/ageing/calm/region", test_calm_region);
    return g_test_run();
}
