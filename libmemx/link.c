/*
 * A server's link thread: connections that last.
 *
 * Theory of operation
 *
 * It sleeps until a lane's owner says that the lane is down (or half a second
 * is over: health), connects it anew, and leaves the channel for the owner.
 * It tries at once, then with growing pauses, up to a second.
 *
 * "Came back" and "came back empty" differ: a server that is itself again
 * opens the space; one that doesn't know the space has lost it.  Then every
 * mark "has a copy" is void.  If no page was there alone, the space is made
 * anew and nothing is lost; otherwise the server stays EMPTY, those pages are
 * awaited, and opening is tried again, for the case that somebody brings the
 * pages back.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"

#define HEALTH_MS 500
#define RETRY_MIN_MS 50
#define RETRY_MAX_MS 1000
#define CONNECT_MS 5000
#define VOID_SLICE_GROUPS 4096

/* Voids the copies that a server kept; returns the pages lost with it. */
static uint64_t void_copies(MemxRegion *r, MemxServer *s)
{
    MemxPageTable *t = &r->table;
    uint64_t lost = 0, held;

    g_mutex_lock(&r->lock);
    held = s->remote_pages + s->kept_pages;
    g_mutex_unlock(&r->lock);
    if (!held) {
        return 0;
    }

    for (uint64_t from = 0; from < t->n_groups; from += VOID_SLICE_GROUPS) {
        uint64_t end = MIN(from + VOID_SLICE_GROUPS, t->n_groups);

        g_mutex_lock(&r->lock);
        for (uint64_t g = from; g < end; g++) {
            MemxSlot *slot;
            uint64_t here;

            if (!t->stored[g] ||
                t->chunk[memx_chunk_of_group(t, g)].server != s->index) {
                continue;
            }
            slot = memx_staging_find(&r->staging, g, true);
            here = t->present[g] | (slot ? slot->staged : 0);
            memx_trace_pages(MEMX_KEPT_VOIDED, t->stored[g] & here);
            memx_set_group_locked(r, g, t->present[g],
                                  t->stored[g] & ~here);
            lost += memx_mask_pages(t->stored[g]);
        }
        g_mutex_unlock(&r->lock);
    }
    return lost;
}

/* The space is gone.  True: nothing is lost, it may be made anew. */
static bool came_back_empty(MemxRegion *r, MemxServer *s)
{
    uint64_t lost;

    g_mutex_lock(&r->lock);
    if (r->out) {
        memx_out_failed_locked(r, s, "came back without the pages that it "
                               "was sent");
    }
    /* What the destination is to have, or has been offered, isn't here. */
    lost = r->out || r->side != MEMX_SIDE_OWNER ||
           (!s->told && r->tell_opcode == MEMX_OP_COMMIT);
    g_mutex_unlock(&r->lock);
    lost += void_copies(r, s);

    g_mutex_lock(&r->lock);
    if (lost && s->health != MEMX_SERVER_EMPTY) {
        s->health = MEMX_SERVER_EMPTY;
        memx_event_post_locked(r, MEMX_EVENT_SERVER_EMPTY, s->index);
    }
    g_mutex_unlock(&r->lock);
    return !lost;
}

/* The other side has the VM.  That is also so when the same server no longer
 * has what it offered: who took it back has closed it meanwhile (or an
 * administrator has dropped it, by force). */
static bool is_theirs_locked(const MemxRegion *r, const MemxServer *s,
                             const MemxPeerInfo *info)
{
    return info->protocol_error == MEMX_ERR_EPOCH ||
           (info->protocol_error == MEMX_ERR_NO_SPACE &&
            r->side == MEMX_SIDE_HEIR &&
            !memcmp(info->instance, s->instance, sizeof(s->instance)));
}

static MemxChannel *connect_lane(MemxRegion *r, MemxServer *s, MemxLane lane,
                                 MemxPeerInfo *info, GError **error)
{
    MemxOpen open = s->open;
    MemxChannel *channel;
    bool theirs;

    g_mutex_lock(&r->lock);
    memx_handover_open_locked(r, s, &open);
    g_mutex_unlock(&r->lock);
    open.lane = lane;
    channel = memx_peer_connect(s->peer, &open, CONNECT_MS, s->link.wake_fd,
                                info, error);
    g_mutex_lock(&r->lock);
    theirs = !channel && is_theirs_locked(r, s, info);
    if (theirs) {
        memx_handover_fenced_locked(r);
    }
    g_mutex_unlock(&r->lock);
    if (!channel && !theirs && info->protocol_error == MEMX_ERR_NO_SPACE &&
        lane == MEMX_LANE_ORDERED && came_back_empty(r, s)) {
        open.flags = MEMX_OPEN_CREATE;
        g_mutex_lock(&r->lock);
        open.reserve_pages = s->reserved_pages;
        g_mutex_unlock(&r->lock);
        g_clear_error(error);
        channel = memx_peer_connect(s->peer, &open, CONNECT_MS,
                                    s->link.wake_fd, info, error);
    }
    return channel;
}

static MemxWorker *owner(MemxRegion *r, MemxLane lane)
{
    return lane == MEMX_LANE_ORDERED ? &r->store
           : lane == MEMX_LANE_FAULT ? &r->faults : &r->fetch;
}

static bool ends(MemxRegion *r, MemxServer *s)
{
    bool closing;

    g_mutex_lock(&r->lock);
    closing = s->closing;
    g_mutex_unlock(&r->lock);
    return closing || memx_stopping(r);
}

/* Connects what is down.  False: something still is. */
static bool connect_lanes(MemxRegion *r, MemxServer *s)
{
    for (unsigned lane = MEMX_LANE_ORDERED; lane <= memx_last_lane(r);
         lane++) {
        g_autoptr(GError) error = NULL;
        MemxPeerInfo info = { 0 };
        MemxChannel *channel;
        bool down;

        g_mutex_lock(&r->lock);
        down = !s->lane[lane].up && !s->lane[lane].incoming;
        g_mutex_unlock(&r->lock);
        if (!down) {
            continue;
        }
        if (ends(r, s)) {
            return false;
        }
        channel = connect_lane(r, s, lane, &info, &error);
        g_mutex_lock(&r->lock);
        g_strlcpy(s->why_down, channel || !error ? "" : error->message,
                  sizeof(s->why_down));
        if (!channel) {
            g_mutex_unlock(&r->lock);
            return false;
        }
        memcpy(s->instance, info.instance, sizeof(s->instance));
        s->free_pages = info.free_pages;
        s->capacity_pages = info.capacity_pages;
        s->draining = info.draining;
        if (lane == MEMX_LANE_ORDERED) {
            memx_reserve_opened_locked(s, info.opened.reserved_pages);
            memcpy(s->nonce[0], info.client_nonce, MEMX_NONCE_BYTES);
            memcpy(s->nonce[1], info.server_nonce, MEMX_NONCE_BYTES);
        }
        s->lane[lane].incoming = channel;
        g_mutex_unlock(&r->lock);
        memx_worker_ring(owner(r, lane));
    }
    return true;
}

static bool all_up_locked(MemxRegion *r, MemxServer *s)
{
    for (unsigned lane = MEMX_LANE_ORDERED; lane <= memx_last_lane(r);
         lane++) {
        if (!s->lane[lane].up && !s->lane[lane].incoming) {
            return false;
        }
    }
    return true;
}

static bool silent_locked(MemxServer *s, uint64_t now)
{
    for (unsigned lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        MemxLaneState *l = &s->lane[lane];

        if (l->in_flight && now - l->progress_ns > MEMX_STALL_NS &&
            now > l->progress_ns) {
            return true;
        }
    }
    return false;
}

/* All is home: it holds nothing of ours, and may go. */
static bool released_locked(MemxRegion *r, MemxServer *s)
{
    return r->home && !s->remote_pages && !s->kept_pages &&
           !r->staging.n_out;
}

/* Sets the health, and says so. */
static void judge(MemxRegion *r, MemxServer *s, bool reconnected)
{
    MemxServerHealth health;
    bool back;

    g_mutex_lock(&r->lock);
    if (r->side == MEMX_SIDE_FENCED) {
        g_mutex_unlock(&r->lock); /* it's nothing to us any more */
        return;
    }
    if (!all_up_locked(r, s)) {
        health = s->health == MEMX_SERVER_EMPTY ? MEMX_SERVER_EMPTY
                                                : MEMX_SERVER_DOWN;
    } else if (s->health == MEMX_SERVER_EMPTY && !reconnected) {
        health = MEMX_SERVER_EMPTY; /* it refused a page it should have */
    } else if (silent_locked(s, memx_now_ns())) {
        health = MEMX_SERVER_STALLED;
    } else {
        health = MEMX_SERVER_UP;
    }
    back = health != MEMX_SERVER_EMPTY && s->health == MEMX_SERVER_EMPTY;
    if (health != s->health) {
        s->health = health;
        memx_changed_locked(r);
    }
    if (health == MEMX_SERVER_UP && s->lost && !s->refused) {
        s->lost = false;
        memx_event_post_locked(r, MEMX_EVENT_SERVER_BACK, s->index);
    } else if (health != MEMX_SERVER_UP && !s->lost &&
               !released_locked(r, s)) {
        s->lost = true;
        memx_event_post_locked(r, MEMX_EVENT_SERVER_LOST, s->index);
    }
    g_mutex_unlock(&r->lock);
    if (back) {
        memx_wake_all(r); /* faults were left for its sake */
    }
    if (reconnected) {
        memx_worker_ring(&r->store);
    }
}

typedef struct MemxLinkArgs {
    MemxRegion *region;
    MemxServer *server;
} MemxLinkArgs;

static void *link_thread(void *opaque)
{
    g_autofree MemxLinkArgs *args = opaque;
    MemxRegion *r = args->region;
    MemxServer *s = args->server;
    unsigned retry_ms = RETRY_MIN_MS;

    while (!ends(r, s)) {
        struct pollfd pfd = { .fd = s->link.wake_fd, .events = POLLIN };
        bool down, offered, refuses, ok = true;

        g_mutex_lock(&r->lock);
        down = !all_up_locked(r, s) && r->side != MEMX_SIDE_FENCED;
        offered = r->side == MEMX_SIDE_OFFERED;
        refuses = s->refused;
        g_mutex_unlock(&r->lock);
        if (down) {
            if (!offered) { /* the other side may have it: ask first */
                judge(r, s, false);
            }
            memx_worker_silence(&s->link);
            if (refuses && !ends(r, s)) { /* it will again, at once */
                poll(&pfd, 1, retry_ms);
                memx_worker_silence(&s->link);
            }
            ok = connect_lanes(r, s);
            if (ok) {
                g_mutex_lock(&r->lock);
                s->reconnects++;
                g_mutex_unlock(&r->lock);
            }
        }
        judge(r, s, down && ok);
        if (ok && !refuses) {
            retry_ms = RETRY_MIN_MS;
        }
        poll(&pfd, 1, ok ? HEALTH_MS : retry_ms);
        if (down && (!ok || refuses)) {
            retry_ms = MIN(2 * retry_ms, RETRY_MAX_MS);
        }
        if (pfd.revents) {
            memx_worker_silence(&s->link);
        }
    }
    return NULL;
}

bool memx_link_start(MemxRegion *r, MemxServer *s, GError **error)
{
    MemxLinkArgs *args = g_new(MemxLinkArgs, 1);

    *args = (MemxLinkArgs) { r, s };
    if (memx_worker_start(&s->link, "memx-link", link_thread, args, error)) {
        return true;
    }
    g_free(args);
    return false;
}
