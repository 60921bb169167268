/*
 * Chunk history and the choice of a victim.
 *
 * History is S-memV's ageing (paper 004, section IV.B, Fig. 4): 8 bits per
 * chunk.  Each period shifts all of them right by one and sets the top bit of
 * what was touched in it, however often: so the bits tell in
 * which of the last 8 periods it was touched.  Both happen in one step for a chunk, at the end of
 * a period: what is touched all the time is never, not even for a moment, below
 * what was touched just once.
 *
 * Chunks with local pages stand in a *queue*, one per server and one for
 * those that have none yet: so that the chunks of a server that takes no pages
 * now are never in the way.  A queue is 256 lists, one for each value, each in
 * the order in which chunks came to it.  Its victim is the head of the lowest
 * list that isn't empty, found through a bitmap: no scan.
 *
 * The lists stand in the order of their *rank*: a period counts seven tenths of the
 * one after it.  By the value as a number it would count half: what was touched
 * in the last period but in none before would be worth more than what was
 * touched in all but the last, and most of what tells the frequently used from
 * the rest is not heard (tests/unit/test-ranking.c).  Would it count more, like
 * eight tenths, a working set that moves would be followed too slowly.
 *
 * The end of a period is told for some chunks after the other (memx_history_
 * fold()), so that the lock needn't be held for all of them.  A chunk whose
 * value stays (all of the hottest and of the coldest) keeps its place.
 *
 * Plain data; the region's lock protects it.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_HISTORY_H
#define MEMX_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#define MEMX_HISTORY_VALUES 256
#define MEMX_HISTORY_TOP 0x80
#define MEMX_HISTORY_NEW 0x40   /* came just now; see memx_history_enter() */
#define MEMX_CHUNK_NONE UINT32_MAX
#define MEMX_QUEUES 17          /* unplaced, and 16 servers */
#define MEMX_QUEUE_UNPLACED 0   /* server i: queue i + 1 */

typedef struct MemxQueue { /* by rank */
    uint32_t head[MEMX_HISTORY_VALUES];
    uint32_t tail[MEMX_HISTORY_VALUES];
    uint64_t nonempty[MEMX_HISTORY_VALUES / 64];
} MemxQueue;

typedef struct MemxHistory {
    uint32_t n_chunks;
    uint8_t *value;
    uint32_t *next;     /* MEMX_CHUNK_NONE at the end */
    uint32_t *prev;     /* itself: not listed; MEMX_CHUNK_NONE: the head */
    uint8_t *queue_of;
    MemxQueue queue[MEMX_QUEUES];
    uint8_t rank[MEMX_HISTORY_VALUES]; /* of a value; no two have the same */
    uint32_t n_listed;
    uint32_t period;    /* the caller counts them */
} MemxHistory;

bool memx_history_init(MemxHistory *history, uint32_t n_chunks);
void memx_history_destroy(MemxHistory *history);
uint64_t memx_history_bytes(const MemxHistory *history);

/* An access: sets the top bit; the chunk comes last among its equals.  O(1). */
void memx_history_touch(MemxHistory *history, uint32_t chunk);
/*
 * A chunk comes in: it is worth as much as one that was last touched a period
 * ago, until the period's end tells more; last among its equals.  Were it worth
 * more, a scan over everything would drive out what missed one period only.
 * False: it is worth that much or more already.  O(1).
 */
bool memx_history_enter(MemxHistory *history, uint32_t chunk);
/* Sets a value that came from elsewhere (a migration). */
void memx_history_set(MemxHistory *history, uint32_t chunk, uint8_t value);
/* The end of a period, for @n chunks from @first on: bit i of @touched says
 * whether chunk first + i was touched in it; NULL: none was.  Those of @left
 * stay as they are, since nothing is known of them; NULL: none. */
void memx_history_fold(MemxHistory *history, uint32_t first, uint32_t n,
                       const uint64_t *touched, const uint64_t *left);

/* A chunk got its first local page, or lost its last.  Idempotent.  O(1). */
void memx_history_list(MemxHistory *history, uint32_t chunk);
void memx_history_unlist(MemxHistory *history, uint32_t chunk);
/* Behind its equals, so that another one is chosen first.  O(1). */
void memx_history_requeue(MemxHistory *history, uint32_t chunk);

/* The chunk belongs to another queue from now on.  O(1). */
void memx_history_move(MemxHistory *history, uint32_t chunk, unsigned queue);

static inline bool memx_history_listed(const MemxHistory *h, uint32_t chunk)
{
    return h->prev[chunk] != chunk;
}

/* The lower, the colder. */
static inline unsigned memx_history_rank(const MemxHistory *h, uint32_t chunk)
{
    return h->rank[h->value[chunk]];
}

/* The coldest chunk listed in a queue, or MEMX_CHUNK_NONE.  O(1). */
uint32_t memx_history_victim(const MemxHistory *history, unsigned queue);
/* The next coldest of its queue after a listed one.  O(1). */
uint32_t memx_history_after(const MemxHistory *history, uint32_t chunk);

#endif
