/*
 * The split policy; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <glib.h>
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

/* Eight bytes that are 0 or 1, as eight bits. */
static uint64_t pack(const uint8_t flag[8])
{
    uint64_t x;

    memcpy(&x, flag, sizeof(x));
    return GUINT64_FROM_LE(x) * 0x0102040810204080ull >> 56;
}

/* Which of 64 values are above the threshold, and which equal it.  Loops
 * without a dependence: the compiler makes vectors of them. */
static void compare(const uint8_t value[64], unsigned threshold,
                    uint64_t *above, uint64_t *equal)
{
    uint8_t more[64], same[64];
    uint8_t t = threshold;

    for (unsigned i = 0; i < 64; i++) {
        more[i] = value[i] > t;
        same[i] = value[i] == t;
    }
    *above = *equal = 0;
    for (unsigned i = 0; i < 64; i += 8) {
        *above |= pack(more + i) << i;
        *equal |= pack(same + i) << i;
    }
}

void memx_split_apply(const MemxSplit *split, const uint8_t *history,
                      uint64_t n_chunks, uint64_t *hot)
{
    uint64_t left = split->at_threshold;

    for (uint64_t i = 0; i < n_chunks; i += 64) {
        uint64_t n = MIN(n_chunks - i, 64);
        uint64_t exist = n == 64 ? UINT64_MAX : (1ull << n) - 1;
        uint8_t last[64] = { 0 };
        uint64_t above, equal, few = 0;

        if (n < 64) {
            memcpy(last, history + i, n);
        }
        compare(n < 64 ? last : history + i, split->threshold, &above,
                &equal);
        equal &= exist;
        if ((unsigned)__builtin_popcountll(equal) > left) {
            for (; left; left--) {
                few |= equal & -equal;
                equal &= equal - 1;
            }
            equal = few;
        } else {
            left -= __builtin_popcountll(equal);
        }
        hot[i / 64] = (above & exist) | equal;
    }
}
