/*
 * Eviction, as the store thread drives it: see evict.c.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_EVICT_H
#define MEMX_EVICT_H

#include "region.h"

/* Takes a cold group out into staging.  NULL: none can be taken now. */
MemxSlot *memx_evict_take(MemxRegion *r);

/* The server that the slot's pages go to; each has a limited number of slots.
 */
void memx_slot_assign_locked(MemxRegion *r, MemxSlot *slot, unsigned server);

/* Finds zero pages and hashes the others of a slot just taken. */
void memx_evict_prepare(MemxRegion *r, MemxSlot *slot);

/* Moves a slot's pages back where they came from, since they can't be stored
 * now.  False: not now, try again. */
bool memx_evict_undo(MemxRegion *r, MemxSlot *slot);

/* The pages that are still only in the slot have been dealt with: gives the
 * slot back, or leaves it DONE while a fault copies from it. */
void memx_evict_finish(MemxRegion *r, MemxSlot *slot);

/* Frees the frames of free slots beyond what prefetch may soon use, or all of
 * them.  Returns how many pages. */
uint64_t memx_evict_free_frames(MemxRegion *r, bool all);

#endif
