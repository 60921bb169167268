/*
 * The network page table: where each page of a region is (S-memV's page table
 * on the main host; Mega-VM's remote page map).
 *
 * Two bits a page, kept as a word per group of 64 pages:
 *
 *   present  stored   the page is
 *   0        0        never written (or staged: the staging area knows)
 *   1        0        local
 *   0        1        remote, on the chunk's server
 *   1        1        local, and its server has a copy that may be older
 *
 * A staged page (moved out of the guest, not yet acknowledged by a server) is
 * not present; staging is asked first, so an old copy is never mistaken for
 * it.
 *
 * Per chunk: the server that holds its stored pages, and who is busy with it:
 *
 *   fetching    requests to a server for pages of it; they outlive the lock
 *   installing  threads putting pages into the guest right now; brief
 *   exclusive   one thread is taking pages out (evicting, discarding); brief, or
 *               ended at once when it is wanted (a huge page is sampled)
 *
 * Installing and exclusive keep each other out; eviction also waits for
 * fetching to end, so that a late reply can never meet a page that has been
 * elsewhere in between.  Whoever finds a chunk exclusive sets `wanted`, leaves
 * it alone, and the waiting threads are woken (and fault again) at its end.
 *
 * A chunk that is MOVING to another server is read from the one that it is on,
 * and nothing of it is stored anywhere, until it changes its server at once
 * (move.c).  `old` is a server that may hold pages of it in vain, since the
 * chunk left it or didn't get there.
 *
 * Plain data; the region's lock protects it.  Tables are mapped without
 * reserve: what describes memory that was never written takes no memory.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PAGE_TABLE_H
#define MEMX_PAGE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "memx-protocol.h"

#define MEMX_SERVER_NONE 0xff

/* MemxChunk.flags */
#define MEMX_CHUNK_EXCLUSIVE 0x01
#define MEMX_CHUNK_WANTED 0x02
#define MEMX_CHUNK_MOVING 0x04

typedef struct MemxChunk {
    uint16_t fetching;
    uint8_t installing;
    uint8_t flags;
    uint8_t server;      /* index in the pool, or MEMX_SERVER_NONE */
    uint8_t evicted;     /* lately: for so many periods that still counts */
    uint8_t old;         /* index, or MEMX_SERVER_NONE */
    uint8_t touched;     /* by a fault, in this period */
} MemxChunk;

typedef struct MemxPageTable {
    /* Constant after creation. */
    uint64_t n_pages;
    uint64_t n_groups;
    uint32_t n_chunks;
    unsigned chunk_shift;       /* page number >> chunk_shift = chunk */
    unsigned groups_per_chunk;

    uint64_t *present;
    uint64_t *stored;
    uint64_t *trim;             /* a bit per chunk: its server may hold pages
                                   that are no longer stored; see DROP */
    MemxChunk *chunk;
    uint64_t n_present;
    uint64_t n_stored;
    uint32_t n_trim;
    uint32_t trim_cursor;
} MemxPageTable;

/* chunk_bytes: a power of two from MEMX_GROUP_BYTES up.  False: no memory. */
bool memx_page_table_init(MemxPageTable *table, uint64_t n_pages,
                          uint64_t chunk_bytes);
void memx_page_table_destroy(MemxPageTable *table);

/* Address space of all tables; what is used of it grows with memory used. */
uint64_t memx_page_table_bytes(const MemxPageTable *table);

static inline uint32_t memx_chunk_of_group(const MemxPageTable *t, uint64_t g)
{
    return g / t->groups_per_chunk;
}

static inline uint64_t memx_group_of_chunk(const MemxPageTable *t, uint32_t c)
{
    return (uint64_t)c * t->groups_per_chunk;
}

/* One past the last group of a chunk; the region's last may be cut short. */
static inline uint64_t memx_group_end(const MemxPageTable *t, uint32_t c)
{
    uint64_t end = ((uint64_t)c + 1) * t->groups_per_chunk;

    return end < t->n_groups ? end : t->n_groups;
}

/* The pages that exist in a group. */
static inline uint64_t memx_group_mask(const MemxPageTable *t, uint64_t g)
{
    uint64_t left = t->n_pages - g * MEMX_GROUP_PAGES;

    return left >= MEMX_GROUP_PAGES ? UINT64_MAX : (1ull << left) - 1;
}

unsigned memx_chunk_present_pages(const MemxPageTable *t, uint32_t c);
unsigned memx_chunk_stored_pages(const MemxPageTable *t, uint32_t c);

/* Marks a chunk as having to be trimmed on its server; idempotent. */
void memx_trim_set(MemxPageTable *t, uint32_t c);
/* Takes the next such chunk; UINT32_MAX when there is none. */
uint32_t memx_trim_take(MemxPageTable *t);

static inline bool memx_chunk_exclusive(const MemxChunk *chunk)
{
    return chunk->flags & MEMX_CHUNK_EXCLUSIVE;
}

#endif
