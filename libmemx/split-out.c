/*
 * The source of a split migration: what goes where; see split-out.h.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "split-out.h"

#define RETRY_MS 5
#define SQUEEZED_NS 1000000000ull

static uint64_t pages(uint64_t mask)
{
    return memx_mask_pages(mask);
}

/* The destination is told anew: also of a server that holds nothing but what
 * is to be dropped. */
void memx_out_placed_locked(MemxRegion *r, uint32_t c)
{
    MemxSplitOut *out = r->out;

    if (out && !memx_bit(out->changed, c)) {
        out->changed[c / 64] |= 1ull << c % 64;
        out->n_changed++;
    }
}

void memx_out_set_locked(MemxRegion *r, uint64_t g, uint64_t handed,
                         uint64_t main)
{
    MemxSplitOut *out = r->out;
    uint32_t c = memx_chunk_of_group(&r->table, g);

    if (handed == out->handed[g] && main == out->main[g]) {
        return;
    }
    out->handed_pages += pages(handed) - pages(out->handed[g]);
    out->main_pages += pages(main) - pages(out->main[g]);
    out->handed[g] = handed;
    out->main[g] = main;
    memx_out_placed_locked(r, c);
}

void memx_out_todo_locked(MemxRegion *r, uint64_t g, uint64_t todo)
{
    MemxSplitOut *out = r->out;
    uint32_t c = memx_chunk_of_group(&r->table, g);
    uint64_t more = pages(todo) - pages(out->todo[g]);

    if (todo != out->todo[g]) {
        MemxOutServer *s = &out->server[r->table.chunk[c].server];

        out->todo[g] = todo;
        out->todo_pages += more;
        s->todo_pages += more;
        s->due[c / 64] |= 1ull << c % 64;
    }
}

void memx_out_fail_locked(MemxRegion *r, const char *format, ...)
{
    va_list ap;

    if (!*r->out->failed) {
        va_start(ap, format);
        g_vsnprintf(r->out->failed, MEMX_WHY_BYTES, format, ap);
        va_end(ap);
        memx_changed_locked(r);
    }
}

void memx_out_failed_locked(MemxRegion *r, MemxServer *s, const char *why)
{
    memx_out_fail_locked(r, "memory server %s %s", s->peer->address, why);
}

void memx_out_squeezed(MemxRegion *r, MemxServer *s)
{
    g_mutex_lock(&r->lock);
    if (r->out && r->starved && !memx_server_has_room(s) &&
        memx_now_ns() - r->starved_since_ns > SQUEEZED_NS) {
        memx_out_failed_locked(r, s, "is full, and the VM waits for memory; "
                               "free memory there or raise its capacity");
    }
    g_mutex_unlock(&r->lock);
}

bool memx_out_idle_locked(MemxRegion *r)
{
    return !r->out->todo_pages && !r->out->pushed_pages && !r->staging.n_out &&
           !r->staging.n_sampled;
}

uint64_t memx_out_handed_locked(MemxRegion *r, uint64_t g)
{
    return r->out && !*r->out->failed ? r->out->handed[g] : 0;
}

void memx_out_gone_locked(MemxRegion *r, uint64_t g, uint64_t mask)
{
    memx_out_set_locked(r, g, r->out->handed[g] & ~mask, r->out->main[g]);
}

void memx_out_discard_locked(MemxRegion *r, uint64_t g, uint64_t mask)
{
    memx_out_todo_locked(r, g, r->out->todo[g] & ~mask);
    memx_out_set_locked(r, g, r->out->handed[g] & ~mask,
                        r->out->main[g] & ~mask);
}

/* --- Its end --- */

void memx_split_cancel(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    if (r->out) {
        r->out->ending = true;
        r->quiet = false;
        memx_worker_ring(&r->store);
        memx_changed_locked(r);
    }
    g_mutex_unlock(&r->lock);
}

bool memx_split_check(MemxRegion *r, GError **error)
{
    bool ok = true;

    g_mutex_lock(&r->lock);
    if (!r->out || r->out->ending || *r->out->failed) {
        ok = false;
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT, "%s",
                    r->out && *r->out->failed ? r->out->failed
                                              : "the split was cancelled");
    }
    g_mutex_unlock(&r->lock);
    return ok;
}

/* --- A page --- */

/* Is a page that is here all zeros?  It can't leave meanwhile; the lock is
 * open: who knows what a host does for a page. */
static bool is_zero_unlocked(MemxRegion *r, uint64_t page)
{
    uint32_t c = page >> r->table.chunk_shift;
    bool zero;

    r->table.chunk[c].installing++;
    g_mutex_unlock(&r->lock);
    zero = memx_page_is_zero(memx_page_hva(r, page));
    g_mutex_lock(&r->lock);
    memx_installing_end_locked(r, c);
    return zero;
}

/* For the stream, if there is room for it. */
static bool to_stream_locked(MemxRegion *r, uint64_t page)
{
    MemxSplitOut *out = r->out;
    uint64_t g = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, g);

    if (out->main[g] & bit) {
        memx_out_todo_locked(r, g, out->todo[g] & ~bit); /* was away */
        return true;
    }
    if (!memx_bit(out->hot, c) || out->main_ever >= out->main_max) {
        return false;
    }
    out->main_ever++;
    memx_out_todo_locked(r, g, out->todo[g] & ~bit);
    if (r->table.stored[g] & bit) { /* room for what goes there */
        memx_set_group_locked(r, g, r->table.present[g],
                              r->table.stored[g] & ~bit);
        memx_trim_set(&r->table, c);
    }
    memx_out_set_locked(r, g, out->handed[g] & ~bit, out->main[g] | bit);
    return true;
}

/* For its server. */
static void to_server_locked(MemxRegion *r, uint64_t page)
{
    MemxSplitOut *out = r->out;
    uint64_t g = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, g);

    if (r->table.chunk[c].server == MEMX_SERVER_NONE &&
        !memx_out_place_locked(r, c)) {
        memx_out_fail_locked(r, "no memory server takes pages");
        return;
    }
    if (!out->todo_pages) {
        memx_worker_ring(&r->store);
    }
    memx_out_todo_locked(r, g, out->todo[g] | bit);
}

/* One that isn't in the guest now. */
static bool away_locked(MemxRegion *r, uint64_t page)
{
    MemxSplitOut *out = r->out;
    uint64_t g = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, g);
    MemxSlot *slot;

    if (r->table.present[g] & bit) {
        return false;
    }
    slot = memx_staging_find(&r->staging, g, true);
    if ((slot && slot->staged & bit) || r->table.chunk[c].installing) {
        /* On its way there; or the guest may have it already, and have written
         * to it, and only the table doesn't know. */
        to_server_locked(r, page);
        return true;
    }
    if (r->table.stored[g] & bit & ~out->handed[g]) {
        out->left_pages++;
    }
    memx_out_set_locked(r, g, (out->handed[g] & ~bit) |
                        (r->table.stored[g] & bit), out->main[g] & ~bit);
    return true;
}

int memx_split_page(MemxRegion *r, uint64_t offset)
{
    uint64_t page = offset / MEMX_PAGE_BYTES;
    uint64_t g = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    MemxChunk *chunk = &r->table.chunk[memx_chunk_of_group(&r->table, g)];
    bool zero = false;
    int taken = 1;

    g_mutex_lock(&r->lock);
    if (!r->out || *r->out->failed) {
        taken = !!r->out;
    } else if (!away_locked(r, page)) {
        if (!(r->out->main[g] & bit) && !memx_chunk_exclusive(chunk)) {
            zero = is_zero_unlocked(r, page);
        }
        if (!r->out) { /* cancelled meanwhile */
            g_mutex_unlock(&r->lock);
            return 0;
        }
        if (g == r->out->reading_group) {
            r->out->reading &= ~bit;
        }
        if (zero && !(r->table.stored[g] & bit)) {
            r->out->zero_pages++;
            memx_out_todo_locked(r, g, r->out->todo[g] & ~bit);
        } else if (zero || !to_stream_locked(r, page)) {
            r->out->spilled_pages += !zero &&
                memx_bit(r->out->hot, page >> r->table.chunk_shift);
            to_server_locked(r, page);
        } else {
            taken = 0;
        }
    }
    g_mutex_unlock(&r->lock);
    return taken;
}

/* --- Waiting --- */

void memx_split_set_rate(MemxRegion *r, uint64_t max_bytes_per_s)
{
    g_mutex_lock(&r->lock);
    if (r->out) {
        r->out->rate = max_bytes_per_s;
        memx_worker_ring(&r->store);
    }
    g_mutex_unlock(&r->lock);
}

void memx_split_wait(MemxRegion *r, unsigned timeout_ms)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000ll;
    uint64_t answers;

    g_mutex_lock(&r->lock);
    answers = r->out ? r->out->answers : 0;
    r->n_waiting++;
    while (r->out && !*r->out->failed && r->out->answers == answers &&
           r->out->todo_pages + r->out->pushed_pages &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    g_mutex_unlock(&r->lock);
}

int memx_split_drain(MemxRegion *r, unsigned timeout_ms, GError **error)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000ll;
    bool drained;

    g_mutex_lock(&r->lock);
    if (r->out && !r->out->ending) {
        r->quiet = true;
        r->out->drained = false;
        memx_worker_ring(&r->store);
    }
    r->n_waiting++;
    while (r->out && !r->out->ending && !r->out->drained &&
           !*r->out->failed &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    drained = r->out && r->out->drained;
    g_mutex_unlock(&r->lock);
    return !memx_split_check(r, error) ? -1 : drained;
}

static MemxControl *offer_start(MemxRegion *r, const MemxServer *s)
{
    MemxControl *control = memx_control_new(s, MEMX_OP_OFFER);
    MemxOffer offer;

    memcpy(offer.session, r->session_id, sizeof(offer.session));
    memcpy(offer.heir, r->heir_id, sizeof(offer.heir));
    memx_offer_encode(control->body, &offer);
    control->body_bytes = MEMX_OFFER_BYTES;
    memx_control_start(r, control);
    return control;
}

void memx_out_offered_locked(MemxRegion *r, unsigned server,
                             const uint8_t *offer)
{
    if (r->out && !memcmp(offer, r->session_id, sizeof(r->session_id))) {
        r->out->server[server].offered = true;
    }
}

static bool is_offered(MemxRegion *r, unsigned i)
{
    bool is;

    g_mutex_lock(&r->lock);
    is = !r->out || r->out->server[i].offered || r->server[i].released;
    g_mutex_unlock(&r->lock);
    return is;
}

/* Offers to all that have not taken it yet, at the same time.  1: they have;
 * 0: ask again; -1: one of them refused. */
static int offer_round(MemxRegion *r, int64_t end, GError **error)
{
    MemxControl *control[MEMX_SERVERS_MAX] = { NULL };
    int result = 1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!is_offered(r, i)) {
            control[i] = offer_start(r, &r->server[i]);
        }
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        unsigned refused = 0;

        if (control[i]) {
            memx_control_end(r, control[i], end, &refused);
        }
        if (refused && result >= 0) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                        "memory server %s does not hand its pages over: %s",
                        r->server[i].peer->address, memx_error_name(refused));
            result = -1;
        }
        result = MIN(result, is_offered(r, i));
    }
    return result;
}

int memx_split_offer(MemxRegion *r, unsigned timeout_ms, GError **error)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000ll;
    int done;

    if (!memx_split_check(r, error)) {
        return -1;
    }
    g_mutex_lock(&r->lock);
    r->side = MEMX_SIDE_OFFERED;
    g_mutex_unlock(&r->lock);
    while (!(done = offer_round(r, end, error))) {
        if (g_get_monotonic_time() > end) {
            return 0;
        }
        g_usleep(RETRY_MS * 1000);
    }
    if (done < 0) {
        return done;
    }
    /* A server that lost what it was sent may be the one that said yes. */
    return memx_split_check(r, error) ? 1 : -1;
}

static void server_stats_locked(MemxRegion *r, unsigned i,
                                MemxSplitStats *stats)
{
    const MemxOutServer *s = r->out ? &r->out->server[i] : NULL;
    unsigned at = stats->n_servers;

    if (r->server[i].released) {
        return;
    }
    stats->n_servers++;
    g_strlcpy(stats->servers[at].address, r->server[i].peer->address,
              sizeof(stats->servers[at].address));
    stats->servers[at].health = r->server[i].health;
    if (s) {
        stats->servers[at].pending_bytes = (s->todo_pages + s->pushed_pages) *
                                           MEMX_PAGE_BYTES;
        stats->servers[at].sent_bytes = s->sent_pages * MEMX_PAGE_BYTES;
        stats->pending_bytes += stats->servers[at].pending_bytes;
        stats->sent_pages += s->sent_pages;
    }
}

void memx_split_stats(MemxRegion *r, MemxSplitStats *stats)
{
    MemxSplitOut *out;

    memset(stats, 0, sizeof(*stats));
    g_mutex_lock(&r->lock);
    out = r->out;
    for (unsigned i = 0; i < r->n_servers; i++) {
        server_stats_locked(r, i, stats);
    }
    if (out) {
        stats->hot_chunks = out->n_hot;
        stats->cold_chunks = r->table.n_chunks - out->n_hot;
        stats->sent_bytes = stats->sent_pages * MEMX_PAGE_BYTES;
        stats->zero_pages = out->zero_pages;
        stats->left_pages = out->left_pages;
        stats->main_pages = out->main_ever;
        stats->main_pages_max = out->main_max;
        stats->spilled_pages = out->spilled_pages;
        stats->fetched_pages = r->count.remote + r->count.prefetched -
                               out->fetched_at_begin;
    }
    g_mutex_unlock(&r->lock);
}
