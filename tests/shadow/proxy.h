/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A TCP proxy that does to connections what networks do.
 */
#ifndef PROXY_H
#define PROXY_H

#include <stdint.h>

typedef enum ProxyMode {
    PROXY_PASS,
    PROXY_DELAY,      /* what comes is held for up to 30 ms; on some of the
                         connections ten times that, so that lanes overtake
                         each other */
    PROXY_STALL,      /* nothing is read or sent any more */
    PROXY_CUT,        /* each connection ends after a random number of bytes,
                         by RST or FIN; so do those that come after it */
    PROXY_HALF_CLOSE, /* of one direction only, the other goes on */
} ProxyMode;

typedef struct Proxy Proxy;

/* Listens on loopback, and connects each client to @target ("host:port"). */
Proxy *proxy_new(const char *target, uint32_t seed);
void proxy_free(Proxy *proxy);
const char *proxy_address(const Proxy *proxy);
/* Any thread.  Holds for connections that exist, too. */
void proxy_set(Proxy *proxy, ProxyMode mode);

#endif
