/*
 * Chunk history and the choice of a victim.
 *
 * History is S-memV's ageing (paper 004, section IV.B, Fig. 4): 8 bits per
 * chunk.  Each period shifts all of them right by one and sets the top bit of
 * what was touched in it, however often: so the bits tell in which of the last 8
 * periods it was touched.  Both happen in one step for a chunk, at the end of a
 * period: what is touched all the time is never, not even for a moment, below
 * what was touched just once.
 *
 * Beside it stands how *often* it was touched in some 32 periods, a moving mean:
 * eight bits tell what is in use from what isn't, but not, of what is used now
 * and then, which is used more.  A mean of so many is slow to see that a guest
 * has moved its data, so it doesn't stray far from what the last periods let one
 * believe: of a chunk that was in use in nearly all of them, a few without a
 * touch are proof that it no longer is, and the other way round; of one that is
 * used now and then they prove nothing.  Only the choice of victims knows of it;
 * where nothing but faults tells (memx_history_touch()) it is none.
 *
 * Chunks with local pages stand in a *queue*, one per server and one for
 * those that have none yet: so that the chunks of a server that takes no pages
 * now are never in the way.  A queue is 256 lists, one for each *rank*, each in
 * the order in which chunks came to it.  Its victim is the head of the lowest
 * list that isn't empty, found through a bitmap: no scan.
 *
 * The rank is the sum of both: of the history's bits, each worth seven tenths of
 * that of the period after it, and of how often, worth ten periods for what is
 * touched in all of them.  By the history as a number a period would be worth
 * half of the one after it, and most of what tells the frequently used from the
 * rest would not be heard (tests/unit/test-ranking.c simulates what this is good
 * for).
 *
 * A chunk that comes in is *fresh* until the period ends: it ranks as if it had
 * been touched in the period before, on top of what is known of it from before it
 * left.  It was touched in this one, of course; but so is all of a scan, and the
 * period's end will tell.
 *
 * What can't be taken now (pinned for DMA, or its server is away) ranks above
 * all others until then, so that it isn't tried again and again.
 *
 * The end of a period is told for some chunks after the other (memx_history_
 * fold()), so that the lock needn't be held for all of them.  A chunk whose
 * rank stays (all of the hottest and of the coldest) keeps its place.
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
#define MEMX_HISTORY_NEW 0x40   /* came just now, where values are told */
#define MEMX_HISTORY_RANKS 256
#define MEMX_CHUNK_NONE UINT32_MAX
#define MEMX_QUEUES 17          /* unplaced, and 16 servers */
#define MEMX_QUEUE_UNPLACED 0   /* server i: queue i + 1 */

typedef struct MemxQueue { /* by rank */
    uint32_t head[MEMX_HISTORY_RANKS];
    uint32_t tail[MEMX_HISTORY_RANKS];
    uint64_t nonempty[MEMX_HISTORY_RANKS / 64];
    uint32_t n_listed;
} MemxQueue;

typedef struct MemxHistory {
    uint32_t n_chunks;
    uint8_t *value;
    uint32_t *next;     /* MEMX_CHUNK_NONE at the end */
    uint32_t *prev;     /* itself: not listed; MEMX_CHUNK_NONE: the head */
    uint8_t *queue_of;
    uint8_t *rank;
    uint16_t *often;    /* UINT16_MAX: in each period */
    uint8_t *mark;      /* since the last period's end: see history.c */
    MemxQueue queue[MEMX_QUEUES];
    uint32_t worth[MEMX_HISTORY_VALUES]; /* of a value */
    uint16_t unlike_max[MEMX_HISTORY_VALUES]; /* see history.c */
    uint32_t n_listed;
} MemxHistory;

bool memx_history_init(MemxHistory *history, uint32_t n_chunks);
void memx_history_destroy(MemxHistory *history);
uint64_t memx_history_bytes(const MemxHistory *history);

/* An access that is known of now, or a chunk that can't be taken: sets the top
 * bit, and all others are colder until the period ends.  O(1). */
void memx_history_touch(MemxHistory *history, uint32_t chunk);
/*
 * Pages of a chunk come in: it is fresh, and last among its equals.  False: it
 * is here already, or on its way.  O(1).
 */
bool memx_history_enter(MemxHistory *history, uint32_t chunk);
/* Sets a value that came from elsewhere (a migration).  How often it doesn't
 * tell; that shows before the value is forgotten. */
void memx_history_set(MemxHistory *history, uint32_t chunk, uint8_t value);
/* The end of a period, for @n chunks from @first on: bit i of @touched says
 * whether chunk first + i was touched in it; NULL: none was.  Those of @left
 * stay as they are, since nothing is known of them; NULL: none. */
void memx_history_fold(MemxHistory *history, uint32_t first, uint32_t n,
                       const uint64_t *touched, const uint64_t *left);

/* A chunk got its first local page, or lost its last.  Idempotent.  O(1). */
void memx_history_list(MemxHistory *history, uint32_t chunk);
void memx_history_unlist(MemxHistory *history, uint32_t chunk);
/* It was chosen as a victim: it isn't fresh any more.  O(1). */
void memx_history_evicted(MemxHistory *history, uint32_t chunk);
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
    return h->rank[chunk];
}

/* Its value; what came in just now is not as cold as it was. */
static inline uint8_t memx_history_value(const MemxHistory *h, uint32_t chunk)
{
    return h->value[chunk] | (h->mark[chunk] ? MEMX_HISTORY_NEW : 0);
}

/* The coldest chunk listed in a queue, or MEMX_CHUNK_NONE.  O(1). */
uint32_t memx_history_victim(const MemxHistory *history, unsigned queue);
/* The next coldest of its queue after a listed one.  O(1). */
uint32_t memx_history_after(const MemxHistory *history, uint32_t chunk);

#endif
