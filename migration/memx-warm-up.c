/*
 * A history for memory that has none: what the guest writes, from the dirty
 * log that the migration has just started.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ram_addr.h"
#include "exec/ramblock.h"
#include "qemu/bitmap.h"
#include "memx-split.h"

/*
 * Takes from the log what was written since the last time, and sets the bits
 * of the chunks concerned.
 *
 * The log is the migration's, which sends all pages anyway that it has not
 * sent yet: its own bitmap is still all ones, so taking bits from the log
 * loses nothing.  Except for pages that the guest reported free (balloon,
 * free-page-hint): these have no bit there any more, and get their bit in the
 * log back.
 */
void memx_warm_up_period(MemxSplitBlock *block, uint64_t *chunks)
{
    RAMBlock *rb = block->rb;
    g_autofree DirtyBitmapSnapshot *snapshot =
        memory_region_snapshot_and_clear_dirty(rb->mr, 0, block->bytes,
                                               DIRTY_MEMORY_MIGRATION);
    uint64_t chunk, at, end;

    for (chunk = 0; chunk * block->chunk_bytes < block->bytes; chunk++) {
        at = chunk * block->chunk_bytes;
        end = MIN(at + block->chunk_bytes, block->bytes);
        if (!memory_region_snapshot_get_dirty(rb->mr, snapshot, at,
                                              end - at)) {
            continue;
        }
        chunks[chunk / 64] |= 1ull << (chunk % 64);
        for (; at < end; at += TARGET_PAGE_SIZE) {
            if (!test_bit(at >> TARGET_PAGE_BITS, rb->bmap) &&
                memory_region_snapshot_get_dirty(rb->mr, snapshot, at,
                                                 TARGET_PAGE_SIZE)) {
                cpu_physical_memory_set_dirty_flag(rb->offset + at,
                                                   DIRTY_MEMORY_MIGRATION);
            }
        }
    }
}
