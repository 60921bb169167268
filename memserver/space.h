/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A space: its page sub-table, and what can be done with its pages.
 */
#ifndef MS_SPACE_H
#define MS_SPACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "backing.h"
#include "frames.h"
#include "memx-protocol.h"

typedef struct MsStore MsStore;
struct MsConnection;

/* Lanes that read while the ordered lane writes. */
#define MS_READ_LANES 2
#define MS_LANES (MEMX_LANE_FETCH + 1)
/* Other servers that copy pages from here. */
#define MS_READERS 16
/* The owner's lanes, and its heir's while the space is offered. */
#define MS_SIDES 2

/* What connections count; ms_counter_names[] has what they are called. */
typedef enum MsCounter {
    MS_COUNT_FETCHES,
    MS_COUNT_FETCHED_PAGES,
    MS_COUNT_STORES,
    MS_COUNT_STORED_PAGES,
    MS_COUNT_COMPARED_PAGES,
    MS_COUNT_SAME_PAGES,
    MS_COUNT_DROPPED_PAGES,
    MS_COUNT_COPIED_PAGES,      /* from another server */
    MS_COUNT_REFUSALS,
    MS_N_COUNTERS,
} MsCounter;

/* The frames that a read lane is sending right now. */
typedef struct MsPins {
    _Atomic uint32_t n;
    _Atomic uint32_t entries[MEMX_GROUP_PAGES];
} MsPins;

typedef struct MsSide {
    MsPins pins[MS_READ_LANES]; /* each of one read lane */
    /* The server's, protected by its lock; see lanes.c. */
    struct MsConnection *lanes[MS_LANES];
} MsSide;

typedef struct MsSpace {
    /* Constant. */
    MsStore *store;
    MsRecord *record;
    uint32_t slot;
    uint64_t size_pages;
    _Atomic uint32_t *table;    /* size_pages entries */

    /* Written by the ordered lane, read by all. */
    _Atomic uint64_t *present;  /* a bit for each 4 KiB of `table` that is
                                   not a hole */
    _Atomic uint64_t held_pages;
    _Atomic uint64_t table_pages; /* bits set in `present` */

    /* Of the ordered lane. */
    uint64_t charged_pages;     /* what it takes of the store's capacity */
    MsFrame limbo[MEMX_GROUP_PAGES *
                  (MS_READ_LANES * MS_SIDES + MS_READERS + 1)];
    unsigned n_limbo;           /* replaced, but still being sent */

    MsSide sides[MS_SIDES];
    MsPins reader_pins[MS_READERS];
    struct MsConnection *readers[MS_READERS]; /* under the server's lock */

    /* The server's, protected by its lock; see lanes.c and offer.c. */
    unsigned owner_side;        /* which of `sides` */
    bool ending;                /* no lane may come any more */
    uint64_t counters[MS_N_COUNTERS]; /* of connections that ended */
} MsSpace;

/*
 * All of the following return 0 or -errno:
 *   -ERANGE  @group and @mask reach beyond the space
 *   -ENOENT  a page is not held
 *   -ENOSPC  the store is full; nothing was changed
 * Lists have an element for each bit of @mask, in ascending order.
 */

/* NULL for the ordered lane. */
static inline MsPins *ms_space_pins(MsSpace *space, unsigned side,
                                    MemxLane lane)
{
    return lane == MEMX_LANE_ORDERED ? NULL :
           &space->sides[side].pins[lane - MEMX_LANE_FAULT];
}

/*
 * Finds the frames of pages and keeps them from being reused until
 * ms_space_unpin(); @pins are the lane's.  NULL for the ordered lane, which
 * is the one that frees, or there is none that does (offer.c).  Fault path.
 */
int ms_space_pin(MsSpace *space, MsPins *pins, uint64_t group, uint64_t mask,
                 MsFrame *frames);
void ms_space_unpin(MsPins *pins);

/* The hash that came with the page of a pinned frame. */
const uint8_t *ms_space_hash(const MsSpace *space, MsFrame frame);

/*
 * The ordered lane's: store pages in three steps.  begin() charges for them
 * and takes frames, which the caller fills; then commit() makes them and
 * their hashes the content of the pages, all at once, or abort() forgets
 * them.
 */
int ms_space_store_begin(MsSpace *space, uint64_t group, uint64_t mask,
                         MsFrame *frames);
void ms_space_store_commit(MsSpace *space, uint64_t group, uint64_t mask,
                           const MsFrame *frames, const uint8_t *hashes);
void ms_space_store_abort(MsSpace *space, const MsFrame *frames,
                          uint64_t mask);

/* The ordered lane's: which pages of @mask have another hash or are not held.
 */
int ms_space_compare(MsSpace *space, uint64_t group, uint64_t mask,
                     const uint8_t *hashes, uint64_t *differ);

/* The ordered lane's: gives pages up; those not held are no error. */
int ms_space_drop(MsSpace *space, uint64_t group, uint64_t mask);

/* The ordered lane's: from now on @pages are reserved. */
int ms_space_reserve(MsSpace *space, uint64_t pages);

/* For store.c. */

/* Maps the table of the record in @slot, repeats a commit that was cut short,
 * counts, and marks the frames in use (@used is NULL for a space that is
 * new).  NULL and @error if memory lacks or the table is damaged. */
MsSpace *ms_space_new(MsStore *store, uint32_t slot, MsUsed *used,
                      GError **error);
/* Forgets the space; its pages and record stay as they are. */
void ms_space_free(MsSpace *space);
/* Gives back all frames and the table.  No lane is left. */
void ms_space_clear(MsSpace *space);
/* Pages that the space takes of the capacity, with so many held. */
uint64_t ms_space_charge(const MsSpace *space, uint64_t held_pages,
                         uint64_t reserved_pages, uint64_t table_pages);

static inline const MsOwner *ms_space_owner(const MsSpace *space)
{
    return &space->record->owner[atomic_load(&space->record->current_owner)];
}
/* Replaces the owner, whole or not at all should the process be killed.
 * Under the server's lock. */
void ms_space_set_owner(MsSpace *space, const MsOwner *owner);

#endif
