/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The servers of the region under test, with what stands between: real
 * memservers behind proxies, or servers of this process reached without any
 * byte stream.
 */
#ifndef POOL_UNDER_TEST_H
#define POOL_UNDER_TEST_H

#include "coverage.h"
#include "region.h"

typedef struct PoolUnderTest PoolUnderTest;

/* By the thread that also calls pool_free(). */
PoolUnderTest *pool_new(bool inproc, unsigned n, uint64_t capacity_bytes,
                        uint32_t seed);
void pool_free(PoolUnderTest *pool);

/* What the region needs to know. */
const MemxTransport *pool_transport(const PoolUnderTest *pool);
const char *const *pool_addresses(const PoolUnderTest *pool);
/* A bit for each Fault that it can have. */
unsigned pool_faults(const PoolUnderTest *pool);

/* What server @i says that it holds. */
uint64_t pool_held_pages(PoolUnderTest *pool, unsigned i);

/* One fault, of server @i.  The same thread. */
void pool_fault_begin(PoolUnderTest *pool, unsigned i, Fault fault);
void pool_fault_end(PoolUnderTest *pool, unsigned i, Fault fault);

#endif
