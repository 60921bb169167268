/*
 * The books: what several of a region's threads do to the shared tables.
 * All of it under the region's lock, unless it says otherwise.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include "region.h"
#include "uffd.h"
#include "window.h"

#define HUGE_PART 64 /* of the local memory, at most, is kept free for one */

/* As wide as the counters: a difference below zero must not wrap at 2^32. */
static uint64_t pages(uint64_t mask)
{
    return memx_mask_pages(mask);
}

void memx_set_group_locked(MemxRegion *r, uint64_t group, uint64_t present,
                           uint64_t stored)
{
    MemxPageTable *t = &r->table;
    uint32_t c = memx_chunk_of_group(t, group);
    uint64_t old_present = t->present[group];
    uint64_t old_stored = t->stored[group];
    unsigned server = t->chunk[c].server;

    t->n_present += pages(present) - pages(old_present);
    t->n_stored += pages(stored) - pages(old_stored);
    if (server != MEMX_SERVER_NONE) {
        MemxServer *s = &r->server[server];

        s->remote_pages += pages(stored & ~present) -
                           pages(old_stored & ~old_present);
        s->kept_pages += pages(stored & present) -
                         pages(old_stored & old_present);
    }
    t->present[group] = present;
    t->stored[group] = stored;
    if (r->out && old_stored & ~stored) {
        memx_out_gone_locked(r, group, old_stored & ~stored);
    }
    if (!old_present && present) {
        memx_history_list(&r->history, c);
    } else if (old_present && !present && !memx_chunk_present_pages(t, c)) {
        memx_history_unlist(&r->history, c);
    }
}

uint64_t memx_low_watermark(uint64_t limit)
{
    /* At least what prefetch needs beyond its half: room_for_hint(). */
    return CLAMP(limit / 64, 4 * MEMX_GROUP_PAGES, 32 * MEMX_GROUP_PAGES);
}

void memx_limit_set_locked(MemxRegion *r, uint64_t local_bytes)
{
    r->limit = local_bytes / MEMX_PAGE_BYTES;
    r->home = r->limit >= r->table.n_pages;
    if (r->home) {
        r->limit += MEMX_FAULTS_MAX +
                    (uint64_t)r->staging.n_slots * MEMX_GROUP_PAGES;
        r->home_at = 0;
        r->low = r->high = 0;
    } else {
        r->low = memx_low_watermark(r->limit);
        r->high = 2 * r->low;
        if (r->huge && r->limit >= (uint64_t)MEMX_WINDOW_PAGES * HUGE_PART) {
            r->high += MEMX_WINDOW_PAGES; /* for the next huge page */
        }
    }
}

bool memx_budget_take_locked(MemxRegion *r, uint64_t n)
{
    /* While nothing may be evicted, whoever needs a page gets it: at a
     * switch-over that is what saving and loading devices reads. */
    bool ok = r->held + n <= r->limit || r->quiet ||
              r->side == MEMX_SIDE_HEIR;

    if (ok) {
        r->held += n;
    }
    if (memx_free_pages(r) < r->low) {
        memx_worker_ring(&r->store);
    }
    return ok;
}

void memx_budget_give_locked(MemxRegion *r, uint64_t n)
{
    g_assert(r->held >= n);
    r->held -= n;
    if (n && r->starved) {
        memx_worker_ring(&r->store);
    }
}

void memx_want_locked(MemxRegion *r, MemxChunk *chunk)
{
    chunk->flags |= MEMX_CHUNK_WANTED;
    if (r->windows_away) {
        memx_ager_ring(r->ager);
    }
}

void memx_starve_locked(MemxRegion *r)
{
    if (!r->starved) {
        r->starved = true;
        r->count.starved++;
    }
    r->n_starved++;
    if (!r->starved_since_ns) {
        r->starved_since_ns = memx_now_ns();
    }
    memx_worker_ring(&r->store);
}

void memx_answered_locked(MemxServer *s)
{
    if (s->waiting_since_ns && s->health != MEMX_SERVER_EMPTY &&
        !s->refused) {
        s->waiting_since_ns = memx_now_ns();
    }
}

void memx_waits_end_locked(MemxServer *s)
{
    if (!s->faults && !s->dropped && !s->waited_in && !s->refused) {
        s->waiting_since_ns = 0;
    }
}

void memx_slot_waited_locked(MemxServer *s, MemxSlot *slot, uint64_t mask,
                             uint64_t now)
{
    s->waited_in += !slot->waited;
    slot->waited |= mask;
    if (!s->waiting_since_ns) {
        s->waiting_since_ns = now;
    }
}

void memx_slot_unwaited_locked(MemxServer *s, MemxSlot *slot)
{
    s->waited_in -= slot->waited != 0;
    slot->waited = 0;
    memx_waits_end_locked(s);
}

unsigned memx_server_awaited_locked(const MemxRegion *r, const MemxServer *s)
{
    unsigned n = s->dropped;

    for (uint64_t m = s->faults ? r->fault_busy : 0; m; m &= m - 1) {
        unsigned i = __builtin_ctzll(m);
        uint64_t page = r->fault_page[i];

        n += r->fault[i].server == s->index &&
             memx_remote_of(r, page / MEMX_GROUP_PAGES,
                            1ull << page % MEMX_GROUP_PAGES);
    }
    for (unsigned i = 0; s->waited_in && i < r->staging.n_slots; i++) {
        const MemxSlot *slot = &r->staging.slot[i];

        n += slot->waited && slot->server == s->index &&
             memx_remote_of(r, slot->group, slot->waited);
    }
    return n;
}

void memx_changed_locked(MemxRegion *r)
{
    if (r->n_waiting) {
        g_cond_broadcast(&r->changed);
    }
}

bool memx_exclusive_end_locked(MemxRegion *r, uint32_t chunk)
{
    MemxChunk *c = &r->table.chunk[chunk];
    bool wanted = c->flags & MEMX_CHUNK_WANTED;

    c->flags &= ~(MEMX_CHUNK_EXCLUSIVE | MEMX_CHUNK_WANTED);
    memx_changed_locked(r);
    return wanted;
}

void memx_installing_end_locked(MemxRegion *r, uint32_t chunk)
{
    MemxChunk *c = &r->table.chunk[chunk];

    g_assert(c->installing > 0);
    if (!--c->installing) {
        memx_changed_locked(r);
    }
}

void memx_chunk_faulted_locked(MemxRegion *r, uint32_t c)
{
    if (!r->tracked) {
        memx_history_touch(&r->history, c);
        return;
    }
    /* The period's end makes more of it. */
    r->entered += memx_history_enter(&r->history, c);
    r->table.chunk[c].touched = 1;
}

void memx_installed_locked(MemxRegion *r, uint64_t group, uint64_t mask)
{
    MemxPageTable *t = &r->table;
    uint32_t c = memx_chunk_of_group(t, group);
    MemxServer *s = &r->server[t->chunk[c].server];
    bool keep = r->out || r->side != MEMX_SIDE_OWNER ||
                (!r->home &&
                 (r->keep_copies == MEMX_KEEP_COPIES_ON ||
                  (r->keep_copies == MEMX_KEEP_COPIES_AUTO &&
                   s->free_pages > s->capacity_pages / MEMX_SHORT_PART)));

    memx_set_group_locked(r, group, t->present[group] | mask,
                          t->stored[group] & ~(keep ? 0 : mask));
    if (!keep) {
        memx_trim_set(t, c);
        if (t->n_trim >= 16) {
            memx_worker_ring(&r->store);
        }
    }
}

/*
 * A server may hold so many chunks as its part of the reservation stands for:
 * then, whatever is evicted, pages that must leave always find a chunk whose
 * server still has reserved room (docs/architecture.md, "Placement").
 */
int memx_place_locked(MemxRegion *r, uint32_t chunk)
{
    int best = -1;
    uint64_t best_cost = UINT64_MAX;

    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        uint64_t cost;

        if (!memx_server_stores(r, s) || s->n_chunks >= s->chunk_quota) {
            continue;
        }
        cost = (uint64_t)s->n_chunks * 1000 / s->chunk_quota +
               4 * s->lane[MEMX_LANE_ORDERED].in_flight +
               s->load_permille / 10 +
               (s->health == MEMX_SERVER_STALLED ? 100000 : 0);
        if (cost < best_cost) {
            best_cost = cost;
            best = i;
        }
    }
    if (best >= 0 && chunk != MEMX_CHUNK_NONE) {
        r->table.chunk[chunk].server = best;
        r->server[best].n_chunks++;
        memx_history_move(&r->history, chunk, best + 1);
        memx_out_placed_locked(r, chunk);
    }
    return best;
}

/* What is to be delivered is a state, not a queue: nothing can overflow, and
 * what has been overtaken is not said any more. */
void memx_event_post_locked(MemxRegion *r, MemxEventType type, int server)
{
    uint32_t bit = 1u << (server < 0 ? MEMX_EVENT_NO_SERVER : server);

    r->events[type] |= bit;
    if (type == MEMX_EVENT_SERVER_LOST || type == MEMX_EVENT_SERVER_EMPTY) {
        r->events[MEMX_EVENT_SERVER_BACK] &= ~bit;
    } else if (type == MEMX_EVENT_SERVER_BACK) {
        r->events[MEMX_EVENT_SERVER_EMPTY] &= ~bit;
    } else if (type == MEMX_EVENT_STALLED) {
        r->events[MEMX_EVENT_RESUMED] = 0;
    }
    memx_worker_ring(&r->session);
}

void memx_wake_chunk(MemxRegion *r, uint32_t chunk)
{
    uint64_t start = (uint64_t)chunk * r->chunk_bytes;
    uint64_t end = MIN(start + r->chunk_bytes, r->size_bytes);

    memx_uffd_wake(r->uffd, r->base + start, end - start);
}

void memx_wake_all(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    r->n_starved = 0; /* who still must wait is counted anew */
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        s->dropped = 0;
        /* Else they will wait on: its clock is not begun anew for that. */
        if (s->lane[MEMX_LANE_FAULT].up && s->health != MEMX_SERVER_EMPTY) {
            memx_waits_end_locked(s);
        }
    }
    g_mutex_unlock(&r->lock);
    memx_uffd_wake(r->uffd, r->base, r->size_bytes);
}
