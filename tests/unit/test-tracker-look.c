/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Looks of trackers out of turn, as a split asks for.
 */
#include <string.h>
#include <sys/mman.h>
#include "region.h"
#include "tracker-fixture.h"

#define DEADLINE_US (200 * G_USEC_PER_SEC)
#define POLL_US 5000

/* Nearly all of what is touched has been touched in the last period. */
static bool most_hot(const uint8_t *value, const Toucher *t)
{
    uint32_t hot = 0;

    for (uint32_t c = t->first; c < t->first + t->n; c++) {
        hot += value[c] >= MEMX_HISTORY_NEW;
    }
    return hot >= t->n / 10 * 9;
}

/* A look out of turn: the period alone would take an hour. */
static void test_region_look(gconstpointer kind)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *r = region_or_skip(GPOINTER_TO_UINT(kind), server, 32 * MIB,
                                   32 * MIB);
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    MemxStats stats;

    if (r) {
        Toucher t = { .base = memx_region_base(r), .first = 30, .n = 20 };
        bool done = false;

        for (uint64_t page = 0; page < 32 * MIB / PAGE_BYTES; page++) {
            pattern_write(t.base, page, 1);
        }
        g_assert_true(memx_region_set_tracking(r, 3600000, 2, NULL));
        toucher_start(&t);
        while (!done) {
            memx_region_look(r);
            while (!memx_region_has_looked(r)) {
                g_assert_cmpint(g_get_monotonic_time(), <, deadline);
                g_usleep(POLL_US);
            }
            g_mutex_lock(&r->lock);
            done = most_hot(r->history.value, &t);
            g_mutex_unlock(&r->lock);
        }
        toucher_stop(&t);
        memx_region_stats(r, &stats);
        g_assert_cmpuint(stats.tracking.period_ms, ==, 3600000);
        for (uint64_t page = 0; page < 32 * MIB / PAGE_BYTES; page++) {
            pattern_check(t.base, page, 1);
        }
    }
    memx_region_free(r);
    server_process_free(server);
}

static void test_object_look(gconstpointer kind)
{
    uint64_t bytes = 64 * MIB;
    uint8_t *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *base = map + (-(uintptr_t)map & (HUGE - 1));
    MemxRange range = { base, bytes };
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    Toucher t = { .base = base, .first = 64, .n = 64 };
    MemxTrackerOptions o = {
        .kind = GPOINTER_TO_UINT(kind), .period_ms = 3600000, .cpu_percent = 2,
    };
    g_autoptr(GError) error = NULL;
    MemxTracker *tracker;
    uint8_t value[256];
    unsigned others = 0;
    bool done = false;

    g_assert_true(map != MAP_FAILED);
    memset(base, 1, bytes);
    tracker = memx_tracker_new(&range, 1, CHUNK, &o, &error);
    if (!tracker) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
        munmap(map, bytes + HUGE);
        return;
    }
    toucher_start(&t);
    memx_tracker_look(tracker); /* the first one; a pause may cut it */
    while (!done) {
        memx_tracker_pause(tracker, true);
        memx_tracker_await_paused(tracker);
        while (!memx_tracker_has_looked(tracker)) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(POLL_US);
        }
        memx_tracker_pause(tracker, false);
        memx_tracker_look(tracker);
        while (!memx_tracker_has_looked(tracker)) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(POLL_US);
        }
        memx_tracker_history(tracker, 0, value, G_N_ELEMENTS(value));
        done = most_hot(value, &t);
        for (uint32_t c = 0; c < G_N_ELEMENTS(value); c++) {
            others += (c < t.first || c >= t.first + t.n) && value[c];
        }
        memx_tracker_look(tracker);
    }
    g_assert_cmpuint(others, ==, 0); /* what wasn't armed isn't hot */
    toucher_stop(&t);
    memx_tracker_free(tracker);
    munmap(map, bytes + HUGE);
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

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        add("look", kinds[i], test_region_look);
        add("object-look", kinds[i], test_object_look);
    }
    return g_test_run();
}
