/*
 * "info memx": query-memx for people.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memx.h"
#include "qemu/cutils.h"
#include "memx-backend.h"

static void print_bytes(Monitor *mon, const char *name, uint64_t bytes)
{
    g_autofree char *s = size_to_str(bytes);

    monitor_printf(mon, "  %-15s %12s\n", name, s);
}

static void print_servers(Monitor *mon, const MemxServerInfoList *list)
{
    monitor_printf(mon, "  %-24s %-8s %10s %10s %10s %10s %6s %6s %6s\n",
                   "server", "state", "remote", "kept", "reserved", "free",
                   "load", "queue", "lost");
    for (; list; list = list->next) {
        const MemxServerInfo *s = list->value;
        g_autofree char *remote = size_to_str(s->remote);
        g_autofree char *kept = size_to_str(s->kept);
        g_autofree char *reserved = size_to_str(s->reserved);
        g_autofree char *space = size_to_str(s->free);

        monitor_printf(mon, "  %-24s %-8s %10s %10s %10s %10s %5u%% %6u "
                       "%6" PRIu64 "\n", s->address,
                       MemxServerState_str(s->state), remote, kept, reserved,
                       space, s->load / 10, s->queue_depth, s->reconnects);
    }
}

/* Only where servers have come or are to go. */
static void print_moves(Monitor *mon, const MemxServerInfoList *list)
{
    for (; list; list = list->next) {
        const MemxServerInfo *s = list->value;
        g_autofree char *moved = size_to_str(s->moved);

        if (s->moved || s->to_move || s->usage != MEMX_SERVER_USAGE_IN_USE) {
            monitor_printf(mon, "  %-24s %-8s %" PRIu64 " chunks, %" PRIu64
                           " of them to move; %s came from other servers\n",
                           s->address, MemxServerUsage_str(s->usage),
                           s->chunks, s->to_move, moved);
        }
    }
}

static void print_faults(Monitor *mon, const MemxFaultInfo *f,
                         const MemxPagingInfo *p)
{
    monitor_printf(mon, "  faults          %" PRIu64 ": first touch %" PRIu64
                   ", remote %" PRIu64 ", staged %" PRIu64 "; waiting %"
                   PRIu64 ", starved %" PRIu64 "\n", f->total, f->first_touch,
                   f->remote, f->staged, f->waiting, f->starved);
    monitor_printf(mon, "  evicted pages   %" PRIu64 ": unchanged %" PRIu64
                   ", zero %" PRIu64 "; busy %" PRIu64 ", refaults %" PRIu64
                   "\n", p->evicted, p->evicted_unchanged, p->evicted_zero,
                   p->evict_busy, p->refaults);
    monitor_printf(mon, "  prefetched      %" PRIu64 ": wasted %" PRIu64
                   "; discarded %" PRIu64 "; promoted/s %" PRIu64
                   "; before commit %" PRIu64 "\n",
                   p->prefetched, p->prefetch_wasted, p->discarded,
                   p->promoted_per_second, p->fetched_before_commit);
}

static void print_latency(Monitor *mon, const MemxLatencyInfo *latency)
{
    const uint64List *l;
    int i = 0;

    monitor_printf(mon, "  fetch latency   p50 %.1f us, p99 %.1f us\n",
                   latency->p50 / 1000.0, latency->p99 / 1000.0);
    for (l = latency->histogram; l; l = l->next, i++) {
        if (l->value) {
            monitor_printf(mon, "  %10llu us ..  %12" PRIu64 "\n", 1ULL << i,
                           l->value);
        }
    }
}

static void print_tracking(Monitor *mon, const MemxTrackingInfo *t)
{
    const MemxWorkingSetList *l;

    monitor_printf(mon, "  tracker         %s (%s)\n", t->tracker, t->reason);
    if (!t->periods) {
        return;
    }
    monitor_printf(mon, "  period          %u ms%s, %.2f%% of a CPU of %u%%; "
                   "%u of %u chunks touched, %" PRIu64 " extra faults\n",
                   t->period, t->adapts ? ", adapts" : "", t->cpu / 1e4,
                   t->cpu_limit, t->touched_chunks, t->looked_chunks,
                   t->extra_faults_period);
    monitor_printf(mon, "  working set    ");
    for (l = t->working_sets; l; l = l->next) {
        g_autofree char *bytes = size_to_str(l->value->bytes);

        monitor_printf(mon, " %u%%: %s%s", l->value->share / 10, bytes,
                       l->next ? "," : "\n");
    }
}

static void print_backend(Monitor *mon, const MemxInfo *info)
{
    monitor_printf(mon, "%s:%s\n", info->id,
                   info->stalled ? " STALLED, waits for a server" : "");
    print_bytes(mon, "size", info->size);
    print_bytes(mon, "local-size", info->local_size);
    print_bytes(mon, "local", info->local);
    print_bytes(mon, "in huge pages", info->huge);
    print_bytes(mon, "staged", info->staged);
    print_bytes(mon, "remote", info->remote);
    print_bytes(mon, "never written", info->never_written);
    print_bytes(mon, "chunk-size", info->chunk_size);
    monitor_printf(mon, "  fill %s%s\n", info->fill,
                   info->host_swap ? "; WARNING: the host swaps" : "");
    print_faults(mon, info->faults, info->paging);
    print_latency(mon, info->fetch_latency);
    print_tracking(mon, info->tracking);
    print_servers(mon, info->servers);
    print_moves(mon, info->servers);
}

static void hmp_info_memx(Monitor *mon, const QDict *qdict)
{
    g_autoptr(MemxInfoList) list = qmp_query_memx(&error_abort);
    g_autoptr(MemxTrackedMemoryList) tracked =
        qmp_query_memx_tracker(&error_abort);
    MemxTrackedMemoryList *t;
    MemxInfoList *l;

    if (!list) {
        monitor_printf(mon, "No memory-backend-memx in this VM\n");
    }
    for (l = list; l; l = l->next) {
        print_backend(mon, l->value);
    }
    for (t = tracked; t; t = t->next) {
        monitor_printf(mon, "%s, watched by memx-tracker:\n", t->value->id);
        print_tracking(mon, t->value->tracking);
    }
}

void memx_hmp_init(void)
{
    monitor_register_hmp("memx", true, hmp_info_memx);
}
