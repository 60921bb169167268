/*
 * Random walk: uniformly random access to pages, half of it writes, the same
 * code over a region and over swapped memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_RANDOM_WALK_H
#define BENCH_RANDOM_WALK_H

#include <stdint.h>

typedef struct RandomWalk {
    char *base;
    uint64_t pages;
    uint32_t *generation;   /* of each page's content */
    uint64_t seed;
    double for_seconds;

    /* Results. */
    uint64_t operations;
    double seconds;
    uint64_t wrong;         /* pages with another content than was written */
} RandomWalk;

/* Allocates what is needed besides the pages. */
void random_walk_init(RandomWalk *walk, uint64_t pages);
void random_walk_destroy(RandomWalk *walk);

/* Writes every page once. */
void random_walk_fill(RandomWalk *walk, char *base);

/* A GThreadFunc; the argument is a RandomWalk. */
void *random_walk_run(void *opaque);

#endif
