/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What tests of trackers share: who touches memory, and what is tracked.
 */
#ifndef TRACKER_FIXTURE_H
#define TRACKER_FIXTURE_H

#include <stdatomic.h>
#include "region-fixture.h"

#define CHUNK (256 * 1024ull)
#define HUGE (2 * MIB)

/* Touches the first page of each of some chunks, or all, all the time. */
typedef struct Toucher {
    uint8_t *base;
    uint32_t first, n;      /* chunks */
    bool all;
    bool count;             /* adds 1 to what is there, each time */
    uint64_t rounds;
    atomic_bool stop;
    GThread *thread;
} Toucher;

void toucher_start(Toucher *t);
void toucher_stop(Toucher *t);

/* Soon enough for a test. */
MemxTrackerOptions fast(MemxTrackerKind kind, const MemxIdleFiles *files);

/* The region, or the test is skipped with the reason. */
MemxRegion *region_or_skip(MemxTrackerKind kind, ServerProcess *server,
                           uint64_t size, uint64_t local);

#endif
