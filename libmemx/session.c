/*
 * The session thread: the clock and the event function.
 *
 * Four times a second it looks whether a thread has waited too long, and once
 * at its rates.  The other threads leave their events to this one, which may
 * block in the event function.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <inttypes.h>
#include "region.h"

#define TICK_MS 250
#define RESUMED_NS 1000000000ull
#define NOBODY_NS 1000000000ull

/* Who is to blame if there is no room since evictions don't go on: of those
 * that take no pages now, the one for which most of the local memory is, or is on
 * its way. */
static int hindering_server(MemxRegion *r)
{
    uint32_t most = 0;
    int server = -1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        bool up = s->health == MEMX_SERVER_UP;
        uint32_t chunks = r->history.queue[i + 1].n_listed + s->n_out;

        /* One that is full is asked again now and then. */
        if (s->released ||
            (up && !s->full_told && memx_server_stores(r, s))) {
            continue;
        }
        if (s->n_chunks < s->chunk_quota) {
            chunks += r->history.queue[MEMX_QUEUE_UNPLACED].n_listed;
        }
        if (server < 0 || chunks > most || (chunks == most && !up)) {
            most = chunks;
            server = i;
        }
    }
    return server;
}

/* Who was woken, and still waits, has come again by then; but not a vCPU of a
 * VM that was stopped for it. */
static void nobody_check_locked(MemxRegion *r, MemxServer *s, uint64_t now)
{
    if (r->stalled || memx_server_awaited_locked(r, s)) {
        s->nobody_since_ns = 0;
    } else if (!s->nobody_since_ns) {
        s->nobody_since_ns = now;
    } else if (now > s->nobody_since_ns + NOBODY_NS) {
        s->waiting_since_ns = 0;
    }
}

static void stall_check_locked(MemxRegion *r, uint64_t now)
{
    uint64_t since = r->starved_since_ns;
    uint64_t oldest_ns = since && now > since ? now - since : 0;
    int server = -1;

    for (unsigned i = 0; i < r->n_servers; i++) {
        nobody_check_locked(r, &r->server[i], now);
        if (r->server[i].refused) {
            memx_worker_ring(&r->faults); /* asks again */
        }
        since = r->server[i].waiting_since_ns;
        if (since && now > since && now - since > oldest_ns) {
            oldest_ns = now - since;
            server = i;
        }
    }
    if (!r->stalled && oldest_ns > r->server_timeout_ns) {
        r->stalled = true;
        r->stalled_for_room = server < 0;
        memx_event_post_locked(r, MEMX_EVENT_STALLED,
                               server < 0 ? hindering_server(r) : server);
    } else if (r->stalled &&
               oldest_ns < MIN(r->server_timeout_ns, RESUMED_NS)) {
        /* Somebody always waits for a moment while pages are fetched. */
        r->stalled = false;
        memx_event_post_locked(r, MEMX_EVENT_RESUMED, -1);
    }
}

static void rates_locked(MemxRegion *r)
{
    uint64_t promoted = r->count.remote + r->count.prefetched;

    r->promotion_rate = (promoted - r->promoted_last) * 1000000000ull /
                        MEMX_RATE_NS;
    r->promoted_last = promoted;
}

/* What an event says of its server. */
typedef struct Said {
    const char *server;     /* or NULL */
    uint64_t mib;           /* that it alone holds */
    bool room;              /* is awaited, not a page */
    bool full, empty;
    bool no_room;           /* elsewhere, for what it has */
    bool left_behind;       /* it was released without a word */
    const char *refused;    /* why it refuses pages, or NULL */
    char why_down[MEMX_WHY_BYTES];
} Said;

static char *describe_stall(MemxRegion *r, const Said *said)
{
    uint64_t seconds = r->server_timeout_ns / 1000000000;

    if (said->room && !said->server) {
        return g_strdup_printf("room for a page has been awaited for over %"
                               PRIu64 " s, since too little is evicted",
                               seconds);
    }
    if (said->room) {
        return g_strdup_printf("room for a page has been awaited for over %"
                               PRIu64 " s, since none can be evicted: memory "
                               "server %s %s%s%s", seconds, said->server,
                               said->full ? "is full; free memory there or "
                               "raise its capacity"
                               : said->empty ? "came back without its pages; "
                               "restart it with them, or give them up"
                               : "takes none; bring it back",
                               *said->why_down ? " (last try: " : "",
                               said->why_down);
    }
    if (said->refused) {
        return g_strdup_printf("a page has been awaited for over %" PRIu64
                               " s from memory server %s, which does not give "
                               "it: %s; its log says more", seconds,
                               said->server, said->refused);
    }
    return g_strdup_printf("a page has been awaited for over %" PRIu64
                           " s from memory server %s, which alone holds %"
                           PRIu64 " MiB; bring it back, or give it up%s%s",
                           seconds, said->server, said->mib,
                           *said->why_down ? " (last try: " : "",
                           said->why_down);
}

static char *describe(MemxRegion *r, MemxEventType type, const Said *said)
{
    const char *server = said->server;
    uint64_t mib = said->mib;

    switch (type) {
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
    case MEMX_EVENT_SERVER_RELEASED:
        return g_strdup_printf("memory server %s is in use no more: %s",
                               server, said->left_behind ?
                               "it could not be told so yet, and lists a "
                               "space that nobody needs as orphaned" :
                               "all that it held is elsewhere");
    case MEMX_EVENT_POOL_FULL:
        if (said->no_room) {
            return g_strdup_printf("memory server %s is being drained, but "
                                   "the others have no room for what is "
                                   "there; add a server, free memory on one "
                                   "or raise its capacity", server);
        }
        return g_strdup_printf("memory server %s is full; free memory there "
                               "or raise its capacity", server);
    case MEMX_EVENT_STALLED:
        return describe_stall(r, said);
    case MEMX_EVENT_RESUMED:
        return g_strdup("no thread waits long for a page any more");
    case MEMX_EVENT_BUG:
    default:
        return g_strdup("a local page is gone: the memory was changed behind "
                        "the engine's back, or this is a bug; its threads "
                        "are left waiting");
    }
}

/* The next event to say, in an order in which they make sense. */
static bool take_event(MemxRegion *r, MemxEventType *type, int *server)
{
    static const MemxEventType order[] = {
        MEMX_EVENT_SERVER_LOST, MEMX_EVENT_SERVER_EMPTY,
        MEMX_EVENT_SERVER_BACK, MEMX_EVENT_SERVER_RELEASED,
        MEMX_EVENT_POOL_FULL, MEMX_EVENT_STALLED, MEMX_EVENT_RESUMED,
        MEMX_EVENT_BUG,
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(order); i++) {
        uint32_t *bits = &r->events[order[i]];

        if (*bits) {
            int bit = __builtin_ctz(*bits);

            *bits &= *bits - 1;
            *type = order[i];
            *server = bit == MEMX_EVENT_NO_SERVER ? -1 : bit;
            return true;
        }
    }
    return false;
}

static void deliver(MemxRegion *r)
{
    for (;;) {
        g_autofree char *text = NULL;
        MemxEvent event = { 0 };
        Said said = { 0 };
        MemxServer *s = NULL;
        int server;
        bool any;

        g_mutex_lock(&r->lock);
        any = take_event(r, &event.type, &server);
        said.room = r->stalled_for_room;
        if (any && server >= 0) {
            s = &r->server[server];
            event.server = s->peer->address;
            event.remote_bytes = s->remote_pages * MEMX_PAGE_BYTES;
            said.server = event.server;
            said.mib = event.remote_bytes >> 20;
            said.full = s->health == MEMX_SERVER_UP &&
                        (s->full_told || s->full || !memx_server_has_room(s));
            said.empty = s->health == MEMX_SERVER_EMPTY;
            said.no_room = s->no_room;
            said.left_behind = s->left_behind;
            /* Its lanes can be opened, if only for a moment. */
            said.refused = !*s->why_down ? s->refused : NULL;
            if (s->health == MEMX_SERVER_DOWN && *s->why_down) {
                g_snprintf(said.why_down, sizeof(said.why_down), "%s)",
                           s->why_down);
            }
        }
        g_mutex_unlock(&r->lock);
        if (!any) {
            return;
        }
        if (r->event) {
            text = describe(r, event.type, &said);
            event.message = text;
            r->event(&event, r->opaque);
        }
    }
}

void *memx_session_thread(void *opaque)
{
    MemxRegion *r = opaque;
    uint64_t rates_ns = memx_now_ns() + MEMX_RATE_NS;

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
        if (now >= rates_ns) {
            rates_ns = now + MEMX_RATE_NS;
            rates_locked(r);
        }
        g_mutex_unlock(&r->lock);
        if (g_atomic_int_get(&r->ready)) {
            deliver(r);
        }
    }
    return NULL;
}
