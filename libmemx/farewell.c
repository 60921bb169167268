/*
 * Farewells; see the header.
 *
 * Theory of operation
 *
 * A region that ends, or that a server is taken from, closes its space there.
 * A server that is away would keep the space, its pages and its reservation,
 * orphaned, until its administrator drops it.  So one thread for the whole
 * process goes on trying, each of them with growing pauses; it ends when there
 * is nothing left to say.  A server is told only what is true whenever it
 * hears it: the space's owner has no use for it any more.
 *
 * The first try is after a second: a process that is about to end is not
 * disturbed.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "farewell.h"
#include "worker.h"

#define TRY_MS 5000
#define PAUSE_MIN_US (1 * G_USEC_PER_SEC)
#define PAUSE_MAX_US (30 * G_USEC_PER_SEC)

typedef struct Pending {
    MemxPeer *peer;
    MemxFarewell farewell;
    int64_t pause_us, due_us;
    struct Pending *next;
} Pending;

static GMutex lock;             /* protects what follows */
static Pending *pending;
static bool running;

static int left_ms(int64_t end_us)
{
    return MAX((end_us - g_get_monotonic_time()) / 1000, 0);
}

static bool say(MemxChannel *channel, const MemxFarewell *f, int64_t end_us)
{
    MemxCall tell = {
        .request = { .opcode = f->tell, .body_bytes = MEMX_ID_BYTES },
        .body = f->session,
    };
    MemxCall close = { .request = { .opcode = MEMX_OP_CLOSE } };

    if (f->tell && memx_channel_call(channel, &tell, left_ms(end_us), -1)) {
        return false;
    }
    return tell.reply.error || !f->close ||
           !memx_channel_call(channel, &close, left_ms(end_us), -1);
}

bool memx_farewell_say(const MemxPeer *peer, const MemxFarewell *f,
                       int timeout_ms)
{
    int64_t end_us = g_get_monotonic_time() + timeout_ms * 1000ll;
    MemxPeerInfo info = { 0 };
    MemxChannel *channel;
    bool said;

    channel = memx_peer_connect(peer, &f->open, timeout_ms, -1, &info, NULL);
    if (!channel) { /* the space is gone already, or another's */
        return info.protocol_error &&
               info.protocol_error != MEMX_ERR_SHUTDOWN;
    }
    said = say(channel, f, end_us);
    memx_channel_close(channel);
    return said;
}

static void pending_free(Pending *p)
{
    memx_peer_free(p->peer);
    explicit_bzero(&p->farewell, sizeof(p->farewell)); /* a secret */
    g_free(p);
}

/* The first that is due, and when the next one is. */
static Pending *find_due_locked(int64_t *next_us)
{
    int64_t now_us = g_get_monotonic_time();

    *next_us = INT64_MAX;
    for (Pending *p = pending; p; p = p->next) {
        if (p->due_us <= now_us) {
            return p;
        }
        *next_us = MIN(*next_us, p->due_us);
    }
    return NULL;
}

static void remove_locked(Pending *p)
{
    Pending **at = &pending;

    while (*at != p) {
        at = &(*at)->next;
    }
    *at = p->next;
}

static void *farewell_thread(void *opaque)
{
    int64_t next_us;

    g_mutex_lock(&lock);
    while (pending) {
        Pending *p = find_due_locked(&next_us);
        bool said;

        g_mutex_unlock(&lock);
        if (!p) { /* and others may come, or be in a hurry, meanwhile */
            g_usleep(CLAMP(next_us - g_get_monotonic_time(), 1,
                           PAUSE_MIN_US));
            g_mutex_lock(&lock);
            continue;
        }
        said = memx_farewell_say(p->peer, &p->farewell, TRY_MS);
        g_mutex_lock(&lock);
        p->pause_us = MIN(2 * p->pause_us, PAUSE_MAX_US);
        p->due_us = g_get_monotonic_time() + p->pause_us;
        if (said) {
            remove_locked(p);
            pending_free(p);
        }
    }
    running = false;
    g_mutex_unlock(&lock);
    return NULL;
}

void memx_farewell_hurry(void)
{
    g_mutex_lock(&lock);
    for (Pending *p = pending; p; p = p->next) {
        p->due_us = MIN(p->due_us, g_get_monotonic_time());
    }
    g_mutex_unlock(&lock);
}

void memx_farewell_later(const MemxPeer *peer, const MemxFarewell *f)
{
    MemxPeer *copy = memx_peer_new(peer->transport, peer->address, peer->key,
                                   NULL);
    Pending *p = g_new0(Pending, 1);
    GThread *thread = NULL;

    g_assert(copy); /* it was good before */
    p->peer = copy;
    p->farewell = *f;
    p->pause_us = PAUSE_MIN_US;
    p->due_us = g_get_monotonic_time() + p->pause_us;
    g_mutex_lock(&lock);
    p->next = pending;
    pending = p;
    if (!running) {
        thread = memx_thread_new("memx-farewell", farewell_thread, NULL, NULL);
        running = thread; /* if there are too many: with the next one */
    }
    g_mutex_unlock(&lock);
    g_clear_pointer(&thread, g_thread_unref);
}
