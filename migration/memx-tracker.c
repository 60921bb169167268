/*
 * memx-tracker: an object that knows what of the VM's ordinary memory the
 * guest touches, so that a split migration has a history to go by.
 *
 * It watches the RAM blocks of memory backends, from the machine's start or
 * from object-add on, each with a tracker of its own in libmemx; DIMMs that
 * come later too.  memory-backend-memx watches its memory itself.  A VM that
 * arrives by a migration is watched from when it runs: until then its memory
 * is the migration's.  If that is postcopy, which has it registered with a
 * userfaultfd of its own while the VM runs already, from when that has ended.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/ramlist.h"
#include "hw/qdev-core.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memx.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/queue.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"
#include "system/hostmem.h"
#include "system/runstate.h"
#include "system/system.h"
#include "compat.h"
#include "memx-backend.h"
#include "memx-tracking.h"

#define CHUNK_BYTES (1 * MiB)   /* as ordinary memory is split */

#define POSTCOPY_POLL_MS 500    /* nobody tells when it has ended */

#define TYPE_MEMX_TRACKER "memx-tracker"

OBJECT_DECLARE_SIMPLE_TYPE(MemxTrackerObject, MEMX_TRACKER)

typedef struct TrackedBlock {
    char *name;
    void *host;
    uint64_t bytes;
    bool is_private;            /* and in no file */
    MemxTracker *tracker;
    QTAILQ_ENTRY(TrackedBlock) next;
} TrackedBlock;

typedef QTAILQ_HEAD(TrackedBlocks, TrackedBlock) TrackedBlocks;

/* All of it under the BQL. */
struct MemxTrackerObject {
    Object parent_obj;

    MemxTracking tracking;
    TrackedBlocks blocks;
    bool started;
    bool waits;                 /* for a migration's end */
    bool excludes_pins;         /* samples are away at times */
    RAMBlockNotifier ram_notifier;
    Notifier machine_done;
    VMChangeStateEntry *vm_state;
    QEMUTimer *postcopy_timer;  /* runs while that is waited for */
};

static MemxTrackerObject *the_tracker;

/* --- blocks ------------------------------------------------------------ */

static TrackedBlock *find_block(MemxTrackerObject *t, const void *host)
{
    TrackedBlock *block;

    QTAILQ_FOREACH(block, &t->blocks, next) {
        if (block->host == host) {
            return block;
        }
    }
    return NULL;
}

/* The backend of what a split migration would split, but for memory that has
 * a tracker; or NULL. */
static HostMemoryBackend *backend_of(RAMBlock *rb)
{
    Object *owner = rb->mr ? memory_region_owner(rb->mr) : NULL;

    return object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) &&
           !object_dynamic_cast(owner, TYPE_MEMORY_BACKEND_MEMX) &&
           !memory_region_has_ram_discard_manager(rb->mr) ?
           MEMORY_BACKEND(owner) : NULL;
}

static bool watch_block(MemxTrackerObject *t, TrackedBlock *block,
                        Error **errp)
{
    MemxRange range = { block->host, block->bytes };
    g_autoptr(GError) gerr = NULL;
    MemxTrackerOptions options;
    MemxIdleFiles files;

    if (t->tracking.mode == MEMX_TRACKER_MODE_SAMPLE && !block->is_private) {
        error_setg(errp, "'%s' is shared or in a file: only private anonymous "
                   "memory can be sampled", block->name);
        return false;
    }
    if (!memx_tracking_options(&t->tracking, &options, &files, errp)) {
        return false;
    }
    block->tracker = memx_tracker_new(&range, 1, CHUNK_BYTES, &options, &gerr);
    memx_idle_files_close(&files);
    if (!block->tracker) {
        error_setg(errp, "'%s': %s", block->name, gerr->message);
        return false;
    }
    if (migration_is_running()) {
        memx_tracker_pause(block->tracker, true);
        memx_tracker_await_paused(block->tracker);
    }
    return true;
}

static void block_free(TrackedBlock *block)
{
    memx_tracker_free(block->tracker);
    g_free(block->name);
    g_free(block);
}

static void forget_block(MemxTrackerObject *t, TrackedBlock *block)
{
    QTAILQ_REMOVE(&t->blocks, block, next);
    block_free(block);
}

/* Of all RAM, or of what is at @host: what is ours, and not watched yet. */
static bool watch_blocks(MemxTrackerObject *t, const void *host, Error **errp)
{
    TrackedBlocks new = QTAILQ_HEAD_INITIALIZER(new);
    TrackedBlock *block, *next;
    bool ok = true;
    RAMBlock *rb;

    WITH_RCU_READ_LOCK_GUARD() {
        INTERNAL_RAMBLOCK_FOREACH(rb) {
            HostMemoryBackend *backend = backend_of(rb);

            if (backend && (!host || rb->host == host) &&
                !find_block(t, rb->host)) {
                block = g_new0(TrackedBlock, 1);
                block->name = host_memory_backend_get_name(backend);
                block->host = rb->host;
                block->bytes = rb->used_length;
                block->is_private = !qemu_ram_is_shared(rb) && rb->fd < 0;
                QTAILQ_INSERT_TAIL(&new, block, next);
            }
        }
    }
    QTAILQ_FOREACH_SAFE(block, &new, next, next) {
        QTAILQ_REMOVE(&new, block, next);
        ok = ok && watch_block(t, block, errp);
        if (ok) {
            QTAILQ_INSERT_TAIL(&t->blocks, block, next);
        } else {
            block_free(block);
        }
    }
    return ok;
}

static void ram_added(RAMBlockNotifier *n, void *host, size_t size,
                      size_t max_size)
{
    MemxTrackerObject *t = container_of(n, MemxTrackerObject, ram_notifier);
    Error *err = NULL;

    if (t->started && !watch_blocks(t, host, &err)) {
        warn_reportf_err(err, "memx-tracker: ");
    }
}

static void ram_removed(RAMBlockNotifier *n, void *host, size_t size,
                        size_t max_size)
{
    MemxTrackerObject *t = container_of(n, MemxTrackerObject, ram_notifier);
    TrackedBlock *block = find_block(t, host);

    if (block) {
        forget_block(t, block);
    }
}

/* --- for the split migration ------------------------------------------- */

void memx_tracker_pause_all(bool pause)
{
    TrackedBlock *block;

    if (the_tracker) {
        QTAILQ_FOREACH(block, &the_tracker->blocks, next) {
            memx_tracker_pause(block->tracker, pause);
        }
    }
}

void memx_tracker_await_all_paused(void)
{
    TrackedBlock *block;

    if (the_tracker) {
        QTAILQ_FOREACH(block, &the_tracker->blocks, next) {
            memx_tracker_await_paused(block->tracker);
        }
    }
}

void memx_tracker_look_all(void)
{
    TrackedBlock *block;

    if (the_tracker) {
        QTAILQ_FOREACH(block, &the_tracker->blocks, next) {
            memx_tracker_look(block->tracker);
        }
    }
}

bool memx_tracker_have_all_looked(void)
{
    TrackedBlock *block;
    bool yes = true;

    if (the_tracker) {
        QTAILQ_FOREACH(block, &the_tracker->blocks, next) {
            yes = yes && memx_tracker_has_looked(block->tracker);
        }
    }
    return yes;
}

/* Without the BQL it is no balloon, and nothing that is tracked. */
void memx_tracker_discard_range(const void *host, uint64_t offset,
                                uint64_t bytes)
{
    TrackedBlock *block = the_tracker && bql_locked() ?
                          find_block(the_tracker, host) : NULL;

    if (block) {
        memx_tracker_discard(block->tracker, 0, offset, bytes);
    }
}

bool memx_tracker_give_history(const void *host, MemxRegion *region)
{
    TrackedBlock *block = the_tracker ? find_block(the_tracker, host) : NULL;
    uint32_t n = block ? DIV_ROUND_UP(block->bytes, CHUNK_BYTES) : 0;
    g_autofree uint8_t *value = g_malloc0(n);
    g_autofree MemxTrackerStats *stats = g_new0(MemxTrackerStats, 1);

    if (!block) {
        return false;
    }
    memx_tracker_stats(block->tracker, stats);
    if (!stats->periods || !stats->looked_chunks) {
        return false; /* it has only just begun, or learnt nothing */
    }
    n = memx_tracker_history(block->tracker, 0, value, n);
    memx_region_set_history(region, value, n);
    return true;
}

/* --- the object -------------------------------------------------------- */

/* Who pins memory for DMA can't wait for a sample that is away. */
static bool exclude_pins(MemxTrackerObject *t, Error **errp)
{
    if (t->tracking.mode != MEMX_TRACKER_MODE_SAMPLE) {
        return true;
    }
    if (ram_block_discard_require(true)) {
        error_setg(errp, "a device of this VM pins its memory (VFIO, vDPA or "
                   "the like), which can't be sampled");
        return false;
    }
    t->excludes_pins = true;
    return true;
}

static bool start(MemxTrackerObject *t, Error **errp)
{
    TrackedBlock *block, *next;

    t->waits = false;
    if (!exclude_pins(t, errp) || !watch_blocks(t, NULL, errp)) {
        QTAILQ_FOREACH_SAFE(block, &t->blocks, next, next) {
            forget_block(t, block);
        }
        error_prepend(errp, "memx-tracker: ");
        return false;
    }
    t->ram_notifier.ram_block_added = ram_added;
    t->ram_notifier.ram_block_removed = ram_removed;
    ram_block_notifier_add(&t->ram_notifier);
    t->started = true;
    return true;
}

/* The VM is here, if not all of its memory. */
static void start_after_postcopy(void *opaque)
{
    MemxTrackerObject *t = opaque;
    Error *err = NULL;

    if (migration_in_incoming_postcopy()) {
        timer_mod(t->postcopy_timer, POSTCOPY_POLL_MS +
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
    } else if (t->waits && !start(t, &err)) {
        warn_report_err(err);
    }
}

/* The migration that brought this VM is over, or is postcopy. */
static void vm_state_changed(void *opaque, bool running, RunState state)
{
    MemxTrackerObject *t = opaque;

    if (running && t->waits) {
        start_after_postcopy(t);
    }
}

static bool start_or_wait(MemxTrackerObject *t, Error **errp)
{
    if (!runstate_check(RUN_STATE_INMIGRATE) &&
        !migration_in_incoming_postcopy()) {
        return start(t, errp);
    }
    t->waits = true;
    t->postcopy_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                     start_after_postcopy, t);
    if (!runstate_check(RUN_STATE_INMIGRATE)) {
        start_after_postcopy(t);
    }
    t->vm_state = qemu_add_vm_change_state_handler(vm_state_changed, t);
    return true;
}

static void machine_is_done(Notifier *n, void *unused)
{
    MemxTrackerObject *t = container_of(n, MemxTrackerObject, machine_done);
    Error *err = NULL;

    if (!start_or_wait(t, &err)) {
        error_report_err(err);
        exit(EXIT_FAILURE);
    }
}

static void memx_tracker_complete(UserCreatable *uc, Error **errp)
{
    ERRP_GUARD();
    MemxTrackerObject *t = MEMX_TRACKER(uc);

    if (the_tracker) {
        error_setg(errp, "there is a memx-tracker already; one watches all "
                   "memory");
        return;
    }
    if (phase_check(PHASE_MACHINE_READY)) {
        if (!start_or_wait(t, errp)) {
            return;
        }
    } else {
        t->machine_done.notify = machine_is_done;
        qemu_add_machine_init_done_notifier(&t->machine_done);
    }
    the_tracker = t;
}

static bool has_started(Object *obj)
{
    return MEMX_TRACKER(obj)->started;
}

static bool change(Object *obj, uint32_t period_ms, uint32_t cpu_percent,
                   Error **errp)
{
    TrackedBlock *block;

    QTAILQ_FOREACH(block, &MEMX_TRACKER(obj)->blocks, next) {
        g_autoptr(GError) gerr = NULL;

        if (!memx_tracker_set(block->tracker, period_ms, cpu_percent,
                              &gerr)) {
            error_setg(errp, "%s", gerr->message);
            return false;
        }
    }
    return true;
}

static const MemxTrackingOwner memx_tracker_owner = {
    .offset = offsetof(MemxTrackerObject, tracking),
    .started = has_started,
    .change = change,
};

MemxTrackedMemoryList *qmp_query_memx_tracker(Error **errp)
{
    MemxTrackedMemoryList *list = NULL, **tail = &list;
    g_autofree MemxTrackerStats *stats = g_new(MemxTrackerStats, 1);
    TrackedBlock *block;

    if (!the_tracker) {
        return NULL;
    }
    QTAILQ_FOREACH(block, &the_tracker->blocks, next) {
        MemxTrackedMemory *memory = g_new0(MemxTrackedMemory, 1);

        memx_tracker_stats(block->tracker, stats);
        memory->id = g_strdup(block->name);
        memory->tracking = memx_tracking_info(stats);
        QAPI_LIST_APPEND(tail, memory);
    }
    return list;
}

static void memx_tracker_instance_init(Object *obj)
{
    MemxTrackerObject *t = MEMX_TRACKER(obj);

    memx_tracking_init(&t->tracking);
    QTAILQ_INIT(&t->blocks);
}

static void memx_tracker_instance_finalize(Object *obj)
{
    MemxTrackerObject *t = MEMX_TRACKER(obj);
    TrackedBlock *block, *next;

    if (t->machine_done.notify) {
        qemu_remove_machine_init_done_notifier(&t->machine_done);
    }
    if (t->vm_state) {
        qemu_del_vm_change_state_handler(t->vm_state);
    }
    timer_free(t->postcopy_timer);
    if (t->started) {
        ram_block_notifier_remove(&t->ram_notifier);
    }
    QTAILQ_FOREACH_SAFE(block, &t->blocks, next, next) {
        forget_block(t, block);
    }
    if (t->excludes_pins) {
        ram_block_discard_require(false);
    }
    if (the_tracker == t) {
        the_tracker = NULL;
    }
    memx_tracking_finalize(&t->tracking);
}

static void memx_tracker_class_init(ObjectClass *oc, MemxClassData *data)
{
    USER_CREATABLE_CLASS(oc)->complete = memx_tracker_complete;
    memx_tracking_add_properties(oc, &memx_tracker_owner);
}

static const TypeInfo memx_tracker_info = {
    .name = TYPE_MEMX_TRACKER,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(MemxTrackerObject),
    .instance_init = memx_tracker_instance_init,
    .instance_finalize = memx_tracker_instance_finalize,
    .class_init = memx_tracker_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    },
};

static void register_types(void)
{
    type_register_static(&memx_tracker_info);
}

type_init(register_types);
