/*
 * Discard: the guest gives memory back (balloon, free page reporting).
 *
 * Chunk by chunk.  The chunk is exclusive meanwhile, so that nobody installs
 * a page between its being marked never-written and its memory's going: a
 * page that is missing although the table calls it local is always a bug.
 * Fetches that are in flight go on; their answers find the page not stored,
 * and are thrown away.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <sys/mman.h>
#include "region.h"
#include "window.h"

/* The pages [first, end) as a mask of group @g. */
static uint64_t range_mask(uint64_t g, uint64_t first, uint64_t end)
{
    uint64_t start = g * MEMX_GROUP_PAGES;
    uint64_t from = first > start ? first - start : 0;
    uint64_t to = MIN(end - start, MEMX_GROUP_PAGES);

    return memx_run_mask(from, to - from);
}

static int discard_in_chunk(MemxRegion *r, uint32_t c, uint64_t first,
                            uint64_t end)
{
    MemxPageTable *t = &r->table;
    MemxChunk *chunk = &t->chunk[c];
    uint64_t last_group = (end - 1) / MEMX_GROUP_PAGES;
    uint64_t gone = 0;
    bool wanted, fetching, left = false;
    int err;

    g_mutex_lock(&r->lock);
    while (chunk->installing || memx_chunk_exclusive(chunk)) {
        if (memx_chunk_exclusive(chunk)) {
            memx_want_locked(r, chunk);
        }
        r->n_waiting++;
        g_cond_wait(&r->changed, &r->lock);
        r->n_waiting--;
    }
    chunk->flags |= MEMX_CHUNK_EXCLUSIVE;
    for (uint64_t g = first / MEMX_GROUP_PAGES; g <= last_group; g++) {
        uint64_t mask = range_mask(g, first, end);
        MemxSlot *slot = memx_staging_find(&r->staging, g, true);

        if (t->stored[g] & mask) { /* a slot sees to what it has sent */
            memx_trim_set(t, c);
        }
        memx_trace_pages(MEMX_LOCAL_DISCARDED,
                         t->present[g] & ~t->stored[g] & mask);
        memx_trace_pages(MEMX_KEPT_DISCARDED,
                         t->present[g] & t->stored[g] & mask);
        memx_trace_pages(MEMX_REMOTE_DISCARDED,
                         ~t->present[g] & t->stored[g] & mask &
                         ~(slot ? slot->staged : 0));
        if (slot) {
            memx_trace_pages(MEMX_STAGED_DISCARDED,
                             slot->staged & ~t->present[g] & mask);
            slot->staged &= ~mask;
        }
        if (r->passive) { /* nobody would learn that it is there again */
            memx_set_group_locked(r, g, t->present[g], t->stored[g] & ~mask);
        } else {
            gone += memx_mask_pages(t->present[g] & mask);
            memx_set_group_locked(r, g, t->present[g] & ~mask,
                                  t->stored[g] & ~mask);
        }
        if (r->given_back) {
            uint64_t w = g / MEMX_WINDOW_GROUPS;

            r->given_back[w / 64] |= 1ull << w % 64;
        }
        if (r->out) {
            memx_out_discard_locked(r, g, mask);
        }
    }
    g_mutex_unlock(&r->lock);

    err = madvise(memx_page_hva(r, first), (end - first) * MEMX_PAGE_BYTES,
                  MADV_DONTNEED) ? -errno : 0;

    g_mutex_lock(&r->lock);
    memx_budget_give_locked(r, gone);
    r->count.discarded += end - first;
    wanted = memx_exclusive_end_locked(r, c);
    fetching = chunk->fetching;
    for (unsigned i = 0; i < r->n_servers; i++) {
        left |= r->server[i].dropped > 0;
    }
    if (r->starved || t->n_trim >= 16) {
        memx_worker_ring(&r->store);
    }
    g_mutex_unlock(&r->lock);
    if (left) {
        /* Whoever was left waiting for a server may need none any more: who
         * still does is counted anew. */
        memx_wake_all(r);
    } else if (wanted || fetching) {
        memx_wake_chunk(r, c); /* also who waits for an answer */
    }
    return err;
}

int memx_region_discard(MemxRegion *r, uint64_t offset, uint64_t bytes)
{
    uint64_t page = offset / MEMX_PAGE_BYTES;
    uint64_t end = (offset + bytes) / MEMX_PAGE_BYTES;

    if ((offset | bytes) % MEMX_PAGE_BYTES || offset + bytes < offset ||
        offset + bytes > r->size_bytes) {
        return -EINVAL;
    }
    while (page < end) {
        uint32_t c = page >> r->table.chunk_shift;
        uint64_t stop = MIN(end, ((uint64_t)c + 1) << r->table.chunk_shift);
        int err = discard_in_chunk(r, c, page, stop);

        if (err) {
            return err;
        }
        page = stop;
    }
    return 0;
}
