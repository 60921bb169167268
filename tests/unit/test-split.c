/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The split policy against sorting.
 */
#include <glib.h>
#include <stdlib.h>
#include <string.h>
#include "split.h"

static bool is_hot(const uint64_t *hot, uint64_t i)
{
    return hot[i / 64] >> i % 64 & 1;
}

static int by_value_falling(const void *a, const void *b)
{
    return *(const uint8_t *)b - *(const uint8_t *)a;
}

/* The hottest hot_max chunks by sorting; ties go to the lower number. */
static void check(const uint8_t *history, uint64_t n, uint64_t hot_max)
{
    g_autofree uint64_t *hot = g_new(uint64_t, n / 64 + 1);
    g_autofree uint8_t *sorted = g_memdup2(history, n);
    uint64_t n_hot = 0, want = MIN(hot_max, n), ties;
    unsigned coldest;
    MemxSplit split;

    memset(hot, 0xa5, (n / 64 + 1) * 8); /* apply sets every bit of its own */
    memx_split_decide(&split, history, n, hot_max);
    memx_split_apply(&split, history, n, hot);
    g_assert_cmpuint(split.n_hot, ==, want);
    qsort(sorted, n, 1, by_value_falling);
    coldest = want ? sorted[want - 1] : 256;
    ties = 0;
    for (uint64_t i = 0; i < want; i++) {
        ties += sorted[i] == coldest;
    }
    for (uint64_t i = 0; i < n; i++) {
        bool expect = history[i] > coldest;

        if (history[i] == coldest && ties) {
            expect = true;
            ties--;
        }
        if (is_hot(hot, i) != expect) {
            g_error("chunk %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
                    ", value %u, hot_max %" G_GUINT64_FORMAT ": hot is %d",
                    i, n, history[i], hot_max, is_hot(hot, i));
        }
        n_hot += expect;
    }
    g_assert_cmpuint(n_hot, ==, want);
    if (n % 64) { /* the rest of the last word is nobody's */
        g_assert_cmphex(hot[n / 64] >> n % 64, ==, 0);
    }
}

static void test_against_sorting(void)
{
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t n = g_test_rand_int_range(1, 700);
        unsigned spread = g_test_rand_int_range(1, 257);
        g_autofree uint8_t *history = g_new(uint8_t, n);

        for (uint64_t c = 0; c < n; c++) {
            history[c] = g_test_rand_int_range(0, spread);
        }
        check(history, n, g_test_rand_int_range(0, n + 20));
    }
}

static void test_edges(void)
{
    uint8_t history[130];

    memset(history, 0, sizeof(history));
    check(history, 130, 0);
    check(history, 130, 1);
    check(history, 130, 129);
    check(history, 130, 130);
    check(history, 130, UINT64_MAX);
    memset(history, 255, sizeof(history));
    check(history, 130, 0);
    check(history, 130, 64);
    check(history, 130, 130);
    check(history, 64, 10);
    check(history, 1, 1);
    check(history, 1, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/split/against-sorting", test_against_sorting);
    g_test_add_func("/split/edges", test_edges);
    return g_test_run();
}
