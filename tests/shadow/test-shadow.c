/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine against a shadow copy.
 *
 * Theory of operation
 *
 * Threads use a small region in every way there is (workers.c), and know what
 * each word of it must hold (shadow-array.c).  Meanwhile this thread deals
 * out faults (pool-under-test.c), one after another, of one server or of all:
 * as many times each as the time allows.  After a fault has ended, every
 * server must be well again and every thread must get on.  At the end nothing
 * is in flight: all of memory is verified, and the engine's books are
 * compared with the kernel's and the servers' (audit.c).
 *
 * Printed at the end: what happened to pages under which fault (coverage.c),
 * and whether memory was held that should not be (honesty.c).
 */
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "audit.h"
#include "coverage.h"
#include "honesty.h"
#include "pool-under-test.h"
#include "shadow-array.h"
#include "workers.h"

#define MIB (1ull << 20)
#define STUCK_S 90
#define STAGING_BYTES (8 * 64 * PAGE_BYTES) /* of regions this small */

typedef struct Options {
    int seconds;
    int size_mib;
    int local_mib;
    int chunk_kib;
    int servers;
    int seed;
    char *keep;
    char *fill;
    char *tracker;
    char *transport;
    gboolean require;
    gboolean calm;
} Options;

typedef struct Test {
    Options o;
    uint64_t size, local, local_min;
    GRand *rand;
    PoolUnderTest *pool;
    MemxRegion *region;
    MemxRegion *filler;
    Shadow shadow;
    Workers *workers;
    unsigned dealt[N_FAULTS];
    gint events[MEMX_EVENT_BUG + 1];
} Test;

static Options parse(int argc, char **argv)
{
    const char *seconds = g_getenv("MEMX_SHADOW_SECONDS");
    Options o = { .seconds = seconds ? atoi(seconds) : 15,
                  .size_mib = 64, .local_mib = 16, .chunk_kib = 256,
                  .servers = 2,
                  .seed = g_random_int_range(1, G_MAXINT) };
    const GOptionEntry entries[] = {
        { "seconds", 0, 0, G_OPTION_ARG_INT, &o.seconds, "How long", "N" },
        { "size", 0, 0, G_OPTION_ARG_INT, &o.size_mib, "MiB", "N" },
        { "local", 0, 0, G_OPTION_ARG_INT, &o.local_mib, "MiB", "N" },
        { "chunk", 0, 0, G_OPTION_ARG_INT, &o.chunk_kib, "KiB", "N" },
        { "servers", 0, 0, G_OPTION_ARG_INT, &o.servers, "1 to 16", "N" },
        { "seed", 0, 0, G_OPTION_ARG_INT, &o.seed, "As printed", "N" },
        { "keep", 0, 0, G_OPTION_ARG_STRING, &o.keep, "Copies",
          "auto|on|off" },
        { "tracker", 0, 0, G_OPTION_ARG_STRING, &o.tracker,
          "off, rwp, idle, sample or damon, with short periods (auto, with "
          "long ones)", "KIND" },
        { "fill", 0, 0, G_OPTION_ARG_STRING, &o.fill,
          "Instead of what is measured", "move|copy" },
        { "transport", 0, 0, G_OPTION_ARG_STRING, &o.transport, NULL,
          "tcp|inproc" },
        { "require", 0, 0, G_OPTION_ARG_NONE, &o.require,
          "Fail if a transition was not seen under each fault", NULL },
        { "calm", 0, 0, G_OPTION_ARG_NONE, &o.calm, "No faults", NULL },
        { NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(2);
    }
    return o;
}

static void on_event(const MemxEvent *event, void *opaque)
{
    Test *t = opaque;

    g_atomic_int_inc(&t->events[event->type]);
    if (event->type == MEMX_EVENT_BUG ||
        event->type == MEMX_EVENT_SERVER_EMPTY) {
        g_error("event: %s", event->message);
    }
}

static MemxKeepCopies keep_copies(const char *name)
{
    return !g_strcmp0(name, "on") ? MEMX_KEEP_COPIES_ON
           : !g_strcmp0(name, "off") ? MEMX_KEEP_COPIES_OFF
           : MEMX_KEEP_COPIES_AUTO;
}

static MemxTrackerKind tracker_kind(const char *name)
{
    MemxTrackerKind kind = MEMX_TRACKER_AUTO;

    while (strcmp(memx_tracker_kind_name(kind), name)) {
        if (kind++ == MEMX_TRACKER_DAMON) {
            g_error("no tracker is called %s", name);
        }
    }
    return kind;
}

static void make_region(Test *t)
{
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;

    o.size_bytes = t->size;
    o.local_bytes = t->local;
    o.chunk_bytes = (uint64_t)t->o.chunk_kib << 10;
    o.keep_copies = keep_copies(t->o.keep);
    o.servers = pool_addresses(t->pool);
    o.vm_name = "shadow";
    o.event = on_event;
    o.opaque = t;
    if (t->o.tracker) {
        o.tracker = (MemxTrackerOptions) {
            .kind = tracker_kind(t->o.tracker), .period_ms = 100,
            .cpu_percent = 50,
        };
    }
    t->region = memx_region_new_over(&o, pool_transport(t->pool), &error);
    if (!t->region) {
        g_error("%s", error->message);
    }
    if (t->o.fill) {
        g_mutex_lock(&t->region->lock);
        t->region->fill_by_move = !strcmp(t->o.fill, "move");
        g_mutex_unlock(&t->region->lock);
    }
    shadow_init(&t->shadow, memx_region_base(t->region),
                t->size / PAGE_BYTES);
}

/* Reserves what the servers have free. */
static void fill_servers(Test *t)
{
    MemxOptions o = MEMX_OPTIONS_INIT;
    uint64_t room = 0;
    MemxStats stats;

    memx_region_stats(t->region, &stats);
    for (unsigned i = 0; i < stats.n_servers; i++) {
        room += stats.servers[i].free_bytes + stats.servers[i].kept_bytes;
    }
    room -= MIN(room, STAGING_BYTES + MIB);
    o.size_bytes = MEMX_LOCAL_BYTES_MIN + room / PAGE_BYTES * PAGE_BYTES;
    o.local_bytes = MEMX_LOCAL_BYTES_MIN;
    o.chunk_bytes = 256 << 10;
    o.servers = pool_addresses(t->pool);
    o.vm_name = "filler";
    /* Refused when the local size has just been lowered: then it is full. */
    t->filler = memx_region_new_over(&o, pool_transport(t->pool), NULL);
}

static void stuck(Test *t, const char *why)
{
    MemxStats stats;

    memx_region_stats(t->region, &stats);
    for (unsigned i = 0; i < stats.n_servers; i++) {
        printf("# server %u: %s, %u in flight, free %" G_GUINT64_FORMAT
               " KiB\n", i, memx_server_health_name(stats.servers[i].health),
               stats.servers[i].queue_depth,
               stats.servers[i].free_bytes >> 10);
    }
    printf("# local %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " KiB, "
           "staged %" G_GUINT64_FORMAT ", waiting %" G_GUINT64_FORMAT "\n",
           stats.local_bytes >> 10, stats.local_limit_bytes >> 10,
           stats.staged_bytes >> 10, stats.faults_waiting);
    audit_print(t->region);
    fflush(stdout);
    g_error("%s", why);
}

static void await_servers(Test *t)
{
    int64_t deadline = g_get_monotonic_time() + STUCK_S * G_USEC_PER_SEC;
    MemxStats stats;
    bool up;

    do {
        if (g_get_monotonic_time() > deadline) {
            stuck(t, "a server does not come back");
        }
        g_usleep(1000);
        memx_region_stats(t->region, &stats);
        up = true;
        for (unsigned i = 0; i < stats.n_servers; i++) {
            up &= stats.servers[i].health == MEMX_SERVER_UP;
        }
    } while (!up);
}

static void deal(Test *t, Fault fault)
{
    unsigned n = t->o.servers, one = g_rand_int_range(t->rand, 0, n);
    bool all = g_rand_int_range(t->rand, 0, 3) == 0;

    t->dealt[fault]++;
    coverage_set_fault(fault);
    for (unsigned i = 0; i < n; i++) {
        if (all || i == one) {
            pool_fault_begin(t->pool, i, fault);
        }
    }
    if (fault == FAULT_FULL) {
        fill_servers(t);
    }
    g_usleep(g_rand_int_range(t->rand, 50000, 500000));
    for (unsigned i = 0; i < n; i++) {
        if (all || i == one) {
            pool_fault_end(t->pool, i, fault);
        }
    }
    g_clear_pointer(&t->filler, memx_region_free);
    await_servers(t);
    if (!workers_await_progress(t->workers, STUCK_S)) {
        stuck(t, "a thread does not get on");
    }
}

/* Each fault as often as every other, in any order. */
static void storm(Test *t)
{
    int64_t end = g_get_monotonic_time() + t->o.seconds * G_USEC_PER_SEC;
    Fault deck[N_FAULTS];

    while (g_get_monotonic_time() < end) {
        unsigned n = 0;

        for (Fault f = FAULT_NONE; f < N_FAULTS; f++) {
            if (pool_faults(t->pool) >> f & 1 &&
                (!t->o.calm || f == FAULT_NONE)) {
                unsigned at = g_rand_int_range(t->rand, 0, n + 1);

                deck[n++] = deck[at];
                deck[at] = f;
            }
        }
        for (unsigned i = 0; i < n && g_get_monotonic_time() < end; i++) {
            deal(t, deck[i]);
            deal(t, FAULT_NONE);
        }
    }
}

static void verify_all(Test *t)
{
    uint64_t n = t->shadow.n_pages, stride = n / 2 + 1;

    while (n % stride == 0 || !(stride & 1)) {
        stride++;
    }
    for (uint64_t i = 0; i < n; i++) {
        shadow_verify_page(&t->shadow, i * stride % n);
    }
    printf("# all %" G_GUINT64_FORMAT " pages hold what they must\n", n);
}

static void summary(Test *t)
{
    MemxStats s;

    memx_region_stats(t->region, &s);
    printf("# faults: %" G_GUINT64_FORMAT " first touch, %" G_GUINT64_FORMAT
           " remote, %" G_GUINT64_FORMAT " staged; starved %"
           G_GUINT64_FORMAT "; evicted %" G_GUINT64_FORMAT " (%"
           G_GUINT64_FORMAT " unchanged, %" G_GUINT64_FORMAT " zero, %"
           G_GUINT64_FORMAT " busy); p99 %" G_GUINT64_FORMAT " us\n",
           s.faults_first_touch, s.faults_remote, s.faults_staged, s.starved,
           s.evicted_pages, s.evicted_unchanged_pages, s.evicted_zero_pages,
           s.evict_busy_pages, s.fetch_p99_ns / 1000);
    printf("# dealt:");
    for (unsigned f = 0; f < N_FAULTS; f++) {
        printf(" %s %u", fault_names[f], t->dealt[f]);
    }
    printf("\n# events: lost %d, back %d, full %d, stalled %d, resumed %d\n",
           t->events[MEMX_EVENT_SERVER_LOST],
           t->events[MEMX_EVENT_SERVER_BACK], t->events[MEMX_EVENT_POOL_FULL],
           t->events[MEMX_EVENT_STALLED], t->events[MEMX_EVENT_RESUMED]);
}

int main(int argc, char **argv)
{
    Test t = { .o = parse(argc, argv) };
    uint64_t capacity;
    bool honest, books;
    Honesty *honesty;
    unsigned empty;

    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("# seed %d\n", t.o.seed);
    t.rand = g_rand_new_with_seed(t.o.seed);
    t.size = t.o.size_mib * MIB;
    t.local = t.o.local_mib * MIB;
    t.local_min = MAX(MEMX_LOCAL_BYTES_MIN, 16ull * t.o.chunk_kib << 10);
    /* Enough for the smallest local size, and a quarter of the rest. */
    capacity = (t.size - t.local_min + STAGING_BYTES + t.local_min / 4) /
               t.o.servers + MIB;
    t.pool = pool_new(!g_strcmp0(t.o.transport, "inproc"), t.o.servers,
                      capacity, t.o.seed);
    make_region(&t);
    honesty = honesty_start(t.region, t.local);
    t.workers = workers_start(&t.shadow, t.region, honesty, t.local_min,
                              t.size * 3 / 4, t.o.seed);
    storm(&t);
    coverage_set_fault(FAULT_NONE);
    workers_stop(t.workers);
    verify_all(&t);
    honest = honesty_stop(honesty);
    books = audit(t.region, t.pool);
    summary(&t);
    empty = coverage_print(pool_faults(t.pool),
                           keep_copies(t.o.keep) != MEMX_KEEP_COPIES_OFF);
    memx_region_free(t.region);
    pool_free(t.pool);
    shadow_destroy(&t.shadow);
    g_rand_free(t.rand);
    g_free(t.o.keep);
    g_free(t.o.fill);
    g_free(t.o.tracker);
    g_free(t.o.transport);
    printf("# coverage: %u cells are empty (!)%s\n", empty,
           t.o.require ? "" : ", for want of time");
    if (!honest || !books || (t.o.require && empty)) {
        printf("not ok 1 shadow\n1..1\n");
        return 1;
    }
    printf("ok 1 shadow\n1..1\n");
    return 0;
}
