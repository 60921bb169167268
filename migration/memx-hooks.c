/*
 * What QEMU's own files call (hooks.h), and what does not go together with
 * memx RAM.
 *
 * QEMU itself refuses, through ram_block_discard_require(), whatever pins
 * all of guest memory: VFIO, vhost-vdpa, RDMA migration and the like.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/qdev-core.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/units.h"
#include "system/runstate.h"
#include "system/system.h"
#include "migration/postcopy-ram.h"
#include "hooks.h"
#include "memx-backend.h"
#include "memx-split.h"
#include "memx-tracking.h"

/* Devices that need a descriptor of guest memory.  Under the BQL. */
static unsigned vhost_user_devices;

static bool memx_in_use(void)
{
    QEMU_LOCK_GUARD(&memx_backends_lock);
    return !QTAILQ_EMPTY(&memx_backends) || memx_arrival_expected();
}

bool memx_object_is_keyval(const char *arg)
{
    return g_str_has_prefix(arg, TYPE_MEMORY_BACKEND_MEMX ",") &&
           strstr(arg, ",servers.");
}

bool memx_discard_range(RAMBlock *block, uint64_t offset, size_t bytes,
                        int *ret)
{
    Object *owner = block->mr ? memory_region_owner(block->mr) : NULL;
    MemxBackend *b = (MemxBackend *)
        object_dynamic_cast(owner, TYPE_MEMORY_BACKEND_MEMX);

    if (!b || !b->region) {
        memx_tracker_discard_range(block->host, offset, bytes);
        return false;
    }
    *ret = memx_region_discard(b->region, offset, bytes);
    return true;
}

/* --- refusals: the object ---------------------------------------------- */

static bool memx_check_memory_options(const HostMemoryBackend *backend,
                                      Error **errp)
{
    if (backend->share) {
        error_setg(errp, "share=on is impossible: userfaultfd moves pages of "
                   "private memory only; leave it off");
    } else if (backend->prealloc) {
        error_setg(errp, "prealloc=on (or -mem-prealloc) contradicts "
                   "local-size; leave it off");
    } else if (backend->merge) {
        error_setg(errp, "merge=on is impossible: merged pages can't be "
                   "evicted; leave it off");
    } else if (backend->guest_memfd) {
        error_setg(errp, "confidential guests keep their memory to "
                   "themselves; use memory-backend-ram");
    } else if (should_mlock(mlock_state)) {
        error_setg(errp, "-overcommit mem-lock pins what should be evicted; "
                   "leave it off");
    } else {
        return true;
    }
    return false;
}

/* What the engine does not check, or would tell in other words. */
static bool memx_check_own_options(const MemxBackend *b, Error **errp)
{
    uint64_t size = MEMORY_BACKEND(b)->size;

    if (!size || size % (4 * KiB)) {
        error_setg(errp, "size must be a multiple of 4 KiB, above 0");
    } else if (!b->servers && !runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "it needs servers: add servers.0=host:port (only "
                   "with -incoming can it do without, for a split "
                   "migration)");
    } else if (!b->server_timeout_s || b->server_timeout_s > 86400) {
        error_setg(errp, "server-timeout must be 1 to 86400 seconds");
    } else {
        return true;
    }
    return false;
}

static bool memx_check_vm(Error **errp)
{
    if (vhost_user_devices) {
        error_setg(errp, "this VM has a vhost-user device, which needs shared "
                   "memory; remove it, or use memory-backend-memfd,share=on");
        return false;
    }
    if (phase_check(PHASE_MACHINE_READY) &&
        (migrate_zero_copy_send() || migrate_background_snapshot())) {
        error_setg(errp, "switch the migration capabilities zero-copy-send "
                   "and background-snapshot off first");
        return false;
    }
    return true;
}

bool memx_backend_check(MemxBackend *b, Error **errp)
{
    return memx_check_memory_options(MEMORY_BACKEND(b), errp) &&
           memx_check_own_options(b, errp) &&
           memx_check_vm(errp);
}

/* --- refusals: what comes later ---------------------------------------- */

bool memx_allows_snapshot(Error **errp)
{
    if (memx_split_migration()) {
        error_setg(errp, "a snapshot can't be split: switch the migration "
                   "capability split-migration off first");
        return false;
    }
    if (memx_in_use()) {
        error_setg(errp, "snapshots of a VM with memory-backend-memx are not "
                   "supported: take one of the disks only, or migrate to a "
                   "file");
        return false;
    }
    return true;
}

bool memx_allows_capabilities(const bool *caps, Error **errp)
{
    if (!memx_split_allows_capabilities(caps, errp)) {
        return false;
    }
    if (!memx_in_use()) {
        return true;
    }
    if (caps[MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT]) {
        error_setg(errp, "background-snapshot and memory-backend-memx both "
                   "need userfaultfd on the same memory: migrate to a file "
                   "without it");
        return false;
    }
#ifdef CONFIG_LINUX
    if (caps[MIGRATION_CAPABILITY_ZERO_COPY_SEND]) {
        error_setg(errp, "zero-copy-send might send evicted pages of "
                   "memory-backend-memx wrongly: migrate without it");
        return false;
    }
#endif
    return true;
}

bool memx_allows_virtio_mem(HostMemoryBackend *memdev, Error **errp)
{
    if (object_dynamic_cast(OBJECT(memdev), TYPE_MEMORY_BACKEND_MEMX)) {
        error_setg(errp, "virtio-mem can't use a memory-backend-memx: plug it "
                   "as a pc-dimm, and use a balloon to give memory back");
        return false;
    }
    return true;
}

bool memx_vhost_user_begin(Error **errp)
{
    vhost_user_devices++;
    if (memx_in_use()) {
        error_setg(errp, "vhost-user needs shared memory, which "
                   "memory-backend-memx is not: use the device's in-kernel "
                   "or built-in variant");
        return false;
    }
    return true;
}

void memx_vhost_user_end(void)
{
    vhost_user_devices--;
}

/* Incoming postcopy needs userfaultfd for itself.  (memx-tracker waits for its
 * end.) */
static int memx_postcopy_probe(NotifierWithReturn *n, void *data, Error **errp)
{
    struct PostcopyNotifyData *pnd = data;

    if (pnd->reason == POSTCOPY_NOTIFY_PROBE && memx_in_use()) {
        error_setg(errp, "memory-backend-memx can't receive postcopy: "
                   "migrate to it without postcopy-ram");
        return -ENOTSUP;
    }
    return 0;
}

static NotifierWithReturn memx_postcopy_notifier = {
    .notify = memx_postcopy_probe,
};

void memx_hooks_init(void)
{
    postcopy_add_notifier(&memx_postcopy_notifier);
}
