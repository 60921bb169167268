/*
 * Transport: what is the same for all of them.  See transport.h.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include "iov.h"
#include "transport.h"

MemxChannel *memx_channel_connect(const MemxTransport *transport,
                                  const char *host, const char *port,
                                  int timeout_ms, int cancel_fd,
                                  GError **error)
{
    return transport->connect(host, port, timeout_ms, cancel_fd, error);
}

/* Fault path. */
int memx_channel_submit(MemxChannel *channel, MemxCall *call)
{
    const MemxRequest *request = &call->request;

    /* A wrong length would put the server out of step for good. */
    g_assert(request->body_bytes <= MEMX_BODY_MAX &&
             call->n_out <= (int)MEMX_GROUP_PAGES &&
             call->n_in <= (int)MEMX_GROUP_PAGES &&
             memx_iov_bytes(call->out, call->n_out) ==
             request->payload_bytes &&
             memx_iov_bytes(call->in, call->n_in) <= MEMX_PAYLOAD_MAX);
    return channel->transport->submit(channel, call);
}

/* Fault path. */
MemxCall *memx_channel_progress(MemxChannel *channel)
{
    return channel->transport->progress(channel);
}

bool memx_channel_is_dead(MemxChannel *channel)
{
    return channel->status != 0;
}

int memx_channel_poll_fd(MemxChannel *channel)
{
    return channel->transport->poll_fd(channel);
}

short memx_channel_poll_events(MemxChannel *channel)
{
    return channel->transport->poll_events(channel);
}

int memx_channel_call(MemxChannel *channel, MemxCall *call, int timeout_ms,
                      int cancel_fd)
{
    int64_t deadline_us = g_get_monotonic_time() + timeout_ms * 1000LL;
    int r = memx_channel_submit(channel, call);

    if (r < 0) {
        return r;
    }
    for (;;) {
        MemxCall *done = memx_channel_progress(channel);

        if (done) {
            g_assert(done == call);
            return call->status;
        }
        r = memx_wait_fd(memx_channel_poll_fd(channel),
                         memx_channel_poll_events(channel), cancel_fd,
                         deadline_us);
        if (r < 0) {
            /* The call is still in flight, so the channel is of no use. */
            memx_channel_shutdown(channel);
            channel->status = r;
            return r;
        }
    }
}

int memx_channel_next(MemxChannel *channel, MemxRequest *request, void *body)
{
    return channel->transport->next(channel, request, body);
}

int memx_channel_pull(MemxChannel *channel, const struct iovec *iov, int n)
{
    return channel->transport->pull(channel, iov, n);
}

int memx_channel_reply(MemxChannel *channel, const MemxReply *reply,
                       const void *body, const struct iovec *iov, int n)
{
    g_assert(reply->body_bytes <= MEMX_WELCOME_BYTES &&
             n <= (int)MEMX_GROUP_PAGES &&
             memx_iov_bytes(iov, n) == reply->payload_bytes);
    return channel->transport->reply(channel, reply, body, iov, n);
}

void memx_channel_urgent(MemxChannel *channel)
{
    if (channel->transport->urgent) {
        channel->transport->urgent(channel);
    }
}

void memx_channel_shutdown(MemxChannel *channel)
{
    channel->transport->shutdown(channel);
}

void memx_channel_close(MemxChannel *channel)
{
    if (channel) {
        channel->transport->close(channel);
    }
}

char *memx_channel_peer_address(MemxChannel *channel)
{
    return channel->transport->peer_address(channel);
}

int memx_transport_register(const MemxTransport *transport, void *base,
                            size_t bytes)
{
    return transport->register_memory(base, bytes);
}

void memx_transport_unregister(const MemxTransport *transport, void *base,
                               size_t bytes)
{
    transport->unregister_memory(base, bytes);
}

/* Fault path. */
int memx_call_check(const MemxCall *call, size_t in_bytes,
                    const MemxReply *reply)
{
    const MemxRequest *request = &call->request;

    if (reply->opcode != request->opcode || reply->id != request->id ||
        (reply->mask & ~request->mask)) {
        return -EPROTO;
    }
    /* The pages asked for, all of them, or an error and none. */
    if (reply->error == MEMX_ERR_NONE ? reply->payload_bytes != in_bytes
                                      : reply->payload_bytes != 0) {
        return -EPROTO;
    }
    return 0;
}

int memx_wait_fd(int fd, short events, int cancel_fd, int64_t deadline_us)
{
    struct pollfd fds[2] = {
        { .fd = fd, .events = events },
        { .fd = cancel_fd, .events = POLLIN }, /* -1 is ignored by poll */
    };

    for (;;) {
        int64_t left_us = deadline_us - g_get_monotonic_time();
        int64_t left_ms = CLAMP((left_us + 999) / 1000, 0, G_MAXINT);
        int r = poll(fds, 2, left_ms);

        if (r < 0 && errno != EINTR) {
            return -errno;
        }
        if (r > 0) {
            return fds[1].revents ? -ECANCELED : 0;
        }
        if (r == 0 && left_ms == 0) {
            return -ETIMEDOUT;
        }
    }
}
