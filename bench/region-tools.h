/*
 * Region tools: bringing a region into the state that a measurement starts
 * from.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_REGION_TOOLS_H
#define BENCH_REGION_TOOLS_H

#include "bench.h"
#include "memx.h"

/* Waits until nothing is evicted, fetched or staged any more. */
bool region_settle(MemxRegion *region, GError **error);

/*
 * Evicts down to @low_bytes, waits for it, and raises the local size to
 * @high_bytes: then so many bytes can be fetched with eviction idle.
 */
bool region_make_remote(MemxRegion *region, uint64_t low_bytes,
                        uint64_t high_bytes, GError **error);

/* Fills @order with the numbers of those of the first @pages pages at @base
 * that aren't there, shuffled; returns how many. */
size_t missing_pages(const void *base, size_t pages, uint32_t *order,
                     uint64_t seed);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MemxRegion, memx_region_free)

#endif
