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

/* What the sampler uses, too. */

/* Nobody is busy with the chunk. */
bool memx_chunk_idle(const MemxChunk *chunk);
/* Moves the pages of @mask from @src to @dst (groups), and whatever else @src
 * has between the first and the last of them; returns those of @mask that went.
 */
uint64_t memx_move_pages(MemxRegion *r, uint8_t *dst, uint8_t *src,
                         uint64_t mask, unsigned flags);
/* Moves pages of a slot to where they came from; returns those that went. */
uint64_t memx_move_back(MemxRegion *r, MemxSlot *slot, uint64_t mask);
/* Gives the frames of a slot that this thread owns back to the system. */
uint64_t memx_slot_drop_frames(MemxRegion *r, MemxSlot *slot);

/* Frees the frames of free slots, unless prefetch streams into them; or all of
 * them.  Returns how many pages. */
uint64_t memx_evict_free_frames(MemxRegion *r, bool all);

#endif
