/*
 * A link that tests cut and hold: a TCP proxy in the test's own process.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_PROXY_H
#define MEMX_PROXY_H

typedef struct MemxProxy MemxProxy;

/* docs/protocol.md */
enum {
    MEMX_OP_STORE = 32,
    MEMX_OP_OFFER = 37,
    MEMX_OP_COMMIT = 39,
    MEMX_OP_COPY = 41,
    MEMX_OP_ANY = 0,        /* what a proxy that knows no protocol forwards */

    MEMX_ERR_FULL = 7,
};

typedef enum MemxProxyWay {
    MEMX_REQUESTS,          /* from who connects, to the server */
    MEMX_REPLIES,
} MemxProxyWay;

/* To @server, "host:port".  It speaks the protocol of memory servers, or just
 * forwards bytes. */
MemxProxy *memx_proxy_new(const char *server, bool protocol);
void memx_proxy_free(MemxProxy *proxy);
const char *memx_proxy_address(const MemxProxy *proxy);

/* Ends all connections; new ones are ended at once until it is mended. */
void memx_proxy_cut(MemxProxy *proxy);
void memx_proxy_mend(MemxProxy *proxy);

/*
 * The next request, or reply, with this opcode does not get through, and
 * nothing behind it on its connection does, until it is let go, or its
 * connection is dropped with it.
 */
void memx_proxy_hold(MemxProxy *proxy, MemxProxyWay way, unsigned opcode);
void memx_proxy_wait_held(MemxProxy *proxy, MemxProxyWay way);
/* Either way. */
void memx_proxy_wait_any_held(MemxProxy *p);
void memx_proxy_let_go(MemxProxy *proxy, MemxProxyWay way);
void memx_proxy_drop(MemxProxy *proxy, MemxProxyWay way);

/* From now on replies to this opcode tell of this error. */
void memx_proxy_fail(MemxProxy *proxy, unsigned opcode, unsigned error);
/* Until one of these was answered, without an error. */
void memx_proxy_wait_done(MemxProxy *proxy, unsigned opcode);

#endif
