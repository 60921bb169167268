/*
 * Lanes, as their owners (the fault, store and fetch threads) use them.
 *
 * A lane is one connection of a region to a server.  Its owner submits calls
 * and takes the answers.  When it breaks, the owner first gets every call in
 * flight back with a status, then says so (up = false) and rings the server's
 * link thread, which connects anew and leaves the channel in `incoming`.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include "region.h"

/* Fault path. */
int memx_lane_submit(MemxRegion *r, MemxServer *s, MemxLane lane,
                     MemxCall *call)
{
    MemxLaneState *l = &s->lane[lane];
    int err;

    if (!l->channel) {
        return -ENOTCONN;
    }
    err = memx_channel_submit(l->channel, call);
    if (!err) {
        g_mutex_lock(&r->lock);
        if (!l->in_flight++) {
            l->progress_ns = memx_now_ns();
        }
        l->submitted++;
        g_mutex_unlock(&r->lock);
    } else {
        memx_channel_shutdown(l->channel); /* so that poll() tells us */
    }
    return err;
}

/* Fault path. */
MemxCall *memx_lane_progress(MemxRegion *r, MemxServer *s, MemxLane lane)
{
    MemxLaneState *l = &s->lane[lane];
    MemxCall *call = l->channel ? memx_channel_progress(l->channel) : NULL;

    if (call) {
        g_mutex_lock(&r->lock);
        l->completed++;
        l->in_flight--;
        if (!call->status) {
            l->progress_ns = memx_now_ns();
            s->free_pages = call->reply.free_pages;
            s->capacity_pages = call->reply.capacity_pages;
            s->load_permille = call->reply.load_permille;
            s->draining = call->reply.flags & MEMX_REPLY_DRAINING;
            s->fetched_bytes += call->reply.payload_bytes;
            if (!call->reply.error) {
                s->stored_bytes += call->request.payload_bytes;
            }
        }
        g_mutex_unlock(&r->lock);
    }
    return call;
}

void memx_lane_close(MemxRegion *r, MemxServer *s, MemxLane lane)
{
    MemxLaneState *l = &s->lane[lane];

    if (l->channel) {
        memx_channel_close(l->channel);
        l->channel = NULL;
    }
    if (lane == MEMX_LANE_ORDERED) {
        s->channels++; /* the store thread's alone */
    }
    g_mutex_lock(&r->lock);
    l->up = false;
    l->in_flight = 0;
    memx_changed_locked(r);
    g_mutex_unlock(&r->lock);
}

bool memx_lane_refresh(MemxRegion *r, MemxServer *s, MemxLane lane)
{
    MemxLaneState *l = &s->lane[lane];
    bool fresh = false, closing = false;

    if (l->channel) {
        g_mutex_lock(&r->lock);
        closing = s->closed && !l->in_flight;
        g_mutex_unlock(&r->lock);
    }
    if (l->channel && (closing || memx_channel_is_dead(l->channel))) {
        memx_lane_close(r, s, lane);
        memx_worker_ring(&s->link);
    }
    if (!l->channel) {
        g_mutex_lock(&r->lock);
        if (l->incoming && !s->closing) {
            l->channel = l->incoming;
            l->incoming = NULL;
            l->up = true;
            l->submitted = l->completed = 0;
            fresh = true;
            if (lane == MEMX_LANE_ORDERED) {
                s->channels++;
            }
        }
        g_mutex_unlock(&r->lock);
    }
    return fresh;
}

/* Fault path. */
int memx_lane_poll(MemxRegion *r, MemxWorker *worker, MemxLane lane,
                   struct pollfd *pfd)
{
    int n = 0;

    pfd[n++] = (struct pollfd) { .fd = worker->wake_fd, .events = POLLIN };
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxChannel *channel = r->server[i].lane[lane].channel;

        if (channel) {
            pfd[n++] = (struct pollfd) {
                .fd = memx_channel_poll_fd(channel),
                .events = memx_channel_poll_events(channel),
            };
        }
    }
    return n;
}
