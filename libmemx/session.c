/*
 * The session thread: the clock and the event function.
 *
 * Four times a second it looks whether a thread has waited too long, and
 * every period it ages the history.  Events of all threads go through a ring
 * to this one, so that they come in order and from a thread that may block.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <inttypes.h>
#include "region.h"

#define TICK_MS 250
#define RESUMED_NS 1000000000ull

/* Who is to blame if there is no room since evictions don't go on. */
static int hindering_server(MemxRegion *r)
{
    int server = -1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        if (s->health != MEMX_SERVER_UP) {
            return i;
        }
        if (!memx_server_stores(r, s)) {
            server = i;
        }
    }
    return server;
}

static void stall_check_locked(MemxRegion *r, uint64_t now)
{
    uint64_t since = r->starved_since_ns;
    uint64_t oldest_ns = since && now > since ? now - since : 0;
    int server = -1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        since = r->server[i].waiting_since_ns;
        if (since && now > since && now - since > oldest_ns) {
            oldest_ns = now - since;
            server = i;
        }
    }
    if (!r->stalled && oldest_ns > r->server_timeout_ns) {
        r->stalled = true;
        memx_event_post_locked(r, MEMX_EVENT_STALLED,
                               server < 0 ? hindering_server(r) : server);
    } else if (r->stalled &&
               oldest_ns < MIN(r->server_timeout_ns, RESUMED_NS)) {
        /* Somebody always waits for a moment while pages are fetched. */
        r->stalled = false;
        memx_event_post_locked(r, MEMX_EVENT_RESUMED, -1);
    }
}

static void age_locked(MemxRegion *r)
{
    uint64_t promoted = r->count.remote + r->count.prefetched;
    uint64_t faults = promoted + r->count.staged + r->count.first_touch;

    r->promotion_rate = (promoted - r->promoted_last) * 1000000000ull /
                        MEMX_PERIOD_NS;
    r->promoted_last = promoted;
    /* Without a fault nothing was learnt: what was hot stays so. */
    if (faults != r->faults_at_age) {
        r->faults_at_age = faults;
        memx_history_age(&r->history);
    }
}

static char *describe(MemxRegion *r, const MemxQueuedEvent *e,
                      const char *server, uint64_t mib)
{
    switch (e->type) {
    case MEMX_EVENT_SERVER_LOST:
        return g_strdup_printf("memory server %s is lost; it alone holds %"
                               PRIu64 " MiB; trying to reach it again",
                               server, mib);
    case MEMX_EVENT_SERVER_BACK:
        return g_strdup_printf("memory server %s is back with its pages",
                               server);
    case MEMX_EVENT_SERVER_EMPTY:
        return g_strdup_printf("memory server %s came back without its pages: "
                               "%" PRIu64 " MiB are lost unless it is "
                               "restored; threads that need them wait",
                               server, mib);
    case MEMX_EVENT_POOL_FULL:
        return g_strdup_printf("memory server %s is full; free memory there "
                               "or raise its capacity", server);
    case MEMX_EVENT_STALLED:
        return g_strdup_printf("a page has been awaited for over %" PRIu64
                               " s from memory server %s, which alone holds "
                               "%" PRIu64 " MiB; bring it back, or give it up",
                               r->server_timeout_ns / 1000000000, server, mib);
    case MEMX_EVENT_RESUMED:
        return g_strdup("no thread waits long for a page any more");
    case MEMX_EVENT_BUG:
    default:
        return g_strdup("a local page is gone: the memory was changed behind "
                        "the engine's back, or this is a bug; its threads "
                        "are left waiting");
    }
}

static void deliver(MemxRegion *r)
{
    for (;;) {
        g_autofree char *text = NULL;
        MemxQueuedEvent e;
        MemxServer *s = NULL;
        MemxEvent event;

        g_mutex_lock(&r->lock);
        if (!r->queue_n) {
            g_mutex_unlock(&r->lock);
            return;
        }
        e = r->queue[r->queue_head];
        r->queue_head = (r->queue_head + 1) % MEMX_EVENT_QUEUE;
        r->queue_n--;
        if (e.server >= 0) {
            s = &r->server[e.server];
        }
        event = (MemxEvent) {
            .type = e.type,
            .server = s ? s->peer->address : NULL,
            .remote_bytes = s ? s->remote_pages * MEMX_PAGE_BYTES : 0,
        };
        g_mutex_unlock(&r->lock);
        if (r->event) {
            text = describe(r, &e, s ? s->peer->address : "(none)",
                            event.remote_bytes >> 20);
            event.message = text;
            r->event(&event, r->opaque);
        }
    }
}

void *memx_session_thread(void *opaque)
{
    MemxRegion *r = opaque;
    uint64_t period_end = memx_now_ns() + MEMX_PERIOD_NS;

    while (!memx_stopping(r)) {
        struct pollfd pfd = { .fd = r->session.wake_fd, .events = POLLIN };
        uint64_t now;

        poll(&pfd, 1, TICK_MS);
        if (pfd.revents) {
            memx_worker_silence(&r->session);
        }
        now = memx_now_ns();
        g_mutex_lock(&r->lock);
        stall_check_locked(r, now);
        if (now >= period_end) {
            period_end = now + MEMX_PERIOD_NS;
            age_locked(r);
        }
        g_mutex_unlock(&r->lock);
        if (g_atomic_int_get(&r->ready)) {
            deliver(r);
        }
    }
    return NULL;
}
