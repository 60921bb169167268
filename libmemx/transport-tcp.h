/*
 * The TCP transport's two ends, for transport-tcp.c; and for tests, which
 * make channels of any stream socket.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TRANSPORT_TCP_H
#define MEMX_TRANSPORT_TCP_H

#include "transport.h"

/* A request or reply with header, body and one element per page. */
#define MEMX_TCP_IOVS ((int)MEMX_GROUP_PAGES + 2)

/* Of a bulk transfer at once: a kernel without preemption lets nobody else run
 * meanwhile, some 10 us. */
#define MEMX_TCP_STEP_BYTES (64 * 1024)

/* What both ends begin with. */
typedef struct TcpChannel {
    MemxChannel base;
    int fd;                 /* constant */
    uint8_t *rx;            /* [pos, fill): received and not used yet */
    size_t pos;
    size_t fill;
} TcpChannel;

/* Takes over @fd. */
MemxChannel *memx_tcp_client_new(int fd);
MemxChannel *memx_tcp_server_new(int fd);

/* The first status stays; returns it. */
int memx_tcp_die(TcpChannel *ch, int status);

int memx_tcp_submit(MemxChannel *channel, MemxCall *call);
MemxCall *memx_tcp_progress(MemxChannel *channel);
short memx_tcp_poll_events(MemxChannel *channel);

int memx_tcp_next(MemxChannel *channel, MemxRequest *request, void *body);
int memx_tcp_pull(MemxChannel *channel, const struct iovec *iov, int n);
int memx_tcp_reply(MemxChannel *channel, const MemxReply *reply,
                   const void *body, const struct iovec *iov, int n);

#endif
