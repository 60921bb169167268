/*
 * The store thread's part of a split: cold pages to their servers.
 *
 * A group at a time is copied out of the guest while its chunk can't leave,
 * hashed, and stored on the ordered lane.  What is marked for sending is
 * unmarked before it is read (see split-out.h), and marked again if the server
 * didn't get it.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <limits.h>
#include <string.h>
#include "split-out.h"

#define RETRY_MS 5
#define BURST_NS 50000000ull    /* so much of the rate may go at once */
#define TRIES 64                /* chunks looked at for one that can go */

/* What a group has to send, and is here: unmarked.  The rest is settled, or
 * left marked when it can't be read now: *blocked. */
static uint64_t claim_locked(MemxRegion *r, uint64_t g, bool *blocked)
{
    MemxSplitOut *out = r->out;
    MemxPageTable *t = &r->table;
    MemxChunk *chunk = &t->chunk[memx_chunk_of_group(t, g)];
    uint64_t todo = out->todo[g], away = todo & ~t->present[g];

    if (!todo) {
        return 0;
    }
    if (memx_chunk_exclusive(chunk) || (away && chunk->installing) ||
        memx_staging_find(&r->staging, g, true)) {
        *blocked = true;
        return 0;
    }
    memx_out_todo_locked(r, g, 0);
    memx_out_set_locked(r, g, out->handed[g] | (away & t->stored[g]),
                        out->main[g] & ~away);
    return todo & t->present[g];
}

/* The next chunk that is due at a server, from its cursor on; or -1. */
static int64_t next_due(MemxSplitOut *out, MemxOutServer *s, uint32_t n_chunks)
{
    uint32_t n_words = (n_chunks + 63) / 64;
    uint32_t c = s->cursor % n_chunks;

    for (uint32_t i = 0; i <= n_words; i++) {
        uint64_t word = s->due[c / 64] & UINT64_MAX << c % 64;

        if (word) {
            c = c / 64 * 64 + __builtin_ctzll(word);
            s->cursor = c + 1;
            return c;
        }
        c = (c / 64 + 1) % n_words * 64;
    }
    return -1;
}

/* The next group that can go to @s; 0 in *mask: none, now. */
static uint64_t next_group(MemxRegion *r, MemxOutServer *s, uint64_t *mask,
                           bool *blocked)
{
    MemxPageTable *t = &r->table;
    uint64_t g = 0;

    *mask = 0;
    for (unsigned i = 0; i < TRIES && s->todo_pages; i++) {
        int64_t c = next_due(r->out, s, t->n_chunks);
        bool held_up = false;
        uint64_t end;

        if (c < 0) {
            break;
        }
        end = memx_group_end(t, c);
        for (g = memx_group_of_chunk(t, c); g < end; g++) {
            *mask = claim_locked(r, g, &held_up);
            if (*mask) {
                s->cursor = c; /* the rest of the chunk first */
                t->chunk[c].installing++;
                return g;
            }
        }
        if (held_up) {
            *blocked = true;
        } else {
            s->due[c / 64] &= ~(1ull << c % 64);
        }
    }
    return g;
}

/* Copies and hashes; returns the pages that are not zero. */
static uint64_t read_pages(MemxRegion *r, MemxPush *push, uint64_t mask)
{
    uint8_t *to = push->base, *hash = push->hashes;
    uint64_t full = 0;

    for (; mask; mask &= mask - 1) {
        unsigned i = __builtin_ctzll(mask);

        memcpy(to, memx_page_hva(r, push->group * MEMX_GROUP_PAGES + i),
               MEMX_PAGE_BYTES);
        if (memx_page_is_zero(to)) {
            continue;
        }
        if (!memx_page_hash(r->hash, to, hash)) {
            memset(hash, 0, MEMX_HASH_BYTES);
        }
        full |= 1ull << i;
        to += MEMX_PAGE_BYTES;
        hash += MEMX_HASH_BYTES;
    }
    return full;
}

/* Pages that were read have gone: @full to the server, zeros to nowhere.  Those
 * of which memx_split_page() heard meanwhile are not ours any more. */
static void settle_locked(MemxRegion *r, uint64_t g, uint64_t full,
                          uint64_t zero)
{
    MemxPageTable *t = &r->table;
    uint32_t c = memx_chunk_of_group(t, g);
    uint64_t ours = r->out->reading;

    zero &= ours;
    r->out->reading = 0;
    if (t->stored[g] & zero) {
        memx_trim_set(t, c); /* goes out behind what was stored */
    }
    memx_set_group_locked(r, g, t->present[g],
                          (t->stored[g] & ~zero) | full);
    /* One that was away when it was asked for may be in the stream, too. */
    memx_out_set_locked(r, g, (r->out->handed[g] & ~zero) | (full & ours),
                        r->out->main[g] & ~ours);
    r->out->zero_pages += memx_mask_pages(zero);
}

/* Of these pages the server may have no copy after all.  What isn't here is
 * there: it was stored since. */
static void not_kept_locked(MemxRegion *r, const MemxPush *push, uint64_t mask)
{
    MemxSlot *slot = memx_staging_find(&r->staging, push->group, true);
    uint64_t stored = r->table.stored[push->group];
    uint64_t present = r->table.present[push->group];
    uint64_t gone = mask & stored & (present | (slot ? slot->staged : 0));

    for (unsigned i = 0; i < MEMX_PUSHES; i++) {
        const MemxPush *other = &r->out->push[push->server * MEMX_PUSHES + i];

        if (other->busy && other->group == push->group) {
            gone &= ~other->mask; /* that one may get there */
        }
    }
    memx_set_group_locked(r, push->group, present, stored & ~gone);
}

/* Pages that the server refused are not there: else they would look like
 * copies that can be given up for room, again and again.  It may have some
 * after all, older ones that a trim spared meanwhile, or by another push:
 * these go when the split has ended. */
static void refused_locked(MemxRegion *r, const MemxPush *push)
{
    for (unsigned i = 0; i < MEMX_PUSHES; i++) {
        MemxPush *other = &r->out->push[push->server * MEMX_PUSHES + i];

        if (other->busy && other->group == push->group) {
            other->fresh |= push->fresh & other->mask;
        }
    }
    r->out->refused = true;
    not_kept_locked(r, push, push->fresh);
}

/* Nobody knows what got there.  If it isn't sent again, since the split ends,
 * a copy that isn't there would keep its chunk from ever being moved. */
static void lost_locked(MemxRegion *r, const MemxPush *push)
{
    not_kept_locked(r, push, push->mask);
    memx_trim_set(&r->table, memx_chunk_of_group(&r->table, push->group));
}

/* They didn't get there.  What went elsewhere meanwhile is not ours. */
static void put_back_locked(MemxRegion *r, MemxPush *push)
{
    MemxSplitOut *out = r->out;
    uint64_t again = push->mask & out->handed[push->group];

    memx_out_set_locked(r, push->group, out->handed[push->group] & ~again,
                        out->main[push->group]);
    memx_out_todo_locked(r, push->group, out->todo[push->group] | again);
}

static bool push_next(MemxRegion *r, MemxServer *s, MemxPush *push,
                      bool *blocked)
{
    MemxOutServer *o = &r->out->server[s->index];
    uint64_t mask, full;
    unsigned n;
    bool more;

    g_mutex_lock(&r->lock);
    push->group = next_group(r, o, &mask, blocked);
    r->out->reading_group = push->group;
    r->out->reading = mask;
    more = !mask && !*blocked && o->todo_pages; /* it looked at TRIES */
    g_mutex_unlock(&r->lock);
    if (!mask) {
        return more;
    }
    full = read_pages(r, push, mask);
    n = memx_mask_pages(full);

    g_mutex_lock(&r->lock);
    memx_installing_end_locked(r, memx_chunk_of_group(&r->table,
                                                      push->group));
    push->fresh = full & ~r->table.stored[push->group];
    settle_locked(r, push->group, full, mask & ~full);
    if (full) {
        push->mask = full;
        push->busy = true;
        o->pushed_pages += n;
        r->out->pushed_pages += n;
        r->out->tokens -= n * (int64_t)MEMX_PAGE_BYTES;
    }
    g_mutex_unlock(&r->lock);
    if (!full) {
        return true;
    }
    push->iov = (struct iovec) { push->base, n * (size_t)MEMX_PAGE_BYTES };
    push->call = (MemxCall) {
        .request = { .opcode = MEMX_OP_STORE, .group = push->group,
                     .mask = full, .body_bytes = n * MEMX_HASH_BYTES,
                     .payload_bytes = n * MEMX_PAGE_BYTES },
        .body = push->hashes,
        .out = &push->iov,
        .n_out = 1,
    };
    if (memx_lane_submit(r, s, MEMX_LANE_ORDERED, &push->call)) {
        push->call.status = -1;
        memx_out_answered(r, &push->call);
        return false;
    }
    return true;
}

void memx_out_answered(MemxRegion *r, MemxCall *call)
{
    MemxPush *push = (MemxPush *)((uint8_t *)call -
                                  offsetof(MemxPush, call));
    MemxServer *s = &r->server[push->server];
    MemxSplitOut *out = r->out;
    unsigned n = memx_mask_pages(push->mask);
    bool full = !call->status && call->reply.error == MEMX_ERR_FULL;

    g_mutex_lock(&r->lock);
    push->busy = false;
    out->pushed_pages -= n;
    out->server[push->server].pushed_pages -= n;
    out->answers++;
    if (call->status || call->reply.error) {
        put_back_locked(r, push);
        if (full) {
            refused_locked(r, push);
        } else {
            lost_locked(r, push);
        }
    } else {
        out->server[push->server].sent_pages += n;
    }
    memx_changed_locked(r);
    g_mutex_unlock(&r->lock);
    if (full) {
        if (!memx_store_refused(r, s)) {
            g_mutex_lock(&r->lock);
            memx_out_failed_locked(r, s, "is full; free memory there or raise "
                                   "its capacity");
            g_mutex_unlock(&r->lock);
        }
    } else if (!call->status && call->reply.error) {
        memx_channel_shutdown(s->lane[MEMX_LANE_ORDERED].channel);
    }
}

/* May go on: not more than the rate. */
static bool has_tokens(MemxRegion *r)
{
    MemxSplitOut *out = r->out;
    uint64_t now = memx_now_ns();
    bool yes;

    g_mutex_lock(&r->lock);
    if (out->rate) {
        __uint128_t more = (__uint128_t)out->rate * (now - out->tokens_ns) /
                           1000000000ull;
        __uint128_t burst = (__uint128_t)out->rate * BURST_NS / 1000000000ull;

        if (more) {
            out->tokens += MIN(more, burst);
            out->tokens = MIN(out->tokens, (int64_t)burst);
            out->tokens_ns = now;
        }
    } else {
        out->tokens = 0;
        out->tokens_ns = now;
    }
    yes = !out->rate || out->tokens > 0 || r->quiet; /* the VM waits */
    g_mutex_unlock(&r->lock);
    return yes;
}

static bool can_push(MemxRegion *r, MemxServer *s)
{
    bool yes;

    g_mutex_lock(&r->lock);
    yes = s->lane[MEMX_LANE_ORDERED].up && !s->full && s->told &&
          s->health != MEMX_SERVER_EMPTY && !*r->out->failed &&
          !r->out->ending && r->side == MEMX_SIDE_OWNER;
    g_mutex_unlock(&r->lock);
    return yes;
}

bool memx_out_needs_room(MemxRegion *r)
{
    bool yes = false;

    g_mutex_lock(&r->lock);
    if (r->out && r->side == MEMX_SIDE_OWNER && r->out->todo_pages) {
        for (unsigned i = 0; i < r->n_servers; i++) {
            yes |= r->server[i].full;
        }
    }
    g_mutex_unlock(&r->lock);
    return yes;
}

/* A server that refused may have copies that nobody counts, see above.  Not
 * sooner: a trim for each refusal would give hope to each next one. */
static void trim_refused_locked(MemxRegion *r)
{
    MemxPageTable *t = &r->table;

    for (uint32_t c = 0; r->out->refused && c < t->n_chunks; c++) {
        if (t->chunk[c].server != MEMX_SERVER_NONE) {
            memx_trim_set(t, c);
        }
    }
}

/* The end of a split that was cancelled. */
static bool ended(MemxRegion *r)
{
    MemxSplitOut *out = NULL;
    bool gone;

    g_mutex_lock(&r->lock);
    if (r->out && r->out->ending && !r->out->pushed_pages &&
        !r->out->beginning) {
        trim_refused_locked(r);
        out = r->out;
        r->out = NULL;
        memx_changed_locked(r);
    } else if (r->out && r->quiet && memx_out_idle_locked(r)) {
        r->out->drained = true; /* and nothing is evicted any more */
        memx_changed_locked(r);
    }
    gone = !r->out;
    g_mutex_unlock(&r->lock);
    memx_out_release(out);
    return gone;
}

int memx_out_push(MemxRegion *r)
{
    bool blocked = false, slow = false, more = false;
    unsigned n;

    if (ended(r)) {
        return INT_MAX;
    }
    n = r->out->n_servers * MEMX_PUSHES;
    /* Servers take turns: none waits for another one's pages. */
    for (unsigned i = 0; i < n && !slow; i++) {
        unsigned server = i % r->out->n_servers;
        MemxPush *push = &r->out->push[server * MEMX_PUSHES +
                                       i / r->out->n_servers];

        if (push->busy || !can_push(r, &r->server[server])) {
            continue;
        }
        if (!has_tokens(r)) {
            slow = true;
        } else {
            /* All zeros: nothing is in flight that would ring for the rest. */
            more |= push_next(r, &r->server[server], push, &blocked) &&
                    !push->busy;
        }
    }
    return more ? 0 : blocked || slow ? RETRY_MS : INT_MAX;
}
