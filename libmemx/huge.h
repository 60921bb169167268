/*
 * Huge pages for local memory that is in use; see huge.c.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_HUGE_H
#define MEMX_HUGE_H

#include "region.h"

/* Whether a region has them: by its options, this kernel, this host. */
bool memx_huge_choose(MemxRegion *r, const MemxOptions *options,
                      GError **error);
void *memx_huge_thread(void *opaque);

#endif
