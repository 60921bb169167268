/*
 * The source of a split migration, from "migrate" to its end.
 *
 * Theory of operation
 *
 * QEMU's migration calls, through the section "memx" (memx-stream.c) and a
 * few hooks, in this order:
 *
 *   memx_split_prepare()   in "migrate": all that can be checked
 *   memx_split_setup()     the stream begins; under the BQL, must not wait
 *   memx_split_start()     the migration thread, without the BQL: waits until
 *                          the destination has accepted the stream's setup,
 *                          connects, moves remote memory to other servers,
 *                          warms up, and begins to send
 *   memx_split_divert()    for each dirty page, in the migration thread
 *   memx_split_iterate()   again and again
 *   memx_split_finish()    the VM is stopped: the rest, and the offer
 *   memx_split_end()       whoever decides who runs the VM (memx-hand-over.c)
 *   memx_split_cleanup()   the migration is over
 *
 * Cold memory is sent by the regions' own threads.  A page that the guest
 * dirties comes by memx_split_divert() and is either theirs or the stream's.
 *
 * Whatever waits looks every 50 ms whether it is still wanted: the user may
 * cancel, the stream may break; while the BQL is held, only "yank" gets
 * through.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "crypto/random.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "migration/qemu-file.h"
#include "migration/ram.h"
#include "migration/savevm.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/yank.h"
#include "hooks.h"
#include "memx-backend.h"
#include "memx-split.h"
#include "memx-tracking.h"

#define PERIODS_PER_S 4         /* of the warm-up */
#define SWITCHOVER_MS 10000     /* to send the rest, with the VM stopped */
#define ACCEPT_MS 60000         /* for the destination to answer the setup */
#define RATE_MIN 4096           /* bytes per second */
#define EXPLAIN_MS 2000         /* for the return path to end, too */

MemxSplit memx_split;
bool memx_split_active;

static int yanked;              /* atomic: give up */
static bool can_be_yanked;

void memx_split_set_phase(MemxSplitPhase phase)
{
    memx_split_figures_phase(phase);
    memx_split_send_phase(phase, memx_split.session);
}

static bool is_cancelled(Error **errp)
{
    MigrationState *s = migrate_get_current();

    if (s->state != MIGRATION_STATUS_CANCELLING &&
        s->state != MIGRATION_STATUS_CANCELLED) {
        return false;
    }
    error_setg(errp, "the migration was cancelled");
    return true;
}

static bool is_broken(Error **errp)
{
    MigrationState *s = migrate_get_current();

    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        if (s->error) {
            error_propagate(errp, error_copy(s->error));
            return true;
        }
    }
    if (qemu_file_get_error(s->to_dst_file)) {
        error_setg(errp, "the connection to the destination broke: if it "
                   "refused something, query-migrate there or its log says "
                   "what");
        return true;
    }
    return false;
}

bool memx_split_unwanted(Error **errp)
{
    Error *err = NULL;
    bool broken = is_broken(&err); /* first: who cancels or yanks breaks it */

    if (is_cancelled(errp)) {
        error_free(err);
        return true;
    }
    if (qatomic_read(&yanked)) {
        error_setg(errp, "the migration was yanked");
        error_free(err);
        return true;
    }
    error_propagate(errp, err);
    return broken;
}

bool memx_split_uses(const MemxRegion *region)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        if (memx_split.blocks[i].region == region &&
            memx_split.blocks[i].begun) {
            return true;
        }
    }
    return false;
}

/* --- the beginning ----------------------------------------------------- */

int memx_split_prepare(Error **errp)
{
    MigrationState *s = migrate_get_current();

    if (memx_split.state > MEMX_SPLIT_SETUP) {
        error_setg(errp, "the last split migration of this VM has not ended: "
                   "'cont' tells whether this side has the VM");
        return -EBUSY;
    }
    memx_split_plan_free(&memx_split);
    if (!memx_split_plan(&memx_split, errp)) {
        return -EINVAL;
    }
    qatomic_set(&yanked, false);
    qatomic_set(&memx_split.refused, false);
    /* Answers to earlier migrations' pings: nobody waited for them. */
    while (qemu_sem_timedwait(&s->rp_state.rp_pong_acks, 0) == 0) {
    }
    return 0;
}

/* A DIMM may have been unplugged since "migrate". */
static bool is_there(const MemxSplitBlock *block)
{
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        if (rb == block->rb && rb->used_length == block->bytes) {
            return true;
        }
    }
    return false;
}

static void yank(void *unused)
{
    qatomic_set(&yanked, true);
}

/* Who takes a VM over must be able to refuse it. */
static bool can_answer(QEMUFile *f)
{
    Object *channel = OBJECT(qemu_file_get_ioc(f));

    return object_dynamic_cast(channel, TYPE_QIO_CHANNEL_SOCKET) ||
           object_dynamic_cast(channel, TYPE_QIO_CHANNEL_TLS);
}

bool memx_split_setup(Error **errp)
{
    unsigned i;

    if (!can_answer(migrate_get_current()->to_dst_file)) {
        error_setg(errp, "split-migration needs a destination that answers: "
                   "this descriptor is no socket");
        return false;
    }
    if (qcrypto_random_bytes(memx_split.session, MEMX_SESSION_BYTES, errp)) {
        return false;
    }
    for (i = 0; i < memx_split.n_blocks; i++) {
        if (!is_there(&memx_split.blocks[i])) {
            error_setg(errp, "memory was unplugged meanwhile: migrate again");
            return false;
        }
    }
    for (i = 0; i < memx_split.n_blocks; i++) {
        memory_region_ref(memx_split.blocks[i].rb->mr);
    }
    can_be_yanked = true;
    yank_register_function(MIGRATION_YANK_INSTANCE, yank, NULL);
    memx_split.state = MEMX_SPLIT_SETUP;
    memx_split_figures_start();
    return true;
}

/*
 * Setup failed, here or there.  QEMU itself refuses some things there, and
 * doesn't say why; but its return path ends then, after the destination's own
 * words, if there are any.
 */
static void explain_refusal(void)
{
    MigrationState *s = migrate_get_current();
    unsigned waited_ms;

    for (waited_ms = 0; !migrate_has_error(s) && waited_ms < EXPLAIN_MS;
         waited_ms += MEMX_POLL_MS) {
        g_usleep(MEMX_POLL_MS * 1000);
    }
    if (is_cancelled(NULL) || qatomic_read(&yanked) ||
        qatomic_read(&memx_split.refused)) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        if (s->error) {
            error_prepend(&s->error, "the destination did not accept the "
                          "migration: if it refused something (capabilities "
                          "or sizes that differ) its log says what; else see "
                          "to the network: ");
        }
    }
}

/*
 * The destination answers in order: once it has answered a ping that was sent
 * after the setup, it has accepted that.  The first answer is for the ping
 * that QEMU itself sends.
 */
static bool wait_accepted(Error **errp)
{
    MigrationState *s = migrate_get_current();
    unsigned answers = 0, waited_ms = 0;

    qemu_savevm_send_ping(s->to_dst_file, 0x6d656d78);
    while (answers < 2) {
        if (memx_split_unwanted(errp)) {
            explain_refusal();
            return false;
        }
        if (qemu_sem_timedwait(&s->rp_state.rp_pong_acks, MEMX_POLL_MS) == 0) {
            answers++;
        } else if ((waited_ms += MEMX_POLL_MS) >= ACCEPT_MS) {
            error_setg(errp, "the destination did not answer for %d s",
                       ACCEPT_MS / 1000);
            return false;
        }
    }
    return true;
}

/* The room that the last one takes up until then is needed. */
static bool wait_ended(Error **errp)
{
    while (memx_passive_ending()) {
        if (memx_split_unwanted(errp)) {
            return false;
        }
        g_usleep(MEMX_POLL_MS * 1000);
    }
    return true;
}

static bool connect_blocks(Error **errp)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];

        if (memx_split_unwanted(errp) ||
            (block->passive && !memx_passive_connect(block, errp))) {
            return false;
        }
    }
    return true;
}

static bool has_looked(void)
{
    BQL_LOCK_GUARD();
    return memx_tracking_has_looked();
}

/* Trackers look once more: their last period's end may be long ago. */
static bool last_look(int64_t end, Error **errp)
{
    bool ok = true;

    bql_lock();
    memx_tracking_look_begin();
    bql_unlock();
    if (!has_looked()) {
        memx_split_set_phase(MEMX_SPLIT_PHASE_WARM_UP);
    }
    while (ok && !has_looked() && g_get_monotonic_time() < end) {
        g_usleep(MEMX_POLL_MS * 1000);
        ok = !memx_split_unwanted(errp);
    }
    bql_lock();
    memx_tracking_look_end();
    bql_unlock();
    return ok;
}

/* One period of those that need it; the first one is for forgetting. */
static void warm_up_period(bool first)
{
    unsigned i;

    bql_lock();
    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        uint64_t n_chunks = DIV_ROUND_UP(block->bytes, block->chunk_bytes);
        g_autofree uint64_t *chunks = g_new0(uint64_t,
                                             DIV_ROUND_UP(n_chunks, 64));

        if (block->warm_up) {
            memx_warm_up_period(block, chunks);
            if (!first) {
                memx_region_touched(block->region, chunks);
            }
        }
    }
    bql_unlock();
}

/* Ordinary memory that no memx-tracker knows.  True if there is any. */
static bool need_warm_up(void)
{
    bool any = false;
    unsigned i;

    bql_lock();
    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];

        block->warm_up = block->passive &&
            !memx_tracker_give_history(block->rb->host, block->region);
        any |= block->warm_up;
    }
    bql_unlock();
    return any;
}

static bool warm_up(int64_t end, Error **errp)
{
    int64_t next = g_get_monotonic_time();
    unsigned i, n = MAX(end - next, 0) * PERIODS_PER_S / G_USEC_PER_SEC;

    if (!need_warm_up() || !n) {
        return true;
    }
    memx_split_set_phase(MEMX_SPLIT_PHASE_WARM_UP);
    for (i = 0; i <= n; i++) {
        warm_up_period(i == 0);
        next += G_USEC_PER_SEC / PERIODS_PER_S;
        while (i < n && g_get_monotonic_time() < next) {
            if (memx_split_unwanted(errp)) {
                return false;
            }
            g_usleep(MEMX_POLL_MS * 1000);
        }
    }
    return true;
}

/* What is hot, in split-warm-up seconds at most. */
static bool learn(Error **errp)
{
    int64_t end = g_get_monotonic_time() +
                  memx_split.warm_up_s * (int64_t)G_USEC_PER_SEC;

    return (!memx_split.warm_up_s || last_look(end, errp)) &&
           warm_up(end, errp);
}

/* The stream need not send these pages; what is dirtied later is dirty. */
static void pages_taken(void *opaque, uint64_t offset, uint64_t bytes)
{
    MemxSplitBlock *block = opaque;

    qemu_guest_free_page_hint(block->rb->host + offset, bytes);
}

static bool begin_blocks(Error **errp)
{
    unsigned i;

    memx_split.state = MEMX_SPLIT_RUNNING;
    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        g_autoptr(GError) gerr = NULL;
        MemxSplitOptions options = {
            .main_bytes = block->main_bytes,
            .sparse = block->rb->fd < 0 && !qemu_ram_is_shared(block->rb),
            .max_bytes_per_s = migrate_max_bandwidth(),
            .taken = pages_taken,
            .opaque = block,
        };

        if (memx_split_unwanted(errp)) {
            return false;
        }
        memcpy(options.session, memx_split.session, MEMX_SESSION_BYTES);
        if (!memx_split_begin(block->region, &options, &gerr)) {
            error_setg(errp, "split-migration of '%s': %s", block->rb->idstr,
                       gerr->message);
            return false;
        }
        qatomic_set(&block->begun, true);
    }
    return true;
}

bool memx_split_start(bool is_set_up, Error **errp)
{
    MigrationState *s = migrate_get_current();
    Error *err = NULL;

    if (!is_set_up) {
        if (memx_split_migration()) {
            explain_refusal();
        }
        return false;
    }
    if (memx_split.state != MEMX_SPLIT_SETUP) {
        return true;
    }
    memx_split_set_phase(MEMX_SPLIT_PHASE_CONNECT);
    if (wait_accepted(&err) && wait_ended(&err) && connect_blocks(&err) &&
        memx_split_move(&err) && learn(&err) && begin_blocks(&err)) {
        qatomic_set(&memx_split_active, true);
        memx_split_set_phase(MEMX_SPLIT_PHASE_TRANSFER);
        return true;
    }
    if (s->state == MIGRATION_STATUS_CANCELLING) {
        error_free(err);        /* the user knows */
        return true;
    }
    error_propagate(errp, err);
    return false;
}

/* --- the transfer ------------------------------------------------------ */

/* The migration thread, under the RAM bitmap's lock. */
int memx_split_divert(RAMBlock *rb, uint64_t offset)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        if (memx_split.blocks[i].rb == rb) {
            return memx_split_page(memx_split.blocks[i].region, offset);
        }
    }
    return 0;
}

/*
 * The figures, and what follows from them.  max-bandwidth is for both
 * together: servers get of it what corresponds to their part of the work, so
 * that both are done at the same time, and so does each block, with
 * a little for what is to come.
 */
void memx_split_refresh(void)
{
    uint64_t limit = migrate_max_bandwidth();
    uint64_t both, share, pending;
    unsigned i;

    memx_split_figures_refresh(NULL);
    both = MAX(ram_bytes_remaining(), 1);
    pending = MAX(memx_split_pending_bytes(), 1);
    share = limit * MIN(1, (double)pending / both);
    share = CLAMP(share, limit / 16, limit - limit / 16);
    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        double part = (double)qatomic_read(&block->pending_bytes) / pending;
        uint64_t rate = share / 16 / memx_split.n_blocks +
                        share / 16 * 15 * MIN(1, part);

        memx_split_set_rate(block->region, /* 0: any */
                            limit ? MAX(rate, RATE_MIN) : 0);
    }
}

/* A server was full, or lost what it was sent: no need to go on. */
static bool check_blocks(Error **errp)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        g_autoptr(GError) gerr = NULL;

        if (!memx_split_check(block->region, &gerr)) {
            error_setg(errp, "split-migration of '%s': %s", block->rb->idstr,
                       gerr->message);
            return false;
        }
    }
    return true;
}

/* Between two looks at what RAM has to send. */
bool memx_split_iterate(Error **errp)
{
    unsigned i;

    if (!memx_split_figures_refresh(errp) || !check_blocks(errp)) {
        return false;
    }
    if (ram_bytes_remaining() > memx_split_pending_bytes()) {
        return true;
    }
    /* Nothing for the stream to do: don't spin. */
    for (i = 0; i < memx_split.n_blocks; i++) {
        memx_split_wait(memx_split.blocks[i].region,
                        MEMX_POLL_MS / memx_split.n_blocks);
    }
    return true;
}

/* --- switch-over: with the BQL, and the VM stopped --------------------- */

typedef int MemxSplitStep(MemxRegion *region, unsigned timeout_ms,
                          GError **error);

/* One step for all regions, in slices, since others wait for the BQL. */
static bool step_all(MemxSplitStep *step, int64_t end, const char *what,
                     Error **errp)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        g_autoptr(GError) gerr = NULL;
        int done;

        while ((done = step(block->region, MEMX_POLL_MS, &gerr)) == 0) {
            if (memx_split_unwanted(errp)) {
                return false;
            }
            if (g_get_monotonic_time() > end) {
                g_autofree char *suspects = memx_split_suspects();

                error_setg(errp, "split-migration of '%s': not all memory "
                           "servers %s within %d s, perhaps not %s: the VM "
                           "runs on here; see to them and to the network, and "
                           "migrate again", block->rb->idstr, what,
                           SWITCHOVER_MS / 1000,
                           *suspects ? suspects : "one");
                return false;
            }
        }
        if (done < 0) {
            error_setg(errp, "split-migration of '%s': %s", block->rb->idstr,
                       gerr->message);
            return false;
        }
    }
    return true;
}

bool memx_split_finish(Error **errp)
{
    int64_t end = g_get_monotonic_time() + SWITCHOVER_MS * 1000;
    unsigned i;

    memx_split_set_phase(MEMX_SPLIT_PHASE_DRAIN);
    for (i = 0; i < memx_split.n_blocks; i++) {
        memx_split_set_rate(memx_split.blocks[i].region, 0);
    }
    if (!step_all(memx_split_drain, end, "took the rest", errp)) {
        return false;
    }
    memx_split.state = MEMX_SPLIT_OFFERED;
    if (!step_all(memx_split_offer, end, "took the offer", errp)) {
        return false;
    }
    return memx_split_figures_refresh(errp);
}

void memx_split_sent(void)
{
    memx_split.state = MEMX_SPLIT_SENT;
    qatomic_set(&memx_split_active, false);
    memx_split_set_phase(MEMX_SPLIT_PHASE_OFFERED);
}

/* --- the end ----------------------------------------------------------- */

/* Each region was told how it ended; under the BQL. */
void memx_split_end(MemxSplitPhase phase)
{
    MemxSplitState state = memx_split.state;
    unsigned i;

    qatomic_set(&memx_split_active, false);
    if (state >= MEMX_SPLIT_SETUP) {
        memx_split_figures_end();
        memx_split_set_phase(phase);
    }
    for (i = 0; state >= MEMX_SPLIT_SETUP && i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];

        if (block->passive) {
            memx_passive_end(block);
        }
        memory_region_unref(block->rb->mr);
    }
    memx_split_plan_free(&memx_split);
}

/* A migration that went wrong before its thread ran comes only here. */
void memx_split_cleanup(void)
{
    Error *err = NULL;

    if (can_be_yanked) {
        can_be_yanked = false;
        yank_unregister_function(MIGRATION_YANK_INSTANCE, yank, NULL);
    }
    if (memx_split.state < MEMX_SPLIT_SENT && !memx_may_run(&err)) {
        error_report_err(err);
    }
}

static bool in_use(void)
{
    return memx_split.state == MEMX_SPLIT_SETUP ||
           memx_split.state == MEMX_SPLIT_RUNNING ||
           memx_split.state == MEMX_SPLIT_OFFERED;
}

/*
 * QEMU ends.  A migration was cancelled just before: let its thread come to
 * its end.  What was offered for good stays for the destination.
 */
void memx_split_exit(void)
{
    int64_t end = g_get_monotonic_time() + 3 * G_USEC_PER_SEC;
    bool locked = bql_locked();
    unsigned i;

    if (locked) {
        bql_unlock();
    }
    while ((in_use() || memx_passive_ending()) &&
           g_get_monotonic_time() < end) {
        g_usleep(10 * 1000);
    }
    if (locked) {
        bql_lock();
    }
    if (memx_split.state == MEMX_SPLIT_SENT) {
        for (i = 0; i < memx_split.n_blocks; i++) {
            memx_split_leave(memx_split.blocks[i].region);
        }
    }
}
