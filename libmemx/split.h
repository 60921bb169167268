/*
 * The split policy: which chunks stay on the main host.
 *
 * S-memV, paper 004, section IV.C: a histogram of the history's 256 values is
 * summed from the top until the budget is reached; chunks above that
 * threshold stay local, of those that equal it as many as still fit, in the
 * order of their number.  No sorting: two passes over a byte per chunk.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_SPLIT_H
#define MEMX_SPLIT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct MemxSplit {
    unsigned threshold;   /* 0..256: values above it are hot */
    uint64_t at_threshold; /* so many with the threshold's value are hot too */
    uint64_t n_hot;
} MemxSplit;

/* @hot_max chunks at most are hot. */
void memx_split_decide(MemxSplit *split, const uint8_t *history,
                       uint64_t n_chunks, uint64_t hot_max);

/* Sets bit i of @hot (n_chunks bits, whole words) for each hot chunk. */
void memx_split_apply(const MemxSplit *split, const uint8_t *history,
                      uint64_t n_chunks, uint64_t *hot);

#endif
