/*
 * memory-backend-memx, as the files of this folder see it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_BACKEND_H
#define MEMX_BACKEND_H

#include <memx.h>
#include "exec/ramlist.h"
#include "qapi/qapi-types-common.h"
#include "qemu/lockable.h"
#include "qemu/queue.h"
#include "qemu/thread.h"
#include "qom/object.h"
#include "system/hostmem.h"
#include "memx-tracking.h"

#define TYPE_MEMORY_BACKEND_MEMX "memory-backend-memx"

OBJECT_DECLARE_SIMPLE_TYPE(MemxBackend, MEMORY_BACKEND_MEMX)

struct MemxBackend {
    HostMemoryBackend parent_obj;

    /* Options; constant while the region exists, except local_bytes. */
    uint64_t local_bytes;
    uint64_t chunk_bytes;
    strList *servers;           /* as it was created; see memx-servers.c */
    OnOffAuto keep_copies;
    OnOffAuto huge_pages;
    uint32_t server_timeout_s;
    char *key_secret;
    MemxTracking tracking;

    /* From complete() until the RAM block goes; changed under the BQL. */
    char *id;
    void *host;
    MemxRegion *region;         /* NULL while it waits */
    bool waits;                 /* for a split migration */
    RAMBlockNotifier ram_notifier;

    /* Protected by memx_backends_lock. */
    bool stalled;               /* between MEMX_STALLED and MEMX_RESUMED */
    bool broken;                /* after MEMX_BUG */
    QTAILQ_ENTRY(MemxBackend) next; /* or, while it waits, under the BQL */
};

/* memx-backend.c */
/* All but the servers.  To be freed with memx_backend_options_free(), when the
 * engine has them. */
bool memx_backend_options(MemxBackend *backend, MemxOptions *options,
                          MemxIdleFiles *files, Error **errp);
void memx_backend_options_free(MemxOptions *options, MemxIdleFiles *files);
void memx_backend_adopt(MemxBackend *backend, MemxRegion *region);
void memx_backend_open_bql(MemxBackend *backend);
void memx_backend_close_bql(MemxBackend *backend);
void memx_key_trim(const uint8_t *key, size_t *bytes);

/* memx-servers.c: the servers of memory that is in use. */
strList *memx_servers_list(const MemxBackend *backend);
bool memx_servers_are(MemxRegion *region, char **addresses);
void memx_servers_set(MemxBackend *backend, Visitor *v, const char *name,
                      Error **errp);

/*
 * All backends that have a region.
 *
 * The lock is held for moments only, so that query-memx answers while threads
 * wait for pages: whoever holds it touches no guest memory, waits for nobody
 * and takes no other lock of QEMU's.  It keeps the regions on the list alive,
 * but not what they do: events go on while it is held.
 */
typedef QTAILQ_HEAD(MemxBackendList, MemxBackend) MemxBackendList;
extern MemxBackendList memx_backends;
extern QemuMutex memx_backends_lock;

/* memx-events.c */
MemxEventFunc memx_backend_event;
MemxEventFunc memx_passive_event;   /* opaque: the memory's name */
void memx_events_init(void);

/* memx-hooks.c */
void memx_hooks_init(void);
bool memx_backend_check(MemxBackend *backend, Error **errp);

/* memx-hmp.c */
void memx_hmp_init(void);

#endif
