/*
 * Moves: chunks change their server while the memory is in use.
 *
 * Theory of operation
 *
 * A chunk is moved from server A to B: because A is to be emptied, or because
 * A has more chunks than its quota and B fewer (after servers came or went).
 * Who decides that is keeper.c; here is what the store thread does.
 *
 *   begin   The chunk is MOVING: it is not evicted, and nothing of it is
 *           trimmed; so nothing that A has of it changes.  It is read from A.
 *   copy    Group by group B is told, on its ordered lane, to COPY from A:
 *           the pages go from server to server, and don't come here.
 *   flip    When B has all that is stored, and no fetch is under way: from now
 *           on B is the chunk's server.  One step, under the lock.
 *   drop    A drops the chunk.
 *
 * If anything fails before the flip the chunk stays A's, and it is B that
 * drops what it got.  Who has to drop is `old` in the chunk: until that server
 * acknowledged all drops, over however many connections, the chunk is not
 * moved again.  Pages that are no longer stored at the flip (discarded, or a
 * copy that was given up) are trimmed on B as usual.
 *
 * While the memory is being split no chunk is MOVING: what is stored changes.
 * A split that begins has the moves given up, but for those of a server that
 * is to be emptied, which it doesn't begin beside.
 *
 * A connection of B that is lost voids what B acknowledged, since B may come
 * back without it: the move begins anew.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"

#define LOOK_CHUNKS 1024    /* at once, for one to move */
#define IDLE_NS 100000000ull /* when there is none, look again then */
#define ROUNDS 4            /* of chunks that need no copy, at once */
#define HOLD_NS 1000000000ull /* after a failure */

static bool held_off(const MemxServer *s, uint64_t now)
{
    return s->hold_until_ns > now;
}

/* Whether a server takes part in moves now. */
static bool moves_now(const MemxServer *s, uint64_t now)
{
    return !s->released && !s->closing && s->told &&
           s->health == MEMX_SERVER_UP && s->lane[MEMX_LANE_ORDERED].up &&
           !held_off(s, now);
}

static bool gives(const MemxRegion *r, const MemxServer *s)
{
    return s->moving_out || (r->rebalance && !r->moves_wait &&
                             s->n_chunks > s->chunk_quota);
}

/* In its reservation, next to what is on its way, or unreserved. */
static bool has_room(const MemxServer *s, uint64_t pages)
{
    uint64_t coming = pages + (s->n_out + 1ull) * MEMX_GROUP_PAGES;

    return s->remote_pages + coming <= s->reserved_pages ||
           s->free_pages >= coming;
}

/* Has any server a place for a whole chunk within its quota? */
static bool quota_left(const MemxRegion *r, uint64_t now)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        const MemxServer *s = &r->server[i];

        if (memx_server_in_use(s) && moves_now(s, now) &&
            s->n_chunks < s->chunk_quota &&
            has_room(s, r->chunk_bytes / MEMX_PAGE_BYTES)) {
            return true;
        }
    }
    return false;
}

/* Copies of local pages are worth the way where there is room to spare. */
static bool keeps_copies(const MemxServer *to)
{
    return to->free_pages > to->capacity_pages / MEMX_SHORT_PART;
}

/* Can chunk @c go to @to now? */
static bool fits(MemxRegion *r, uint32_t c, const MemxServer *to,
                 uint64_t now)
{
    MemxPageTable *t = &r->table;
    const MemxChunk *chunk = &t->chunk[c];
    uint64_t end = memx_group_end(t, c), pages = 0;
    const MemxServer *from;

    if (chunk->server == MEMX_SERVER_NONE || chunk->server == to->index ||
        chunk->old != MEMX_SERVER_NONE || chunk->flags ||
        (c == r->trim_chunk && r->trim_at < r->trim_end)) {
        return false;
    }
    from = &r->server[chunk->server];
    if (!gives(r, from) || !moves_now(from, now) ||
        (to->n_chunks >= to->chunk_quota &&
         (!from->moving_out || quota_left(r, now)))) {
        return false;
    }
    for (uint64_t g = memx_group_of_chunk(t, c); g < end; g++) {
        if (memx_staging_find(&r->staging, g, true)) {
            return false; /* on its way to the old server */
        }
        pages += memx_mask_pages(keeps_copies(to) ? t->stored[g]
                                 : t->stored[g] & ~t->present[g]);
    }
    return has_room(to, pages);
}

static void begin(MemxRegion *r, uint32_t c, MemxServer *to)
{
    MemxMove *m = &r->move[to->index];
    MemxPageTable *t = &r->table;
    uint64_t end = memx_group_end(t, c);

    m->active = true;
    m->chunk = c;
    m->from = t->chunk[c].server;
    m->at = memx_group_of_chunk(t, c);
    m->end = end;
    m->channels = to->channels;
    memset(m->copied, 0, t->groups_per_chunk * sizeof(*m->copied));
    t->chunk[c].flags |= MEMX_CHUNK_MOVING;
    r->n_moves++;
    for (uint64_t g = m->at; g < end && !keeps_copies(to); g++) {
        uint64_t kept = t->stored[g] & t->present[g];

        memx_trace_pages(MEMX_KEPT_RELEASED, kept);
        memx_set_group_locked(r, g, t->present[g], t->stored[g] & ~kept);
        if (kept) {
            memx_trim_set(t, c); /* should it stay where it is */
        }
    }
}

/* Ends a move; whoever @in_vain has, or may have, of the chunk drops it. */
static void end(MemxRegion *r, MemxMove *m, unsigned in_vain)
{
    MemxChunk *chunk = &r->table.chunk[m->chunk];
    MemxServer *s = &r->server[in_vain];

    chunk->flags &= ~MEMX_CHUNK_MOVING;
    chunk->old = in_vain;
    s->n_old++;
    if (!r->move[in_vain].dropping) {
        r->move[in_vain].drop_chunk = m->chunk;
    }
    m->active = false;
    r->n_moves--;
    memx_changed_locked(r);
}

/* B has all that is stored: it is the chunk's server.  False: not yet. */
static bool flip(MemxRegion *r, MemxMove *m, MemxServer *to)
{
    MemxPageTable *t = &r->table;
    MemxChunk *chunk = &t->chunk[m->chunk];
    MemxServer *from = &r->server[m->from];
    uint64_t first = memx_group_of_chunk(t, m->chunk);

    if (chunk->fetching || chunk->installing || memx_chunk_exclusive(chunk)) {
        return false;
    }
    for (uint64_t g = first; g < m->end; g++) {
        uint64_t remote = memx_mask_pages(t->stored[g] & ~t->present[g]);
        uint64_t kept = memx_mask_pages(t->stored[g] & t->present[g]);

        g_assert(!(t->stored[g] & ~m->copied[g - first]));
        from->remote_pages -= remote;
        from->kept_pages -= kept;
        to->remote_pages += remote;
        to->kept_pages += kept;
    }
    from->n_chunks--;
    to->n_chunks++;
    chunk->server = to->index;
    memx_history_move(&r->history, m->chunk, to->index + 1);
    memx_trim_set(t, m->chunk);
    r->move_idle_ns = 0; /* whoever else had nothing to do: for this one */
    end(r, m, m->from);
    return true;
}

/* What of the move must be given up for? */
static bool in_trouble(MemxRegion *r, const MemxMove *m, const MemxServer *to)
{
    const MemxServer *from = &r->server[m->from];
    uint64_t now = memx_now_ns();

    return to->channels != m->channels || !moves_now(to, now) ||
           !moves_now(from, now) || (r->moves_wait && !from->moving_out);
}

static bool ask(MemxRegion *r, MemxMove *m, MemxServer *to, uint64_t mask)
{
    const MemxServer *from = &r->server[m->from];
    MemxSource source = { 0 };

    memcpy(source.space, from->open.space, sizeof(source.space));
    memx_auth_reader_secret(from->open.secret, source.space, source.secret);
    if (to->peer->key) {
        memx_auth_wrap_reader(to->peer->key, source.space, to->nonce[0],
                              to->nonce[1], source.secret);
    }
    g_strlcpy(source.address, from->peer->address, sizeof(source.address));
    memx_source_encode(m->body, &source);
    m->call = (MemxCall) {
        .request = { .opcode = MEMX_OP_COPY, .group = m->at, .mask = mask,
                     .body_bytes = MEMX_SOURCE_BYTES },
        .body = m->body,
    };
    m->asking = !memx_lane_submit(r, to, MEMX_LANE_ORDERED, &m->call);
    return m->asking;
}

/* The next step of a move that waits for nothing.  True: look again soon;
 * *flipped: there may be another chunk to move. */
static bool step(MemxRegion *r, MemxMove *m, MemxServer *to, bool *flipped)
{
    uint32_t c = m->chunk;
    uint64_t mask = 0;
    bool ended = false;

    g_mutex_lock(&r->lock);
    while (m->at < m->end && !(mask = r->table.stored[m->at])) {
        m->at++;
    }
    if (in_trouble(r, m, to)) {
        end(r, m, to->index);
        mask = 0;
    } else if (!mask) {
        ended = flip(r, m, to);
    }
    g_mutex_unlock(&r->lock);
    if (ended) {
        memx_wake_chunk(r, c); /* who was left waiting for the old one */
        *flipped = true;
        return true;
    }
    if (mask && !ask(r, m, to, mask)) {
        g_mutex_lock(&r->lock);
        end(r, m, to->index);
        g_mutex_unlock(&r->lock);
    }
    return !mask;
}

static void copy_answered(MemxRegion *r, MemxServer *to)
{
    MemxMove *m = &r->move[to->index];
    unsigned error = m->call.status ? 0 : m->call.reply.error;

    m->asking = false;
    if (error == MEMX_ERR_FULL) {
        memx_store_refused(r, to);
    }
    g_mutex_lock(&r->lock);
    if (!m->call.status && !error) {
        unsigned i = m->at - memx_group_of_chunk(&r->table, m->chunk);

        m->copied[i] = m->call.request.mask;
        m->at++;
        to->full_told = false;
        to->moved_bytes += memx_mask_pages(m->copied[i]) * MEMX_PAGE_BYTES;
    } else {
        /* The source, if it is to blame: others may go on with the target. */
        if (error) {
            r->server[error == MEMX_ERR_SOURCE || error == MEMX_ERR_NOT_HELD
                      ? m->from : to->index].hold_until_ns =
                memx_now_ns() + HOLD_NS;
        }
        end(r, m, to->index);
    }
    g_mutex_unlock(&r->lock);
}

/* --- Drops of what a server has in vain --- */

/* The next chunk whose `old` it is. */
static bool find_old(MemxRegion *r, MemxServer *s)
{
    MemxMove *m = &r->move[s->index];
    MemxPageTable *t = &r->table;

    for (unsigned i = 0; i < LOOK_CHUNKS; i++) {
        uint32_t c = m->drop_chunk;

        if (t->chunk[c].old == s->index) {
            m->dropping = true;
            m->drop_at = memx_group_of_chunk(t, c);
            m->drop_end = memx_group_end(t, c);
            return true;
        }
        m->drop_chunk = (c + 1) % t->n_chunks;
    }
    return false;
}

/* True: it has to look further. */
static bool drop_step(MemxRegion *r, MemxServer *s)
{
    MemxMove *m = &r->move[s->index];
    bool go, any;

    g_mutex_lock(&r->lock);
    any = s->n_old && moves_now(s, memx_now_ns());
    if (m->dropping && r->table.chunk[m->drop_chunk].old != s->index) {
        m->dropping = false;
    }
    go = any && (m->dropping || find_old(r, s));
    g_mutex_unlock(&r->lock);
    if (!go) {
        return any;
    }
    m->drop = (MemxCall) {
        .request = { .opcode = MEMX_OP_DROP, .group = m->drop_at,
                     .mask = memx_group_mask(&r->table, m->drop_at) },
    };
    m->drop_asking = !memx_lane_submit(r, s, MEMX_LANE_ORDERED, &m->drop);
    return false;
}

static void drop_answered(MemxRegion *r, MemxServer *s)
{
    MemxMove *m = &r->move[s->index];

    m->drop_asking = false;
    if (m->drop.status || m->drop.reply.error) {
        m->dropping = false; /* all of it again, when it can be */
        return;
    }
    g_mutex_lock(&r->lock);
    s->full = false;
    if (++m->drop_at == m->drop_end) {
        m->dropping = false;
        r->table.chunk[m->drop_chunk].old = MEMX_SERVER_NONE;
        s->n_old--;
        memx_changed_locked(r);
    }
    g_mutex_unlock(&r->lock);
}

void memx_move_answered(MemxRegion *r, MemxServer *s, MemxCall *call)
{
    if (call == &r->move[s->index].call) {
        copy_answered(r, s);
    } else {
        drop_answered(r, s);
    }
}

/* --- All of them --- */

/* Finds a chunk for each server that can take one.  True: there may be more
 * than it looked at. */
static bool find_moves(MemxRegion *r)
{
    uint64_t now = memx_now_ns();
    bool any = false, looked = false, found = false;
    uint32_t c = r->move_cursor;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        any |= gives(r, &r->server[i]) && r->server[i].n_chunks;
    }
    for (unsigned i = 0; any && i < r->n_servers; i++) {
        MemxServer *to = &r->server[i];

        if (r->move[i].active || !memx_server_in_use(to) || to->draining ||
            to->full || !moves_now(to, now)) {
            continue;
        }
        looked = true;
        for (uint32_t k = 0; k < MIN(LOOK_CHUNKS, r->table.n_chunks); k++) {
            uint32_t at = (c + k) % r->table.n_chunks;

            if (fits(r, at, to, now)) {
                begin(r, at, to);
                r->move_cursor = at;
                found = true;
                break;
            }
        }
    }
    if (looked && !found) {
        r->move_cursor = (c + LOOK_CHUNKS) % r->table.n_chunks;
    }
    /* With a move to each server under way it's to look when one ends. */
    if (!any || (looked && !found && r->move_cursor < LOOK_CHUNKS)) {
        r->move_idle_ns = now;
    }
    g_mutex_unlock(&r->lock);
    return looked && !found && r->move_idle_ns != now;
}

static bool may_move(MemxRegion *r)
{
    bool yes;

    g_mutex_lock(&r->lock);
    yes = !r->out && r->side == MEMX_SIDE_OWNER && !r->passive;
    g_mutex_unlock(&r->lock);
    return yes;
}

/* What can be done now.  True: look again soon. */
static bool go_on(MemxRegion *r, bool *flipped)
{
    bool again = false;

    if (memx_now_ns() - r->move_idle_ns > IDLE_NS) {
        again = find_moves(r);
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxMove *m = &r->move[i];

        if (!m->drop_asking) {
            again |= drop_step(r, &r->server[i]);
        }
        if (m->active && !m->asking) {
            again |= step(r, m, &r->server[i], flipped);
        }
    }
    return again;
}

bool memx_moves(MemxRegion *r)
{
    bool again = false, flipped = true;

    if (!may_move(r)) {
        return false;
    }
    if (!r->move[0].copied) {
        for (unsigned i = 0; i < MEMX_SERVERS_MAX; i++) {
            r->move[i].copied = g_new(uint64_t, r->table.groups_per_chunk);
        }
    }
    for (unsigned i = 0; flipped && i < ROUNDS; i++) {
        flipped = false;
        again = go_on(r, &flipped);
    }
    return again;
}

void memx_moves_destroy(MemxRegion *r)
{
    for (unsigned i = 0; i < MEMX_SERVERS_MAX; i++) {
        g_free(r->move[i].copied);
    }
}
