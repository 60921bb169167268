/*
 * Random walk: see random-walk.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "pattern.h"
#include "random-walk.h"
#include "samples.h"

#include <string.h>

#define OPERATIONS_PER_LOOK 64 /* at the clock */

void random_walk_init(RandomWalk *walk, uint64_t pages)
{
    *walk = (RandomWalk) { .pages = pages, .seed = 1 };
    walk->generation = g_new(uint32_t, pages);
    for (uint64_t i = 0; i < pages; i++) {
        walk->generation[i] = 1; /* touched: not to fault later */
    }
}

void random_walk_destroy(RandomWalk *walk)
{
    g_free(walk->generation);
}

void random_walk_fill(RandomWalk *walk, char *base)
{
    walk->base = base;
    pattern_fill_pages(base, 0, walk->pages, 1);
}

static void operation(RandomWalk *walk, Random *random)
{
    uint64_t page = random_below(random, walk->pages);
    char *memory = walk->base + page * PAGE_BYTES;

    if (!pattern_check(memory, page, walk->generation[page])) {
        walk->wrong++;
    }
    if (random_next(random) >> 63) {
        pattern_write(memory, page, ++walk->generation[page]);
    }
}

void *random_walk_run(void *opaque)
{
    RandomWalk *walk = opaque;
    Random random = { pattern_mix(walk->seed++) | 1 };
    uint64_t start = bench_now_ns();

    walk->operations = 0;
    do {
        for (int i = 0; i < OPERATIONS_PER_LOOK; i++) {
            operation(walk, &random);
        }
        walk->operations += OPERATIONS_PER_LOOK;
        walk->seconds = bench_seconds_since(start);
    } while (walk->seconds < walk->for_seconds);
    return NULL;
}
