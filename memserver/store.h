/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page store: backing, frames, and all spaces, within a capacity.
 */
#ifndef MS_STORE_H
#define MS_STORE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "backing.h"
#include "frames.h"
#include "space.h"

struct MsStore {
    /* Constant. */
    MsBacking backing;
    MsFrames *frames;
    uint64_t capacity_pages;

    /* The sum of what the spaces are charged; any ordered lane. */
    _Atomic uint64_t charged_pages;
    /* Until then spaces are told that nothing is free, so that their owners
     * give up copies: somebody wants to reserve more.  Any thread. */
    _Atomic int64_t short_until_us;

    /* Under the server's lock. */
    GHashTable *spaces;     /* id -> MsSpace */

    GMutex slots_lock;      /* a leaf */
    uint8_t *slots_in_use;  /* MS_MAX_SPACES bytes */
};

/*
 * A store of @capacity_pages on @backing, which is new or was adopted; it
 * belongs to the store from now on, unless this fails.  Whatever spaces are
 * in it are found again.
 */
MsStore *ms_store_new(const MsBacking *backing, uint64_t capacity_pages,
                      GError **error);
/* Forgets everything and unmaps; the memfds stay open if @keep is not NULL
 * and are put there, else they are closed. */
void ms_store_free(MsStore *store, int keep[MS_N_FILES]);

/* Neither held nor reserved.  Fault path. */
static inline uint64_t ms_store_free_pages(const MsStore *store)
{
    uint64_t charged = atomic_load_explicit(&store->charged_pages,
                                            memory_order_relaxed);

    return charged < store->capacity_pages ?
           store->capacity_pages - charged : 0;
}

/* Is it to be emptied?  Fault path. */
static inline bool ms_store_draining(const MsStore *store)
{
    return atomic_load_explicit(&store->backing.super->draining,
                                memory_order_relaxed);
}

/* Somebody would reserve @pages. */
void ms_store_want(MsStore *store, uint64_t pages);

/* The same as the owner of a space is told.  Fault path. */
static inline uint64_t ms_store_spare_pages(const MsStore *store)
{
    int64_t until_us = atomic_load_explicit(&store->short_until_us,
                                            memory_order_relaxed);

    return ms_store_draining(store) ||
           (until_us && g_get_monotonic_time() < until_us) ? 0 :
           ms_store_free_pages(store);
}

/* Changes a charge from @from to @to.  False, nothing changed, if that is
 * more than the capacity leaves.  Any thread. */
bool ms_store_recharge(MsStore *store, uint64_t from, uint64_t to);

/* NULL if there is none.  Under the server's lock. */
MsSpace *ms_store_find(MsStore *store, const uint8_t *id);

/*
 * A new space as @open says, with the plain @secret.  Under the server's
 * lock.  0, -EEXIST, -ERANGE (size), -ENOSPC (capacity, or too many spaces).
 */
int ms_store_create(MsStore *store, const MemxOpen *open,
                    const uint8_t *secret, MsSpace **space);

/*
 * The end of a space.  After unlink nobody finds it, not after a crash
 * either; destroy, which may take long, gives its memory back.  unlink is
 * under the server's lock; no lane is left.
 */
void ms_store_unlink(MsStore *store, MsSpace *space);
void ms_store_destroy(MsStore *store, MsSpace *space);

/* Pages held by all spaces.  Under the server's lock. */
uint64_t ms_store_held_pages(MsStore *store);

#endif
