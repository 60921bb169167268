/*
 * Region tools: see region-tools.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "region-tools.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#define POLL_MS 5
#define QUIET_POLLS 20
#define SETTLE_TIMEOUT_MS 180000

#define PAGEMAP_THERE (3ull << 62) /* present or swapped */
#define PAGEMAP_BATCH 4096

/* Changes with everything that the region does. */
static uint64_t activity(const MemxStats *stats)
{
    uint64_t sum = stats->faults + stats->prefetched_pages +
                   stats->evicted_pages + stats->staged_bytes +
                   stats->local_bytes;

    for (unsigned i = 0; i < stats->n_servers; i++) {
        sum += stats->servers[i].stored_bytes +
               stats->servers[i].fetched_bytes +
               stats->servers[i].queue_depth;
    }
    return sum;
}

bool region_settle(MemxRegion *region, GError **error)
{
    uint64_t last = 0;
    MemxStats stats;
    int quiet = 0;

    for (int ms = 0; ms < SETTLE_TIMEOUT_MS; ms += POLL_MS) {
        memx_region_stats(region, &stats);
        quiet = activity(&stats) == last ? quiet + 1 : 0;
        last = activity(&stats);
        /* All local: with what the engine holds it may be more than all. */
        if (quiet >= QUIET_POLLS &&
            (stats.local_bytes <= stats.local_limit_bytes ||
             stats.local_limit_bytes == stats.size_bytes)) {
            return true;
        }
        poll(NULL, 0, POLL_MS);
    }
    g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                "the region does not come to rest: local %" G_GUINT64_FORMAT
                " of %" G_GUINT64_FORMAT " bytes, staged %" G_GUINT64_FORMAT,
                stats.local_bytes, stats.local_limit_bytes,
                stats.staged_bytes);
    return false;
}

bool region_make_remote(MemxRegion *region, uint64_t low_bytes,
                        uint64_t high_bytes, GError **error)
{
    return memx_region_set_local_bytes(region, low_bytes, error) &&
           region_settle(region, error) &&
           memx_region_set_local_bytes(region, high_bytes, error) &&
           region_settle(region, error);
}

size_t missing_pages(const void *base, size_t pages, uint32_t *order,
                     uint64_t seed)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    g_autofree uint64_t *entry = g_new(uint64_t, PAGEMAP_BATCH);
    uint64_t first = (uint64_t)(uintptr_t)base / PAGE_BYTES;
    Random random = { pattern_mix(seed) | 1 };
    size_t n = 0;

    if (fd < 0) {
        g_error("/proc/self/pagemap: %s", g_strerror(errno));
    }
    for (size_t page = 0; page < pages; page += PAGEMAP_BATCH) {
        size_t batch = MIN(PAGEMAP_BATCH, pages - page);

        if (pread(fd, entry, batch * 8, (off_t)(first + page) * 8) !=
            (ssize_t)(batch * 8)) {
            g_error("/proc/self/pagemap: %s", g_strerror(errno));
        }
        for (size_t i = 0; i < batch; i++) {
            if (!(entry[i] & PAGEMAP_THERE)) {
                order[n++] = (uint32_t)(page + i);
            }
        }
    }
    close(fd);
    for (size_t i = n; i > 1; i--) {
        size_t j = random_below(&random, i);
        uint32_t page = order[j];

        order[j] = order[i - 1];
        order[i - 1] = page;
    }
    return n;
}
