/*
 * Staging: where pages are on their way in and out.
 *
 * An area of anonymous memory, registered with the region's userfaultfd, cut
 * into slots of a group (256 KiB) each.  A slot serves one of two ways at a
 * time:
 *
 *   out   an eviction moves a group's local pages in (the slot must be empty:
 *         MOVE doesn't replace), at their own offsets.  They are final, and
 *         stay until a server acknowledged them.  The tracker `sample` takes
 *         pages out for a moment, in the same way, into slots of its own.
 *   in    a fetch receives pages into frames that the slot has, at their own
 *         offsets, and moves them into the guest.
 *
 * What an acknowledged eviction leaves in a slot are frames, ready for the
 * next fetch to receive into: while prefetch streams they circulate, as many as
 * are to be free anyway, and hardly any are allocated and zeroed.  Every frame
 * counts in local-size.
 *
 * The region's lock protects all of it but what a slot's owner (the store
 * thread for out, the fetch thread for in) keeps for itself.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_STAGING_H
#define MEMX_STAGING_H

#include "transport.h"

#define MEMX_STAGING_NO_SERVER 0xff /* as MEMX_SERVER_NONE */

typedef enum MemxSlotState {
    MEMX_SLOT_FREE,
    MEMX_SLOT_HELD,      /* out of circulation, for its frames' sake */
    /* out */
    MEMX_SLOT_TAKING,    /* pages are being moved in; chunk is exclusive */
    MEMX_SLOT_STAGED,    /* final; nothing asked of the server, or it broke */
    MEMX_SLOT_COMPARING, /* COMPARE is in flight */
    MEMX_SLOT_STORING,   /* STORE is in flight */
    MEMX_SLOT_SAMPLED,   /* taken away for a moment; not to be sent */
    MEMX_SLOT_DONE,      /* answered; a fault still copies from it */
    /* in */
    MEMX_SLOT_FETCHING,  /* FETCH is in flight */
} MemxSlotState;

typedef struct MemxSlot {
    /* Constant. */
    uint8_t *base;

    /* Protected by the region's lock. */
    MemxSlotState state;
    uint64_t group;
    uint64_t frames;     /* pages of the slot that have a frame */
    uint64_t staged;     /* out: pages whose last content is here */
    uint64_t mask;       /* in: pages asked for; out: pages to take */
    unsigned users;      /* out: faults that copy from it */
    int next;            /* in its hash list or the free list; -1: end */

    unsigned server;     /* MEMX_STAGING_NO_SERVER: none yet */
    int direction;       /* in: of the stream that it is for; 0: of none */
    uint64_t waited;     /* in: threads were left waiting for these pages */

    /* The owner's. */
    bool prepared;       /* zero and hashes are known */
    uint64_t zero;       /* of the staged pages */
    uint64_t hashed;
    uint64_t same;       /* the server has just this content */
    uint64_t asked;      /* pages of the COMPARE */
    uint64_t sending;    /* pages of the last STORE */
    uint64_t spared;     /* pages of any COMPARE or STORE, answered or not: no
                            DROP names them until the slot ends */
    uint64_t sequence;   /* in: of its request on the lane */
    MemxCall call;
    struct iovec iov[MEMX_GROUP_PAGES];
    uint8_t hash[MEMX_GROUP_PAGES * MEMX_HASH_BYTES];
    uint8_t body[MEMX_GROUP_PAGES * MEMX_HASH_BYTES];
} MemxSlot;

#define MEMX_STAGING_HASH 1024

typedef struct MemxStaging {
    uint8_t *base;
    uint64_t bytes;
    unsigned n_slots;
    MemxSlot *slot;
    unsigned n_free;
    uint64_t free_frames; /* of free slots */
    unsigned n_out;
    unsigned n_in;
    unsigned out_max;     /* each way leaves slots to the other */
    unsigned in_max;
    int free;             /* head of the free list */
    uint8_t *sample_base; /* slots behind the n_slots, for the sampler */
    unsigned n_samples;
    unsigned n_sampled;
    int free_sample;
    int hash[MEMX_STAGING_HASH];
} MemxStaging;

/* Maps the area; the caller registers it.  Of no slots there is none. */
bool memx_staging_init(MemxStaging *staging, unsigned n_slots);
void memx_staging_destroy(MemxStaging *staging);
/* Maps so many slots more, for samples; before anybody uses the others. */
bool memx_staging_add_samples(MemxStaging *staging, unsigned n_samples);
/* A free one of these for @group, as if on its way out; or NULL. */
MemxSlot *memx_staging_take_sample(MemxStaging *staging, uint64_t group);

/* Takes a free slot for @group, for the way out one with few frames, for the
 * way in one with many; NULL if there is none for that way. */
MemxSlot *memx_staging_take(MemxStaging *staging, uint64_t group, bool out);
void memx_staging_put(MemxStaging *staging, MemxSlot *slot);

/* Takes a certain free slot out of circulation, and puts it back: to give its
 * frames away. */
void memx_staging_take_slot(MemxStaging *staging, MemxSlot *slot);
void memx_staging_put_slot(MemxStaging *staging, MemxSlot *slot);

/* The slot that has @group on its way out or in, or NULL. */
MemxSlot *memx_staging_find(MemxStaging *staging, uint64_t group, bool out);

static inline bool memx_slot_is_out(const MemxSlot *slot)
{
    return slot->state >= MEMX_SLOT_TAKING && slot->state <= MEMX_SLOT_DONE;
}

/* The next run of set bits: clears it from *mask.  False: no more. */
static inline bool memx_next_run(uint64_t *mask, unsigned *first, unsigned *n)
{
    uint64_t shifted;

    if (!*mask) {
        return false;
    }
    *first = __builtin_ctzll(*mask);
    shifted = *mask >> *first;
    *n = ~shifted ? (unsigned)__builtin_ctzll(~shifted) : 64 - *first;
    if (*n > 64 - *first) {
        *n = 64 - *first;
    }
    *mask &= ~((*n == 64 ? UINT64_MAX : (1ull << *n) - 1) << *first);
    return true;
}

static inline uint64_t memx_run_mask(unsigned first, unsigned n)
{
    return (n == 64 ? UINT64_MAX : (1ull << n) - 1) << first;
}

/* An iovec for each run of @mask's pages in the slot; returns how many. */
int memx_slot_iov(MemxSlot *slot, uint64_t mask);

#endif
