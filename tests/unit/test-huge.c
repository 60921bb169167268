/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Huge pages of local memory: they come to be, the sampler leaves them whole,
 * they are split when a part of them goes, and every byte stays what it was.
 * The kernel is asked how many there are.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "region.h"
#include "tracker-fixture.h"

#define SIZE (128 * MIB)
#define LOCAL (64 * MIB)
#define WAIT_US (60 * G_USEC_PER_SEC)

typedef struct Test {
    ServerProcess *server;
    uint8_t *map, *base;
    MemxRegion *region;
} Test;

/* Or the test is skipped with the reason. */
static Test *test_new(MemxHugePages huge_pages, MemxTrackerOptions tracker,
                      uint64_t chunk)
{
    g_autoptr(GError) error = NULL;
    Test *t = g_new0(Test, 1);

    t->server = server_process_new("160M");
    t->map = mmap(NULL, SIZE + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
                  MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert_true(t->map != MAP_FAILED);
    t->base = t->map + (-(uintptr_t)t->map & (HUGE - 1));
    t->region = region_fixture_try(&(RegionFixture) {
        .base = t->base, .size = SIZE, .local = LOCAL, .chunk = chunk,
        .servers = &t->server, .n_servers = 1, .tracker = tracker,
        .huge_pages = huge_pages,
    }, &error);
    if (!t->region) {
        g_assert_true(strstr(error->message, "huge pages") ||
                      strstr(error->message, "page_idle"));
        g_test_skip(error->message);
        munmap(t->map, SIZE + HUGE);
        server_process_free(t->server);
        g_free(t);
        return NULL;
    }
    return t;
}

static void test_free(Test *t)
{
    memx_region_free(t->region);
    munmap(t->map, SIZE + HUGE);
    server_process_free(t->server);
    g_free(t);
}

static MemxTrackerOptions no_tracker(void)
{
    return fast(MEMX_TRACKER_OFF, NULL);
}

static uint64_t huge_bytes(void)
{
    g_autofree char *text = NULL;
    const char *at;

    g_assert_true(g_file_get_contents("/proc/self/smaps_rollup", &text, NULL,
                                      NULL));
    at = strstr(text, "AnonHugePages:");
    return at ? strtoull(at + strlen("AnonHugePages:"), NULL, 10) * 1024 : 0;
}

/* What was there before a test isn't ours. */
static void await_huge(uint64_t at_least)
{
    int64_t end = g_get_monotonic_time() + WAIT_US;

    while (huge_bytes() < at_least) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(10000);
    }
}

static void write_pages(Test *t, uint64_t from, uint64_t to,
                        unsigned generation)
{
    for (uint64_t page = from / PAGE_BYTES; page < to / PAGE_BYTES; page++) {
        pattern_write(t->base, page, generation);
    }
}

static void check_pages(Test *t, uint64_t from, uint64_t to,
                        unsigned generation)
{
    for (uint64_t page = from / PAGE_BYTES; page < to / PAGE_BYTES; page++) {
        pattern_check(t->base, page, generation);
    }
}

static bool huge_told(const MemxStats *stats, uint64_t at_least)
{
    return stats->huge_bytes >= at_least;
}

static void lower(Test *t, uint64_t local)
{
    g_autoptr(GError) error = NULL;

    memx_region_set_local_bytes(t->region, local, &error);
    g_assert_no_error(error);
}

/* In use and all there: huge.  Evicted, page by page: every byte is right. */
static void test_come_and_go(const void *chunk)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, no_tracker(),
                       GPOINTER_TO_SIZE(chunk));
    MemxStats stats;

    if (!t) {
        return;
    }
    write_pages(t, 0, 48 * MIB, 1);
    await_huge(40 * MIB);
    await_stats(t->region, &stats, huge_told, 40 * MIB);
    check_pages(t, 0, 48 * MIB, 1);
    write_pages(t, 0, 48 * MIB, 2);
    lower(t, 32 * MIB);
    await_stats(t->region, &stats, stats_local_at_most, 32 * MIB);
    g_assert_cmpuint(huge_bytes(), <=, 32 * MIB);
    check_pages(t, 0, 48 * MIB, 2);
    write_pages(t, 48 * MIB, SIZE, 3); /* comes and goes as small pages */
    check_pages(t, 0, 48 * MIB, 2);
    check_pages(t, 48 * MIB, SIZE, 3);
    test_free(t);
}

#define HOLES 64                /* pages that are filled in: at most */

/* All of a range but @n pages at the end of each window. */
static void write_windows(Test *t, uint64_t from, uint64_t to, unsigned n)
{
    for (uint64_t at = from; at < to; at += HUGE) {
        write_pages(t, at, at + HUGE - n * PAGE_BYTES, 1);
    }
}

/* A few pages of a window that never were are filled in, with zeros; of more
 * none comes to be. */
static void test_holes(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, no_tracker(), 0);
    MemxStats stats;

    if (!t) {
        return;
    }
    write_windows(t, 0, 16 * MIB, HOLES);
    write_windows(t, 16 * MIB, 32 * MIB, 2 * HOLES);
    await_huge(16 * MIB);
    g_usleep(3 * G_USEC_PER_SEC); /* more than two passes */
    g_assert_cmpuint(huge_bytes(), ==, 16 * MIB);
    memx_region_stats(t->region, &stats);
    g_assert_cmpuint(stats.never_written_bytes, ==,
                     SIZE - 32 * MIB + 8 * 2 * HOLES * PAGE_BYTES);
    for (uint64_t at = 0; at < 16 * MIB; at += HUGE) {
        check_pages(t, at, at + HUGE - HOLES * PAGE_BYTES, 1);
        check_pages(t, at + HUGE - HOLES * PAGE_BYTES, at + HUGE, 0);
    }
    test_free(t);
}

/* Pages that are elsewhere stay there. */
static void test_remote_holes(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, no_tracker(), 0);
    MemxStats stats;
    uint64_t remote;

    if (!t) {
        return;
    }
    write_pages(t, 0, SIZE, 1);
    g_usleep(2 * G_USEC_PER_SEC);
    memx_region_stats(t->region, &stats);
    remote = stats.remote_bytes;
    g_assert_cmpuint(remote, >=, SIZE - LOCAL);
    g_usleep(2 * G_USEC_PER_SEC);
    memx_region_stats(t->region, &stats);
    g_assert_cmpuint(stats.remote_bytes, >=, remote);
    check_pages(t, 0, SIZE, 1);
    test_free(t);
}

/* Somebody holds a page of one: that stays, whole, and all else goes. */
static void test_held(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, no_tracker(), 0);
    MemxStats stats;
    struct iovec iov;
    int held[2];

    if (!t) {
        return;
    }
    write_pages(t, 0, 48 * MIB, 1);
    await_huge(48 * MIB);
    iov = (struct iovec) { t->base + 7 * HUGE + 100 * PAGE_BYTES,
                           PAGE_BYTES };
    g_assert_cmpint(pipe2(held, O_CLOEXEC), ==, 0);
    g_assert_cmpint(vmsplice(held[1], &iov, 1, 0), ==, PAGE_BYTES);
    lower(t, 8 * MIB);
    await_stats(t->region, &stats, stats_local_at_most, 8 * MIB);
    check_pages(t, 0, 48 * MIB, 1);
    close(held[0]);
    close(held[1]);
    check_pages(t, 0, 48 * MIB, 1);
    test_free(t);
}

/* Given back in part: zeros there, and nowhere else; and it stays given back
 * until it is used again. */
static void test_discard(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, no_tracker(), 0);

    if (!t) {
        return;
    }
    write_pages(t, 0, 32 * MIB, 1);
    await_huge(32 * MIB);
    for (uint64_t at = 0; at < 32 * MIB; at += HUGE) {
        g_assert_cmpint(memx_region_discard(t->region, at + MIB,
                                            3 * PAGE_BYTES), ==, 0);
    }
    g_usleep(3 * G_USEC_PER_SEC); /* more than two passes */
    g_assert_cmpuint(huge_bytes(), ==, 0);
    for (uint64_t at = 0; at < 32 * MIB; at += HUGE) {
        check_pages(t, at, at + MIB, 1);
        check_pages(t, at + MIB, at + MIB + 3 * PAGE_BYTES, 0);
        check_pages(t, at + MIB + 3 * PAGE_BYTES, at + HUGE, 1);
    }
    await_huge(32 * MIB);
    test_free(t);
}

static bool sampled(const MemxStats *stats, uint64_t periods)
{
    return stats->tracking.periods >= periods;
}

/* A huge page that is held stays whole under the sampler. */
static void test_sample_held(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, fast(MEMX_TRACKER_SAMPLE, NULL), 0);
    uint64_t huge;
    MemxStats stats;
    struct iovec iov;
    int held[2];

    if (!t) {
        return;
    }
    write_pages(t, 0, 32 * MIB, 1);
    await_huge(32 * MIB);
    memx_region_pause_tracking(t->region, true);
    memx_region_await_paused(t->region);
    g_assert_cmpint(pipe2(held, O_CLOEXEC), ==, 0);
    for (unsigned i = 0; i < 16; i++) { /* as many as a pipe has room for */
        iov = (struct iovec) { t->base + i * HUGE + 100 * PAGE_BYTES,
                               PAGE_BYTES };
        g_assert_cmpint(vmsplice(held[1], &iov, 1, 0), ==, PAGE_BYTES);
    }
    huge = huge_bytes();
    memx_region_pause_tracking(t->region, false);
    memx_region_stats(t->region, &stats);
    await_stats(t->region, &stats, sampled, stats.tracking.periods + 4);
    g_assert_cmpuint(huge_bytes(), ==, huge);
    close(held[0]);
    close(held[1]);
    check_pages(t, 0, 32 * MIB, 1);
    test_free(t);
}

/* The sampler takes huge pages away and brings them back whole, whoever writes
 * to them; and knows which are in use. */
static void test_sample(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, fast(MEMX_TRACKER_SAMPLE, NULL), 0);
    Toucher toucher;
    MemxStats stats;

    if (!t) {
        return;
    }
    write_pages(t, 0, 48 * MIB, 1);
    await_huge(40 * MIB);
    toucher = (Toucher) {
        .base = t->base + 16 * MIB, .n = 16 * MIB / CHUNK, .all = true,
        .count = true,
    };
    toucher_start(&toucher);
    memx_region_stats(t->region, &stats);
    await_stats(t->region, &stats, sampled, stats.tracking.periods + 6);
    g_assert_cmpuint(huge_bytes(), >=, 32 * MIB);
    g_assert_cmpuint(stats.tracking.extra_faults, >, 0);
    g_assert_cmpuint(memx_region_discard(t->region, 47 * MIB, MIB), ==, 0);
    memx_region_pause_tracking(t->region, true);
    memx_region_await_paused(t->region);
    toucher_stop(&toucher);
    check_pages(t, 0, 16 * MIB, 1);
    check_pages(t, 32 * MIB, 47 * MIB, 1);
    check_pages(t, 47 * MIB, 48 * MIB, 0);
    test_free(t);
}

static uint32_t hot_chunks(const MemxStats *stats, unsigned least)
{
    uint32_t n = 0;

    for (unsigned v = least; v < MEMX_HISTORIES; v++) {
        n += stats->tracking.chunks[v];
    }
    return n;
}

static bool all_cold(const MemxStats *stats, uint64_t argument)
{
    return stats->tracking.periods >= argument && !hot_chunks(stats, 1);
}

/* One chunk of a huge page is in use: the others of it don't seem so, too. */
static void test_sample_part(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, fast(MEMX_TRACKER_SAMPLE, NULL), 0);
    Toucher toucher[8] = { 0 };
    MemxStats stats;

    if (!t) {
        return;
    }
    write_pages(t, 0, 48 * MIB, 1);
    await_huge(40 * MIB);
    await_stats(t->region, &stats, all_cold, 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(toucher); i++) {
        toucher[i].base = t->base + i * HUGE;
        toucher[i].n = 1;
        toucher_start(&toucher[i]);
    }
    memx_region_stats(t->region, &stats);
    await_stats(t->region, &stats, sampled, stats.tracking.periods + 6);
    g_test_message("%u chunks are in use, %u in the last period",
                   hot_chunks(&stats, 1), hot_chunks(&stats, 0x80));
    g_assert_cmpuint(hot_chunks(&stats, 1), ==, G_N_ELEMENTS(toucher));
    for (unsigned i = 0; i < G_N_ELEMENTS(toucher); i++) {
        toucher_stop(&toucher[i]);
    }
    test_free(t);
}

/* A huge page has one idle bit, its head's; one that isn't used gets cold. */
static void test_idle(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_ON, fast(MEMX_TRACKER_IDLE, NULL),
                       CHUNK);
    int64_t end = g_get_monotonic_time() + WAIT_US;
    uint32_t hot = 0, cold = 0, hot_n = 8 * MIB / CHUNK, n = 48 * MIB / CHUNK;
    Toucher toucher = { .n = hot_n };

    if (!t) {
        return;
    }
    write_pages(t, 0, 48 * MIB, 1);
    await_huge(40 * MIB);
    toucher.base = t->base;
    toucher_start(&toucher);
    while (hot < hot_n || cold < (n - hot_n) / 2) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(10000);
        hot = cold = 0;
        g_mutex_lock(&t->region->lock);
        for (uint32_t c = 0; c < n; c++) {
            uint8_t value = t->region->history.value[c];

            hot += c < hot_n && value >= 0x40;
            cold += c >= hot_n && !value;
        }
        g_mutex_unlock(&t->region->lock);
    }
    toucher_stop(&toucher);
    g_assert_cmpuint(huge_bytes(), >=, 32 * MIB);
    check_pages(t, 0, 48 * MIB, 1);
    test_free(t);
}

static void test_off(void)
{
    Test *t = test_new(MEMX_HUGE_PAGES_OFF, no_tracker(), 0);

    write_pages(t, 0, 32 * MIB, 1);
    g_usleep(2 * G_USEC_PER_SEC);
    g_assert_cmpuint(huge_bytes(), ==, 0);
    test_free(t);
}

/* Asked for where they can't be had. */
static void test_unaligned(void)
{
    ServerProcess *server = server_process_new("64M");
    g_autoptr(GError) error = NULL;
    uint8_t *map = mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE |
                        MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    RegionFixture f = {
        .base = map + (-(uintptr_t)map & (HUGE - 1)) + PAGE_BYTES,
        .size = 32 * MIB, .local = 16 * MIB, .servers = &server,
        .n_servers = 1, .huge_pages = MEMX_HUGE_PAGES_ON,
    };
    MemxRegion *region;

    g_assert_null(region_fixture_try(&f, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, "huge-pages=on"));
    f.huge_pages = MEMX_HUGE_PAGES_AUTO;
    region = region_fixture_new(&f);
    memx_region_free(region);
    munmap(map, 40 * MIB);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/huge/come-and-go/small-chunks",
                         GSIZE_TO_POINTER(256 * 1024), test_come_and_go);
    g_test_add_data_func("/huge/come-and-go/chunks-of-it",
                         GSIZE_TO_POINTER(2 * MIB), test_come_and_go);
    g_test_add_func("/huge/holes", test_holes);
    g_test_add_func("/huge/remote-holes", test_remote_holes);
    g_test_add_func("/huge/held", test_held);
    g_test_add_func("/huge/discard", test_discard);
    g_test_add_func("/huge/sample", test_sample);
    g_test_add_func("/huge/sample-held", test_sample_held);
    g_test_add_func("/huge/sample-part", test_sample_part);
    g_test_add_func("/huge/idle", test_idle);
    g_test_add_func("/huge/off", test_off);
    g_test_add_func("/huge/unaligned", test_unaligned);
    return g_test_run();
}
