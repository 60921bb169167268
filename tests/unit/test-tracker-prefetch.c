/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Trackers tell of prefetched pages whether they were touched.
 */
#include <string.h>
#include "region.h"
#include "tracker-fixture.h"

#define DEADLINE_US (200 * G_USEC_PER_SEC)
#define POLL_US 5000

static void read_pages(uint8_t *base, uint64_t from, uint64_t to)
{
    for (uint64_t page = from; page < to; page++) {
        (void)*(volatile uint8_t *)(base + page * PAGE_BYTES);
    }
}

/* What a reader left behind when it stopped is seen to be of no use, and what it
 * went on to read to be of use. */
static void test_region_prefetch(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    uint64_t n = 64 * MIB / PAGE_BYTES;
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 64 * MIB,
                                   16 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxStats stats = { 0 };

    if (r) {
        uint8_t *base = memx_region_base(r);

        for (uint64_t page = 0; page < n; page++) {
            pattern_write(base, page, 1);
        }
        /* Some may be evicted before it is known: again, elsewhere. */
        for (uint64_t at = 0; !stats.prefetch_untouched_pages ||
             stats.prefetch_untouched_pages == stats.prefetch_judged_pages;
             at = (at + 4096) % (n - 4096)) {
            uint64_t periods = stats.tracking.periods + 4;

            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            read_pages(base, at, at + 700);
            do {
                g_usleep(POLL_US);
                memx_region_stats(r, &stats);
                g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            } while (stats.tracking.periods < periods);
        }
        g_test_message("%" G_GUINT64_FORMAT " pages prefetched, %"
                       G_GUINT64_FORMAT " judged, %" G_GUINT64_FORMAT
                       " untouched", stats.prefetched_pages,
                       stats.prefetch_judged_pages,
                       stats.prefetch_untouched_pages);
        g_assert_cmpuint(stats.prefetch_judged_pages, <=,
                         stats.prefetched_pages);
    }
    memx_region_free(r);
    server_process_free(server);
}

/* As pages are evicted before a period ends, which takes an hour here. */
static void test_region_evicted(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 32 * MIB,
                                   16 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    uint64_t at = 0, n = 32 * MIB / PAGE_BYTES;
    MemxStats stats = { 0 };

    if (r) {
        uint8_t *base = memx_region_base(r);

        g_assert_true(memx_region_set_tracking(r, 3600000, 2, NULL));
        for (uint64_t page = 0; page < n; page++) {
            pattern_write(base, page, 1);
        }
        while (!stats.prefetch_untouched_pages ||
               stats.prefetch_untouched_pages ==
               stats.prefetch_judged_pages) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            read_pages(base, at, at + 700);
            memx_region_look(r); /* after one a touch tells */
            while (!memx_region_has_looked(r)) {
                g_assert_cmpint(g_get_monotonic_time(), <, deadline);
                g_usleep(POLL_US);
            }
            read_pages(base, at + 700, at + 800);
            at = (at + 2048) % (n - 4096);
            for (unsigned i = 0; i < 3000; i++) {
                uint64_t page = g_random_int_range(0, n);

                read_pages(base, page, page + 1);
            }
            memx_region_stats(r, &stats);
        }
        g_test_message("%" G_GUINT64_FORMAT " pages prefetched, %"
                       G_GUINT64_FORMAT " judged, %" G_GUINT64_FORMAT
                       " untouched", stats.prefetched_pages,
                       stats.prefetch_judged_pages,
                       stats.prefetch_untouched_pages);
        g_assert_cmpuint(stats.tracking.period_ms, ==, 3600000);
    }
    memx_region_free(r);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/tracker-prefetch/rwp",
                         GUINT_TO_POINTER(MEMX_TRACKER_RWP),
                         test_region_prefetch);
    g_test_add_data_func("/tracker-prefetch/idle",
                         GUINT_TO_POINTER(MEMX_TRACKER_IDLE),
                         test_region_prefetch);
    g_test_add_data_func("/tracker-prefetch/evicted/rwp",
                         GUINT_TO_POINTER(MEMX_TRACKER_RWP),
                         test_region_evicted);
    return g_test_run();
}
