/*
 * The client's end of a TCP channel.
 *
 * Theory of operation
 *
 * Calls wait in one list, in the order of submission, which is that of their
 * replies too; `unsent` is the first that is not wholly sent, `head` the one
 * whose reply comes next.  A request goes out straight from the caller's
 * memory, header, body and payload in one sendmsg().
 *
 * Receiving is laid out for one system call per page: it asks for the
 * header, the payload straight into the head call's `in`, and a few bytes
 * more at once.  Those more are the next reply's, and tell something besides:
 * when the socket did not fill them it is drained, and asking again can wait
 * for poll().  If the reply turns out to be an error, what went into `in`
 * belongs to the replies behind it and is copied back to rx, hence its size;
 * in ordinary life only its first bytes are touched.
 *
 * A channel that failed once stays dead: the stream can't be in step again.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "iov.h"
#include "transport-tcp.h"
#include "urgent.h"

/* What is asked for behind a payload: the next reply's header. */
#define BEHIND_BYTES MEMX_REPLY_BYTES
/* What is asked for where no payload is expected: several replies. */
#define SMALL_BYTES 512
#define RX_BYTES (MEMX_REPLY_BYTES + MEMX_PAYLOAD_MAX + SMALL_BYTES)

G_STATIC_ASSERT(SMALL_BYTES >= MEMX_REPLY_BYTES + MEMX_WELCOME_BYTES);

typedef struct TcpClient {
    TcpChannel tcp;

    /* Calls in flight. */
    MemxCall *head;
    MemxCall *tail;
    MemxCall *unsent;
    size_t sent_bytes;      /* of unsent */
    uint64_t last_id;

    /* The head's reply. */
    MemxReply reply;
    bool have_header;
    size_t got_bytes;       /* of its payload */

    bool drained;
} TcpClient;

/* --- Sending --- */

/* A FETCH is a header and no more: send() has less to do than sendmsg(),
 * which shows in a round trip.  Fault path. */
static ssize_t send_iov(int fd, struct iovec *iov, int n)
{
    struct msghdr message = { .msg_iov = iov, .msg_iovlen = n };

    return n == 1 ? send(fd, iov->iov_base, iov->iov_len,
                         MSG_NOSIGNAL | MSG_DONTWAIT)
                  : sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* 1: @call is sent, 0: the socket is full, or -errno.  Fault path. */
static int send_call(TcpClient *ch, const MemxCall *call, size_t *sent)
{
    const MemxRequest *request = &call->request;
    uint8_t header[MEMX_REQUEST_BYTES];
    struct iovec all[MEMX_TCP_IOVS], left[MEMX_TCP_IOVS];
    size_t bytes = MEMX_REQUEST_BYTES + request->body_bytes +
                   request->payload_bytes;
    int n = 0;

    memx_request_encode(header, request);
    all[n++] = (struct iovec) { header, sizeof(header) };
    if (request->body_bytes) {
        all[n++] = (struct iovec) { (void *)call->body, request->body_bytes };
    }
    for (int i = 0; i < call->n_out; i++) {
        all[n++] = call->out[i];
    }
    for (;;) {
        struct iovec *iov = all;
        int n_iov = n;
        ssize_t r;

        if (*sent || bytes > MEMX_TCP_STEP_BYTES) {
            iov = left;
            n_iov = memx_iov_slice(left, all, n, *sent, MEMX_TCP_STEP_BYTES);
        }
        r = send_iov(ch->tcp.fd, iov, n_iov);
        if (r >= 0) {
            *sent += r;
            if (*sent == bytes) {
                return 1;
            }
            memx_thread_yield();
        } else if (errno == EAGAIN) {
            return 0;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
}

/* Fault path. */
int memx_tcp_submit(MemxChannel *channel, MemxCall *call)
{
    TcpClient *ch = (TcpClient *)channel;
    size_t sent = 0;
    int r = 0;

    if (channel->status) {
        return channel->status;
    }
    call->request.id = ++ch->last_id;
    if (!ch->unsent) {
        r = send_call(ch, call, &sent);
        if (r < 0) {
            return memx_tcp_die(&ch->tcp, r);
        }
    }
    if (r == 0 && !ch->unsent) {
        ch->unsent = call;
        ch->sent_bytes = sent;
    }
    call->status = 0;
    call->next = NULL;
    if (ch->head) {
        ch->tail->next = call;
    } else {
        ch->head = call;
    }
    ch->tail = call;
    ch->drained = false;
    return 0;
}

/* Fault path. */
static int flush(TcpClient *ch)
{
    while (ch->unsent) {
        int r = send_call(ch, ch->unsent, &ch->sent_bytes);

        if (r <= 0) {
            return r;
        }
        ch->unsent = ch->unsent->next;
        ch->sent_bytes = 0;
    }
    return 0;
}

/* --- Receiving --- */

/* The header at rx + pos, which is there in full.  Fault path. */
static int take_header(TcpClient *ch)
{
    MemxCall *call = ch->head;
    int r = memx_reply_decode(&ch->reply, ch->tcp.rx + ch->tcp.pos);

    if (r == 0) {
        r = memx_call_check(call, memx_iov_bytes(call->in, call->n_in),
                            &ch->reply);
    }
    /* An answer to what was not even sent is none. */
    if (r < 0 || call == ch->unsent) {
        return -EPROTO;
    }
    ch->tcp.pos += MEMX_REPLY_BYTES;
    ch->have_header = true;
    ch->got_bytes = 0;
    return 0;
}

/* Uses what is in rx.  1: the head's reply is complete, 0: more is needed,
 * or -EPROTO.  Fault path. */
static int parse(TcpClient *ch)
{
    MemxCall *call = ch->head;

    if (!call) {
        return ch->tcp.fill > ch->tcp.pos ? -EPROTO : 0;
    }
    if (!ch->have_header) {
        if (ch->tcp.fill - ch->tcp.pos < MEMX_REPLY_BYTES) {
            return 0;
        }
        int r = take_header(ch);
        if (r < 0) {
            return r;
        }
    }

    /* At most one of these two is not empty. */
    size_t here = ch->tcp.fill - ch->tcp.pos;
    size_t left = ch->reply.payload_bytes - ch->got_bytes;
    if (here < ch->reply.body_bytes) {
        return 0;
    }
    if (ch->reply.body_bytes) {
        memcpy(call->reply_body, ch->tcp.rx + ch->tcp.pos,
               ch->reply.body_bytes);
        ch->tcp.pos += ch->reply.body_bytes;
    } else if (left) {
        size_t step = MIN(left, here);

        memx_iov_write(call->in, call->n_in, ch->got_bytes,
                       ch->tcp.rx + ch->tcp.pos, step);
        ch->tcp.pos += step;
        ch->got_bytes += step;
        if (step < left) {
            return 0;
        }
    }
    return 1;
}

/* After a receive whose @direct bytes went into `in` behind a header that
 * was not seen before, and @behind bytes to rx behind that header. */
static int settle_header(TcpClient *ch, size_t direct, size_t behind)
{
    MemxCall *call = ch->head;
    uint8_t *rest = ch->tcp.rx + MEMX_REPLY_BYTES;
    int r = take_header(ch);

    if (r < 0) {
        return r;
    }
    if (ch->reply.payload_bytes) {
        ch->got_bytes = direct;
        ch->tcp.fill = MEMX_REPLY_BYTES + behind;
        return 1;
    }
    memmove(rest + direct, rest, behind);
    memx_iov_read(call->in, call->n_in, 0, rest, direct);
    ch->tcp.fill = MEMX_REPLY_BYTES + direct + behind;
    return 1;
}

/* One receive.  1: there is something new, 0: there is nothing, or -errno.
 * Fault path. */
static int receive(TcpClient *ch)
{
    MemxCall *call = ch->head;
    struct iovec iov[MEMX_TCP_IOVS];
    struct msghdr message = { .msg_iov = iov };
    size_t head_bytes = 0, in_bytes = 0, behind_bytes;
    bool want_header = !ch->have_header;
    uint8_t *behind;
    int n = 0;
    ssize_t r;

    /* parse() leaves less than a header or body. */
    ch->tcp.fill -= ch->tcp.pos;
    memmove(ch->tcp.rx, ch->tcp.rx + ch->tcp.pos, ch->tcp.fill);
    ch->tcp.pos = 0;

    if (call && call->n_in && (want_header || ch->reply.payload_bytes)) {
        if (want_header) {
            head_bytes = MEMX_REPLY_BYTES - ch->tcp.fill;
            iov[n++] = (struct iovec) { ch->tcp.rx + ch->tcp.fill, head_bytes };
        }
        n += memx_iov_slice(iov + n, call->in, call->n_in,
                            want_header ? 0 : ch->got_bytes, SIZE_MAX);
        behind = ch->tcp.rx + (want_header ? MEMX_REPLY_BYTES : 0);
        behind_bytes = BEHIND_BYTES;
        in_bytes = memx_iov_bytes(iov, n) - head_bytes;
    } else {
        behind = ch->tcp.rx + ch->tcp.fill;
        behind_bytes = SMALL_BYTES - ch->tcp.fill;
    }
    iov[n++] = (struct iovec) { behind, behind_bytes };
    message.msg_iovlen = n;

    do {
        r = recvmsg(ch->tcp.fd, &message, MSG_DONTWAIT);
    } while (r < 0 && errno == EINTR);
    if (r <= 0) {
        return r == 0 ? -EPIPE : errno == EAGAIN ? 0 : -errno;
    }

    size_t bytes = r;
    ch->drained = bytes < head_bytes + in_bytes + behind_bytes;
    if (bytes < head_bytes || in_bytes == 0) {
        ch->tcp.fill += bytes;
        return 1;
    }
    bytes -= head_bytes;
    size_t direct = MIN(bytes, in_bytes);
    if (want_header) {
        ch->tcp.fill = MEMX_REPLY_BYTES;
        return settle_header(ch, direct, bytes - direct);
    }
    ch->got_bytes += direct;
    ch->tcp.fill = bytes - direct;
    return 1;
}

static MemxCall *pop(TcpClient *ch)
{
    MemxCall *call = ch->head;

    ch->head = call->next;
    call->next = NULL;
    ch->have_header = false;
    return call;
}

/* Fault path. */
MemxCall *memx_tcp_progress(MemxChannel *channel)
{
    TcpClient *ch = (TcpClient *)channel;
    int r = channel->status;

    if (r == 0 && ch->unsent) {
        r = flush(ch);
    }
    while (r >= 0) {
        r = parse(ch);
        if (r > 0) {
            ch->head->reply = ch->reply;
            return pop(ch);
        }
        if (r == 0) {
            if (ch->drained) {
                ch->drained = false;
                return NULL;
            }
            r = receive(ch);
            if (r == 0) {
                return NULL;
            }
        }
    }
    memx_tcp_die(&ch->tcp, r);
    ch->unsent = NULL;
    if (ch->head) {
        ch->head->status = channel->status;
        return pop(ch);
    }
    return NULL;
}

short memx_tcp_poll_events(MemxChannel *channel)
{
    return POLLIN | (((TcpClient *)channel)->unsent ? POLLOUT : 0);
}

MemxChannel *memx_tcp_client_new(int fd)
{
    TcpClient *ch = g_new0(TcpClient, 1);

    ch->tcp.base.transport = &memx_transport_tcp;
    ch->tcp.fd = fd;
    ch->tcp.rx = g_malloc(RX_BYTES);
    return &ch->tcp.base;
}
