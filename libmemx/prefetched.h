/*
 * Prefetched pages: what came of them.
 *
 * A table of groups, each with pages that a stream had fetched ahead, until a
 * tracker has told of each page whether it was touched: when all have been
 * watched for a whole period, or of those that are evicted before.  A group's
 * pages are told together, lest those of use be told sooner than the others.
 * What is not known is not told: pages on whose touches the tracker is blind,
 * and groups that others displace.
 *
 * Plain data, protected by the region's lock.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PREFETCHED_H
#define MEMX_PREFETCHED_H

#include <stdbool.h>
#include "memx-protocol.h"

#define MEMX_PREFETCHED 512

typedef struct MemxPrefetchedGroup {
    uint64_t group;
    uint64_t mask;          /* nothing was told of them yet; 0: nothing here */
    uint64_t used;          /* of these: touched */
    int direction;
    bool idle;              /* what is touched shows; else the next look is the
                               first that tells */
    bool looked;            /* once since they came */
    bool looking;           /* a look is under way: it has the touches */
} MemxPrefetchedGroup;

typedef struct MemxPrefetched {
    MemxPrefetchedGroup entry[MEMX_PREFETCHED];
} MemxPrefetched;

/* What is told of a group's pages. */
typedef struct MemxJudged {
    int direction;
    uint64_t used, untouched;
} MemxJudged;

/* Pages came.  @idle: a touch shows from now on, not only after a look. */
void memx_prefetched_came(MemxPrefetched *t, uint64_t group, uint64_t mask,
                          int direction, bool idle);
/* A tracker is about to look at the group. */
void memx_prefetched_look(MemxPrefetched *t, uint64_t group);
/* What it found.  @present: pages that are there; @blind: of these pages it
 * couldn't tell; @whole: the look ends a period.  The second one: it knew
 * nothing. */
MemxJudged memx_prefetched_looked(MemxPrefetched *t, uint64_t group,
                                  uint64_t present, uint64_t touched,
                                  uint64_t blind, bool whole);
void memx_prefetched_skipped(MemxPrefetched *t, uint64_t group);
/* Would it be of use to know what of the group was touched since the last look?
 * Asked before it is evicted. */
bool memx_prefetched_asks(MemxPrefetched *t, uint64_t group);
/* Pages @left; of those @known it is known whether they were touched since the
 * last look (0 for who didn't ask). */
MemxJudged memx_prefetched_left(MemxPrefetched *t, uint64_t group,
                                uint64_t left, uint64_t touched,
                                uint64_t known);

#endif
