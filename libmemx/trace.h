/*
 * What happens to pages, for a test that counts it.
 *
 * tests/shadow compiles the engine once more with MEMX_TRACE_PAGES and
 * supplies memx_trace_pages().  Everywhere else this is nothing.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TRACE_H
#define MEMX_TRACE_H

#include <stdint.h>

/* "kept": local, and its server has a copy, perhaps an older one. */
typedef enum MemxTransition {
    MEMX_NEVER_TO_LOCAL,      /* first touch */
    MEMX_LOCAL_TO_STAGED,     /* evicted */
    MEMX_KEPT_TO_STAGED,
    MEMX_LOCAL_REFUSED,       /* pinned: stayed when it was to be evicted */
    MEMX_STAGED_TO_LOCAL,     /* touched while it was on its way */
    MEMX_STAGED_UNDONE,       /* moved back, for want of its server */
    MEMX_STAGED_TO_REMOTE,    /* sent */
    MEMX_STAGED_UNCHANGED,    /* to remote, not sent again */
    MEMX_STAGED_TO_NEVER,     /* zeros */
    MEMX_STAGED_DISCARDED,
    MEMX_REMOTE_FAULTED,      /* to local or kept, for a thread that waits */
    MEMX_REMOTE_PREFETCHED,   /* to local or kept, ahead of need */
    MEMX_REMOTE_DISCARDED,
    MEMX_LOCAL_DISCARDED,
    MEMX_KEPT_DISCARDED,
    MEMX_KEPT_RELEASED,       /* its server needs the room */
    MEMX_KEPT_VOIDED,         /* its server came back empty */
    MEMX_FETCH_USELESS,       /* fetched, but somebody was faster */
    MEMX_N_TRANSITIONS,
} MemxTransition;

#ifdef MEMX_TRACE_PAGES
/* The pages of @mask, a group's.  Any engine thread, with or without the
 * region's lock. */
void memx_trace_pages(MemxTransition transition, uint64_t mask);
#else
static inline void memx_trace_pages(MemxTransition transition, uint64_t mask)
{
}
#endif

#endif
