/*
 * Statistics: a snapshot of the books.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"
#include "window.h"

static void server_stats_locked(MemxServer *s, bool rebalance,
                                MemxServerStats *out)
{
    g_strlcpy(out->address, s->peer->address, sizeof(out->address));
    out->health = s->health;
    out->state = s->released ? MEMX_SERVER_RELEASED
                 : s->leaving ? MEMX_SERVER_LEAVING
                 : s->moving_out || s->draining ? MEMX_SERVER_DRAINING
                 : MEMX_SERVER_IN_USE;
    out->chunks = s->n_chunks;
    out->to_move = s->moving_out ? s->n_chunks
                   : rebalance && s->n_chunks > s->chunk_quota
                   ? s->n_chunks - s->chunk_quota : 0;
    out->moved_bytes = s->moved_bytes;
    out->remote_bytes = s->remote_pages * MEMX_PAGE_BYTES;
    out->kept_bytes = s->kept_pages * MEMX_PAGE_BYTES;
    out->reserved_bytes = s->reserved_pages * MEMX_PAGE_BYTES;
    out->free_bytes = s->free_pages * MEMX_PAGE_BYTES;
    out->capacity_bytes = s->capacity_pages * MEMX_PAGE_BYTES;
    out->load_permille = s->load_permille;
    out->stored_bytes = s->stored_bytes;
    out->fetched_bytes = s->fetched_bytes;
    out->reconnects = s->reconnects;
    for (unsigned i = 0; i <= MEMX_LANE_FETCH; i++) {
        out->queue_depth += s->lane[i].in_flight;
    }
}

/* The upper bound of the bucket in which the quantile lies, interpolated. */
static uint64_t quantile_ns(const uint64_t *bucket, unsigned permille)
{
    uint64_t total = 0, sum = 0, rank;

    for (unsigned i = 0; i < MEMX_LATENCY_BUCKETS; i++) {
        total += bucket[i];
    }
    if (!total) {
        return 0;
    }
    rank = (total * permille + 999) / 1000;
    for (unsigned i = 0; i < MEMX_LATENCY_BUCKETS; i++) {
        if (sum + bucket[i] >= rank) {
            uint64_t low = i ? 1000ull << i : 0;
            uint64_t width = (1000ull << (i + 1)) - low;

            return low + width * (rank - sum) / bucket[i];
        }
        sum += bucket[i];
    }
    return 0;
}

void memx_region_stats(MemxRegion *r, MemxStats *out)
{
    MemxCounters *n = &r->count;
    uint64_t staged = 0, sampled = 0, never;

    memset(out, 0, sizeof(*out));
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->staging.n_slots + r->staging.n_samples; i++) {
        MemxSlot *slot = &r->staging.slot[i];

        if (memx_slot_is_out(slot)) {
            *(i < r->staging.n_slots ? &staged : &sampled) +=
                memx_mask_pages(slot->staged &
                                ~r->table.present[slot->group]);
        }
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        out->remote_bytes += s->remote_pages * MEMX_PAGE_BYTES;
        out->faults_waiting += memx_server_awaited_locked(r, s);
        server_stats_locked(s, r->rebalance, &out->servers[i]);
    }
    out->n_servers = r->n_servers;
    out->size_bytes = r->size_bytes;
    out->local_limit_bytes = MIN(r->limit, r->table.n_pages) *
                             MEMX_PAGE_BYTES;
    out->local_bytes = r->held * MEMX_PAGE_BYTES;
    out->huge_bytes = r->huge_windows * MEMX_WINDOW_BYTES;
    out->staged_bytes = staged * MEMX_PAGE_BYTES;
    out->chunk_bytes = r->chunk_bytes;
    never = r->table.n_pages - r->table.n_present;
    never -= MIN(never, out->remote_bytes / MEMX_PAGE_BYTES + staged +
                 sampled);
    out->never_written_bytes = never * MEMX_PAGE_BYTES;
    out->faults = n->first_touch + n->remote + n->staged;
    out->faults_first_touch = n->first_touch;
    out->faults_remote = n->remote;
    out->faults_staged = n->staged;
    out->faults_waiting += r->n_starved;
    out->starved = n->starved;
    out->prefetched_pages = n->prefetched;
    out->prefetch_wasted_pages = n->prefetch_wasted;
    out->prefetch_judged_pages = n->prefetch_judged;
    out->prefetch_untouched_pages = n->prefetch_untouched;
    out->evicted_pages = n->evicted;
    out->evicted_unchanged_pages = n->unchanged;
    out->evicted_zero_pages = n->zero;
    out->evict_busy_pages = n->busy;
    out->refaults = n->refaults;
    out->discarded_pages = n->discarded;
    out->promotion_pages_per_s = r->promotion_rate;
    memcpy(out->fetch_latency, n->latency, sizeof(n->latency));
    out->fill = r->fill_by_move ? "move" : "copy";
    out->host_swap = r->host_swap;
    out->fetched_before_commit_pages = r->side == MEMX_SIDE_HEIR
                                       ? n->remote + n->prefetched
                                       : r->fetched_at_commit;
    g_mutex_unlock(&r->lock);
    memx_ageing_stats(r, &out->tracking);
    out->tracker = out->tracking.name;
    out->fetch_p50_ns = quantile_ns(out->fetch_latency, 500);
    out->fetch_p99_ns = quantile_ns(out->fetch_latency, 990);
}

const char *memx_server_state_name(MemxServerUse state)
{
    switch (state) {
    case MEMX_SERVER_IN_USE:
        return "in use";
    case MEMX_SERVER_DRAINING:
        return "draining";
    case MEMX_SERVER_LEAVING:
        return "leaving";
    case MEMX_SERVER_RELEASED:
    default:
        return "released";
    }
}

const char *memx_server_health_name(MemxServerHealth health)
{
    switch (health) {
    case MEMX_SERVER_UP:
        return "up";
    case MEMX_SERVER_DOWN:
        return "down";
    case MEMX_SERVER_STALLED:
        return "stalled";
    case MEMX_SERVER_EMPTY:
    default:
        return "empty";
    }
}
