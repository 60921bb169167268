/*
 * Toucher: a thread's worth of touching missing pages, in a given order.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_TOUCHER_H
#define BENCH_TOUCHER_H

#include <stdint.h>

#include "samples.h"

#define NOT_CHECKED UINT32_MAX

typedef struct Toucher {
    char *base;
    const uint32_t *order;  /* numbers of pages */
    size_t n;
    uint32_t generation;    /* of the pattern to find, or NOT_CHECKED */
    bool write;             /* else read */
    Samples *samples;       /* NULL: not timed one by one, nor looked up */
    const int *stop;        /* set to end early, or NULL */

    /* Results. */
    size_t touched;
    size_t there;           /* not touched: was not missing any more */
    uint64_t wrong;         /* pages with another content */
} Toucher;

/* A GThreadFunc; the argument is a Toucher.  Touches until the order, the
 * samples' room or the time is used up. */
void *toucher_run(void *opaque);

#endif
