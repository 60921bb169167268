/*
 * Testbed: what a measurement over a network needs: a memserver, a raw TCP
 * server beside it on the same CPU, and a connection to the latter.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_TESTBED_H
#define BENCH_TESTBED_H

#include "bench.h"
#include "child.h"
#include "link.h"
#include "memx.h"
#include "pinning.h"

typedef struct Testbed {
    Pinning pinning;
    const Link *link;
    int raw_fd;             /* a raw TCP connection */
    char *raw_address;      /* for more of them */
    char *memserver_address;

    char *directory;        /* of the memserver's control socket */
    int directory_guard;
    Child *memserver;
    Child *raw_server;
} Testbed;

/* @link stays the caller's.  For the main thread, which is unpinned after it,
 * and at the client's side of the link until testbed_free(): the engine makes
 * connections on its caller's thread, too. */
Testbed *testbed_new(const Options *options, PinningKind pinning,
                     const Link *link, uint64_t capacity_bytes,
                     GError **error);
void testbed_free(Testbed *testbed);

/* A region on the testbed's memserver; its threads run on engine_cpu. */
MemxRegion *testbed_region_new(Testbed *testbed, uint64_t size_bytes,
                               uint64_t local_bytes, MemxKeepCopies keep,
                               GError **error);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Testbed, testbed_free)

#endif
