/*
 * A transport within one process, for tests only.
 *
 * Theory of operation
 *
 * There is no byte stream.  A submitted call is put, as it is, on a list
 * that both ends of a link share; the server's thread takes its header and
 * body from there, reads the payload out of the client's memory when it
 * pulls, and writes pages into the client's memory when it replies: what an
 * RDMA card would do with one-sided READ and WRITE.  As with such a card,
 * memory has to be registered first, and is pinned then (flags is 0).
 *
 * The server's thread touches a client's call and memory only under the
 * link's lock and while neither end is closed: a client that has got its
 * call back can free it.  Headers go through the codec, so that what TCP
 * would refuse is refused here too.
 *
 * Locks are pthread's, not GLib's, because ThreadSanitizer sees those.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "iov.h"
#include "memx.h"
#include "transport-inproc.h"

typedef struct Link {
    pthread_mutex_t lock;   /* everything below; nothing is taken inside */
    pthread_cond_t changed; /* wakes the server */
    int done_fd;            /* wakes the client; constant */
    GQueue waiting;         /* MemxCall *, submitted and not taken */
    MemxCall *current;      /* with the server, or NULL */
    size_t pulled;          /* of current's payload */
    GQueue done;            /* MemxCall *, answered */
    bool dead;
    int references;
} Link;

typedef struct Channel {
    MemxChannel base;
    Link *link;
    char *peer;             /* constant */
    uint64_t last_id;       /* client */
    MemxRequest request;    /* server: the current one */
} Channel;

struct MemxListener {
    char *address;
    int pending_fd;         /* a semaphore: one count per pending link */
    GQueue pending;         /* Link *; under listeners_lock */
};

/* What is listened on, and what is registered. */
static pthread_mutex_t listeners_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *listeners;   /* address -> MemxListener */
static pthread_mutex_t registered_lock = PTHREAD_MUTEX_INITIALIZER;
static GArray *registered;      /* struct iovec */

static void link_unref(Link *link)
{
    pthread_mutex_lock(&link->lock);
    bool last = --link->references == 0;
    pthread_mutex_unlock(&link->lock);
    if (last) {
        g_queue_clear(&link->waiting);
        g_queue_clear(&link->done);
        close(link->done_fd);
        pthread_cond_destroy(&link->changed);
        pthread_mutex_destroy(&link->lock);
        g_free(link);
    }
}

static void link_kill(Link *link)
{
    pthread_mutex_lock(&link->lock);
    link->dead = true;
    pthread_cond_broadcast(&link->changed);
    eventfd_write(link->done_fd, 1);
    pthread_mutex_unlock(&link->lock);
}

static MemxChannel *channel_new(Link *link, char *peer)
{
    Channel *ch = g_new0(Channel, 1);

    ch->base.transport = &memx_transport_inproc;
    ch->link = link;
    ch->peer = peer;
    return &ch->base;
}

/* --- Registered memory --- */

static int inproc_register(void *base, size_t bytes)
{
    struct iovec span = { base, bytes };

    pthread_mutex_lock(&registered_lock);
    if (!registered) {
        registered = g_array_new(FALSE, FALSE, sizeof(struct iovec));
    }
    g_array_append_val(registered, span);
    pthread_mutex_unlock(&registered_lock);
    return 0;
}

static void inproc_unregister(void *base, size_t bytes)
{
    pthread_mutex_lock(&registered_lock);
    for (guint i = 0; registered && i < registered->len; i++) {
        struct iovec *span = &g_array_index(registered, struct iovec, i);

        if (span->iov_base == base && span->iov_len == bytes) {
            g_array_remove_index_fast(registered, i);
            break;
        }
    }
    pthread_mutex_unlock(&registered_lock);
}

static bool is_registered(const struct iovec *iov, int n)
{
    int found = 0;

    pthread_mutex_lock(&registered_lock);
    for (int i = 0; i < n; i++) {
        uintptr_t start = (uintptr_t)iov[i].iov_base;

        for (guint j = 0; registered && j < registered->len; j++) {
            struct iovec *span = &g_array_index(registered, struct iovec, j);
            uintptr_t base = (uintptr_t)span->iov_base;

            if (start >= base &&
                start + iov[i].iov_len <= base + span->iov_len) {
                found++;
                break;
            }
        }
    }
    pthread_mutex_unlock(&registered_lock);
    return found == n;
}

/* --- Client --- */

static MemxChannel *inproc_connect(const char *host, const char *port,
                                   int timeout_ms, int cancel_fd,
                                   GError **error)
{
    g_autofree char *address = g_strdup_printf("%s:%s", host, port);
    MemxListener *listener = NULL;
    Link *link = NULL;

    pthread_mutex_lock(&listeners_lock);
    if (listeners) {
        listener = g_hash_table_lookup(listeners, address);
    }
    if (listener) {
        link = g_new0(Link, 1);
        pthread_mutex_init(&link->lock, NULL);
        pthread_cond_init(&link->changed, NULL);
        link->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        link->references = 2;
        g_queue_push_tail(&listener->pending, link);
        eventfd_write(listener->pending_fd, 1);
    }
    pthread_mutex_unlock(&listeners_lock);
    if (!link) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "can't connect to %s: nobody listens", address);
        return NULL;
    }
    return channel_new(link, g_steal_pointer(&address));
}

static int inproc_submit(MemxChannel *channel, MemxCall *call)
{
    Channel *ch = (Channel *)channel;
    Link *link = ch->link;

    g_assert(is_registered(call->out, call->n_out) &&
             is_registered(call->in, call->n_in));
    pthread_mutex_lock(&link->lock);
    if (link->dead && !channel->status) {
        channel->status = -EPIPE;
    }
    if (!channel->status) {
        call->request.id = ++ch->last_id;
        call->status = 0;
        call->next = NULL;
        g_queue_push_tail(&link->waiting, call);
        pthread_cond_signal(&link->changed);
    }
    pthread_mutex_unlock(&link->lock);
    return channel->status;
}

static MemxCall *inproc_progress(MemxChannel *channel)
{
    Channel *ch = (Channel *)channel;
    Link *link = ch->link;
    MemxCall *call;
    eventfd_t count;

    pthread_mutex_lock(&link->lock);
    call = g_queue_pop_head(&link->done);
    if (!call && link->dead) {
        if (!channel->status) {
            channel->status = -EPIPE;
        }
        call = link->current;
        link->current = NULL;
        if (!call) {
            call = g_queue_pop_head(&link->waiting);
        }
        if (call) {
            call->status = channel->status;
        }
    } else if (call && call->status) {
        channel->status = call->status;
    }
    /* A dead link stays readable, as a closed socket does. */
    if (!call && !link->dead) {
        eventfd_read(link->done_fd, &count);
    }
    pthread_mutex_unlock(&link->lock);
    return call;
}

static int inproc_poll_fd(MemxChannel *channel)
{
    return ((Channel *)channel)->link->done_fd;
}

static short inproc_poll_events(MemxChannel *channel)
{
    return POLLIN;
}

/* --- Server --- */

static int inproc_next(MemxChannel *channel, MemxRequest *request, void *body)
{
    Channel *ch = (Channel *)channel;
    Link *link = ch->link;
    uint8_t wire[MEMX_REQUEST_BYTES];
    int r = 0;

    if (channel->status) {
        return channel->status;
    }
    pthread_mutex_lock(&link->lock);
    g_assert(!link->current);
    while (!link->dead && g_queue_is_empty(&link->waiting)) {
        pthread_cond_wait(&link->changed, &link->lock);
    }
    if (link->dead) {
        r = -EPIPE;
    } else {
        link->current = g_queue_pop_head(&link->waiting);
        link->pulled = 0;
        memx_request_encode(wire, &link->current->request);
        r = memx_request_decode(&ch->request, wire);
        *request = ch->request;
    }
    if (r == 0 && request->body_bytes) {
        memcpy(body, link->current->body, request->body_bytes);
    }
    pthread_mutex_unlock(&link->lock);
    channel->status = r;
    return r;
}

static int inproc_pull(MemxChannel *channel, const struct iovec *iov, int n)
{
    Channel *ch = (Channel *)channel;
    Link *link = ch->link;
    int r = 0;

    if (channel->status) {
        return channel->status;
    }
    pthread_mutex_lock(&link->lock);
    if (link->dead) {
        r = -EPIPE;
    } else if (n < 0) {
        link->pulled = ch->request.payload_bytes;
    } else {
        MemxCall *call = link->current;

        g_assert(link->pulled + memx_iov_bytes(iov, n) <=
                 ch->request.payload_bytes);
        for (int i = 0; i < n; i++) {
            memx_iov_read(call->out, call->n_out, link->pulled,
                          iov[i].iov_base, iov[i].iov_len);
            link->pulled += iov[i].iov_len;
        }
    }
    pthread_mutex_unlock(&link->lock);
    channel->status = r;
    return r;
}

/* What TCP's client does with a reply's header. */
static int deliver(MemxCall *call, const MemxRequest *request,
                   const MemxReply *reply)
{
    MemxReply echo = *reply;
    uint8_t wire[MEMX_REPLY_BYTES];
    int r;

    echo.opcode = request->opcode;
    echo.id = request->id;
    memx_reply_encode(wire, &echo);
    r = memx_reply_decode(&call->reply, wire);
    return r < 0 ? r : memx_call_check(call, memx_iov_bytes(call->in,
                                                            call->n_in),
                                       &call->reply);
}

static int inproc_reply(MemxChannel *channel, const MemxReply *reply,
                        const void *body, const struct iovec *iov, int n)
{
    Channel *ch = (Channel *)channel;
    Link *link = ch->link;
    int r = channel->status;

    /* A malformed request may be told so. */
    if (r && r != -EPROTO) {
        return r;
    }
    pthread_mutex_lock(&link->lock);
    if (link->dead || !link->current) {
        r = -EPIPE;
    } else {
        MemxCall *call = link->current;
        size_t offset = 0;

        g_assert(r || link->pulled == ch->request.payload_bytes);
        call->status = deliver(call, &ch->request, reply);
        if (call->status == 0) {
            if (reply->body_bytes) {
                memcpy(call->reply_body, body, reply->body_bytes);
            }
            for (int i = 0; i < n; i++) {
                memx_iov_write(call->in, call->n_in, offset,
                               iov[i].iov_base, iov[i].iov_len);
                offset += iov[i].iov_len;
            }
        }
        link->dead = call->status != 0;
        link->current = NULL;
        g_queue_push_tail(&link->done, call);
        eventfd_write(link->done_fd, 1);
        r = 0;
    }
    pthread_mutex_unlock(&link->lock);
    if (r) {
        channel->status = r;
    }
    return r;
}

/* --- Listener --- */

static MemxListener *inproc_listen(const char *host, const char *port,
                                   GError **error)
{
    static unsigned next_port = 1;
    MemxListener *listener = g_new0(MemxListener, 1);

    pthread_mutex_lock(&listeners_lock);
    if (!listeners) {
        listeners = g_hash_table_new(g_str_hash, g_str_equal);
    }
    listener->address = strcmp(port, "0")
        ? g_strdup_printf("%s:%s", host, port)
        : g_strdup_printf("%s:%u", host, next_port++);
    if (g_hash_table_contains(listeners, listener->address)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "can't listen on %s: in use", listener->address);
        g_free(listener->address);
        g_clear_pointer(&listener, g_free);
    } else {
        listener->pending_fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE |
                                          EFD_NONBLOCK);
        g_hash_table_insert(listeners, listener->address, listener);
    }
    pthread_mutex_unlock(&listeners_lock);
    return listener;
}

static MemxListener *inproc_listener_from_fd(int fd, GError **error)
{
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                "an in-process listener has no descriptor to come from");
    return NULL;
}

static MemxChannel *inproc_accept(MemxListener *listener, GError **error)
{
    Link *link;
    eventfd_t count;

    if (eventfd_read(listener->pending_fd, &count) < 0) {
        if (errno == EAGAIN) {
            return NULL;
        }
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "can't accept a connection: %s", g_strerror(errno));
        return NULL;
    }
    pthread_mutex_lock(&listeners_lock);
    link = g_queue_pop_head(&listener->pending);
    pthread_mutex_unlock(&listeners_lock);
    return channel_new(link, g_strdup("in-process"));
}

static int inproc_listener_fd(MemxListener *listener)
{
    return listener->pending_fd;
}

static char *inproc_listener_address(MemxListener *listener)
{
    return g_strdup(listener->address);
}

static void inproc_listener_close(MemxListener *listener)
{
    Link *link;

    pthread_mutex_lock(&listeners_lock);
    g_hash_table_remove(listeners, listener->address);
    pthread_mutex_unlock(&listeners_lock);
    while ((link = g_queue_pop_head(&listener->pending))) {
        link_kill(link);
        link_unref(link);
    }
    close(listener->pending_fd);
    g_free(listener->address);
    g_free(listener);
}

/* --- Both --- */

static char *inproc_peer_address(MemxChannel *channel)
{
    return g_strdup(((Channel *)channel)->peer);
}

static void inproc_shutdown(MemxChannel *channel)
{
    link_kill(((Channel *)channel)->link);
}

static void inproc_close(MemxChannel *channel)
{
    Channel *ch = (Channel *)channel;

    link_kill(ch->link);
    link_unref(ch->link);
    g_free(ch->peer);
    g_free(ch);
}

const MemxTransport memx_transport_inproc = {
    .name = "inproc",
    .flags = 0,
    .connect = inproc_connect,
    .submit = inproc_submit,
    .progress = inproc_progress,
    .poll_fd = inproc_poll_fd,
    .poll_events = inproc_poll_events,
    .listen = inproc_listen,
    .listener_from_fd = inproc_listener_from_fd,
    .accept = inproc_accept,
    .listener_fd = inproc_listener_fd,
    .listener_address = inproc_listener_address,
    .listener_close = inproc_listener_close,
    .next = inproc_next,
    .pull = inproc_pull,
    .reply = inproc_reply,
    .peer_address = inproc_peer_address,
    .shutdown = inproc_shutdown,
    .close = inproc_close,
    .register_memory = inproc_register,
    .unregister_memory = inproc_unregister,
};
