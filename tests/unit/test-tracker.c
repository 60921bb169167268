/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Trackers: each kind on this kernel, or the reason why it can't be had; what
 * all have in common; the helper for page_idle.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "pagemap-abi.h"
#include "region-fixture.h"
#include "region.h"
#include "tracker-fixture.h"
#include "uffd.h"

#define DEADLINE_US (200 * G_USEC_PER_SEC)
#define POLL_US 5000

/* Exactly these chunks have been touched lately. */
static bool only_hot(const uint8_t *value, uint32_t n, const Toucher *t)
{
    for (uint32_t c = 0; c < n; c++) {
        bool hot = c >= t->first && c < t->first + t->n;

        if (hot ? value[c] < 0x40 : value[c] != 0) {
            return false;
        }
    }
    return true;
}

/* What is touched all the time has a high history, what isn't has none. */
static void test_region_history(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 32 * MIB,
                                   32 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    bool done = false;
    MemxStats stats;

    if (r) {
        Toucher t = { .base = memx_region_base(r), .first = 30, .n = 20 };

        for (uint64_t page = 0; page < 32 * MIB / PAGE_BYTES; page++) {
            pattern_write(t.base, page, 1);
        }
        toucher_start(&t);
        while (!done && g_get_monotonic_time() < deadline) {
            g_mutex_lock(&r->lock);
            done = only_hot(r->history.value, r->table.n_chunks, &t);
            g_mutex_unlock(&r->lock);
            g_usleep(POLL_US);
        }
        toucher_stop(&t);
        memx_region_stats(r, &stats);
        g_test_message("%s: %" G_GUINT64_FORMAT " periods, %"
                       G_GUINT64_FORMAT " extra faults, %" G_GUINT64_FORMAT
                       " us of a CPU", stats.tracker, stats.tracking.periods,
                       stats.tracking.extra_faults,
                       stats.tracking.cpu_ns / 1000);
        g_assert_true(done);
        g_assert_cmpstr(stats.tracker, ==,
                        memx_tracker_kind_name(GPOINTER_TO_UINT(kind)));
        for (uint64_t page = 0; page < 32 * MIB / PAGE_BYTES; page++) {
            pattern_check(t.base, page, 1);
        }
    }
    memx_region_free(r);
    server_process_free(server);
}

/* Memory four times its local size is written and read while it is tracked, a
 * part of it discarded: not a byte is lost, and the books are right. */
static void test_region_keeps_every_byte(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    uint64_t n = 64 * MIB / PAGE_BYTES;
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 64 * MIB,
                                   16 * MIB);
    g_autofree uint8_t *generation = g_malloc0(n);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxStats stats = { 0 };

    for (unsigned round = 1; r && g_get_monotonic_time() < deadline &&
         (round < 4 || stats.tracking.periods < 8); round++) {
        void *base = memx_region_base(r);

        for (uint64_t i = 0; i < n; i++) {
            uint64_t page = (i * 7919 + round) % n;

            pattern_check(base, page, generation[page]);
            if (page % 5 == round % 5) {
                generation[page] = (round - 1) % 250 + 1;
                pattern_write(base, page, generation[page]);
            } else if (page % 1000 == 999) {
                g_assert_cmpint(memx_region_discard(r, page * PAGE_BYTES,
                                                    PAGE_BYTES), ==, 0);
                generation[page] = 0;
            }
        }
        memx_region_stats(r, &stats);
        g_assert_cmpuint(stats.local_bytes, <=, 16 * MIB);
    }
    if (r) {
        g_assert_cmpuint(stats.tracking.periods, >=, 8);
        g_test_message("%" G_GUINT64_FORMAT " periods, %" G_GUINT64_FORMAT
                       " extra faults, %" G_GUINT64_FORMAT " prefetched "
                       "pages judged, %" G_GUINT64_FORMAT " untouched",
                       stats.tracking.periods, stats.tracking.extra_faults,
                       stats.prefetch_judged_pages,
                       stats.prefetch_untouched_pages);
    }
    memx_region_free(r);
    server_process_free(server);
}

/* All of the chunks have been touched in each of the last periods. */
static bool all_hot(MemxRegion *r, const Toucher *t)
{
    bool hot = true;

    g_mutex_lock(&r->lock);
    for (uint32_t c = t->first; c < t->first + t->n; c++) {
        hot &= r->history.value[c] >= 0xc0;
    }
    g_mutex_unlock(&r->lock);
    return hot;
}

/* Pages of the chunks that are here, or just being sampled. */
static unsigned pages_here(MemxRegion *r, const Toucher *t)
{
    unsigned pages = 0;

    g_mutex_lock(&r->lock);
    for (uint32_t c = t->first; c < t->first + t->n; c++) {
        MemxSlot *slot = memx_staging_find(&r->staging, c, true);

        pages += memx_mask_pages(r->table.present[c] |
                                 (slot ? slot->staged : 0));
    }
    g_mutex_unlock(&r->lock);
    return pages;
}

static void read_pages(uint8_t *base, uint64_t from, uint64_t to)
{
    for (uint64_t page = from; page < to; page++) {
        (void)*(volatile uint8_t *)(base + page * PAGE_BYTES);
    }
}

/*
 * A small set survives a scan over everything.  Of each of its chunks (a group
 * here) one page is in use, which would come back; that the others are still
 * there shows that the chunk was not evicted.
 */
static void test_region_scan(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    uint64_t n = 64 * MIB / PAGE_BYTES;
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 64 * MIB,
                                   16 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    unsigned kept = 0, all = 16 * MEMX_GROUP_PAGES;

    if (r) {
        Toucher t = { .base = memx_region_base(r), .first = 0, .n = 16 };

        for (uint64_t page = 0; page < n; page++) {
            pattern_write(t.base, page, 1);
        }
        toucher_start(&t);
        /* On a busy machine it may miss some periods: once more, then. */
        while (kept < all / 100 * 95) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            read_pages(t.base, 0, all);
            while (!all_hot(r, &t)) {
                g_assert_cmpint(g_get_monotonic_time(), <, deadline);
                g_usleep(POLL_US);
            }
            read_pages(t.base, 0, all);
            read_pages(t.base, n / 4, n);
            kept = pages_here(r, &t);
            g_test_message("%u of %u pages kept", kept, all);
        }
        toucher_stop(&t);
    }
    memx_region_free(r);
    server_process_free(server);
}

/* A region ends while a reader's prefetch is under way: what comes in then is
 * still told to its tracker. */
static void test_region_ends(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    uint64_t n = 32 * MIB / PAGE_BYTES;

    for (unsigned i = 0; i < 8; i++) {
        MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server,
                                       32 * MIB, 16 * MIB);
        uint8_t *base;

        if (!r) {
            break;
        }
        base = memx_region_base(r);
        for (uint64_t page = 0; page < n; page++) {
            pattern_write(base, page, 1);
        }
        read_pages(base, 0, 700 + 16 * i);
        memx_region_free(r);
    }
    server_process_free(server);
}

/* What is away as a sample is given back when it is to pause, and nothing is
 * taken while it does. */
static void test_region_pause(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_or_skip(MEMX_TRACKER_SAMPLE, server, 32 * MIB,
                                   32 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    if (r) {
        uint8_t *base = memx_region_base(r);

        for (uint64_t page = 0; page < 32 * MIB / PAGE_BYTES; page++) {
            pattern_write(base, page, 1);
        }
        for (unsigned i = 0; i < 10; i++) {
            bool away = false;

            while (!away) {
                g_assert_cmpint(g_get_monotonic_time(), <, deadline);
                g_mutex_lock(&r->lock);
                away = r->staging.n_sampled;
                g_mutex_unlock(&r->lock);
            }
            memx_region_pause_tracking(r, true);
            memx_region_await_paused(r);
            g_mutex_lock(&r->lock);
            g_assert_cmpuint(r->staging.n_sampled, ==, 0);
            g_mutex_unlock(&r->lock);
            memx_region_pause_tracking(r, false);
        }
    }
    memx_region_free(r);
    server_process_free(server);
}

/* Pins a page for DMA until the descriptor is closed; or -1. */
static int pin(void *page)
{
    struct io_uring_params params = { 0 };
    struct iovec iov = { page, PAGE_BYTES };
    int ring = syscall(SYS_io_uring_setup, 1, &params);

    if (ring >= 0 && syscall(SYS_io_uring_register, ring,
                             IORING_REGISTER_BUFFERS, &iov, 1)) {
        close(ring);
        ring = -1;
    }
    return ring;
}

/* A page that is away as a sample, and that nobody is just giving back. */
static MemxSlot *away_locked(MemxRegion *r)
{
    MemxStaging *st = &r->staging;

    for (unsigned i = st->n_slots; i < st->n_slots + st->n_samples; i++) {
        MemxSlot *slot = &st->slot[i];

        if (slot->state == MEMX_SLOT_SAMPLED && slot->staged &&
            !memx_chunk_exclusive(&r->table.chunk[
                memx_chunk_of_group(&r->table, slot->group)])) {
            return slot;
        }
    }
    return NULL;
}

/* What the kernel doesn't move back, since it was pinned meanwhile, comes back
 * all the same. */
static void test_region_refused(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_or_skip(MEMX_TRACKER_SAMPLE, server, 32 * MIB,
                                   32 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    uint64_t group = 0, bit = 0;
    int ring = -1;

    for (uint64_t page = 0; r && page < 32 * MIB / PAGE_BYTES; page++) {
        pattern_write(memx_region_base(r), page, 1);
    }
    while (r && !bit) {
        MemxSlot *slot;

        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_mutex_lock(&r->lock);
        slot = away_locked(r);
        if (slot) {
            bit = slot->staged & -slot->staged;
            group = slot->group;
            ring = pin(slot->base + __builtin_ctzll(bit) * PAGE_BYTES);
        }
        g_mutex_unlock(&r->lock);
    }
    if (r && ring < 0) {
        g_test_skip("no io_uring, or nothing may be pinned");
    }
    while (ring >= 0) {
        bool here;

        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_mutex_lock(&r->lock);
        here = r->table.present[group] & bit;
        g_mutex_unlock(&r->lock);
        if (here) {
            pattern_check(memx_region_base(r), group * MEMX_GROUP_PAGES +
                          __builtin_ctzll(bit), 1);
            close(ring);
            ring = -1;
        }
    }
    memx_region_free(r);
    server_process_free(server);
}

/* With `auto` there is always one, and it says why it is that.  Where somebody
 * knows which it must be (tests/lab), it is that. */
static void test_region_auto(void)
{
    const char *expected = g_getenv("MEMX_TRACKER_AUTO");
    ServerProcess *server = server_process_new("40M");
    MemxRegion *r = region_fixture_new(&(RegionFixture) {
        .size = 16 * MIB, .local = 8 * MIB, .servers = &server,
        .n_servers = 1,
    });
    g_autoptr(GError) error = NULL;
    MemxStats stats;

    memx_region_stats(r, &stats);
    g_test_message("%s: %s", stats.tracker, stats.tracking.why);
    g_assert_cmpstr(stats.tracker, !=, "off");
    g_assert_cmpstr(stats.tracker, !=, "damon");
    if (expected) {
        g_assert_cmpstr(stats.tracker, ==, expected);
    }
    g_assert_cmpstr(stats.tracking.why, !=, "");
    g_assert_true(stats.tracking.adapts);
    g_assert_cmpuint(stats.tracking.cpu_percent, ==, 2);
    g_assert_true(memx_region_set_tracking(r, 500, 7, &error));
    memx_region_stats(r, &stats);
    g_assert_false(stats.tracking.adapts);
    g_assert_cmpuint(stats.tracking.period_ms, ==, 500);
    g_assert_cmpuint(stats.tracking.cpu_percent, ==, 7);
    g_assert_false(memx_region_set_tracking(r, 99, 7, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_false(memx_region_set_tracking(r, 0, 0, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    memx_region_free(r);
    server_process_free(server);
}

/* Ordinary memory, with huge pages or without. */
static void object_history(MemxTrackerKind kind, const MemxIdleFiles *files,
                           bool huge)
{
    uint64_t bytes = 64 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = (uint8_t *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1));
    MemxRange range[2] = { { base, 16 * MIB }, { base + 16 * MIB,
                                                 48 * MIB } };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    Toucher t = { .base = range[1].base, .first = 40, .n = 24,
                  .count = true };
    uint8_t value[2][192];
    MemxTrackerOptions o = fast(kind, files);
    g_autoptr(GError) error = NULL;
    MemxTracker *tracker;
    MemxTrackerStats stats;
    bool done = false;

    g_assert_true(map != MAP_FAILED);
    madvise(base, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(base, 1, bytes);
    tracker = memx_tracker_new(range, 2, CHUNK, &o, &error);
    if (!tracker) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
        munmap(map, bytes + HUGE);
        return;
    }
    toucher_start(&t);
    while (!done && g_get_monotonic_time() < deadline) {
        static const Toucher nothing;

        g_usleep(POLL_US);
        g_assert_cmpuint(memx_tracker_history(tracker, 0, value[0], 192), ==,
                         64);
        g_assert_cmpuint(memx_tracker_history(tracker, 1, value[1], 192), ==,
                         192);
        g_assert_cmpuint(memx_tracker_history(tracker, 2, value[1], 192), ==,
                         0);
        memx_tracker_stats(tracker, &stats);
        done = stats.periods >= 9 && only_hot(value[0], 64, &nothing) &&
               only_hot(value[1], 192, &t);
    }
    toucher_stop(&t);
    g_test_message("%s: %" G_GUINT64_FORMAT " periods, %" G_GUINT64_FORMAT
                   " pages touched in the last one", stats.name,
                   stats.periods, stats.touched_pages);
    memx_tracker_free(tracker);
    g_assert_true(done);
    for (uint64_t i = 0; i < t.n; i++) { /* no write was lost */
        uint64_t *word = (uint64_t *)(t.base + (t.first + i) * CHUNK);

        g_assert_cmpuint(*word, ==, 0x0101010101010101 + t.rounds);
        memset(word, 1, sizeof(*word));
    }
    for (uint64_t i = 0; i < bytes; i++) {
        g_assert_cmpuint(base[i], ==, 1);
    }
    munmap(map, bytes + HUGE);
}

/*
 * Much is in use, and little may be spent: the guest is disturbed for some pages
 * of each group only, and the history is right all the same.  A huge page isn't
 * split for that.
 */
static void test_object_bounded(gconstpointer huge)
{
    uint64_t bytes = 64 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = (uint8_t *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1));
    MemxRange range = { base, bytes };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    Toucher t = { .base = base, .first = 64, .n = 128, .all = true };
    uint64_t most = huge ? t.n * CHUNK / HUGE + 1
                    : t.n * MEMX_GROUP_PAGES / 4;
    MemxTrackerOptions o = fast(MEMX_TRACKER_RWP, NULL);
    g_autoptr(GError) error = NULL;
    MemxTrackerStats stats;
    MemxTracker *tracker;
    uint8_t value[256];
    bool done = false;

    g_assert_true(map != MAP_FAILED);
    madvise(base, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(base, 1, bytes);
    o.cpu_percent = 1;
    tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
    if (!tracker) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
        munmap(map, bytes + HUGE);
        return;
    }
    toucher_start(&t);
    while (!done && g_get_monotonic_time() < deadline) {
        g_usleep(POLL_US);
        memx_tracker_history(tracker, 0, value, G_N_ELEMENTS(value));
        memx_tracker_stats(tracker, &stats);
        done = stats.periods >= 9 && only_hot(value, 256, &t) &&
               stats.extra_faults_period <= most;
    }
    toucher_stop(&t);
    g_test_message("%" G_GUINT64_FORMAT " periods, %" G_GUINT64_FORMAT
                   " extra faults in the last one", stats.periods,
                   stats.extra_faults_period);
    memx_tracker_free(tracker);
    g_assert_true(done);
    munmap(map, bytes + HUGE);
}

static void test_object_small_pages(gconstpointer kind)
{
    object_history(GPOINTER_TO_UINT(kind), NULL, false);
}

static void test_object_huge_pages(gconstpointer kind)
{
    object_history(GPOINTER_TO_UINT(kind), NULL, true);
}

static bool is_huge(void *page)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    struct page_region region;
    struct pm_scan_arg arg = {
        .size = sizeof(arg), .start = (uintptr_t)page,
        .end = (uintptr_t)page + PAGE_BYTES, .vec = (uintptr_t)&region,
        .vec_len = 1, .category_mask = PAGE_IS_HUGE,
        .return_mask = PAGE_IS_HUGE,
    };
    int got = ioctl(fd, PAGEMAP_SCAN, &arg);

    close(fd);
    return got == 1;
}

/* Huge pages that are pinned are not tried in parts: they stay huge, and on
 * kernels that would try for as long as it takes nobody has to wait. */
static void test_object_pinned(void)
{
    uint64_t bytes = 16 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = (uint8_t *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1));
    MemxRange range = { base, bytes };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxTrackerOptions o = fast(MEMX_TRACKER_SAMPLE, NULL);
    g_autoptr(GError) error = NULL;
    MemxTrackerStats stats;
    MemxTracker *tracker;
    int first, third;

    g_assert_true(map != MAP_FAILED);
    madvise(base, bytes, MADV_HUGEPAGE);
    memset(base, 1, bytes);
    first = pin(base + 5 * PAGE_BYTES);
    third = pin(base + 2 * HUGE);
    if (first < 0 || third < 0 || !is_huge(base) || !is_huge(base + 2 * HUGE)) {
        g_test_skip("no huge pages here, or nothing may be pinned");
    } else {
        tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
        g_assert_no_error(error);
        do {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(POLL_US);
            memx_tracker_stats(tracker, &stats);
        } while (stats.periods < 5);
        memx_tracker_free(tracker);
        g_assert_true(is_huge(base));
        g_assert_true(is_huge(base + 2 * HUGE));
        for (uint64_t i = 0; i < bytes; i++) {
            g_assert_cmpuint(base[i], ==, 1);
        }
    }
    close(first);
    close(third);
    munmap(map, bytes + HUGE);
}

/* Of 256 MiB an eighth in one piece is in use: most of it is hot, and most of
 * the rest is cold. */
static void test_object_hot(gconstpointer kind)
{
    uint64_t bytes = 256 * MIB;
    uint8_t *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MemxRange range = { base, bytes };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    Toucher t = { .base = base, .first = 256, .n = 128, .all = true };
    MemxTrackerOptions o = fast(GPOINTER_TO_UINT(kind), NULL);
    g_autoptr(GError) error = NULL;
    unsigned hot = 0, other = 1024;
    MemxTracker *tracker;
    uint8_t value[1024];

    g_assert_true(base != MAP_FAILED);
    madvise(base, bytes, MADV_NOHUGEPAGE);
    memset(base, 1, bytes);
    o.period_ms = 500;
    tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
    if (!tracker) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
        munmap(base, bytes);
        return;
    }
    toucher_start(&t);
    while (hot < t.n / 10 * 9 || other > 1024 / 10) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
        memx_tracker_history(tracker, 0, value, 1024);
        hot = other = 0;
        for (unsigned c = 0; c < 1024; c++) {
            bool in = c >= t.first && c < t.first + t.n;

            *(in ? &hot : &other) += value[c] >= MEMX_HISTORY_NEW;
        }
    }
    g_test_message("%u of %u hot chunks, and %u others", hot, t.n, other);
    toucher_stop(&t);
    memx_tracker_free(tracker);
    munmap(base, bytes);
}

/* Memory that is written for the first time between two looks was touched;
 * what was there before the first look, or never, wasn't. */
static void test_object_first_writes(gconstpointer kind)
{
    uint64_t bytes = 16 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = (uint8_t *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1));
    MemxRange range = { base, bytes };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxTrackerOptions o = fast(GPOINTER_TO_UINT(kind), NULL);
    Toucher t = { .first = 32, .n = 8 }; /* the fifth window */
    g_autoptr(GError) error = NULL;
    MemxTrackerStats stats = { 0 };
    MemxTracker *tracker;
    uint8_t value[64];

    g_assert_true(map != MAP_FAILED);
    madvise(base, bytes, MADV_NOHUGEPAGE);
    memset(base, 1, bytes / 4);
    o.period_ms = 500; /* a history lasts for eight of them */
    tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
    g_assert_no_error(error);
    while (stats.periods < 2) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
        memx_tracker_stats(tracker, &stats);
    }
    memx_tracker_history(tracker, 0, value, 64);
    for (unsigned c = 0; c < 64; c++) {
        g_assert_cmpuint(value[c], ==, 0);
    }
    memx_tracker_pause(tracker, true);
    memx_tracker_await_paused(tracker);
    memset(base + t.first * CHUNK, 2, t.n * CHUNK);
    memx_tracker_pause(tracker, false);
    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
        memx_tracker_history(tracker, 0, value, 64);
    } while (!value[t.first]);
    for (unsigned c = 0; c < 64; c++) {
        g_assert_cmpuint(value[c] != 0, ==,
                         c >= t.first && c < t.first + t.n);
    }
    memx_tracker_free(tracker);
    for (uint64_t i = 0; i < bytes; i++) {
        g_assert_cmpuint(base[i], ==, i < bytes / 4 ? 1 :
                         i / CHUNK >= t.first && i / CHUNK < t.first + t.n
                         ? 2 : 0);
    }
    munmap(map, bytes + HUGE);
}

/* Of @n pages at @hva. */
static bool is_away(int pagemap, const uint8_t *hva, unsigned n)
{
    return memx_pages_mapped(pagemap, hva, n) == 0;
}

/* What is given back while a sample of it is away doesn't come back. */
static void test_object_discard(void)
{
    uint64_t bytes = 16 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = (uint8_t *)(((uintptr_t)map + HUGE - 1) & ~(HUGE - 1));
    uint8_t *window = base + 2 * HUGE;
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    MemxTrackerOptions o = fast(MEMX_TRACKER_SAMPLE, NULL);
    MemxRange range = { base, bytes };
    g_autoptr(GError) error = NULL;
    MemxTracker *tracker;

    g_assert_true(map != MAP_FAILED);
    madvise(base, bytes, MADV_NOHUGEPAGE);
    memset(base, 1, bytes);
    o.period_ms = 1000; /* most of it with the sample away */
    tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
    g_assert_no_error(error);
    while (!is_away(pagemap, window, HUGE / PAGE_BYTES)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
    }
    /* Of this window all but the first and the last page; of the next one,
     * which is away as well, the first page. */
    memx_tracker_discard(tracker, 0, window - base + PAGE_BYTES,
                         HUGE - 2 * PAGE_BYTES);
    memx_tracker_discard(tracker, 0, window - base + HUGE, PAGE_BYTES);
    memx_tracker_pause(tracker, true);
    memx_tracker_await_paused(tracker);
    for (uint64_t page = 0; page < bytes / PAGE_BYTES; page++) {
        uint64_t at = base + page * PAGE_BYTES - window;
        bool gone = (at >= PAGE_BYTES && at < HUGE - PAGE_BYTES) || at == HUGE;

        g_assert_cmpuint(is_away(pagemap, base + page * PAGE_BYTES, 1), ==,
                         gone);
        g_assert_cmpuint(base[page * PAGE_BYTES], ==, !gone);
    }
    memx_tracker_free(tracker);
    close(pagemap);
    munmap(map, bytes + HUGE);
}

static void test_object_refuses(void)
{
    MemxTrackerOptions o = MEMX_TRACKER_OPTIONS_INIT;
    static uint8_t page[2 * PAGE_BYTES] __attribute__((aligned(4096)));
    MemxRange good = { page, sizeof(page) }, bad = { page + 1, PAGE_BYTES };
    g_autoptr(GError) error = NULL;

    g_assert_null(memx_tracker_new(&good, 0, CHUNK, &o, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_null(memx_tracker_new(&bad, 1, CHUNK, &o, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    g_assert_null(memx_tracker_new(&good, 1, CHUNK + 1, &o, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    o.kind = MEMX_TRACKER_OFF;
    g_assert_null(memx_tracker_new(&good, 1, CHUNK, &o, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    memx_tracker_free(NULL);
}

static void test_working_set(void)
{
    MemxTrackerStats s = { .chunk_bytes = MIB };

    g_assert_cmpuint(memx_tracker_working_set(&s, 900), ==, 0);
    s.chunks[0] = 1000;
    s.chunks[0xff] = 10;    /* 80 of 120 touches */
    s.chunks[0x01] = 40;
    g_assert_cmpuint(memx_tracker_working_set(&s, 0), ==, 0);
    g_assert_cmpuint(memx_tracker_working_set(&s, 333), ==, 5 * MIB);
    g_assert_cmpuint(memx_tracker_working_set(&s, 666), ==, 10 * MIB);
    g_assert_cmpuint(memx_tracker_working_set(&s, 750), ==, 20 * MIB);
    g_assert_cmpuint(memx_tracker_working_set(&s, 1000), ==, 50 * MIB);
}

/* Where all chunks are touched equally often, what is touched grows fastest with
 * the period: it is found soon, from either side. */
static void test_period_is_found(void)
{
    for (double often = 0.1; often < 4; often *= 1.1) { /* in a second */
        uint64_t ns = MEMX_PERIOD_DEFAULT_NS;
        double touched = 0;

        for (unsigned i = 0; i < 6; i++) {
            MemxFound found = { .looked_chunks = 1000 };

            touched = 1 - exp(-often * ns / 1e9);
            found.touched_chunks = touched * 1000;
            ns = memx_ager_adapt(ns, &found, true);
            g_assert_cmpfloat(touched, <, often > 1 ? 1 : 0.8);
        }
        g_assert_cmpfloat(touched, >=, 0.5);
        g_assert_cmpfloat(touched, <=, 0.71);
    }
}

/* The period moves to where some, but not all, is touched in it. */
static void test_period_adapts(void)
{
    uint64_t start = MEMX_PERIOD_DEFAULT_NS;
    MemxFound all = { .looked_chunks = 100, .touched_chunks = 100 };
    MemxFound few = { .looked_chunks = 100, .touched_chunks = 2 };
    MemxFound half = { .looked_chunks = 100, .touched_chunks = 50 };
    MemxFound less = { .looked_chunks = 100, .touched_chunks = 40 };
    MemxFound none = { .looked_chunks = 3, .touched_chunks = 3 };
    uint64_t ns = start;

    g_assert_cmpuint(memx_ager_adapt(start, &all, false), <, start);
    g_assert_cmpuint(memx_ager_adapt(start, &all, true), <, start);
    g_assert_cmpuint(memx_ager_adapt(start, &few, false), >, start);
    g_assert_cmpuint(memx_ager_adapt(start, &few, true), >, start);
    g_assert_cmpuint(memx_ager_adapt(start, &half, false), ==, start);
    g_assert_cmpuint(memx_ager_adapt(start, &less, true), >, start);
    g_assert_cmpuint(memx_ager_adapt(start, &less, false), ==, start);
    g_assert_cmpuint(memx_ager_adapt(start, &none, true), ==, start);
    for (unsigned i = 0; i < 100; i++) {
        ns = memx_ager_adapt(ns, &all, true);
    }
    g_assert_cmpuint(ns, >=, 100000000);
    for (unsigned i = 0; i < 100; i++) {
        ns = memx_ager_adapt(ns, &few, true);
    }
    g_assert_cmpuint(ns, <=, 60000000000);
}

/* The helper, and what it gives: enough for a process, here this one. */
/* It may open what it is for, and nothing else, from then on. */
static void check_privileges(GPid pid)
{
    uint64_t keep = 1ull << CAP_SYS_ADMIN | 1ull << CAP_SYS_PTRACE |
                    1ull << CAP_DAC_READ_SEARCH;
    g_autofree char *path = g_strdup_printf("/proc/%d/status", (int)pid);
    g_autofree char *effective =
        g_strdup_printf("CapEff:\t%016" G_GINT64_MODIFIER "x\n", keep);
    g_autofree char *permitted =
        g_strdup_printf("CapPrm:\t%016" G_GINT64_MODIFIER "x\n", keep);
    g_autofree char *status = NULL;

    g_assert_true(g_file_get_contents(path, &status, NULL, NULL));
    g_assert_nonnull(strstr(status, effective));
    g_assert_nonnull(strstr(status, permitted));
    g_assert_nonnull(strstr(status, "NoNewPrivs:\t1\n"));
}

static void test_idle_helper(void)
{
    g_autofree char *directory = g_dir_make_tmp("memx-idle-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "socket", NULL);
    const char *program = g_getenv("MEMX_IDLE_HELPER");
    char *argv[] = { (char *)program, (char *)"--listen", path, NULL };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    g_autoptr(GError) error = NULL;
    MemxIdleFiles files;
    bool ok = false;
    GPid pid;

    if (geteuid() || !program) {
        g_test_skip(program ? "needs root" : "MEMX_IDLE_HELPER is not set");
        g_rmdir(directory);
        return;
    }
    g_assert_false(memx_idle_files_receive(path, &files, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
    g_clear_error(&error);
    g_assert_true(g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                                NULL, NULL, &pid, &error));
    while (access(path, F_OK)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(POLL_US);
    }
    /* It is there before it listens. */
    while (!(ok = memx_idle_files_receive(path, &files, &error)) &&
           strstr(error->message, "cannot connect")) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_clear_error(&error);
        g_usleep(POLL_US);
    }
    check_privileges(pid);
    if (ok) {
        object_history(MEMX_TRACKER_IDLE, &files, false);
        memx_idle_files_close(&files);
        memx_idle_files_close(&files);
    } else {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
    }
    kill(pid, SIGTERM);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    g_unlink(path);
    g_rmdir(directory);
}

static void add(const char *test, MemxTrackerKind kind, GTestDataFunc func)
{
    g_autofree char *path = g_strdup_printf("/tracker/%s/%s", test,
                                            memx_tracker_kind_name(kind));

    g_test_add_data_func(path, GUINT_TO_POINTER(kind), func);
}

int main(int argc, char **argv)
{
    static const MemxTrackerKind kinds[] = {
        MEMX_TRACKER_RWP, MEMX_TRACKER_IDLE, MEMX_TRACKER_SAMPLE,
    };
    static const MemxTrackerKind damon = MEMX_TRACKER_DAMON;

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tracker/working-set", test_working_set);
    g_test_add_func("/tracker/period-adapts", test_period_adapts);
    g_test_add_func("/tracker/period-is-found", test_period_is_found);
    g_test_add_func("/tracker/auto", test_region_auto);
    g_test_add_func("/tracker/pause", test_region_pause);
    g_test_add_func("/tracker/refused", test_region_refused);
    g_test_add_func("/tracker/object-discard", test_object_discard);
    g_test_add_func("/tracker/object-refuses", test_object_refuses);
    g_test_add_func("/tracker/object-pinned", test_object_pinned);
    g_test_add_func("/tracker/idle-helper", test_idle_helper);
    g_test_add_data_func("/tracker/object-bounded/small-pages", NULL,
                         test_object_bounded);
    g_test_add_data_func("/tracker/object-bounded/huge-pages", "huge",
                         test_object_bounded);
    /* It is blurred: what is hot is, but so may be what isn't. */
    add("keeps-every-byte", damon, test_region_keeps_every_byte);
    add("object-hot", damon, test_object_hot);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        add("history", kinds[i], test_region_history);
        add("keeps-every-byte", kinds[i], test_region_keeps_every_byte);
        add("scan", kinds[i], test_region_scan);
        add("ends", kinds[i], test_region_ends);
        add("object-small-pages", kinds[i], test_object_small_pages);
        add("object-huge-pages", kinds[i], test_object_huge_pages);
    }
    add("object-first-writes", MEMX_TRACKER_SAMPLE, test_object_first_writes);
    return g_test_run();
}
