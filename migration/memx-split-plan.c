/*
 * The source of a split migration: what is split, and whether it can be.
 *
 * Only private RAM of memory backends is split: main memory, NUMA nodes,
 * DIMMs.  ROM, video memory and what virtio-mem gives out travel as ever.
 * Memory that a VM has plenty of and that can't be split (shared, in a file,
 * in huge pages) is refused: it would all go to the destination, which is too
 * small for it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "crypto/secret.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "migration/ram.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
#include "qemu/cutils.h"
#include "qemu/rcu.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "memx-backend.h"
#include "memx-split.h"

#define PAGE (4 * KiB)
#define PASSIVE_CHUNK_BYTES (1 * MiB)

/* --- hosts ------------------------------------------------------------- */

/* "host:port" or "[IPv6]:port", with a number for a port. */
static bool check_host(const char *text, Error **errp)
{
    g_autoptr(InetSocketAddress) address = g_new0(InetSocketAddress, 1);
    g_autoptr(GError) gerr = NULL;
    unsigned port;

    if (inet_parse(address, text, NULL) < 0 || !*address->host ||
        qemu_strtoui(address->port, NULL, 10, &port) < 0 ||
        !port || port > 65535) {
        error_setg(errp, "split-hosts: '%s' is not host:port (or "
                   "[IPv6 address]:port)", text);
        return false;
    }
    return true;
}

static bool check_hosts(char **hosts, Error **errp)
{
    unsigned i, j;

    if (g_strv_length(hosts) > MEMX_SERVERS_MAX) {
        error_setg(errp, "split-hosts names more than %d servers",
                   MEMX_SERVERS_MAX);
        return false;
    }
    for (i = 0; hosts[i]; i++) {
        if (!check_host(hosts[i], errp)) {
            return false;
        }
        for (j = 0; j < i; j++) {
            if (g_str_equal(hosts[i], hosts[j])) {
                error_setg(errp, "split-hosts names '%s' twice", hosts[i]);
                return false;
            }
        }
    }
    return true;
}

/* --- blocks ------------------------------------------------------------ */

static bool check_splittable(RAMBlock *rb, HostMemoryBackend *backend,
                             Error **errp)
{
    const char *what = NULL;

    if (qemu_ram_pagesize(rb) != PAGE) {
        what = "is in huge pages";
    } else if (qemu_ram_is_shared(rb)) {
        what = "is shared";
    } else if (rb->fd >= 0) {
        what = "is in a file";
    } else if (rb->guest_memfd >= 0) {
        what = "is a confidential guest's";
    }
    if (what) {
        error_setg(errp, "%s '%s' %s: split-migration needs private memory in "
                   "4 KiB pages, of memory-backend-ram or memory-backend-memx;"
                   " migrate without it", object_get_typename(OBJECT(backend)),
                   rb->idstr, what);
    }
    return !what;
}

static bool plan_block(MemxSplit *split, RAMBlock *rb, Error **errp)
{
    MemxSplitBlock block = {
        .rb = rb, .bytes = rb->used_length, .passive = true,
        .chunk_bytes = PASSIVE_CHUNK_BYTES,
    };
    Object *owner = rb->mr ? memory_region_owner(rb->mr) : NULL;
    MemxBackend *b = (MemxBackend *)
        object_dynamic_cast(owner, TYPE_MEMORY_BACKEND_MEMX);

    if (!object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) ||
        memory_region_has_ram_discard_manager(rb->mr)) {
        return true;
    }
    if (b && b->region) {
        block.passive = false;
        block.region = b->region;
        block.chunk_bytes = b->chunk_bytes;
        block.moves = *split->hosts &&
                      !memx_servers_are(b->region, split->hosts);
    } else if (!check_splittable(rb, MEMORY_BACKEND(owner), errp)) {
        return false;
    } else if (!*split->hosts) {
        error_setg(errp, "split-migration needs memory servers for '%s': set "
                   "the parameter split-hosts to host:port,host:port",
                   rb->idstr);
        return false;
    }
    split->blocks = g_renew(MemxSplitBlock, split->blocks,
                            split->n_blocks + 1);
    split->blocks[split->n_blocks++] = block;
    return true;
}

static bool plan_blocks(MemxSplit *split, Error **errp)
{
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        if (!plan_block(split, rb, errp)) {
            return false;
        }
    }
    if (!split->n_blocks) {
        error_setg(errp, "this VM has no memory that could be split");
        return false;
    }
    return true;
}

/* --- split-local-size -------------------------------------------------- */

static uint64_t local_minimum(const MemxSplitBlock *block)
{
    return MIN(block->bytes,
               MAX(MEMX_LOCAL_BYTES_MIN, 16 * block->chunk_bytes));
}

/* Each block gets its share, in proportion to its size. */
static bool share_local_size(MemxSplit *split, uint64_t local, Error **errp)
{
    uint64_t total = 0;
    unsigned i;

    for (i = 0; i < split->n_blocks; i++) {
        total += split->blocks[i].bytes;
    }
    if (!local) {
        error_setg(errp, "set the parameter split-local-size to what the "
                   "destination may hold of the VM's %" PRIu64 " MiB",
                   total / MiB);
        return false;
    }
    if (local > total) {
        error_setg(errp, "split-local-size, %" PRIu64 " MiB, is more than the "
                   "VM's %" PRIu64 " MiB that can be split: lower it, or "
                   "migrate without split-migration", local / MiB,
                   total / MiB);
        return false;
    }
    for (i = 0; i < split->n_blocks; i++) {
        MemxSplitBlock *block = &split->blocks[i];

        block->main_bytes = QEMU_ALIGN_DOWN(
            (uint64_t)((__uint128_t)local * block->bytes / total), PAGE);
        if (block->main_bytes < local_minimum(block)) {
            error_setg(errp, "split-local-size is too small: '%s' would get "
                       "%" PRIu64 " KiB of it and needs %" PRIu64 " KiB at "
                       "least", block->rb->idstr, block->main_bytes / KiB,
                       local_minimum(block) / KiB);
            return false;
        }
    }
    return true;
}

/* --- */

static bool plan_key(MemxSplit *split, const char *id, Error **errp)
{
    if (!*id) {
        return true;
    }
    if (qcrypto_secret_lookup(id, &split->key, &split->key_bytes, errp) < 0) {
        error_prepend(errp, "split-key-secret: ");
        return false;
    }
    memx_key_trim(split->key, &split->key_bytes);
    return true;
}

static bool check_migration(const MigrationParameters *p, Error **errp)
{
    if (p->mode != MIG_MODE_NORMAL) {
        error_setg(errp, "split-migration works in migration mode 'normal' "
                   "only");
    } else if (migrate_tls() && !p->split_insecure) {
        error_setg(errp, "what goes to memory servers would not be encrypted, "
                   "unlike the rest with tls-creds: set split-insecure if you "
                   "accept that, or migrate without split-migration");
    } else {
        return true;
    }
    return false;
}

bool memx_split_plan(MemxSplit *split, Error **errp)
{
    ERRP_GUARD();
    const MigrationParameters *p = &migrate_get_current()->parameters;

    split->hosts = *p->split_hosts ? g_strsplit(p->split_hosts, ",", -1) :
                                     g_new0(char *, 1);
    split->warm_up_s = p->split_warm_up;
    if (!check_migration(p, errp) || !check_hosts(split->hosts, errp) ||
        !plan_blocks(split, errp) ||
        !share_local_size(split, p->split_local_size, errp) ||
        !plan_key(split, p->split_key_secret, errp)) {
        memx_split_plan_free(split);
        return false;
    }
    split->state = MEMX_SPLIT_PLANNED;
    return true;
}

void memx_split_plan_free(MemxSplit *split)
{
    g_clear_pointer(&split->blocks, g_free);
    split->n_blocks = 0;
    g_clear_pointer(&split->hosts, g_strfreev);
    g_clear_pointer(&split->key, g_free);
    split->key_bytes = 0;
    split->state = MEMX_SPLIT_NONE;
}
