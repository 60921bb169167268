/*
 * Passive regions: those of ordinary RAM, for the time of its split migration.
 *
 * They begin and end in threads of their own.  Connecting to a server that
 * does not answer takes seconds, and a user who cancels does not want to wait
 * for them; ending takes up to 2 s, since servers are told, and the VM runs on
 * meanwhile.  The RAM block lives until its region has ended.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "block/aio.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/uuid.h"
#include "system/system.h"
#include "memx-backend.h"
#include "memx-split.h"

struct MemxPassive {
    /* Constant. */
    GThread *connecting;
    char **hosts;
    uint8_t *key;
    MemxOptions options;
    MemoryRegion *mr;           /* referenced while it ends */

    /* The connecting thread's until done. */
    MemxRegion *region;
    GError *error;
    int done;                   /* atomic */

    GThread *ending;
};

static unsigned n_ending;       /* atomic */

static void *connecting_thread(void *opaque)
{
    MemxPassive *p = opaque;

    p->region = memx_region_new(&p->options, &p->error);
    qatomic_store_release(&p->done, true);
    return NULL;
}

static MemxPassive *passive_new(const MemxSplitBlock *block)
{
    MemxPassive *p = g_new0(MemxPassive, 1);

    p->hosts = g_strdupv(memx_split.hosts);
    p->key = g_memdup2(memx_split.key, memx_split.key_bytes);
    p->mr = block->rb->mr;
    p->options = MEMX_OPTIONS_INIT;
    p->options.passive = true;
    p->options.base = block->rb->host;
    p->options.size_bytes = block->bytes;
    p->options.local_bytes = block->bytes;
    p->options.chunk_bytes = block->chunk_bytes;
    p->options.servers = (const char *const *)p->hosts;
    p->options.key = p->key;
    p->options.key_bytes = memx_split.key_bytes;
    p->options.vm_name = qemu_get_vm_name();
    p->options.region_name = block->rb->idstr;
    memcpy(p->options.vm_uuid, qemu_uuid.data, sizeof(p->options.vm_uuid));
    p->options.event = memx_passive_event;
    p->options.opaque = block->rb->idstr;
    p->connecting = g_thread_new("memx-connect", connecting_thread, p);
    return p;
}

bool memx_passive_connect(MemxSplitBlock *block, Error **errp)
{
    MemxPassive *p = block->passive_region = passive_new(block);

    while (!qatomic_load_acquire(&p->done)) {
        if (memx_split_unwanted(errp)) {
            return false;
        }
        g_usleep(MEMX_POLL_MS * 1000);
    }
    if (!p->region) {
        error_setg(errp, "split-hosts, for '%s': %s", block->rb->idstr,
                   p->error->message);
        return false;
    }
    block->region = p->region;
    return true;
}

/* The last reference may end a RAM block: in the main loop. */
static void ended_bh(void *opaque)
{
    MemxPassive *p = opaque;

    g_thread_join(p->ending);
    memory_region_unref(p->mr);
    g_strfreev(p->hosts);
    g_free(p->key);
    g_clear_error(&p->error);
    g_free(p);
}

static void *ending_thread(void *opaque)
{
    MemxPassive *p = opaque;

    g_thread_join(p->connecting);
    if (p->region) {
        memx_region_free(p->region);
    }
    qatomic_dec(&n_ending);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), ended_bh, p);
    return NULL;
}

void memx_passive_end(MemxSplitBlock *block)
{
    MemxPassive *p = block->passive_region;

    if (p) {
        memory_region_ref(p->mr);
        qatomic_inc(&n_ending);
        p->ending = g_thread_new("memx-end", ending_thread, p);
    }
}

bool memx_passive_ending(void)
{
    return qatomic_read(&n_ending);
}
