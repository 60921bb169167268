/*
 * The destination of a split migration.
 *
 * Theory of operation
 *
 * A memory-backend-memx without servers, with -incoming, waits: its memory is
 * ordinary until now, and the migration stream writes to it.  The stream's
 * section "memx" (memx-stream.c) first names the blocks that are split; from
 * then on records tell where the pages are that don't come by the stream.
 * When all memory is there and before devices load their state (virtio reads
 * its rings), memx_arrival_attach() makes a region of each backend: pages are
 * fetched from now on, but the servers keep what they have, since the source
 * may still take its VM back.  Whoever starts the VM commits
 * (memx-hand-over.c).
 *
 *   NONE -> RECEIVING -> ATTACHED -> COMMITTED
 *
 * All of it happens in the main loop, in the coroutine that loads the stream
 * or under the BQL after it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/cpu-common.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "system/runstate.h"
#include "hooks.h"
#include "memx-backend.h"
#include "memx-split.h"
#include "trace.h"

typedef struct MemxArrivalBlock {
    MemxBackend *backend;       /* NULL: it is gone */
    MemxArrival *arrival;       /* while RECEIVING */
} MemxArrivalBlock;

static struct {
    enum { NONE, RECEIVING, ATTACHED, COMMITTED } state;
    uint8_t session[MEMX_SESSION_BYTES];
    MemxArrivalBlock *blocks;
    unsigned n_blocks;
    Error *blocker;             /* of migrations, while ATTACHED */
} arrival;

static MemxBackendList waiting = QTAILQ_HEAD_INITIALIZER(waiting);

/* --- backends that wait ------------------------------------------------ */

bool memx_arrival_expected(void)
{
    return !QTAILQ_EMPTY(&waiting);
}

void memx_arrival_await(MemxBackend *b)
{
    QTAILQ_INSERT_TAIL(&waiting, b, next);
    b->waits = true;
    trace_memx_arrival_awaited(b->id);
}

/* Its options are in use already. */
bool memx_arrival_has(const MemxBackend *b)
{
    unsigned i;

    for (i = 0; i < arrival.n_blocks; i++) {
        if (arrival.blocks[i].backend == b) {
            return true;
        }
    }
    return false;
}

void memx_arrival_forget(MemxBackend *b)
{
    unsigned i;

    if (b->waits) {
        QTAILQ_REMOVE(&waiting, b, next);
        b->waits = false;
    }
    for (i = 0; i < arrival.n_blocks; i++) {
        if (arrival.blocks[i].backend == b) {
            arrival.blocks[i].backend = NULL;
        }
    }
}

/* An incoming migration begins. */
bool memx_arrival_check(Error **errp)
{
    if (memx_arrival_expected() && !memx_split_migration()) {
        error_setg(errp, "memory-backend-memx '%s' has no servers, so it "
                   "waits for a split migration: switch the capability "
                   "split-migration on, here and at the source, or give it "
                   "servers", QTAILQ_FIRST(&waiting)->id);
        return false;
    }
    return true;
}

/* --- receiving --------------------------------------------------------- */

bool memx_arrival_begin(const uint8_t *session, Error **errp)
{
    if (arrival.state != NONE || !runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "a second split migration in one stream");
        return false;
    }
    arrival.state = RECEIVING;
    memcpy(arrival.session, session, MEMX_SESSION_BYTES);
    memx_split_send_phase(MEMX_SPLIT_PHASE_ARRIVING, arrival.session);
    return true;
}

static MemxBackend *find_backend(const char *name, uint64_t bytes,
                                 uint64_t main_bytes, Error **errp)
{
    RAMBlock *rb = qemu_ram_block_by_name(name);
    Object *owner = rb && rb->mr ? memory_region_owner(rb->mr) : NULL;
    MemxBackend *b = (MemxBackend *)
        object_dynamic_cast(owner, TYPE_MEMORY_BACKEND_MEMX);

    if (!b) {
        error_setg(errp, "the source splits '%s', which is no "
                   "memory-backend-memx here: start this side with -object "
                   "memory-backend-memx,id=ID,size=%" PRIu64 "M,local-size="
                   "%" PRIu64 "M in its place", name, bytes / MiB,
                   DIV_ROUND_UP(main_bytes, MiB));
    } else if (!b->waits) {
        error_setg(errp, "the source splits '%s', but memory-backend-memx "
                   "'%s' has servers of its own: start this side without "
                   "them", name, b->id);
    } else if (rb->used_length != bytes) {
        error_setg(errp, "'%s' has %" PRIu64 " MiB at the source and %" PRIu64
                   " MiB here: start this side with the same size", name,
                   bytes / MiB, (uint64_t)rb->used_length / MiB);
    } else if (b->local_bytes < main_bytes) {
        error_setg(errp, "memory-backend-memx '%s' has a local-size of %"
                   PRIu64 " KiB, but the source may send %" PRIu64 " KiB: "
                   "raise local-size here, or lower the parameter "
                   "split-local-size there", b->id, b->local_bytes / KiB,
                   main_bytes / KiB);
    } else {
        return b;
    }
    return NULL;
}

bool memx_arrival_block(const char *name, uint64_t bytes, uint64_t main_bytes,
                        uint64_t chunk_bytes, Error **errp)
{
    MemxBackend *b = find_backend(name, bytes, main_bytes, errp);
    g_autoptr(GError) gerr = NULL;
    MemxIdleFiles files;
    MemxOptions options;
    MemxArrival *a;

    if (b && memx_arrival_has(b)) {
        error_setg(errp, "the stream names '%s' twice", name);
        return false;
    }
    if (!b || !memx_backend_options(b, &options, &files, errp)) {
        return false;
    }
    options.chunk_bytes = chunk_bytes;
    a = memx_arrival_new(&options, &gerr);
    memx_backend_options_free(&options, &files);
    if (!a) {
        error_setg(errp, "memory-backend-memx '%s': %s", b->id,
                   gerr->message);
        return false;
    }
    arrival.blocks = g_renew(MemxArrivalBlock, arrival.blocks,
                             arrival.n_blocks + 1);
    arrival.blocks[arrival.n_blocks++] = (MemxArrivalBlock) {
        .backend = b, .arrival = a,
    };
    return true;
}

/* All blocks were named. */
bool memx_arrival_complete(Error **errp)
{
    MemxBackend *b;

    QTAILQ_FOREACH(b, &waiting, next) {
        if (!memx_arrival_has(b)) {
            error_setg(errp, "memory-backend-memx '%s' waits for its part of "
                       "the split migration, but the source does not split "
                       "it: use memory-backend-ram here, or give it servers",
                       b->id);
            return false;
        }
    }
    return true;
}

bool memx_arrival_add_record(unsigned block, const void *record, size_t bytes,
                             Error **errp)
{
    g_autoptr(GError) gerr = NULL;

    if (arrival.state != RECEIVING || block >= arrival.n_blocks ||
        !arrival.blocks[block].backend) {
        error_setg(errp, "a record of block %u, which there is not", block);
        return false;
    }
    if (!memx_arrival_record(arrival.blocks[block].arrival, record, bytes,
                             &gerr)) {
        error_setg(errp, "memory-backend-memx '%s': %s",
                   arrival.blocks[block].backend->id, gerr->message);
        return false;
    }
    return true;
}

/* --- attached ---------------------------------------------------------- */

static bool attach_block(MemxArrivalBlock *block, Error **errp)
{
    MemxBackend *b = block->backend;
    g_autoptr(GError) gerr = NULL;
    MemxRegion *region;

    if (!b) {
        error_setg(errp, "a memory backend was removed meanwhile");
        return false;
    }
    region = memx_arrival_finish(g_steal_pointer(&block->arrival), &gerr);
    if (!region) {
        error_setg(errp, "memory-backend-memx '%s': %s", b->id,
                   gerr->message);
        return false;
    }
    QTAILQ_REMOVE(&waiting, b, next);
    b->waits = false;
    memx_backend_adopt(b, region);
    return true;
}

bool memx_arrival_attach(Error **errp)
{
    unsigned i;

    if (arrival.state != RECEIVING) {
        error_setg(errp, "the end of a split migration that did not begin");
        return false;
    }
    for (i = 0; i < arrival.n_blocks; i++) {
        if (!attach_block(&arrival.blocks[i], errp)) {
            return false;
        }
    }
    error_setg(&arrival.blocker, "this VM has arrived by a split migration, "
               "but was not started yet: 'cont' takes it over");
    if (migrate_add_blocker_internal(&arrival.blocker, errp) < 0) {
        return false;
    }
    arrival.state = ATTACHED;
    memx_split_send_phase(MEMX_SPLIT_PHASE_ATTACHED, arrival.session);
    return true;
}

bool memx_arrival_waits(void)
{
    return arrival.state == ATTACHED;
}

bool memx_arrival_came(void)
{
    return arrival.state >= ATTACHED;
}

const uint8_t *memx_arrival_session(void)
{
    return arrival.session;
}

/* The first block's first server decides; the others are told. */
MemxVerdict memx_arrival_commit(bool ask, GError **error)
{
    MemxVerdict verdict = MEMX_VERDICT_MINE;
    unsigned i;

    for (i = 0; i < arrival.n_blocks; i++) {
        MemxBackend *b = arrival.blocks[i].backend;

        if (!b) {
            continue;
        }
        verdict = memx_region_commit(b->region, ask, MEMX_VERDICT_MS, error);
        if (verdict != MEMX_VERDICT_MINE) {
            break;
        }
        ask = false;
    }
    return verdict;
}

static void free_blocks(void)
{
    unsigned i;

    for (i = 0; i < arrival.n_blocks; i++) {
        if (arrival.blocks[i].arrival) {
            memx_arrival_free(arrival.blocks[i].arrival);
        }
    }
    g_clear_pointer(&arrival.blocks, g_free);
    arrival.n_blocks = 0;
}

void memx_arrival_committed(void)
{
    arrival.state = COMMITTED;
    migrate_del_blocker(&arrival.blocker);
    free_blocks();
    memx_split_send_phase(MEMX_SPLIT_PHASE_COMMITTED, arrival.session);
}

/* The incoming migration is over, for good or bad. */
void memx_arrival_cleanup(void)
{
    if (arrival.state == RECEIVING) {
        free_blocks();
        arrival.state = NONE;
    }
}
