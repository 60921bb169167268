/*
 * Eviction: pages leave the guest, into staging, and end there.
 *
 * Theory of operation
 *
 * UFFDIO_MOVE takes a group's local pages out, atomically with respect to
 * vCPUs; pages that are pinned for DMA are refused and stay.  While it runs,
 * the chunk is exclusive.  From then on a page in the slot is final: it can
 * be hashed, compared, sent, and sent again after a lost connection.  A fault
 * copies it back at any time; it is then present as well as staged, and what
 * is in the slot doesn't matter any more.  A discard takes it out of `staged`.
 *
 * A slot ends when its server acknowledged the pages (memx_evict_finish), or
 * when they are moved back (memx_evict_undo).
 *
 * Runs on the store thread.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include <sys/mman.h>
#include "evict.h"
#include "uffd.h"
#include "urgent.h"

#define BUSY_SKIPPED 16
#define HASHED_AT_ONCE 16 /* pages: some 10 us */
#define FRAMES_KEPT_NS 100000000ull

uint64_t memx_slot_drop_frames(MemxRegion *r, MemxSlot *slot)
{
    uint64_t n = memx_mask_pages(slot->frames);

    if (n) {
        madvise(slot->base, MEMX_GROUP_BYTES, MADV_DONTNEED);
        g_mutex_lock(&r->lock);
        slot->frames = 0;
        memx_budget_give_locked(r, n);
        g_mutex_unlock(&r->lock);
    }
    return n;
}

bool memx_chunk_idle(const MemxChunk *chunk)
{
    return !chunk->fetching && !chunk->installing &&
           !(chunk->flags & (MEMX_CHUNK_EXCLUSIVE | MEMX_CHUNK_MOVING));
}

/* Would pages in this queue find a server now? */
static bool queue_stores(MemxRegion *r, unsigned queue)
{
    return queue == MEMX_QUEUE_UNPLACED
           ? memx_place_locked(r, MEMX_CHUNK_NONE) >= 0
           : memx_server_stores(r, &r->server[queue - 1]);
}

/* A group of the chunk with pages to take and no slot in use; or -1. */
static int64_t group_of(MemxRegion *r, uint32_t c)
{
    uint64_t end = memx_group_end(&r->table, c);

    for (uint64_t g = memx_group_of_chunk(&r->table, c); g < end; g++) {
        if (r->table.present[g] &&
            !memx_staging_find(&r->staging, g, true) &&
            !memx_staging_find(&r->staging, g, false)) {
            return g;
        }
    }
    return -1;
}

/* The first of a queue's coldest chunks that can be taken now. */
static int64_t first_group(MemxRegion *r, unsigned queue)
{
    uint32_t c = memx_history_victim(&r->history, queue);

    for (unsigned i = 0; i < BUSY_SKIPPED && c != MEMX_CHUNK_NONE; i++) {
        int64_t g = memx_chunk_idle(&r->table.chunk[c]) ? group_of(r, c) : -1;

        if (g >= 0) {
            return g;
        }
        c = memx_history_after(&r->history, c);
    }
    return -1;
}

/* The coldest over all queues that store; equals take turns, which spreads
 * them over the servers. */
static MemxSlot *choose(MemxRegion *r)
{
    unsigned n = r->n_servers + 1;
    unsigned turn = r->queue_turn++;
    unsigned coldest = MEMX_HISTORY_RANKS;
    int64_t group = -1;
    MemxSlot *slot = NULL;

    for (unsigned i = 0; i < n; i++) {
        unsigned queue = (turn + i) % n;
        int64_t g = queue_stores(r, queue) ? first_group(r, queue) : -1;
        uint32_t c = g >= 0 ? memx_chunk_of_group(&r->table, g) : 0;

        if (g >= 0 && memx_history_rank(&r->history, c) < coldest) {
            coldest = memx_history_rank(&r->history, c);
            group = g;
        }
    }
    if (group >= 0) {
        slot = memx_staging_take(&r->staging, group, true);
    }
    if (slot) {
        uint32_t c = memx_chunk_of_group(&r->table, group);

        slot->mask = r->table.present[group];
        r->table.chunk[c].flags |= MEMX_CHUNK_EXCLUSIVE;
        r->table.chunk[c].evicted = MEMX_REFAULT_PERIODS;
        memx_history_evicted(&r->history, c);
        memx_slot_assign_locked(r, slot, r->table.chunk[c].server);
    }
    return slot;
}

void memx_slot_assign_locked(MemxRegion *r, MemxSlot *slot, unsigned server)
{
    if (slot->server != MEMX_SERVER_NONE) {
        r->server[slot->server].n_out--;
    }
    slot->server = server;
    if (server != MEMX_SERVER_NONE) {
        r->server[server].n_out++;
    }
}

uint64_t memx_move_pages(MemxRegion *r, uint8_t *dst, uint8_t *src,
                         uint64_t mask, unsigned flags)
{
    unsigned at = mask ? __builtin_ctzll(mask) : 0;
    unsigned end = mask ? 64 - __builtin_clzll(mask) : 0;
    uint64_t moved = 0;

    while (at < end) {
        uint64_t offset = (uint64_t)at * MEMX_PAGE_BYTES;
        ssize_t done = memx_uffd_move_sure(r->uffd, r->pagemap_fd,
                                           dst + offset, src + offset,
                                           (end - at) * MEMX_PAGE_BYTES,
                                           MEMX_MOVE_ALLOW_HOLES | flags);

        if (done > 0) {
            moved |= memx_run_mask(at, done / MEMX_PAGE_BYTES) & mask;
            at += done / MEMX_PAGE_BYTES;
        } else {
            at++; /* pinned or busy: it stays */
        }
    }
    return moved;
}

uint64_t memx_move_back(MemxRegion *r, MemxSlot *slot, uint64_t mask)
{
    uint64_t moved = 0;
    unsigned first, n;

    /* A run at a time: what lies between may have a frame here, too, but was
     * discarded since. */
    while (memx_next_run(&mask, &first, &n)) {
        moved |= memx_move_pages(r, memx_group_hva(r, slot->group),
                                 slot->base, memx_run_mask(first, n), 0);
    }
    return moved;
}

MemxSlot *memx_evict_take(MemxRegion *r)
{
    uint64_t mask, moved, g, touched = 0, known = 0;
    bool wanted, peeks;
    MemxSlot *slot;
    uint32_t c;

    g_mutex_lock(&r->lock);
    slot = choose(r);
    peeks = slot && memx_prefetched_peeks_locked(r, slot->group);
    g_mutex_unlock(&r->lock);
    if (!slot) {
        return NULL;
    }
    memx_slot_drop_frames(r, slot); /* MOVE needs the slot empty */
    g = slot->group;
    c = memx_chunk_of_group(&r->table, g);
    mask = slot->mask; /* still so: the chunk is exclusive */
    if (peeks) {
        touched = memx_ager_peek(r->ager, 0, g, &known);
    }
    moved = memx_move_pages(r, slot->base, memx_group_hva(r, g), mask,
                       MEMX_MOVE_DONTWAKE);

    g_mutex_lock(&r->lock);
    memx_set_group_locked(r, g, mask & ~moved, r->table.stored[g]);
    memx_trace_pages(MEMX_LOCAL_TO_STAGED, moved & ~r->table.stored[g]);
    memx_trace_pages(MEMX_KEPT_TO_STAGED, moved & r->table.stored[g]);
    memx_trace_pages(MEMX_LOCAL_REFUSED, mask & ~moved);
    slot->staged = slot->frames = moved;
    slot->state = MEMX_SLOT_STAGED;
    r->count.evicted += memx_mask_pages(moved);
    memx_prefetched_left_locked(r, g, moved, touched, known);
    r->count.busy += memx_mask_pages(mask & ~moved);
    if (mask & ~moved) {
        memx_history_touch(&r->history, c); /* in use: another one first */
    }
    wanted = memx_exclusive_end_locked(r, c);
    g_mutex_unlock(&r->lock);
    if (wanted) {
        memx_wake_chunk(r, c);
    }
    return slot;
}

void memx_evict_prepare(MemxRegion *r, MemxSlot *slot)
{
    slot->zero = slot->hashed = slot->same = 0;
    for (uint64_t m = slot->frames; m; m &= m - 1) {
        unsigned i = __builtin_ctzll(m);
        uint8_t *page = slot->base + i * MEMX_PAGE_BYTES;

        if (i % HASHED_AT_ONCE == 0) {
            memx_thread_yield();
        }
        if (memx_page_is_zero(page)) {
            slot->zero |= 1ull << i;
        } else if (r->keep_copies != MEMX_KEEP_COPIES_OFF &&
                   memx_page_hash(r->hash, page,
                                  slot->hash + i * MEMX_HASH_BYTES)) {
            slot->hashed |= 1ull << i;
        } else {
            memset(slot->hash + i * MEMX_HASH_BYTES, 0, MEMX_HASH_BYTES);
        }
    }
    slot->prepared = true;
}

/* Prefetch needs frames, many of them. */
static bool streams_locked(const MemxRegion *r)
{
    return memx_now_ns() - r->stream_ns < FRAMES_KEPT_NS;
}

static void release(MemxRegion *r, MemxSlot *slot)
{
    bool keep;

    g_mutex_lock(&r->lock);
    if (slot->users) {
        slot->state = MEMX_SLOT_DONE;
        g_mutex_unlock(&r->lock);
        return;
    }
    /* Frames are worth keeping only while prefetch receives into them, and
     * not too many: what is kept is room that more has to be evicted for. */
    keep = !r->starved && r->held <= r->limit && streams_locked(r) &&
           r->staging.free_frames + memx_mask_pages(slot->frames) <= r->low;
    g_mutex_unlock(&r->lock);
    if (!keep) {
        memx_slot_drop_frames(r, slot);
    }
    g_mutex_lock(&r->lock);
    memx_slot_assign_locked(r, slot, MEMX_SERVER_NONE);
    memx_staging_put(&r->staging, slot);
    if (r->prefetch_n) {
        memx_worker_ring(&r->fetch);
    }
    g_mutex_unlock(&r->lock);
}

void memx_evict_finish(MemxRegion *r, MemxSlot *slot)
{
    MemxPageTable *t = &r->table;
    uint64_t g = slot->group;
    uint32_t c = memx_chunk_of_group(t, g);
    uint64_t gone, present, before, stored, on_server;

    g_mutex_lock(&r->lock);
    if (slot->state == MEMX_SLOT_DONE) {
        g_mutex_unlock(&r->lock);
        release(r, slot);
        return;
    }
    present = t->present[g];
    before = t->stored[g];
    on_server = (slot->sending | slot->same) & slot->staged;
    gone = slot->zero & slot->staged;
    if (r->keep_copies == MEMX_KEEP_COPIES_OFF && !r->out) {
        gone |= on_server & present; /* came back meanwhile */
    }
    stored = (before | on_server) & ~gone;
    /* What a server holds in vain: zero pages, discarded ones. */
    if ((before | slot->spared) & ~stored) {
        memx_trim_set(t, c);
    }
    memx_set_group_locked(r, g, present, stored);
    memx_trace_pages(MEMX_STAGED_TO_REMOTE,
                     slot->sending & slot->staged & ~present);
    memx_trace_pages(MEMX_STAGED_UNCHANGED,
                     slot->same & slot->staged & ~present);
    memx_trace_pages(MEMX_STAGED_TO_NEVER,
                     slot->zero & slot->staged & ~present);
    r->count.zero += memx_mask_pages(slot->zero & slot->staged);
    r->count.unchanged += memx_mask_pages(slot->same & slot->staged);
    /* Nothing is on its way any more, so trims need not spare it; somebody may
     * copy from the slot for a while yet. */
    slot->staged = slot->spared = 0;
    g_mutex_unlock(&r->lock);
    release(r, slot);
}

bool memx_evict_undo(MemxRegion *r, MemxSlot *slot)
{
    MemxPageTable *t = &r->table;
    uint64_t g = slot->group;
    uint32_t c = memx_chunk_of_group(t, g);
    MemxChunk *chunk = &t->chunk[c];
    uint64_t mask, moved;
    bool wanted, done;

    g_mutex_lock(&r->lock);
    if (slot->users || chunk->installing || memx_chunk_exclusive(chunk)) {
        g_mutex_unlock(&r->lock);
        return false;
    }
    chunk->flags |= MEMX_CHUNK_EXCLUSIVE;
    mask = slot->staged & ~t->present[g];
    g_mutex_unlock(&r->lock);

    moved = memx_move_back(r, slot, mask);

    g_mutex_lock(&r->lock);
    slot->frames &= ~moved;
    slot->staged &= ~moved;
    memx_set_group_locked(r, g, t->present[g] | moved, t->stored[g]);
    memx_trace_pages(MEMX_STAGED_UNDONE, moved);
    done = !(slot->staged & ~t->present[g]);
    if (done) {
        /* A store whose answer was lost may have left pages on the server. */
        if (slot->spared & ~t->stored[g]) {
            memx_trim_set(t, c);
        }
        slot->staged = 0;
    }
    wanted = memx_exclusive_end_locked(r, c);
    memx_history_touch(&r->history, c);
    g_mutex_unlock(&r->lock);
    if (wanted || moved) {
        memx_wake_chunk(r, c);
    }
    if (done) {
        release(r, slot);
    }
    return done;
}

uint64_t memx_evict_free_frames(MemxRegion *r, bool all)
{
    uint64_t freed = 0;
    bool any;

    g_mutex_lock(&r->lock);
    any = r->staging.free_frames && (all || !streams_locked(r));
    g_mutex_unlock(&r->lock);
    if (!any) {
        return 0;
    }
    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[i];
        bool take;

        g_mutex_lock(&r->lock);
        take = slot->state == MEMX_SLOT_FREE && slot->frames;
        if (take) {
            memx_staging_take_slot(&r->staging, slot);
        }
        g_mutex_unlock(&r->lock);
        if (take) {
            freed += memx_slot_drop_frames(r, slot);
            g_mutex_lock(&r->lock);
            memx_staging_put_slot(&r->staging, slot);
            g_mutex_unlock(&r->lock);
        }
    }
    return freed;
}
