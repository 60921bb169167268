/*
 * The server's end of a TCP channel.
 *
 * Theory of operation
 *
 * Everything blocks.  A small buffer takes a header with its body, or a row
 * of pipelined requests, in one recv(); payload is received straight into
 * the place that the server chose, but for those of its bytes that were in
 * the buffer already.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include "iov.h"
#include "transport-tcp.h"
#include "urgent.h"

#define RX_BYTES (MEMX_REQUEST_BYTES + MEMX_BODY_MAX)

typedef struct TcpServer {
    TcpChannel tcp;

    /* The current request. */
    MemxRequest request;
    bool malformed;         /* but its opcode and id are known */
    size_t payload_left;
} TcpServer;

/* Receives until @bytes are in rx behind pos. */
static int need(TcpServer *ch, size_t bytes)
{
    if (ch->tcp.fill == ch->tcp.pos) {
        ch->tcp.pos = ch->tcp.fill = 0;
    } else if (RX_BYTES - ch->tcp.pos < bytes) {
        ch->tcp.fill -= ch->tcp.pos;
        memmove(ch->tcp.rx, ch->tcp.rx + ch->tcp.pos, ch->tcp.fill);
        ch->tcp.pos = 0;
    }
    while (ch->tcp.fill - ch->tcp.pos < bytes) {
        ssize_t r = recv(ch->tcp.fd, ch->tcp.rx + ch->tcp.fill,
                         RX_BYTES - ch->tcp.fill, 0);

        if (r > 0) {
            ch->tcp.fill += r;
        } else if (r == 0 || errno != EINTR) {
            return -EPIPE;
        }
    }
    return 0;
}

int memx_tcp_next(MemxChannel *channel, MemxRequest *request, void *body)
{
    TcpServer *ch = (TcpServer *)channel;
    int r;

    if (channel->status) {
        return channel->status;
    }
    g_assert(ch->payload_left == 0);
    r = need(ch, MEMX_REQUEST_BYTES);
    if (r < 0) {
        return memx_tcp_die(&ch->tcp, r);
    }
    ch->request = (MemxRequest) { 0 };
    r = memx_request_decode(&ch->request, ch->tcp.rx + ch->tcp.pos);
    ch->tcp.pos += MEMX_REQUEST_BYTES;
    *request = ch->request;
    if (r < 0) {
        /* A reply may still say so, if the id is known: the stream stays
         * open for it. */
        ch->malformed = ch->request.opcode != 0;
        channel->status = r;
        return r;
    }
    r = need(ch, request->body_bytes);
    if (r < 0) {
        return memx_tcp_die(&ch->tcp, r);
    }
    memcpy(body, ch->tcp.rx + ch->tcp.pos, request->body_bytes);
    ch->tcp.pos += request->body_bytes;
    ch->payload_left = request->payload_bytes;
    return 0;
}

/* @bytes of payload into @iov, or nowhere. */
static int pull(TcpServer *ch, const struct iovec *iov, int n, size_t bytes)
{
    size_t here = MIN(bytes, ch->tcp.fill - ch->tcp.pos);
    size_t got = here;
    struct iovec left[MEMX_TCP_IOVS];

    memx_iov_write(iov, n, 0, ch->tcp.rx + ch->tcp.pos, here);
    ch->tcp.pos += here;
    while (got < bytes) {
        struct msghdr message = { .msg_iov = left };
        ssize_t r;

        message.msg_iovlen = memx_iov_slice(left, iov, n, got,
                                            MEMX_TCP_STEP_BYTES);
        r = recvmsg(ch->tcp.fd, &message, MSG_WAITALL);
        if (r > 0) {
            got += r;
            if (got < bytes) {
                memx_thread_yield();
            }
        } else if (r == 0 || errno != EINTR) {
            return memx_tcp_die(&ch->tcp, -EPIPE);
        }
    }
    ch->payload_left -= bytes;
    return 0;
}

int memx_tcp_pull(MemxChannel *channel, const struct iovec *iov, int n)
{
    TcpServer *ch = (TcpServer *)channel;
    int r = channel->status;

    if (n >= 0) {
        size_t bytes = memx_iov_bytes(iov, n);

        g_assert(bytes <= ch->payload_left);
        return r < 0 ? r : pull(ch, iov, n, bytes);
    }
    while (r == 0 && ch->payload_left) {
        char waste[MEMX_PAGE_BYTES];
        struct iovec one = { waste, MIN(sizeof(waste), ch->payload_left) };

        r = pull(ch, &one, 1, one.iov_len);
    }
    return r;
}

int memx_tcp_reply(MemxChannel *channel, const MemxReply *reply,
                     const void *body, const struct iovec *iov, int n)
{
    TcpServer *ch = (TcpServer *)channel;
    MemxReply echo = *reply;
    uint8_t header[MEMX_REPLY_BYTES];
    struct iovec all[MEMX_TCP_IOVS], left[MEMX_TCP_IOVS];
    struct msghdr message = { .msg_iov = all };
    size_t bytes = MEMX_REPLY_BYTES + reply->body_bytes +
                   reply->payload_bytes;
    int n_all = 0;

    if (channel->status && !ch->malformed) {
        return channel->status;
    }
    g_assert(ch->payload_left == 0);
    echo.opcode = ch->request.opcode;
    echo.id = ch->request.id;
    memx_reply_encode(header, &echo);
    all[n_all++] = (struct iovec) { header, sizeof(header) };
    if (reply->body_bytes) {
        all[n_all++] = (struct iovec) { (void *)body, reply->body_bytes };
    }
    for (int i = 0; i < n; i++) {
        all[n_all++] = iov[i];
    }
    message.msg_iovlen = n_all;
    for (size_t sent = 0;;) {
        ssize_t r = sendmsg(ch->tcp.fd, &message, MSG_NOSIGNAL);

        if (r < 0 && errno != EINTR) {
            return memx_tcp_die(&ch->tcp, -EPIPE);
        }
        sent += MAX(r, 0);
        if (sent == bytes) {
            return 0;
        }
        message.msg_iov = left;
        message.msg_iovlen = memx_iov_slice(left, all, n_all, sent, SIZE_MAX);
    }
}

MemxChannel *memx_tcp_server_new(int fd)
{
    TcpServer *ch = g_new0(TcpServer, 1);

    ch->tcp.base.transport = &memx_transport_tcp;
    ch->tcp.fd = fd;
    ch->tcp.rx = g_malloc(RX_BYTES);
    return &ch->tcp.base;
}
