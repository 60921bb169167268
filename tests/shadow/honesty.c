/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory honesty: what the kernel says a region and its staging area take.
 *
 * /proc/self/pagemap is asked, not the engine.  It is read in pieces, and a
 * page that moves meanwhile may be seen twice; so too much counts only when
 * several samples in a row see it.
 */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
#include "honesty.h"

#define PERIOD_US 3000
#define SLACK_BYTES (1ull << 20)
#define IN_A_ROW 4
#define ENTRIES 4096
#define PRESENT (3ull << 62)    /* in memory, or swapped */

struct Honesty {
    MemxRegion *region;
    pthread_t thread;
    atomic_bool stop;
    atomic_ullong bound;

    /* The thread's. */
    unsigned samples;
    unsigned in_a_row;
    uint64_t lowest;            /* of those in a row */
    uint64_t worst;             /* bytes over the bound, all in a row */
    uint64_t worst_bound;
    uint64_t most;              /* held, at any sample */
    uint64_t most_bound;
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
    uint64_t bound = atomic_load(&h->bound), held, over;

    held = honesty_held_bytes(r->pagemap_fd, r->staging.base,
                              r->staging.bytes) +
           honesty_held_bytes(r->pagemap_fd, r->base, r->size_bytes) +
           honesty_held_bytes(r->pagemap_fd, r->fault_buffers,
                              MEMX_FAULTS_MAX * MEMX_PAGE_BYTES);
    bound = MAX(bound, atomic_load(&h->bound));
    over = held > bound ? held - bound : 0;
    h->samples++;
    if (held * h->most_bound >= h->most * bound) {
        h->most = held;
        h->most_bound = bound;
    }
    h->in_a_row = over ? h->in_a_row + 1 : 0;
    h->lowest = h->in_a_row == 1 ? over : MIN(h->lowest, over);
    if (h->in_a_row >= IN_A_ROW && h->lowest > h->worst) {
        h->worst = h->lowest;
        h->worst_bound = bound;
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

void honesty_set_bound(Honesty *h, uint64_t bound_bytes)
{
    atomic_store(&h->bound, bound_bytes);
}

bool honesty_stop(Honesty *h)
{
    bool ok;

    atomic_store(&h->stop, true);
    pthread_join(h->thread, NULL);
    ok = h->worst <= h->worst_bound / 50 + SLACK_BYTES;
    printf("# memory: %u samples, at most %" G_GUINT64_FORMAT " KiB of a "
           "local size of %" G_GUINT64_FORMAT " KiB", h->samples,
           h->most >> 10, h->most_bound >> 10);
    if (h->worst) {
        printf("; for %d samples in a row %" G_GUINT64_FORMAT " KiB over %"
               G_GUINT64_FORMAT " KiB%s", IN_A_ROW, h->worst >> 10,
               h->worst_bound >> 10, ok ? "" : ": TOO MUCH");
    }
    printf("\n");
    g_free(h);
    return ok;
}
