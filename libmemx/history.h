/*
 * Chunk history and the choice of a victim.
 *
 * History is S-memV's ageing (paper 004, section IV.B, Fig. 4): 8 bits per
 * chunk.  An access sets the top bit; each period shifts all of them right by
 * one, so that a larger value means more recently and more often touched.
 *
 * Chunks with local pages stand in a *queue*, one per server and one for
 * those that have none yet: so that the chunks of a server that takes no pages
 * now are never in the way.  A queue is 256 lists, one for each value, in the
 * order in which chunks came to it.  Its victim is the head of the lowest list
 * that isn't empty, found through a bitmap: no scan.  Ageing moves whole lists
 * (values 2k and 2k+1 become k), and shifts the bytes in one vectorized pass;
 * no chunk is relinked one by one.
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
#define MEMX_CHUNK_NONE UINT32_MAX
#define MEMX_QUEUES 17          /* unplaced, and 16 servers */
#define MEMX_QUEUE_UNPLACED 0   /* server i: queue i + 1 */

typedef struct MemxQueue {
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
    uint32_t n_listed;
    uint32_t period;    /* how often it was aged */
} MemxHistory;

bool memx_history_init(MemxHistory *history, uint32_t n_chunks);
void memx_history_destroy(MemxHistory *history);
uint64_t memx_history_bytes(const MemxHistory *history);

/* An access: sets the top bit; the chunk comes last among its equals.  O(1). */
void memx_history_touch(MemxHistory *history, uint32_t chunk);
/* Sets a value that came from elsewhere (a migration). */
void memx_history_set(MemxHistory *history, uint32_t chunk, uint8_t value);
/* The end of a period. */
void memx_history_age(MemxHistory *history);

/* A chunk got its first local page, or lost its last.  Idempotent.  O(1). */
void memx_history_list(MemxHistory *history, uint32_t chunk);
void memx_history_unlist(MemxHistory *history, uint32_t chunk);
/* Behind its equals, so that another one is chosen first.  O(1). */
void memx_history_requeue(MemxHistory *history, uint32_t chunk);

/* The chunk belongs to another queue from now on.  O(1). */
void memx_history_move(MemxHistory *history, uint32_t chunk, unsigned queue);

/* The coldest chunk listed in a queue, or MEMX_CHUNK_NONE.  O(1). */
uint32_t memx_history_victim(const MemxHistory *history, unsigned queue);
/* The next coldest of its queue after a listed one.  O(1). */
uint32_t memx_history_after(const MemxHistory *history, uint32_t chunk);

#endif
