/*
 * The property "servers" of memory that is in use: servers come and go.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/visitor.h"
#include "memx-backend.h"
#include "trace.h"

/* Of the list, not on their way out. */
static bool is_listed(const MemxServerStats *s)
{
    return s->state == MEMX_SERVER_IN_USE || s->state == MEMX_SERVER_DRAINING;
}

strList *memx_servers_list(const MemxBackend *b)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);
    strList *list = NULL, **tail = &list;
    unsigned i;

    memx_region_stats(b->region, stats);
    for (i = 0; i < stats->n_servers; i++) {
        if (is_listed(&stats->servers[i])) {
            QAPI_LIST_APPEND(tail, g_strdup(stats->servers[i].address));
        }
    }
    return list;
}

/* In any order. */
bool memx_servers_are(MemxRegion *region, char **addresses)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);
    unsigned i, n = 0;

    memx_region_stats(region, stats);
    for (i = 0; i < stats->n_servers; i++) {
        if (is_listed(&stats->servers[i])) {
            if (!g_strv_contains((const char *const *)addresses,
                                 stats->servers[i].address)) {
                return false;
            }
            n++;
        }
    }
    return n == g_strv_length(addresses);
}

/* A list, or "a:1,b:2": HMP's qom-set knows no list of strings. */
static char **visit_addresses(Visitor *v, const char *name, Error **errp)
{
    g_autoptr(GPtrArray) addresses = g_ptr_array_new();
    g_autofree char *text = NULL;
    g_autoptr(strList) list = NULL;
    strList *s;

    if (visit_type_str(v, name, &text, NULL)) {
        return g_strsplit(text, ",", -1);
    }
    if (!visit_type_strList(v, name, &list, errp)) {
        return NULL;
    }
    for (s = list; s; s = s->next) {
        g_ptr_array_add(addresses, g_strdup(s->value));
    }
    g_ptr_array_add(addresses, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&addresses), false);
}

void memx_servers_set(MemxBackend *b, Visitor *v, const char *name,
                      Error **errp)
{
    g_auto(GStrv) addresses = visit_addresses(v, name, errp);
    g_autoptr(GError) gerr = NULL;
    g_autofree char *text = NULL;
    bool ok;

    if (!addresses) {
        return;
    }
    memx_backend_open_bql(b);
    ok = memx_region_set_servers(b->region, (const char *const *)addresses,
                                 &gerr);
    memx_backend_close_bql(b);
    if (!ok) {
        error_setg(errp, "memory-backend-memx '%s', servers: %s", b->id,
                   gerr->message);
        return;
    }
    text = g_strjoinv(",", addresses);
    trace_memx_servers(b->id, text);
}
