/*
 * Which way of filling runs of pages is faster here: MOVE or COPY?
 *
 * MOVE copies nothing but unmaps its source, which costs an interrupt of each
 * CPU that runs the process; before Linux 6.18 for every single page.  So it
 * is measured, with a second thread running, on the staging area, before the
 * region is used.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <sys/mman.h>
#include "region.h"
#include "uffd.h"

#define ROUNDS 8

static void *spin(void *stop)
{
    while (!g_atomic_int_get((int *)stop)) {
        ;
    }
    return NULL;
}

/* The shortest of some rounds: fills slot 1 from slot 0.  0: it failed. */
static uint64_t fill_ns(MemxRegion *r, bool move)
{
    uint8_t *from = r->staging.slot[0].base;
    uint8_t *to = r->staging.slot[1].base;
    uint64_t best = 0;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t start, ns;
        ssize_t done;

        memx_uffd_copy(r->uffd, from, r->zeros, MEMX_GROUP_BYTES, 0);
        start = memx_now_ns();
        done = move
            ? memx_uffd_move(r->uffd, to, from, MEMX_GROUP_BYTES, 0)
            : memx_uffd_copy(r->uffd, to, from, MEMX_GROUP_BYTES, 0);
        ns = memx_now_ns() - start;
        madvise(from, MEMX_GROUP_BYTES, MADV_DONTNEED);
        madvise(to, MEMX_GROUP_BYTES, MADV_DONTNEED);
        if (done != MEMX_GROUP_BYTES) {
            return 0;
        }
        best = best && best < ns ? best : ns;
    }
    return best;
}

bool memx_fill_probe(MemxRegion *r)
{
    int stop = 0;
    GThread *second = g_thread_try_new("memx-probe", spin, &stop, NULL);
    uint64_t move_ns = fill_ns(r, true);
    uint64_t copy_ns = fill_ns(r, false);

    g_atomic_int_set(&stop, 1);
    if (second) {
        g_thread_join(second);
    }
    return move_ns && move_ns < copy_ns;
}
