/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's books against the kernel's, when nobody uses the region.
 */
#ifndef AUDIT_H
#define AUDIT_H

#include "pool-under-test.h"

/* Waits until nothing is in flight, and compares.  False and messages if
 * something doesn't add up. */
bool audit(MemxRegion *region, PoolUnderTest *pool);
/* Prints what is in flight or held back. */
void audit_print(MemxRegion *region);

#endif
