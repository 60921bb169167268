/*
 * Link: the network between client and servers: loopback, or two network
 * namespaces joined by a veth pair whose rate is shaped by tbf.
 *
 * The namespaces have no names: they, the veth pair and the shaping are gone
 * when the last process in them is.  A thread (and what it creates) is in the
 * network of a side between link_enter() and link_leave().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_LINK_H
#define BENCH_LINK_H

#include <glib.h>
#include <stdbool.h>

typedef enum LinkSide { LINK_CLIENT, LINK_SERVER } LinkSide;

typedef struct Link {
    char *name;             /* "loopback", "veth 10gbit fq_codel" */
    const char *server_host; /* where servers listen, a numeric address */
    bool loopback;
    int ns_fd[2];           /* by LinkSide; -1: this process's own network */
    int home_fd;
} Link;

Link *link_loopback_new(void);

/* BENCH_ERROR_UNAVAILABLE without root, ip or tc. */
Link *link_veth_new(int gbit, GError **error);
void link_free(Link *link);

void link_enter(const Link *link, LinkSide side);
void link_leave(const Link *link);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Link, link_free)

#endif
