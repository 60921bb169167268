/*
 * The beginning of a split: what is hot, and where the cold go.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include <sys/mman.h>
#include "page-scan.h"
#include "split.h"
#include "split-out.h"

#define ENDING_MS 5000
#define MARK_SLICE_CHUNKS 64

void memx_out_release(MemxSplitOut *out)
{
    if (!out) {
        return;
    }
    if (out->buffers) {
        uint64_t bytes = out->n_servers * MEMX_PUSHES * MEMX_GROUP_BYTES;

        memx_transport_unregister(out->transport, out->buffers, bytes);
        munmap(out->buffers, bytes);
    }
    for (unsigned i = 0; i < out->n_servers; i++) {
        g_free(out->server[i].due);
    }
    g_free(out->handed);
    g_free(out->main);
    g_free(out->todo);
    g_free(out->there);
    g_free(out->hot);
    g_free(out->changed);
    g_free(out);
}

void memx_out_free(MemxRegion *r)
{
    g_clear_pointer(&r->out, memx_out_release);
}

static bool map_buffers(MemxRegion *r, MemxSplitOut *out)
{
    uint64_t bytes = out->n_servers * MEMX_PUSHES * MEMX_GROUP_BYTES;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (base == MAP_FAILED) {
        return false;
    }
    if (memx_transport_register(r->transport, base, bytes)) {
        munmap(base, bytes);
        return false;
    }
    out->buffers = base;
    for (unsigned i = 0; i < out->n_servers * MEMX_PUSHES; i++) {
        out->push[i].server = i / MEMX_PUSHES;
        out->push[i].base = out->buffers + i * (uint64_t)MEMX_GROUP_BYTES;
    }
    return true;
}

static uint64_t *words(uint64_t n)
{
    return g_try_malloc0_n(n, sizeof(uint64_t));
}

static MemxSplitOut *out_new(MemxRegion *r, const MemxSplitOptions *o,
                             GError **error)
{
    MemxSplitOut *out = g_malloc0(sizeof(*out) + r->n_servers * MEMX_PUSHES *
                                  sizeof(MemxPush));
    uint64_t chunk_words = (r->table.n_chunks + 63) / 64;
    bool ok;

    out->n_servers = r->n_servers;
    out->transport = r->transport;
    out->main_bytes = o->main_bytes;
    out->rate = o->max_bytes_per_s;
    out->handed = words(r->table.n_groups);
    out->main = words(r->table.n_groups);
    out->todo = words(r->table.n_groups);
    out->hot = words(chunk_words);
    out->changed = words(chunk_words);
    ok = out->handed && out->main && out->todo && out->hot && out->changed;
    for (unsigned i = 0; i < out->n_servers; i++) {
        out->server[i].due = words(chunk_words);
        ok &= !!out->server[i].due;
    }
    if (!ok || !map_buffers(r, out)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "no memory for the tables of a split");
        memx_out_release(out);
        return NULL;
    }
    return out;
}

/* How many pages the stream may bring, so that the destination needn't evict
 * at once: what its pager keeps free is not for them. */
static uint64_t main_max(const MemxRegion *r, uint64_t main_bytes)
{
    uint64_t limit = main_bytes / MEMX_PAGE_BYTES;

    return limit >= r->table.n_pages
           ? r->table.n_pages
           : limit - 2 * memx_low_watermark(limit) - MEMX_FAULTS_MAX;
}

static uint64_t pages_here(MemxRegion *r, MemxSplitOut *out, uint32_t c)
{
    uint64_t end = memx_group_end(&r->table, c), sum = 0;

    for (uint64_t g = memx_group_of_chunk(&r->table, c); g < end; g++) {
        sum += memx_mask_pages(r->table.present[g] &
                               (out->there ? out->there[g] : UINT64_MAX));
    }
    return sum;
}

/* Hot chunks, by history.  One without a page here has nothing that could go
 * to the stream. */
static void decide_locked(MemxRegion *r, MemxSplitOut *out)
{
    uint32_t n_chunks = r->table.n_chunks;
    g_autofree uint8_t *value = g_malloc(n_chunks);
    uint64_t n_pages = 0, n_used = 0, hot_max;
    MemxSplit split;

    for (uint32_t c = 0; c < n_chunks; c++) {
        uint64_t here = pages_here(r, out, c);

        value[c] = here ? MAX(1, memx_history_value(&r->history, c)) : 0;
        n_pages += here;
        n_used += !!here;
    }
    hot_max = out->main_max >= n_pages ? n_chunks
              : (__uint128_t)n_used * out->main_max / n_pages;
    memx_split_decide(&split, value, n_chunks, hot_max);
    memx_split_apply(&split, value, n_chunks, out->hot);
    out->n_hot = split.n_hot;
}

/* The server with most room that is not spoken for; -1: there is none. */
static int most_room_locked(MemxRegion *r, const MemxSplitOut *out)
{
    int64_t most = INT64_MIN;
    int best = -1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        int64_t room = (int64_t)(r->server[i].reserved_pages -
                                 out->server[i].planned_pages);

        if (room > most && memx_server_in_use(&r->server[i]) &&
            r->server[i].health != MEMX_SERVER_EMPTY) {
            most = room;
            best = i;
        }
    }
    return best;
}

bool memx_out_place_locked(MemxRegion *r, uint32_t c)
{
    MemxChunk *chunk = &r->table.chunk[c];
    int best = most_room_locked(r, r->out);

    if (chunk->server == MEMX_SERVER_NONE && best >= 0) {
        chunk->server = best;
        r->server[best].n_chunks++;
        memx_history_move(&r->history, c, best + 1);
        memx_out_placed_locked(r, c);
    }
    if (chunk->server != MEMX_SERVER_NONE) {
        r->out->server[chunk->server].planned_pages +=
            1ull << r->table.chunk_shift;
    }
    return chunk->server != MEMX_SERVER_NONE;
}

/* Pages of a chunk that are on its server only. */
static uint64_t pages_there(MemxRegion *r, uint32_t c)
{
    uint64_t end = memx_group_end(&r->table, c), sum = 0;

    for (uint64_t g = memx_group_of_chunk(&r->table, c); g < end; g++) {
        sum += memx_mask_pages(r->table.stored[g] & ~r->table.present[g]);
    }
    return sum;
}

/* What will be on each server: a chunk that has one stays there, whatever the
 * others have free. */
static void plan_locked(MemxRegion *r, MemxSplitOut *out, uint64_t *need)
{
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        unsigned server = r->table.chunk[c].server;

        if (memx_bit(out->hot, c)) {
            if (server != MEMX_SERVER_NONE) {
                out->server[server].planned_pages += pages_there(r, c);
            }
            continue;
        }
        if (server == MEMX_SERVER_NONE) {
            server = MAX(0, most_room_locked(r, out));
        }
        out->server[server].planned_pages += 1ull << r->table.chunk_shift;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        need[i] = out->server[i].planned_pages;
        out->server[i].planned_pages = 0; /* until they are placed */
    }
}

/* All pages of a cold chunk are for its server. */
static void mark_cold_locked(MemxRegion *r, uint32_t c)
{
    MemxPageTable *t = &r->table;
    uint64_t end = memx_group_end(t, c);

    if (!memx_out_place_locked(r, c)) {
        memx_out_fail_locked(r, "no memory server takes pages");
        return;
    }
    for (uint64_t g = memx_group_of_chunk(t, c); g < end; g++) {
        MemxSlot *slot = memx_staging_find(&r->staging, g, true);
        uint64_t here = t->present[g] |
                        (slot ? slot->staged : 0); /* it may come back */
        uint64_t there;

        if (t->chunk[c].installing) { /* it may be here and written to */
            here = memx_group_mask(t, g);
        }
        there = t->stored[g] & ~here;
        here &= r->out->there ? r->out->there[g] : UINT64_MAX;

        memx_out_todo_locked(r, g, r->out->todo[g] | here);
        memx_out_set_locked(r, g, r->out->handed[g] | there,
                            r->out->main[g]);
        r->out->left_pages += memx_mask_pages(there);
    }
}

/* What of [start, end) isn't there is zeros.  On failure all of it may be
 * other. */
static void scan(MemxRegion *r, uint64_t *there, uint64_t start, uint64_t end)
{
    uint64_t g = start / MEMX_GROUP_BYTES;
    uint64_t n = (end - start + MEMX_GROUP_BYTES - 1) / MEMX_GROUP_BYTES;

    memset(there + g, 0, n * sizeof(*there));
    if (!memx_page_scan(r->pagemap_fd, r->base + start, end - start,
                        there + g, NULL)) {
        memset(there + g, 0xff, n * sizeof(*there));
    }
}

static void mark_run(MemxRegion *r, const MemxSplitOptions *o, uint32_t from,
                     uint32_t to)
{
    uint64_t start = (uint64_t)from * r->chunk_bytes;
    uint64_t end = MIN((uint64_t)to * r->chunk_bytes, r->size_bytes);

    /* First: what is written from here on must come again. */
    o->taken(o->opaque, start, end - start);
    if (r->out->there) {
        scan(r, r->out->there, start, end);
    }
    while (from < to) {
        g_mutex_lock(&r->lock);
        for (unsigned i = 0; i < MARK_SLICE_CHUNKS && from < to; i++) {
            mark_cold_locked(r, from++);
        }
        g_mutex_unlock(&r->lock);
    }
}

static void mark_cold(MemxRegion *r, const MemxSplitOptions *o)
{
    uint32_t n = r->table.n_chunks;

    for (uint32_t c = 0; c < n; ) {
        uint32_t from;

        while (c < n && memx_bit(r->out->hot, c)) {
            c++;
        }
        from = c;
        while (c < n && !memx_bit(r->out->hot, c)) {
            c++;
        }
        if (c > from) {
            mark_run(r, o, from, c);
        }
    }
}

/* Nothing of an earlier migration is left. */
static bool settled_locked(MemxRegion *r, GError **error)
{
    if (r->side != MEMX_SIDE_OWNER) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "the memory is not this side's to send: an earlier split "
                    "migration was not ended, or went to the other side");
        return false;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        if (s->moving_out || s->n_old || r->move[i].active) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                        "memory is being moved from memory server %s or to "
                        "it; try again when that has ended",
                        s->peer->address);
            return false;
        }
        if (s->health != MEMX_SERVER_UP || !s->told) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                        "memory server %s is %s; bring it back first",
                        s->peer->address, s->health != MEMX_SERVER_UP
                        ? memx_server_health_name(s->health)
                        : "not told of the last migration yet");
            return false;
        }
    }
    return true;
}

/* Something that servers are to drop after a move. */
static bool drops_locked(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (r->server[i].n_old && !r->server[i].released) {
            return true;
        }
    }
    return false;
}

/* Its answer may be there already, but hasn't been noticed yet. */
static bool stalled_locked(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (r->server[i].health == MEMX_SERVER_STALLED) {
            return true;
        }
    }
    return false;
}

/* A cancelled split ends when its last push was answered, a move that is given
 * up when what was copied in vain is dropped.  Then servers that were slow with
 * that are up. */
static bool await_last(MemxRegion *r, GError **error)
{
    int64_t end = g_get_monotonic_time() + ENDING_MS * 1000ll;
    bool ok;

    g_mutex_lock(&r->lock);
    r->moves_wait = true;
    memx_worker_ring(&r->store);
    r->n_waiting++;
    while (((r->out && r->out->ending) || r->n_moves || drops_locked(r) ||
            stalled_locked(r)) &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    ok = !r->out;
    if (!ok) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    r->out->ending ? "a memory server has not answered to the "
                    "cancelled split yet; try again when it does"
                    : "a split of this memory is going on");
    }
    ok = ok && settled_locked(r, error);
    g_mutex_unlock(&r->lock);
    return ok;
}

/* What the destination will need, and on each server @need[i] pages. */
static bool reserve(MemxRegion *r, const MemxSplitOut *out,
                    const uint64_t *need, GError **error)
{
    MemxReserved before;
    bool grown, ok;

    g_mutex_lock(&r->lock);
    memx_pool_reserved_locked(r, &before);
    grown = r->grown; /* by one that was cancelled just now */
    g_mutex_unlock(&r->lock);
    ok = memx_pool_reserve_least(r, MIN(out->main_max, r->limit), error) &&
         memx_pool_reserve_each(r, need, error);
    if (!ok && memx_pool_restore(r, &before)) {
        return false;
    }
    g_mutex_lock(&r->lock);
    if (!grown) {
        r->before = before;
    }
    r->grown = true; /* keeper.c lowers it, if this one comes to nothing */
    g_mutex_unlock(&r->lock);
    return ok;
}

static bool split_begin(MemxRegion *r, const MemxSplitOptions *o,
                        GError **error)
{
    uint64_t need[MEMX_SERVERS_MAX];
    MemxSplitOut *out;

    if (!memx_check_local(r->size_bytes, r->chunk_bytes, o->main_bytes,
                          error) || !await_last(r, error)) {
        return false;
    }
    out = out_new(r, o, error);
    if (!out) {
        return false;
    }
    out->main_max = main_max(r, o->main_bytes);
    if (r->passive && o->sparse && (out->there = words(r->table.n_groups))) {
        scan(r, out->there, 0, r->size_bytes);
    }
    g_mutex_lock(&r->lock);
    decide_locked(r, out);
    plan_locked(r, out, need);
    g_mutex_unlock(&r->lock);
    if (!reserve(r, out, need, error)) {
        memx_out_release(out);
        return false;
    }
    g_mutex_lock(&r->lock);
    memset(out->changed, 0xff, r->table.n_chunks / 64 * 8);
    for (uint32_t c = r->table.n_chunks / 64 * 64; c < r->table.n_chunks;
         c++) {
        out->changed[c / 64] |= 1ull << c % 64;
    }
    out->n_changed = r->table.n_chunks;
    out->fetched_at_begin = r->count.remote + r->count.prefetched;
    out->tokens_ns = memx_now_ns();
    memcpy(r->session_id, o->session, sizeof(r->session_id));
    memx_random(r->heir_id, sizeof(r->heir_id));
    out->beginning = true;
    r->out = out;
    g_mutex_unlock(&r->lock);
    mark_cold(r, o);
    g_mutex_lock(&r->lock);
    out->beginning = false; /* a cancelled one may end from here on */
    memx_worker_ring(&r->store);
    g_mutex_unlock(&r->lock);
    if (!memx_split_check(r, error)) {
        memx_split_cancel(r);
        return false;
    }
    return true;
}

bool memx_split_begin(MemxRegion *r, const MemxSplitOptions *o,
                      GError **error)
{
    bool ok = memx_resize_begin(r, error);

    if (ok) {
        ok = split_begin(r, o, error);
        g_mutex_lock(&r->lock);
        r->moves_wait = false; /* what has begun keeps them back itself */
        g_mutex_unlock(&r->lock);
        g_mutex_unlock(&r->resize);
    }
    return ok;
}
