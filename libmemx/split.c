/*
 * The split policy; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "history.h"
#include "split.h"

/* Four histograms side by side: equal neighbours don't wait for each other's
 * store. */
static void histogram(const uint8_t *history, uint64_t n,
                      uint64_t sum[MEMX_HISTORY_VALUES])
{
    uint32_t part[4][MEMX_HISTORY_VALUES];
    uint64_t i = 0;

    memset(part, 0, sizeof(part));
    for (; i + 4 <= n; i += 4) {
        part[0][history[i]]++;
        part[1][history[i + 1]]++;
        part[2][history[i + 2]]++;
        part[3][history[i + 3]]++;
    }
    for (; i < n; i++) {
        part[0][history[i]]++;
    }
    for (unsigned v = 0; v < MEMX_HISTORY_VALUES; v++) {
        sum[v] = (uint64_t)part[0][v] + part[1][v] + part[2][v] + part[3][v];
    }
}

void memx_split_decide(MemxSplit *split, const uint8_t *history,
                       uint64_t n_chunks, uint64_t hot_max)
{
    uint64_t sum[MEMX_HISTORY_VALUES];
    uint64_t hot = 0;
    int v;

    histogram(history, n_chunks, sum);
    for (v = MEMX_HISTORY_VALUES - 1; v >= 0; v--) {
        if (hot + sum[v] > hot_max) {
            break;
        }
        hot += sum[v];
    }
    split->threshold = v < 0 ? 0 : v;
    split->at_threshold = v < 0 ? sum[0] : hot_max - hot;
    split->n_hot = v < 0 ? n_chunks : hot_max;
}

void memx_split_apply(const MemxSplit *split, const uint8_t *history,
                      uint64_t n_chunks, uint64_t *hot)
{
    uint64_t left = split->at_threshold;
    uint64_t word = 0;

    for (uint64_t i = 0; i < n_chunks; i++) {
        uint64_t equal = history[i] == split->threshold && left;

        left -= equal;
        word |= (uint64_t)(history[i] > split->threshold || equal) << (i % 64);
        if (i % 64 == 63) {
            hot[i / 64] = word;
            word = 0;
        }
    }
    if (n_chunks % 64) {
        hot[n_chunks / 64] = word;
    }
}
