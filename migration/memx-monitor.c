/*
 * query-memx and memx-abandon.
 *
 * Both may run out of band, in the monitor's I/O thread, while the main loop
 * or whoever holds the BQL waits for a page.  So they take no lock but the
 * list's, and touch no guest memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memx.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "memx-backend.h"
#include "memx-tracking.h"

/* Lists of states that both sides have. */
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_STATE_UP != MEMX_SERVER_UP);
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_STATE_DOWN != MEMX_SERVER_DOWN);
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_STATE_STALLED != MEMX_SERVER_STALLED);
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_STATE_EMPTY != MEMX_SERVER_EMPTY);

QEMU_BUILD_BUG_ON((int)MEMX_SERVER_USAGE_IN_USE != MEMX_SERVER_IN_USE);
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_USAGE_DRAINING != MEMX_SERVER_DRAINING);
QEMU_BUILD_BUG_ON((int)MEMX_SERVER_USAGE_LEAVING != MEMX_SERVER_LEAVING);

static MemxServerInfo *memx_server_info(const MemxServerStats *s)
{
    MemxServerInfo *info = g_new0(MemxServerInfo, 1);

    info->address = g_strdup(s->address);
    info->state = (MemxServerState)s->health;
    info->usage = (MemxServerUsage)s->state;
    info->chunks = s->chunks;
    info->to_move = s->to_move;
    info->moved = s->moved_bytes;
    info->remote = s->remote_bytes;
    info->kept = s->kept_bytes;
    info->reserved = s->reserved_bytes;
    info->free = s->free_bytes;
    info->capacity = s->capacity_bytes;
    info->load = s->load_permille;
    info->stored = s->stored_bytes;
    info->fetched = s->fetched_bytes;
    info->reconnects = s->reconnects;
    info->queue_depth = s->queue_depth;
    return info;
}

static MemxFaultInfo *memx_fault_info(const MemxStats *s)
{
    MemxFaultInfo *info = g_new0(MemxFaultInfo, 1);

    info->total = s->faults;
    info->first_touch = s->faults_first_touch;
    info->remote = s->faults_remote;
    info->staged = s->faults_staged;
    info->waiting = s->faults_waiting;
    info->starved = s->starved;
    return info;
}

static MemxPagingInfo *memx_paging_info(const MemxStats *s)
{
    MemxPagingInfo *info = g_new0(MemxPagingInfo, 1);

    info->prefetched = s->prefetched_pages;
    info->prefetch_wasted = s->prefetch_wasted_pages;
    info->prefetch_judged = s->prefetch_judged_pages;
    info->prefetch_untouched = s->prefetch_untouched_pages;
    info->evicted = s->evicted_pages;
    info->evicted_unchanged = s->evicted_unchanged_pages;
    info->evicted_zero = s->evicted_zero_pages;
    info->evict_busy = s->evict_busy_pages;
    info->refaults = s->refaults;
    info->discarded = s->discarded_pages;
    info->promoted_per_second = s->promotion_pages_per_s;
    info->fetched_before_commit = s->fetched_before_commit_pages;
    return info;
}

static MemxLatencyInfo *memx_latency_info(const MemxStats *s)
{
    MemxLatencyInfo *info = g_new0(MemxLatencyInfo, 1);
    uint64List **tail = &info->histogram;
    int i;

    info->p50 = s->fetch_p50_ns;
    info->p99 = s->fetch_p99_ns;
    for (i = 0; i < MEMX_LATENCY_BUCKETS; i++) {
        QAPI_LIST_APPEND(tail, s->fetch_latency[i]);
    }
    return info;
}

static MemxInfo *memx_backend_info(const MemxBackend *b, const MemxStats *s)
{
    MemxInfo *info = g_new0(MemxInfo, 1);
    MemxServerInfoList **tail = &info->servers;
    unsigned i;

    info->id = g_strdup(b->id);
    info->size = s->size_bytes;
    info->local_size = s->local_limit_bytes;
    info->local = s->local_bytes;
    info->huge = s->huge_bytes;
    info->staged = s->staged_bytes;
    info->remote = s->remote_bytes;
    info->never_written = s->never_written_bytes;
    info->chunk_size = s->chunk_bytes;
    info->stalled = b->stalled;
    info->faults = memx_fault_info(s);
    info->paging = memx_paging_info(s);
    info->fetch_latency = memx_latency_info(s);
    info->fill = g_strdup(s->fill);
    info->tracker = g_strdup(s->tracker);
    info->tracking = memx_tracking_info(&s->tracking);
    info->host_swap = s->host_swap;
    for (i = 0; i < s->n_servers; i++) {
        if (s->servers[i].state != MEMX_SERVER_RELEASED) {
            QAPI_LIST_APPEND(tail, memx_server_info(&s->servers[i]));
        }
    }
    return info;
}

MemxInfoList *qmp_query_memx(Error **errp)
{
    MemxInfoList *list = NULL, **tail = &list;
    g_autofree MemxStats *stats = g_new(MemxStats, 1);
    MemxBackend *b;

    QEMU_LOCK_GUARD(&memx_backends_lock);
    QTAILQ_FOREACH(b, &memx_backends, next) {
        memx_region_stats(b->region, stats);
        QAPI_LIST_APPEND(tail, memx_backend_info(b, stats));
    }
    return list;
}

static void memx_report_loss(const MemxBackend *b, const MemxStats *s)
{
    unsigned i;

    error_report("memory-backend-memx '%s' is given up with %" PRIu64
                 " MiB on its servers:", b->id, s->remote_bytes / MiB);
    for (i = 0; i < s->n_servers; i++) {
        const MemxServerStats *server = &s->servers[i];

        error_printf("    %s (%s): %" PRIu64 " MiB\n", server->address,
                     memx_server_health_name(server->health),
                     server->remote_bytes / MiB);
    }
}

void qmp_memx_abandon(const char *id, Error **errp)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);
    bool found = false;
    MemxBackend *b;

    QEMU_LOCK_GUARD(&memx_backends_lock);
    QTAILQ_FOREACH(b, &memx_backends, next) {
        if (!id || g_str_equal(id, b->id)) {
            memx_region_stats(b->region, stats);
            memx_report_loss(b, stats);
            found = true;
        }
    }
    if (!found) {
        error_setg(errp, id ? "there is no memory-backend-memx '%s'" :
                   "this VM has no memory-backend-memx%s", id ?: "");
        return;
    }
    error_printf("QEMU ends now, as memx-abandon asked it to.  Servers that "
                 "are alive list what they hold of this VM as orphaned: "
                 "'memxctl drop' frees it.\n");
    fflush(NULL);
    /* No exit handlers: they would wait for what we give up. */
    _exit(EXIT_FAILURE);
}
