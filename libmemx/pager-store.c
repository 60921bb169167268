/*
 * The store thread: all that changes what servers hold.
 *
 * Theory of operation
 *
 * It owns the ORDERED lanes.  For a chunk everything goes over one of them,
 * in order, so that a page stored later can't be overtaken by its older self.
 *
 *   slots     evicted groups (evict.c).  Pages of which the server may still
 *             have the same content are COMPAREd first; what differs is
 *             STOREd; then the slot is finished.  When a lane breaks, its
 *             slots are moved back into the guest: pages must not wait in
 *             staging for a server that may be gone for long.
 *   trims     chunks of which a server holds pages in vain (released,
 *             discarded, zero by now, or of a store whose answer was lost):
 *             a DROP per group of all that isn't stored.  What is to be
 *             dropped is computed when it is sent, so a trim can be repeated
 *             at any time and needs no queue that could grow.
 *   controls  reservations, for an API thread that waits.
 *   moves     chunks that change their server: move.c.
 *   blind     chunk history goes by faults when looks come too late: ageing.c.
 *   pings     once a second on a lane that is idle: so a server's free memory
 *             is known, and a server that stopped answering is noticed.
 *
 * Kept copies give way first: they are given up when a server gets short of
 * room (it also says so, in the free memory of its replies, when it had to
 * refuse somebody), and when it refuses a store.  A server without room for
 * us gets no pages; chunks of the others are evicted meanwhile.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <string.h>
#include "evict.h"
#include "uffd.h"
#include "urgent.h"

#define KEPT_SLICE_GROUPS 1024
#define KEPT_RELEASE_PAGES 512
#define TRIM_SLICE_CHUNKS 1024
#define IDLE_MS 200
#define RETRY_MS 5
#define PINNED_MAX 16

static void pack_hashes(MemxSlot *slot, uint64_t mask)
{
    uint8_t *to = slot->body;

    for (; mask; mask &= mask - 1) {
        memcpy(to, slot->hash + __builtin_ctzll(mask) * MEMX_HASH_BYTES,
               MEMX_HASH_BYTES);
        to += MEMX_HASH_BYTES;
    }
}

static bool send_slot(MemxRegion *r, MemxSlot *slot, uint16_t opcode,
                      uint64_t mask)
{
    bool store = opcode == MEMX_OP_STORE;
    unsigned pages = memx_mask_pages(mask);

    pack_hashes(slot, mask);
    slot->call = (MemxCall) {
        .request = { .opcode = opcode, .group = slot->group, .mask = mask,
                     .body_bytes = pages * MEMX_HASH_BYTES,
                     .payload_bytes = store ? pages * MEMX_PAGE_BYTES : 0 },
        .body = slot->body,
        .out = store ? slot->iov : NULL,
        .n_out = store ? memx_slot_iov(slot, mask) : 0,
        .owner = slot,
    };
    return !memx_lane_submit(r, &r->server[slot->server], MEMX_LANE_ORDERED,
                             &slot->call);
}

static bool slot_stores(MemxRegion *r, MemxSlot *slot)
{
    MemxServer *s = &r->server[slot->server];

    return s->lane[MEMX_LANE_ORDERED].up && !s->full && s->told &&
           s->health != MEMX_SERVER_EMPTY;
}

/* The next step of a STAGED slot.  False: it must wait, or be undone. */
static bool slot_step(MemxRegion *r, MemxSlot *slot)
{
    MemxPageTable *t = &r->table;
    uint32_t c = memx_chunk_of_group(t, slot->group);
    uint64_t todo, compare;
    bool ok;

    if (!slot->prepared) {
        memx_evict_prepare(r, slot);
    }
    g_mutex_lock(&r->lock);
    slot->staged &= ~t->present[slot->group]; /* came back: no need to send */
    todo = slot->staged & ~slot->zero & ~slot->same;
    compare = todo & slot->hashed & t->stored[slot->group] & ~slot->asked;
    if (todo && t->chunk[c].server == MEMX_SERVER_NONE &&
        memx_place_locked(r, c) < 0) {
        g_mutex_unlock(&r->lock);
        return false;
    }
    if (slot->server == MEMX_SERVER_NONE) {
        memx_slot_assign_locked(r, slot, t->chunk[c].server);
    }
    /* It holds one of its server's slots already; what was compared is only
     * true while the server that said so is connected. */
    ok = !(todo | slot->same) || slot_stores(r, slot);
    if (ok && todo) {
        slot->state = compare ? MEMX_SLOT_COMPARING : MEMX_SLOT_STORING;
        slot->asked |= compare;
        slot->sending = compare ? 0 : todo;
        slot->spared |= compare | slot->sending;
    }
    g_mutex_unlock(&r->lock);
    if (!ok) {
        return false;
    }
    if (!todo) {
        slot->sending = 0;
        memx_evict_finish(r, slot);
        return true;
    }
    if (send_slot(r, slot, compare ? MEMX_OP_COMPARE : MEMX_OP_STORE,
                  compare ? compare : todo)) {
        return true;
    }
    g_mutex_lock(&r->lock);
    slot->state = MEMX_SLOT_STAGED;
    g_mutex_unlock(&r->lock);
    return false;
}

/* Gives up kept copies on a server: true if there were any. */
static bool release_kept(MemxRegion *r, MemxServer *s)
{
    MemxPageTable *t = &r->table;
    unsigned released = 0;
    uint64_t kept_pages;

    g_mutex_lock(&r->lock);
    kept_pages = s->kept_pages;
    g_mutex_unlock(&r->lock);
    for (uint64_t seen = 0; seen < t->n_groups && released < kept_pages &&
         released < KEPT_RELEASE_PAGES; seen += KEPT_SLICE_GROUPS) {
        g_mutex_lock(&r->lock);
        for (unsigned i = 0; i < KEPT_SLICE_GROUPS; i++) {
            uint64_t g = s->kept_cursor++ % t->n_groups;
            uint64_t kept = t->present[g] & t->stored[g] &
                            ~memx_out_handed_locked(r, g);
            uint32_t c = memx_chunk_of_group(t, g);

            if (kept && t->chunk[c].server == s->index) {
                memx_trace_pages(MEMX_KEPT_RELEASED, kept);
                memx_set_group_locked(r, g, t->present[g],
                                      t->stored[g] & ~kept);
                memx_trim_set(t, c);
                released += memx_mask_pages(kept);
            }
        }
        g_mutex_unlock(&r->lock);
    }
    return released;
}

/* Gives up some copies where a server is short of room, and all of them when
 * nothing is to be evicted any more. */
static void give_way(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        bool now;

        g_mutex_lock(&r->lock);
        now = s->lane[MEMX_LANE_ORDERED].up && s->kept_pages && !s->n_drops &&
              s->told &&
              ((r->home && !r->out) ||
               s->free_pages < s->capacity_pages / MEMX_SHORT_PART / 2);
        g_mutex_unlock(&r->lock);
        if (now && !release_kept(r, s)) {
            memx_out_squeezed(r, s);
        }
    }
}

static void ping_idle(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        bool idle;

        g_mutex_lock(&r->lock);
        idle = s->lane[MEMX_LANE_ORDERED].up &&
               !s->lane[MEMX_LANE_ORDERED].in_flight &&
               memx_now_ns() - s->lane[MEMX_LANE_ORDERED].progress_ns >
               MEMX_PING_NS;
        g_mutex_unlock(&r->lock);
        if (idle) {
            s->ping = (MemxCall) { .request.opcode = MEMX_OP_PING };
            memx_lane_submit(r, s, MEMX_LANE_ORDERED, &s->ping);
        }
    }
}

/* Is there a chunk of which it is to drop something? */
static bool has_trims(MemxRegion *r, const MemxServer *s)
{
    const MemxPageTable *t = &r->table;
    bool any = false;

    for (uint32_t c = 0; c < t->n_chunks && !any; c += TRIM_SLICE_CHUNKS) {
        uint32_t end = MIN(c + TRIM_SLICE_CHUNKS, t->n_chunks);

        g_mutex_lock(&r->lock);
        any = r->trim_at < r->trim_end &&
              t->chunk[r->trim_chunk].server == s->index;
        for (uint32_t w = c / 64; w < (end + 63) / 64; w++) {
            for (uint64_t bits = t->trim[w]; bits; bits &= bits - 1) {
                any |= t->chunk[w * 64 + __builtin_ctzll(bits)].server ==
                       s->index;
            }
        }
        g_mutex_unlock(&r->lock);
    }
    return any;
}

bool memx_store_refused(MemxRegion *r, MemxServer *s)
{
    bool hope;

    g_mutex_lock(&r->lock);
    s->full = true;
    s->full_since_ns = memx_now_ns();
    g_mutex_unlock(&r->lock);
    if (release_kept(r, s)) {
        return true;
    }
    /* Not in what others are to drop: they may be away for long. */
    hope = s->n_drops || has_trims(r, s);
    g_mutex_lock(&r->lock);
    if (!hope && !s->full_told && s->remote_pages < s->reserved_pages) {
        s->full_told = true;
        memx_event_post_locked(r, MEMX_EVENT_POOL_FULL, s->index);
    }
    g_mutex_unlock(&r->lock);
    return hope;
}

static void slot_refused(MemxRegion *r, MemxSlot *slot, unsigned error)
{
    MemxServer *s = &r->server[slot->server];

    g_mutex_lock(&r->lock);
    slot->state = MEMX_SLOT_STAGED;
    slot->sending = 0;
    g_mutex_unlock(&r->lock);
    if (error != MEMX_ERR_FULL) {
        memx_channel_shutdown(s->lane[MEMX_LANE_ORDERED].channel);
        return;
    }
    memx_store_refused(r, s);
}

static void slot_answered(MemxRegion *r, MemxSlot *slot)
{
    if (slot->call.status || slot->call.reply.error) {
        if (!slot->call.status) {
            slot_refused(r, slot, slot->call.reply.error);
            return;
        }
        g_mutex_lock(&r->lock);
        slot->state = MEMX_SLOT_STAGED; /* `sending` tells what may be there */
        g_mutex_unlock(&r->lock);
    } else if (slot->call.request.opcode == MEMX_OP_COMPARE) {
        slot->same |= slot->call.request.mask & ~slot->call.reply.mask;
        g_mutex_lock(&r->lock);
        slot->state = MEMX_SLOT_STAGED;
        g_mutex_unlock(&r->lock);
        slot_step(r, slot);
    } else {
        g_mutex_lock(&r->lock);
        r->server[slot->server].full_told = false;
        g_mutex_unlock(&r->lock);
        memx_evict_finish(r, slot);
    }
}

static void drop_answered(MemxRegion *r, MemxDrop *drop)
{
    MemxServer *s = &r->server[drop->server];

    drop->busy = false;
    s->n_drops--;
    r->n_drops--;
    g_mutex_lock(&r->lock);
    if (drop->call.status || drop->call.reply.error) {
        memx_trim_set(&r->table, drop->chunk);
    } else {
        s->full = false;
    }
    g_mutex_unlock(&r->lock);
}

/* The pages of a group that its server has no reason to hold.  What it was
 * asked about or sent may have one, and the slot's end sees to that; what is
 * still to be sent goes out behind the DROP. */
static uint64_t in_vain_locked(MemxRegion *r, uint64_t g)
{
    MemxSlot *slot = memx_staging_find(&r->staging, g, true);
    uint64_t mask = memx_group_mask(&r->table, g) & ~r->table.stored[g];

    return slot ? mask & ~slot->spared : mask;
}

static bool trim_group(MemxRegion *r, MemxServer *s, uint32_t c, uint64_t g)
{
    MemxDrop *drop = r->drop;
    uint64_t mask;

    while (drop->busy) {
        drop++;
    }
    g_mutex_lock(&r->lock);
    mask = in_vain_locked(r, g);
    g_mutex_unlock(&r->lock);
    if (!mask) {
        return true;
    }
    drop->chunk = c;
    drop->server = s->index;
    drop->call = (MemxCall) {
        .request = { .opcode = MEMX_OP_DROP, .group = g, .mask = mask },
        .owner = drop,
    };
    if (memx_lane_submit(r, s, MEMX_LANE_ORDERED, &drop->call)) {
        return false;
    }
    drop->busy = true;
    s->n_drops++;
    r->n_drops++;
    return true;
}

/* One that doesn't answer must not take all drops. */
static bool drops_now(const MemxRegion *r, const MemxServer *s)
{
    return s->lane[MEMX_LANE_ORDERED].up && s->health == MEMX_SERVER_UP &&
           s->told && s->n_drops < MEMX_DROPS_MAX * 2 / (r->n_servers + 1);
}

/* Goes on to the next chunk to trim; one whose server can't be told now is
 * put back.  False: there is none. */
static bool trim_next(MemxRegion *r)
{
    uint32_t c;
    bool ok;

    g_mutex_lock(&r->lock);
    c = memx_trim_take(&r->table);
    ok = c != UINT32_MAX && r->table.chunk[c].server != MEMX_SERVER_NONE;
    if (ok && r->table.chunk[c].flags & MEMX_CHUNK_MOVING) {
        memx_trim_set(&r->table, c); /* on the server where it is then */
        ok = false;
    } else if (ok && !drops_now(r, &r->server[r->table.chunk[c].server])) {
        memx_trim_set(&r->table, c); /* when it answers again */
        ok = false;
    }
    g_mutex_unlock(&r->lock);
    if (ok) {
        r->trim_chunk = c;
        r->trim_at = memx_group_of_chunk(&r->table, c);
        r->trim_end = memx_group_end(&r->table, c);
    }
    return c != UINT32_MAX;
}

/* The rest of the current chunk.  False: no more drops may go out now. */
static bool trim_rest(MemxRegion *r)
{
    MemxServer *s = &r->server[r->table.chunk[r->trim_chunk].server];

    while (r->trim_at < r->trim_end) {
        bool ok, wait;

        g_mutex_lock(&r->lock);
        ok = drops_now(r, s) && r->n_drops < MEMX_DROPS_MAX;
        wait = s->health == MEMX_SERVER_UP;
        g_mutex_unlock(&r->lock);
        if (!ok && wait) {
            return false; /* goes on here when some were answered */
        }
        if (!ok || !trim_group(r, s, r->trim_chunk, r->trim_at++)) {
            g_mutex_lock(&r->lock);
            memx_trim_set(&r->table, r->trim_chunk);
            g_mutex_unlock(&r->lock);
            r->trim_at = r->trim_end;
        }
    }
    return true;
}

/* Once round, whatever is put back meanwhile: which servers can be told may
 * change at any moment, and answers that say so wait for this thread. */
static void trims(MemxRegion *r)
{
    uint32_t left;

    g_mutex_lock(&r->lock);
    left = r->table.n_trim;
    g_mutex_unlock(&r->lock);
    for (;; left--) {
        if (r->trim_at < r->trim_end && !trim_rest(r)) {
            return;
        }
        if (!left || !trim_next(r)) {
            return;
        }
    }
}

static void control_done(MemxRegion *r, MemxControl *control, int status,
                         unsigned error)
{
    g_mutex_lock(&r->lock);
    for (MemxControl **at = &r->control_sent; *at; at = &(*at)->next) {
        if (*at == control) {
            *at = control->next;
            break;
        }
    }
    control->status = status;
    control->error = error;
    control->done = true;
    if (control->opcode == MEMX_OP_OFFER && !status && !error) {
        memx_out_offered_locked(r, control->server, control->body);
    } else if (control->opcode == MEMX_OP_CLOSE && !status && !error) {
        r->server[control->server].left_behind = false;
    }
    if (control->abandoned) {
        g_free(control);
    }
    memx_changed_locked(r);
    g_mutex_unlock(&r->lock);
}

static void controls(MemxRegion *r)
{
    for (;;) {
        MemxControl *control;
        int err;

        g_mutex_lock(&r->lock);
        control = r->control;
        if (control) {
            r->control = control->next;
            control->next = r->control_sent;
            r->control_sent = control;
        }
        g_mutex_unlock(&r->lock);
        if (!control) {
            return;
        }
        control->call = (MemxCall) {
            .request = { .opcode = control->opcode,
                         .group = control->reserve_pages,
                         .body_bytes = control->body_bytes },
            .body = control->body,
            .owner = control,
        };
        err = memx_lane_submit(r, &r->server[control->server],
                               MEMX_LANE_ORDERED, &control->call);
        g_mutex_lock(&r->lock);
        if (control->opcode == MEMX_OP_CLOSE) {
            memx_keeper_closed_locked(r, &r->server[control->server]);
        } else if (control->opcode == MEMX_OP_RESERVE && !err) {
            memx_reserve_sent_locked(&r->server[control->server],
                                     control->reserve_pages);
        }
        g_mutex_unlock(&r->lock);
        if (err) {
            control_done(r, control, err, 0);
        }
    }
}

static void answered(MemxRegion *r, MemxServer *s, MemxCall *call)
{
    MemxControl *control = call->owner;
    MemxMove *move = &r->move[s->index];

    if (call == &move->call || call == &move->drop) {
        memx_move_answered(r, s, call);
        return;
    }
    if (call == &s->tell) {
        memx_handover_told(r, s);
        return;
    }
    switch (call->request.opcode) {
    case MEMX_OP_DROP:
        drop_answered(r, call->owner);
        break;
    case MEMX_OP_PING:
        break;
    case MEMX_OP_STORE:
    case MEMX_OP_COMPARE:
        if (call->owner) {
            slot_answered(r, call->owner);
        } else {
            memx_out_answered(r, call);
        }
        break;
    case MEMX_OP_RESERVE:
        memx_reserve_answered(r, s, call);
        if (call == &s->reserve) {
            break;
        }
        /* fall through */
    default:
        control_done(r, control, call->status, call->reply.error);
    }
}

/* Slots that are not in flight.  True: some must be looked at again soon. */
static bool retry_slots(MemxRegion *r)
{
    bool again = false;

    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[i];
        bool staged, done;

        g_mutex_lock(&r->lock);
        staged = slot->state == MEMX_SLOT_STAGED;
        done = slot->state == MEMX_SLOT_DONE && !slot->users;
        g_mutex_unlock(&r->lock);
        if (done) {
            memx_evict_finish(r, slot);
        } else if (staged && !slot_step(r, slot) &&
                   !memx_evict_undo(r, slot)) {
            again = true;
        }
    }
    return again;
}

/* How many pages are still to be taken out, beyond those on their way. */
static int64_t wanted(MemxRegion *r)
{
    int64_t coming = 0, missing;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[i];

        if (memx_slot_is_out(slot) &&
            (slot->server == MEMX_SERVER_NONE ||
             r->server[slot->server].health == MEMX_SERVER_UP)) {
            coming += memx_mask_pages(slot->frames);
        }
    }
    missing = (int64_t)(r->held + (r->evicting ? r->high : r->low)) -
              (int64_t)r->limit;
    g_mutex_unlock(&r->lock);
    return missing - coming;
}

/* Frames that wait for prefetch are better given to threads that wait. */
static bool squeezed(MemxRegion *r)
{
    bool yes;

    g_mutex_lock(&r->lock);
    yes = r->starved || r->held > r->limit;
    g_mutex_unlock(&r->lock);
    return yes;
}

/* Room again: those who waited for it fault again. */
static void feed_starved(MemxRegion *r)
{
    bool wake = false;

    g_mutex_lock(&r->lock);
    if (r->starved && memx_free_pages(r) > 0) {
        r->starved = false;
        r->starved_since_ns = 0;
        wake = true;
    }
    if (r->prefetch_n && memx_free_pages(r) >= r->low) {
        memx_worker_ring(&r->fetch);
    }
    g_mutex_unlock(&r->lock);
    if (wake) {
        memx_wake_all(r);
    }
}

/* Nothing may change on the servers, or not by us. */
static bool quiet(MemxRegion *r)
{
    bool yes;

    g_mutex_lock(&r->lock);
    yes = r->quiet || r->side != MEMX_SIDE_OWNER;
    g_mutex_unlock(&r->lock);
    return yes;
}

/* Takes out what is wanted.  True: there is more, but not now. */
static bool evict(MemxRegion *r)
{
    unsigned nothing = 0;

    while (wanted(r) > 0 && !quiet(r)) {
        MemxSlot *slot;

        if (memx_evict_free_frames(r, squeezed(r))) {
            continue;
        }
        r->evicting = true;
        slot = memx_evict_take(r);
        if (!slot) {
            return true;
        }
        nothing += !slot->frames; /* all pinned */
        if (!slot_step(r, slot)) {
            memx_evict_undo(r, slot);
            return true;
        }
        if (nothing == PINNED_MAX || memx_stopping(r)) {
            return true;
        }
        feed_starved(r);
        memx_thread_yield();
    }
    r->evicting = false;
    return false;
}

/* The channel is gone, and with it perhaps what the server compared. */
static void forget_compares(MemxRegion *r, MemxServer *s)
{
    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[i];
        bool out;

        g_mutex_lock(&r->lock);
        out = memx_slot_is_out(slot);
        g_mutex_unlock(&r->lock);
        if (out && slot->server == s->index) {
            slot->same = slot->asked = 0;
        }
    }
}

static void lanes(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        uint64_t before = s->channels;
        MemxCall *call;

        while ((call = memx_lane_progress(r, s, MEMX_LANE_ORDERED))) {
            answered(r, s, call);
        }
        memx_lane_refresh(r, s, MEMX_LANE_ORDERED);
        if (s->channels != before) {
            forget_compares(r, s);
        }
        g_mutex_lock(&r->lock);
        if (s->full && memx_now_ns() - s->full_since_ns > MEMX_FULL_NS) {
            s->full = false;
        }
        g_mutex_unlock(&r->lock);
    }
}

void *memx_store_thread(void *opaque)
{
    MemxRegion *r = opaque;
    struct pollfd pfd[MEMX_LANE_POLL_MAX];
    int timeout_ms = IDLE_MS, push_ms;

    memx_thread_urgent();
    while (!memx_stopping(r)) {
        int n = memx_lane_poll(r, &r->store, MEMX_LANE_ORDERED, pfd);
        bool again;

        if (!poll(pfd, n, timeout_ms)) {
            memx_evict_free_frames(r, false);
        }
        if (pfd[0].revents) {
            memx_worker_silence(&r->store);
        }
        lanes(r);
        memx_handover_tell(r);
        memx_reserve_again(r);
        again = retry_slots(r);
        controls(r);
        ping_idle(r);
        push_ms = memx_out_push(r);
        if (!quiet(r)) {
            memx_ageing_blind(r);
            give_way(r);
            trims(r);
            again |= memx_moves(r);
            again |= evict(r);
        } else if (memx_out_needs_room(r)) {
            trims(r);
        }
        feed_starved(r);
        timeout_ms = MIN(again ? RETRY_MS : IDLE_MS, push_ms);
    }
    return NULL;
}
