/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory honesty: what the kernel says a region and its staging area take.
 */
#ifndef HONESTY_H
#define HONESTY_H

#include "region.h"

typedef struct Honesty Honesty;

/* Samples until honesty_stop(), in a thread of its own. */
Honesty *honesty_start(MemxRegion *region, uint64_t bound_bytes);
/* Before the local size is set; and once a smaller one was reached. */
void honesty_raise_bound(Honesty *honesty, uint64_t bound_bytes);
void honesty_lower_bound(Honesty *honesty, uint64_t bound_bytes);
/* Prints the worst that was seen; false if it was too much. */
bool honesty_stop(Honesty *honesty);

/* Bytes of [base, base + bytes) that are in memory or swapped out. */
uint64_t honesty_held_bytes(int pagemap_fd, const void *base, uint64_t bytes);

#endif
