/*
 * Opening: the lanes of one or more servers, all at the same time.
 *
 * A lane takes four round trips, each with a thread to be woken on either
 * side.  Where an arrival's VM stands still meanwhile, or both hosts are busy,
 * one lane after the other would add up.  A space that is made anew has its
 * ordered lane first, which makes it.
 *
 * Each connects in a thread of its own, which touches nothing but its own
 * part; the caller's thread puts the results in their places.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"

typedef struct Connecting {
    const MemxPeer *peer;
    MemxServer *server;
    MemxOpen open;
    unsigned timeout_ms;
    GThread *thread;            /* NULL: it is done */
    /* The thread's until it ends. */
    MemxChannel *channel;
    MemxPeerInfo info;
    GError *error;
} Connecting;

struct MemxOpening {
    unsigned n;
    Connecting connecting[];
};

static void *connect_one(void *opaque)
{
    Connecting *c = opaque;

    c->channel = memx_peer_connect(c->peer, &c->open, c->timeout_ms, -1,
                                   &c->info, &c->error);
    return NULL;
}

static void begin(MemxRegion *r, Connecting *c, MemxServer *s, MemxLane lane,
                  bool create, unsigned timeout_ms)
{
    c->peer = s->peer;
    c->server = s;
    c->timeout_ms = timeout_ms;
    c->open = s->open;
    g_mutex_lock(&r->lock);
    memx_handover_open_locked(r, s, &c->open);
    g_mutex_unlock(&r->lock);
    c->open.lane = lane;
    if (create) {
        c->open.flags = MEMX_OPEN_CREATE;
        c->open.reserve_pages = s->reserved_pages;
    }
    s->opened = true; /* also if the answer doesn't reach us */
    c->thread = memx_thread_new("memx-open", connect_one, c, NULL);
    if (!c->thread) { /* there are too many */
        connect_one(c);
    }
}

static MemxOpening *open_round(MemxRegion *r, MemxServer **list, unsigned n,
                               MemxLane first, MemxLane last, bool create,
                               unsigned timeout_ms)
{
    unsigned lanes = last - first + 1;
    MemxOpening *opening = g_malloc0(sizeof(*opening) +
                                     n * lanes * sizeof(Connecting));

    opening->n = n * lanes;
    for (unsigned i = 0; i < opening->n; i++) {
        begin(r, &opening->connecting[i], list[i / lanes], first + i % lanes,
              create, timeout_ms);
    }
    return opening;
}

/* The lane is its owner's to use. */
static void take(Connecting *c)
{
    MemxServer *s = c->server;

    s->lane[c->open.lane].channel = c->channel;
    s->lane[c->open.lane].up = true;
    s->free_pages = c->info.free_pages;
    s->capacity_pages = c->info.capacity_pages;
    s->draining = c->info.draining;
    memcpy(s->instance, c->info.instance, sizeof(s->instance));
    if (c->open.lane == MEMX_LANE_ORDERED) {
        memx_reserve_set_locked(s, c->info.opened.reserved_pages);
        memcpy(s->nonce[0], c->info.client_nonce, MEMX_NONCE_BYTES);
        memcpy(s->nonce[1], c->info.server_nonce, MEMX_NONCE_BYTES);
    }
}

MemxOpening *memx_opening_attach(MemxRegion *r, MemxServer **list, unsigned n,
                                 unsigned timeout_ms)
{
    return open_round(r, list, n, MEMX_LANE_ORDERED, memx_last_lane(r), false,
                      timeout_ms);
}

bool memx_opening_end(MemxOpening *opening, MemxOpened *opened,
                      GError **error)
{
    bool ok = true;

    for (unsigned i = 0; i < opening->n; i++) {
        Connecting *c = &opening->connecting[i];

        g_clear_pointer(&c->thread, g_thread_join);
        if (c->channel) {
            take(c);
        } else if (ok) {
            g_propagate_error(error, g_steal_pointer(&c->error));
            ok = false;
        }
        g_clear_error(&c->error);
        if (opened && c->open.lane == MEMX_LANE_ORDERED) {
            *opened++ = c->info.opened;
        }
        explicit_bzero(&c->open, sizeof(c->open)); /* a secret */
    }
    g_free(opening);
    return ok;
}

bool memx_opening_create(MemxRegion *r, MemxServer **list, unsigned n,
                         unsigned timeout_ms, GError **error)
{
    MemxOpening *opening = open_round(r, list, n, MEMX_LANE_ORDERED,
                                      MEMX_LANE_ORDERED, true, timeout_ms);

    if (!memx_opening_end(opening, NULL, error)) {
        return false;
    }
    if (memx_last_lane(r) == MEMX_LANE_ORDERED) {
        return true;
    }
    opening = open_round(r, list, n, MEMX_LANE_FAULT, memx_last_lane(r),
                         false, timeout_ms);
    return memx_opening_end(opening, NULL, error);
}
