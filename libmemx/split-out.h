/*
 * The source's side of a split migration: what a region keeps meanwhile.
 *
 * Theory of operation
 *
 * Each page's latest version is for one of three, by two bits:
 *
 *   handed  on the chunk's server, from which the destination takes it;
 *           always `stored` as well
 *   main    in the caller's stream
 *   neither never written, or zero
 *
 * and a third says that the server is still to get it: `todo`.  Whoever learns
 * that a page has changed only sets bits (split-out.c); the store thread
 * (split-push.c) clears `todo`, then reads the page and sends it, so that a
 * page that changes again meanwhile comes again, behind it on the same
 * ordered lane.  The bits are right when nothing is in `todo` or in flight; a
 * chunk whose bits have changed is told to the destination (split-tell.c).
 *
 * A page of a hot chunk goes to the stream as long as there is room at the
 * destination for another one; afterwards to a server, as cold ones do.
 *
 * All of it under the region's lock, unless it says otherwise.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_SPLIT_OUT_H
#define MEMX_SPLIT_OUT_H

#include "region.h"

#define MEMX_PUSHES 8           /* groups on their way to a server */

/* A group on its way; the store thread's. */
typedef struct MemxPush {
    bool busy;
    unsigned server;
    uint64_t group;
    uint64_t mask;
    uint64_t fresh;             /* of these: the server had none before */
    uint8_t *base;              /* the pages, one behind the other */
    struct iovec iov;
    MemxCall call;
    uint8_t hashes[MEMX_GROUP_PAGES * MEMX_HASH_BYTES];
} MemxPush;

typedef struct MemxOutServer {
    uint64_t *due;              /* a bit per chunk: it may have todo pages */
    uint32_t cursor;
    uint64_t todo_pages;
    uint64_t pushed_pages;      /* in flight */
    uint64_t sent_pages;        /* answered */
    uint64_t planned_pages;     /* of chunks that go there */
    bool offered;               /* it took the offer */
} MemxOutServer;

struct MemxSplitOut {
    uint64_t *handed, *main, *todo;  /* a word per group */
    uint64_t *there;                 /* the same, at the beginning: pages that
                                        may be other than zeros; or NULL */
    uint64_t *hot, *changed;         /* a bit per chunk */
    uint32_t n_hot, n_changed;
    uint64_t handed_pages, main_pages, todo_pages, pushed_pages;
    uint64_t reading_group, reading; /* pages that are being read, and that
                                        nobody decided about since */
    uint64_t main_bytes;
    uint64_t main_ever, main_max;    /* pages that went to the stream */
    bool begun_told, end_told;       /* BEGIN and END were written */
    uint32_t tell_from;              /* where to look for a changed chunk */
    bool ending;                     /* cancelled: ends when nothing flies */
    bool beginning;                  /* memx_split_begin() is at it */
    bool drained;                    /* the store thread's word for it */
    bool refused;                    /* a server had no room for something */
    char failed[MEMX_WHY_BYTES];     /* why it can't go on; "" */
    uint64_t rate;                   /* bytes a second; 0: no limit */
    int64_t tokens;                  /* bytes that may go now */
    uint64_t tokens_ns;
    uint64_t answers;                /* to pushes */
    uint64_t zero_pages, left_pages, spilled_pages;
    uint64_t fetched_at_begin;
    unsigned n_servers;
    MemxOutServer server[MEMX_SERVERS_MAX];
    uint8_t *buffers;
    const MemxTransport *transport;
    MemxPush push[];                 /* MEMX_PUSHES a server */
};

/* Makes a group's words @handed and @main, and keeps every count right. */
void memx_out_set_locked(MemxRegion *r, uint64_t group, uint64_t handed,
                         uint64_t main);
/* The same with its `todo`. */
void memx_out_todo_locked(MemxRegion *r, uint64_t group, uint64_t todo);
void G_GNUC_PRINTF(2, 3) memx_out_fail_locked(MemxRegion *r,
                                              const char *format, ...);
/* A chunk's server, now or from now on: the one with most room that is not
 * spoken for.  False: there is none. */
bool memx_out_place_locked(MemxRegion *r, uint32_t chunk);
/* Frees what is the region's no more, or NULL. */
void memx_out_release(MemxSplitOut *out);
/* Nothing is on its way to a server. */
bool memx_out_idle_locked(MemxRegion *r);

static inline bool memx_bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> i % 64 & 1;
}

#endif
