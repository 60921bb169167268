/*
 * The fetch thread: prefetch.
 *
 * Theory of operation
 *
 * The fault thread leaves hints, (group, pages), in a ring; old ones are
 * overwritten by new ones.  For each, as far as it still makes sense, pages
 * are requested on the server's FETCH lane into the frames of a staging slot,
 * several requests in flight, and then moved into the guest in runs.  Nobody
 * depends on it: a hint that can't be followed is dropped, an answer that is
 * no longer wanted thrown away.  But threads may have been left waiting for a
 * page that was about to come (coming_soon() in pager-fault.c), or about to be
 * asked for (memx_prefetch_hurry_locked()): whatever didn't come is woken, so
 * that it faults again.
 *
 * A page is filled by MOVE where the measurement at start found that faster
 * and the transport allows it, by COPY elsewhere.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include "region.h"
#include "uffd.h"

/* As much as that within such a time is a stream. */
#define STREAM_PAGES 1024
#define STREAM_NS 100000000ull
/* Hints that are looked at for a page that somebody waits for. */
#define HURRY_LOOK 16u
#define HURRY_LEAST 8u /* pages that it is worth while for */
#define HOME_MS 20
#define HOME_HINTS 16
#define HOME_SLICE_GROUPS 4096

void memx_prefetch_push_locked(MemxRegion *r, uint64_t group, uint64_t mask,
                               int direction)
{
    unsigned at;

    mask &= memx_group_mask(&r->table, group) & r->table.stored[group] &
            ~r->table.present[group];
    if (!mask) {
        return;
    }
    if (r->prefetch_n == MEMX_PREFETCH_QUEUE) {
        if (r->prefetch[r->prefetch_head].waited) {
            return;
        }
        r->prefetch_head = (r->prefetch_head + 1) % MEMX_PREFETCH_QUEUE;
        r->prefetch_n--;
    }
    at = (r->prefetch_head + r->prefetch_n++) % MEMX_PREFETCH_QUEUE;
    r->prefetch[at] = (MemxPrefetch) {
        .group = group, .mask = mask, .direction = direction
    };
    memx_worker_ring(&r->fetch);
}

static bool fill_moves(MemxRegion *r, MemxServer *s)
{
    return r->fill_by_move &&
           s->peer->transport->flags & MEMX_TRANSPORT_RECV_MOVABLE;
}

/* Other threads that wait come before a hint: they keep half of what is free;
 * less of it where a thread waits for the hint itself. */
static uint64_t room_for_hint(MemxRegion *r, bool waited)
{
    uint64_t kept = r->low / (waited ? 8 : 2);

    return memx_free_pages(r) > kept ? memx_free_pages(r) - kept : 0;
}

static MemxPrefetch *hint_at(MemxRegion *r, unsigned i)
{
    return &r->prefetch[(r->prefetch_head + i) % MEMX_PREFETCH_QUEUE];
}

/* As many pages of a hint as there is room for, from @page on; 0: too few. */
static uint64_t part_of_hint(MemxRegion *r, MemxServer *s,
                             const MemxPrefetch *hint, uint64_t page)
{
    uint64_t room = room_for_hint(r, true) / (fill_moves(r, s) ? 1 : 2), part;
    unsigned at = page % MEMX_GROUP_PAGES;

    if (room >= memx_mask_pages(hint->mask)) {
        return hint->mask;
    }
    if (room < HURRY_LEAST) {
        return 0;
    }
    part = hint->mask & (hint->direction < 0
                         ? memx_run_mask(at >= room ? at - room + 1 : 0,
                                         MIN(at + 1, room))
                         : memx_run_mask(at, MIN(room, MEMX_GROUP_PAGES - at)));
    return memx_mask_pages(part) >= HURRY_LEAST ? part : 0;
}

/* What isn't in @part stays where it is. */
static void to_the_front(MemxRegion *r, unsigned i, uint64_t part)
{
    MemxPrefetch hint = *hint_at(r, i);

    if (part == hint.mask) {
        for (; i; i--) {
            *hint_at(r, i) = *hint_at(r, i - 1);
        }
    } else {
        hint_at(r, i)->mask &= ~part;
        r->prefetch_head = (r->prefetch_head + MEMX_PREFETCH_QUEUE - 1) %
                           MEMX_PREFETCH_QUEUE;
        r->prefetch_n++;
    }
    hint.mask = part;
    *hint_at(r, 0) = hint;
}

/* Only the first hint is ever waited for, and never one that take_slot() can't
 * follow: else who waits would be woken, and come here again, in vain. */
MemxHint memx_prefetch_hurry_locked(MemxRegion *r, MemxServer *s,
                                    uint64_t page)
{
    const MemxLaneState *l = &s->lane[MEMX_LANE_FETCH];
    uint64_t group = page / MEMX_GROUP_PAGES, part;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    MemxSlot *in = memx_staging_find(&r->staging, group, false);
    unsigned i = 0, look = MIN(r->prefetch_n, HURRY_LOOK);

    while (i < look && (hint_at(r, i)->group != group ||
                        !(hint_at(r, i)->mask & bit))) {
        i++;
    }
    if (i == look) {
        return look < r->prefetch_n || (in && in->mask & bit)
               ? MEMX_HINT_QUEUED : MEMX_HINT_NONE;
    }
    if (hint_at(r, 0)->waited) {
        hint_at(r, 0)->waited |= i ? 0 : bit;
        return i ? MEMX_HINT_QUEUED : MEMX_HINT_FOLLOWED;
    }
    part = part_of_hint(r, s, hint_at(r, i), page);
    if (!part || in || !l->up || s->health != MEMX_SERVER_UP ||
        l->in_flight > 1 || !r->staging.n_free ||
        r->staging.n_in >= r->staging.in_max ||
        (part != hint_at(r, i)->mask &&
         r->prefetch_n == MEMX_PREFETCH_QUEUE)) {
        return MEMX_HINT_QUEUED;
    }
    to_the_front(r, i, part);
    hint_at(r, 0)->waited = bit;
    r->count.hurried++;
    memx_worker_ring(&r->fetch);
    return MEMX_HINT_FOLLOWED;
}

/* What of a hint is worth asking for now. */
static uint64_t worth(MemxRegion *r, const MemxPrefetch *hint)
{
    MemxPageTable *t = &r->table;
    MemxChunk *chunk = &t->chunk[memx_chunk_of_group(t, hint->group)];
    uint64_t mask = hint->mask & t->stored[hint->group] &
                    ~t->present[hint->group];
    MemxSlot *out = memx_staging_find(&r->staging, hint->group, true);
    MemxSlot *in = memx_staging_find(&r->staging, hint->group, false);
    MemxServer *s;

    mask &= in ? ~in->mask : UINT64_MAX;
    if (!mask || memx_chunk_exclusive(chunk)) {
        return 0;
    }
    s = &r->server[chunk->server];
    if (!s->lane[MEMX_LANE_FETCH].up || s->health != MEMX_SERVER_UP ||
        (r->n_servers > 1 && s->n_in > r->staging.in_max * 3 / 4)) {
        return 0; /* one server must not take all slots */
    }
    return out ? mask & ~out->staged : mask;
}

/* Frames for the pages of slot->mask that have none.  False: no memory. */
static bool populate(MemxRegion *r, MemxSlot *slot)
{
    uint64_t missing = slot->mask & ~slot->frames;
    uint64_t got = 0;
    unsigned first, n;

    while (memx_next_run(&missing, &first, &n)) {
        ssize_t done = memx_uffd_copy(r->uffd,
                                      slot->base + first * MEMX_PAGE_BYTES,
                                      r->zeros, n * MEMX_PAGE_BYTES, 0);

        if (done > 0) {
            got |= memx_run_mask(first, done / MEMX_PAGE_BYTES);
        }
    }
    g_mutex_lock(&r->lock);
    /* Budget was taken for all that were missing. */
    memx_budget_give_locked(r, memx_mask_pages(slot->mask & ~slot->frames &
                                               ~got));
    slot->frames |= got;
    g_mutex_unlock(&r->lock);
    return !(slot->mask & ~slot->frames);
}

/* Ends a request, whatever became of it. */
static void fetch_end(MemxRegion *r, MemxSlot *slot, uint64_t installed)
{
    uint32_t c = memx_chunk_of_group(&r->table, slot->group);
    uint64_t rest = slot->mask & ~installed;
    bool wake = rest;

    g_mutex_lock(&r->lock);
    r->count.prefetched += memx_mask_pages(installed);
    r->count.prefetch_wasted += memx_mask_pages(rest);
    memx_trace_pages(MEMX_FETCH_USELESS, rest);
    r->table.chunk[c].fetching--;
    if (memx_chunk_exclusive(&r->table.chunk[c])) {
        r->table.chunk[c].flags |= MEMX_CHUNK_WANTED;
        wake = false;
    }
    memx_slot_unwaited_locked(&r->server[slot->server], slot);
    r->server[slot->server].n_in--;
    slot->server = MEMX_SERVER_NONE;
    memx_staging_put(&r->staging, slot);
    g_mutex_unlock(&r->lock);
    if (wake) {
        memx_wake_chunk(r, c);
    }
}

static void used_locked(MemxRegion *r, unsigned pages)
{
    uint64_t now;

    r->fetch_used += pages;
    if (r->fetch_used >= STREAM_PAGES) {
        now = memx_now_ns();
        if (now - r->fetch_since_ns <= STREAM_NS) {
            r->stream_ns = now;
        }
        r->fetch_used = 0;
        r->fetch_since_ns = now;
    }
}

/* A slot for the pages of a hint that are worth it, unless there is no room. */
static MemxSlot *take_slot(MemxRegion *r, const MemxPrefetch *hint,
                           uint64_t mask)
{
    uint32_t c = memx_chunk_of_group(&r->table, hint->group);
    MemxServer *s = &r->server[r->table.chunk[c].server];
    MemxSlot *slot = memx_staging_take(&r->staging, hint->group, false);
    uint64_t need;

    if (!slot) {
        return NULL;
    }
    need = memx_mask_pages(mask & ~slot->frames);
    if (!fill_moves(r, s)) {
        need += memx_mask_pages(mask);
    }
    if (room_for_hint(r, hint->waited) < need ||
        !memx_budget_take_locked(r, need)) {
        memx_staging_put(&r->staging, slot);
        memx_worker_ring(&r->store);
        return NULL;
    }
    slot->mask = mask;
    slot->server = s->index;
    slot->direction = hint->direction;
    slot->sequence = s->lane[MEMX_LANE_FETCH].submitted + 1;
    s->n_in++;
    r->table.chunk[c].fetching++;
    if (hint->waited & mask) {
        memx_slot_waited_locked(s, slot, hint->waited & mask, memx_now_ns());
    }
    used_locked(r, memx_mask_pages(mask));
    if (hint->direction && r->tracked) {
        memx_history_enter(&r->history, c);
    } else if (hint->direction) {
        memx_history_touch(&r->history, c);
    }
    return slot;
}

/* Follows the first hint, or drops it, or puts it behind the others while its
 * group's other pages come (*slot is NULL then).  False: there is none, or no
 * room for it.  *wake: who waits for pages that it doesn't bring is to be
 * woken. */
static bool take_hint(MemxRegion *r, MemxSlot **slot, uint64_t *group,
                      bool *wake)
{
    MemxPrefetch hint = *hint_at(r, 0);
    uint64_t mask;
    bool later;

    *slot = NULL;
    *wake = false;
    if (!r->prefetch_n) {
        return false;
    }
    *group = hint.group;
    mask = worth(r, &hint);
    later = mask && memx_staging_find(&r->staging, hint.group, false);
    if (mask && !later) {
        *slot = take_slot(r, &hint, mask);
    }
    *wake = hint.waited & ~(*slot ? mask : 0);
    hint_at(r, 0)->waited = 0;
    if (mask && !later && !*slot) {
        return false;
    }
    r->prefetch_head = (r->prefetch_head + 1) % MEMX_PREFETCH_QUEUE;
    if (later) {
        hint.waited = 0;
        *hint_at(r, r->prefetch_n - 1) = hint;
    } else {
        r->prefetch_n--;
    }
    return true;
}

static void ask(MemxRegion *r, MemxSlot *slot)
{
    MemxServer *s = &r->server[slot->server];
    bool ok = populate(r, slot);

    if (ok) {
        slot->call = (MemxCall) {
            .request = { .opcode = MEMX_OP_FETCH, .group = slot->group,
                         .mask = slot->mask },
            .in = slot->iov, .n_in = memx_slot_iov(slot, slot->mask),
            .owner = slot,
        };
        ok = !memx_lane_submit(r, s, MEMX_LANE_FETCH, &slot->call);
    }
    if (!ok) {
        if (!fill_moves(r, s)) {
            g_mutex_lock(&r->lock);
            memx_budget_give_locked(r, memx_mask_pages(slot->mask));
            g_mutex_unlock(&r->lock);
        }
        fetch_end(r, slot, 0);
    }
}

/* Once round; those that come meanwhile ring. */
static void follow_hints(MemxRegion *r)
{
    unsigned left = MEMX_PREFETCH_QUEUE;
    bool more, wake;

    do {
        MemxSlot *slot;
        uint64_t group;

        g_mutex_lock(&r->lock);
        left = MIN(left, r->prefetch_n);
        more = take_hint(r, &slot, &group, &wake);
        g_mutex_unlock(&r->lock);
        if (wake) {
            memx_wake_chunk(r, memx_chunk_of_group(&r->table, group));
        }
        if (slot) {
            ask(r, slot);
        }
    } while (more && left-- > 1);
}

/* Puts the pages of @mask into the guest; returns those that went in. */
static uint64_t fill(MemxRegion *r, MemxSlot *slot, uint64_t mask, bool move)
{
    uint8_t *guest = memx_group_hva(r, slot->group);
    uint64_t got = 0;
    unsigned first, n;

    while (memx_next_run(&mask, &first, &n)) {
        while (n) {
            uint64_t at = (uint64_t)first * MEMX_PAGE_BYTES;
            size_t bytes = (size_t)n * MEMX_PAGE_BYTES;
            ssize_t done = move
                ? memx_uffd_move_sure(r->uffd, r->pagemap_fd, guest + at,
                                      slot->base + at, bytes, 0)
                : memx_uffd_copy(r->uffd, guest + at, slot->base + at, bytes,
                                 0);
            /* One that is there already (EEXIST) is left out. */
            unsigned pages = done > 0 ? done / MEMX_PAGE_BYTES : 1;

            if (done > 0) {
                got |= memx_run_mask(first, pages);
            }
            first += pages;
            n -= pages;
        }
    }
    return got;
}

static void fetched(MemxRegion *r, MemxSlot *slot)
{
    MemxPageTable *t = &r->table;
    uint64_t g = slot->group;
    uint32_t c = memx_chunk_of_group(t, g);
    MemxServer *s = &r->server[slot->server];
    bool move = fill_moves(r, s);
    uint64_t mask = 0, got = 0;

    g_mutex_lock(&r->lock);
    if (!slot->call.status && !slot->call.reply.error &&
        !memx_chunk_exclusive(&t->chunk[c])) {
        mask = slot->mask & t->stored[g] & ~t->present[g];
    }
    if (mask) {
        t->chunk[c].installing++;
    }
    g_mutex_unlock(&r->lock);
    if (mask) {
        got = fill(r, slot, mask, move);
    }

    g_mutex_lock(&r->lock);
    if (got) {
        memx_trace_pages(MEMX_REMOTE_PREFETCHED, got);
        memx_installed_locked(r, g, got);
        memx_prefetched_locked(r, g, got, slot->direction, move);
    }
    /* Not before: until now others may have been left waiting for it. */
    memx_slot_unwaited_locked(s, slot);
    if (!slot->call.status && !slot->call.reply.error) {
        memx_answered_locked(s);
    }
    if (mask) {
        memx_installing_end_locked(r, c);
    }
    if (move) {
        slot->frames &= ~got;
    } else {
        memx_budget_give_locked(r, memx_mask_pages(slot->mask & ~got));
    }
    g_mutex_unlock(&r->lock);
    fetch_end(r, slot, got);
}

/* Is the group to come now, of itself?  What is in use comes first: home in a
 * first round; to a VM that has just migrated while there is room which isn't
 * kept for faults. */
static bool due(MemxRegion *r, uint64_t g, bool first)
{
    uint32_t c = memx_chunk_of_group(&r->table, g);
    bool hot = memx_history_value(&r->history, c) >= MEMX_HISTORY_NEW;

    return r->home ? hot || !first
           : hot && memx_free_pages(r) >= r->high + 2 * MEMX_GROUP_PAGES;
}

/* Hints for remote groups that nobody has asked for, a few at a time, behind
 * those for which somebody may wait.  Milliseconds until it is worth looking
 * again; -1: nothing is left to come. */
static int bring(MemxRegion *r)
{
    MemxPageTable *t = &r->table;
    uint64_t remote = 0, *at;

    g_mutex_lock(&r->lock);
    at = r->home ? &r->home_at : &r->warm_at;
    for (unsigned i = 0; i < r->n_servers; i++) {
        remote += r->server[i].remote_pages;
    }
    if ((!r->home && r->warm_at >= t->n_groups) || !remote || r->quiet ||
        r->side != MEMX_SIDE_OWNER) {
        g_mutex_unlock(&r->lock);
        return -1;
    }
    for (unsigned i = 0; i < HOME_SLICE_GROUPS &&
         r->prefetch_n < HOME_HINTS; i++) {
        uint64_t g = (*at)++ % t->n_groups;

        if (due(r, g, *at <= t->n_groups)) {
            memx_prefetch_push_locked(r, g, t->stored[g] & ~t->present[g],
                                      0);
        }
        if (!r->home && *at >= t->n_groups) {
            break; /* once */
        }
    }
    g_mutex_unlock(&r->lock);
    return HOME_MS;
}

void *memx_fetch_thread(void *opaque)
{
    MemxRegion *r = opaque;
    struct pollfd pfd[MEMX_LANE_POLL_MAX];
    int timeout_ms = -1;

    while (!memx_stopping(r)) {
        int n = memx_lane_poll(r, &r->fetch, MEMX_LANE_FETCH, pfd);

        poll(pfd, n, timeout_ms);
        if (pfd[0].revents) {
            memx_worker_silence(&r->fetch);
        }
        for (unsigned i = 0; i < r->n_servers; i++) {
            MemxServer *s = &r->server[i];
            MemxCall *call;

            while ((call = memx_lane_progress(r, s, MEMX_LANE_FETCH))) {
                fetched(r, call->owner);
            }
            memx_lane_refresh(r, s, MEMX_LANE_FETCH);
        }
        timeout_ms = bring(r);
        follow_hints(r);
    }
    return NULL;
}
