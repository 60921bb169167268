/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory honesty: what the kernel says a region and its staging area take.
 *
 * /proc/self/pagemap is asked, not the engine.  A page that moves while it is
 * being read may be seen twice, once here and once there; so as many as moved
 * meanwhile are taken off.
 */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
#include "coverage.h"
#include "honesty.h"

#define PERIOD_US 3000
#define SLACK_BYTES (1ull << 20) /* also moves that are not counted yet */
#define ENTRIES 4096
#define PRESENT (3ull << 62)    /* in memory, or swapped */

struct Honesty {
    MemxRegion *region;
    pthread_t thread;
    atomic_bool stop;
    atomic_ullong bound;

    /* The thread's. */
    unsigned samples;
    uint64_t most;              /* held, of most_bound */
    uint64_t most_bound;
    bool too_much;
};

uint64_t honesty_held_bytes(int fd, const void *base, uint64_t bytes)
{
    uint64_t entry[ENTRIES], pages = bytes / MEMX_PAGE_BYTES, held = 0;
    uint64_t first = (uintptr_t)base / MEMX_PAGE_BYTES;

    while (pages) {
        uint64_t n = MIN(pages, ENTRIES);

        g_assert_cmpint(pread(fd, entry, n * 8, first * 8), ==, n * 8);
        for (uint64_t i = 0; i < n; i++) {
            held += (entry[i] & PRESENT) != 0;
        }
        first += n;
        pages -= n;
    }
    return held * MEMX_PAGE_BYTES;
}

static void sample(Honesty *h)
{
    MemxRegion *r = h->region;
    uint64_t bound = atomic_load(&h->bound);
    uint64_t moved = coverage_moved_pages(), held;

    held = honesty_held_bytes(r->pagemap_fd, r->staging.base,
                              r->staging.bytes) +
           honesty_held_bytes(r->pagemap_fd, r->staging.sample_base,
                              r->staging.n_samples * MEMX_GROUP_BYTES) +
           honesty_held_bytes(r->pagemap_fd, r->base, r->size_bytes) +
           honesty_held_bytes(r->pagemap_fd, r->fault_buffers,
                              MEMX_FAULTS_MAX * MEMX_PAGE_BYTES);
    moved = (coverage_moved_pages() - moved) * MEMX_PAGE_BYTES;
    held -= MIN(held, moved);
    bound = MAX(bound, atomic_load(&h->bound));
    h->samples++;
    if (held * h->most_bound >= h->most * bound) {
        h->most = held;
        h->most_bound = bound;
    }
    if (held > bound + bound / 50 + SLACK_BYTES) {
        if (!h->too_much) {
            g_mutex_lock(&r->lock);
            printf("# TOO MUCH: %" G_GUINT64_FORMAT " KiB; allowed %"
                   G_GUINT64_FORMAT ", moved meanwhile %" G_GUINT64_FORMAT
                   "; the engine counts %" G_GUINT64_FORMAT " of %"
                   G_GUINT64_FORMAT "\n", held >> 10, bound >> 10,
                   moved >> 10, r->held * 4, r->limit * 4);
            g_mutex_unlock(&r->lock);
        }
        h->too_much = true;
    }
}

static void *run(void *opaque)
{
    Honesty *h = opaque;

    while (!atomic_load(&h->stop)) {
        sample(h);
        g_usleep(PERIOD_US);
    }
    return NULL;
}

Honesty *honesty_start(MemxRegion *region, uint64_t bound_bytes)
{
    Honesty *h = g_new0(Honesty, 1);

    h->region = region;
    atomic_store(&h->bound, bound_bytes);
    g_assert_cmpint(pthread_create(&h->thread, NULL, run, h), ==, 0);
    return h;
}

void honesty_raise_bound(Honesty *h, uint64_t bound_bytes)
{
    if (bound_bytes > atomic_load(&h->bound)) {
        atomic_store(&h->bound, bound_bytes);
    }
}

void honesty_lower_bound(Honesty *h, uint64_t bound_bytes)
{
    atomic_store(&h->bound, bound_bytes);
}

bool honesty_stop(Honesty *h)
{
    bool ok;

    atomic_store(&h->stop, true);
    pthread_join(h->thread, NULL);
    ok = !h->too_much;
    printf("# memory: %u samples, at most %" G_GUINT64_FORMAT " KiB of a "
           "local size of %" G_GUINT64_FORMAT " KiB%s\n", h->samples,
           h->most >> 10, h->most_bound >> 10, ok ? "" : ": TOO MUCH");
    g_free(h);
    return ok;
}
