/*
 * Pattern: what the benchmarks write into pages, so that every page read can
 * be told from every other, older or empty one.
 *
 * A page carries a stamp of its number and generation in its first and its
 * last word.  pattern_fill() makes the rest half random, half constant: what
 * compresses about as memory does.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_PATTERN_H
#define BENCH_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline uint64_t pattern_mix(uint64_t x)
{
    /* The finalizer of splitmix64. */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static inline uint64_t pattern_stamp(uint64_t page, uint32_t generation)
{
    return pattern_mix((page << 32) + generation + 0x9e3779b97f4a7c15ull);
}

#define PATTERN_LAST_WORD (4096 / sizeof(uint64_t) - 1)

static inline void pattern_write(void *memory, uint64_t page,
                                 uint32_t generation)
{
    volatile uint64_t *word = memory;

    word[0] = pattern_stamp(page, generation);
    word[PATTERN_LAST_WORD] = ~pattern_stamp(page, generation);
}

static inline bool pattern_check(const void *memory, uint64_t page,
                                 uint32_t generation)
{
    const volatile uint64_t *word = memory;
    uint64_t stamp = pattern_stamp(page, generation);

    return word[0] == stamp && word[PATTERN_LAST_WORD] == ~stamp;
}

/* A whole page. */
void pattern_fill(void *memory, uint64_t page, uint32_t generation);

/* @pages pages from @first on, at @base + 4096 * @first. */
void pattern_fill_pages(void *base, uint64_t first, uint64_t pages,
                        uint32_t generation);

/* Random numbers: xorshift64*, good enough to choose pages with. */
typedef struct Random {
    uint64_t state;         /* not 0 */
} Random;

static inline uint64_t random_next(Random *random)
{
    random->state ^= random->state >> 12;
    random->state ^= random->state << 25;
    random->state ^= random->state >> 27;
    return random->state * 0x2545f4914f6cdd1dull;
}

/* 0 .. n - 1 */
static inline uint64_t random_below(Random *random, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)random_next(random) * n) >> 64);
}

/* Fills @order with 0 .. n - 1, shuffled. */
void random_order(Random *random, uint32_t *order, size_t n);

#endif
