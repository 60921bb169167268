/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's books against the kernel's and the servers', when nobody uses the region.
 */
#include <glib.h>
#include <stdio.h>
#include <unistd.h>
#include "audit.h"
#include "honesty.h"
#include "uffd.h"

#define DEADLINE_US (60 * G_USEC_PER_SEC)
#define POLL_US 2000

static bool slot_busy(const MemxSlot *slot)
{
    return slot->state != MEMX_SLOT_FREE;
}

static bool quiet_locked(MemxRegion *r)
{
    for (unsigned i = 0; i < r->staging.n_slots + r->staging.n_samples; i++) {
        if (slot_busy(&r->staging.slot[i])) {
            return false;
        }
    }
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        MemxChunk *chunk = &r->table.chunk[c];

        if (chunk->fetching || chunk->installing ||
            memx_chunk_exclusive(chunk)) {
            return false;
        }
    }
    return !r->fault_busy && !r->table.n_trim && !r->prefetch_n &&
           r->trim_at >= r->trim_end && !r->n_drops;
}

/* True: with the lock held, since a tracker may begin to take pages away. */
static bool await_quiet_lock(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    do {
        bool quiet;

        g_mutex_lock(&r->lock);
        quiet = quiet_locked(r);
        if (quiet) {
            return true;
        }
        g_mutex_unlock(&r->lock);
        g_usleep(POLL_US);
    } while (g_get_monotonic_time() < deadline);
    return false;
}

void audit_print(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    printf("# held %" G_GUINT64_FORMAT ", limit %" G_GUINT64_FORMAT
           ", starved %d, prefetch %u, trims %u, faults %016"
           G_GINT64_MODIFIER "x\n", r->held, r->limit, r->starved,
           r->prefetch_n, r->table.n_trim, r->fault_busy);
    for (unsigned i = 0; i < r->staging.n_slots + r->staging.n_samples; i++) {
        MemxSlot *s = &r->staging.slot[i];

        printf("# slot %u: state %d, group %" G_GUINT64_FORMAT ", frames %016"
               G_GINT64_MODIFIER "x, staged %016" G_GINT64_MODIFIER "x, users"
               " %u\n", i, s->state, s->group, s->frames, s->staged,
               s->users);
    }
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        MemxChunk *chunk = &r->table.chunk[c];

        if (chunk->fetching || chunk->installing || chunk->flags) {
            printf("# chunk %u: fetching %u, installing %u, flags %u, server "
                   "%u\n", c, chunk->fetching, chunk->installing,
                   chunk->flags, chunk->server);
        }
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        printf("# server %u: lanes up %d %d %d, full %d, dropped %u, faults "
               "%u, chunks %u of %u, reserved %" G_GUINT64_FORMAT ", remote %"
               G_GUINT64_FORMAT ", kept %" G_GUINT64_FORMAT "\n", i,
               s->lane[MEMX_LANE_ORDERED].up, s->lane[MEMX_LANE_FAULT].up,
               s->lane[MEMX_LANE_FETCH].up, s->full, s->dropped, s->faults,
               s->n_chunks, s->chunk_quota, s->reserved_pages,
               s->remote_pages, s->kept_pages);
    }
    g_mutex_unlock(&r->lock);
}

static bool same(const char *what, uint64_t is, uint64_t must)
{
    if (is != must) {
        printf("# BOOKS: %s: %" G_GUINT64_FORMAT " instead of %"
               G_GUINT64_FORMAT "\n", what, is, must);
    }
    return is == must;
}

/* Every page that the table calls local is mapped, and no other. */
static bool audit_mappings(MemxRegion *r)
{
    uint64_t wrong = 0;

    for (uint64_t page = 0; page < r->table.n_pages; page++) {
        bool present = r->table.present[page / 64] >> page % 64 & 1;

        wrong += present != (memx_page_mapped(r->pagemap_fd,
                                              memx_page_hva(r, page)) == 1);
    }
    return same("pages that are not where the table says", wrong, 0);
}

static bool audit_counts(MemxRegion *r)
{
    uint64_t present = 0, stored = 0, frames = 0;
    uint64_t remote[MEMX_SERVERS_MAX] = { 0 }, kept[MEMX_SERVERS_MAX] = { 0 };
    uint64_t chunks[MEMX_SERVERS_MAX] = { 0 };
    bool ok = true;

    for (uint64_t g = 0; g < r->table.n_groups; g++) {
        uint64_t p = r->table.present[g], s = r->table.stored[g];
        unsigned server =
            r->table.chunk[memx_chunk_of_group(&r->table, g)].server;

        present += memx_mask_pages(p);
        stored += memx_mask_pages(s);
        if (server != MEMX_SERVER_NONE) {
            remote[server] += memx_mask_pages(s & ~p);
            kept[server] += memx_mask_pages(s & p);
        } else {
            ok &= same("stored pages of a chunk without a server",
                       memx_mask_pages(s), 0);
        }
    }
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        if (r->table.chunk[c].server != MEMX_SERVER_NONE) {
            chunks[r->table.chunk[c].server]++;
        }
    }
    for (unsigned i = 0; i < r->staging.n_slots + r->staging.n_samples; i++) {
        frames += memx_mask_pages(r->staging.slot[i].frames);
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        ok &= same("remote pages", r->server[i].remote_pages, remote[i]);
        ok &= same("kept pages", r->server[i].kept_pages, kept[i]);
        ok &= same("chunks", r->server[i].n_chunks, chunks[i]);
        ok &= same("requests in flight", r->server[i].faults, 0);
    }
    ok &= same("local pages", r->table.n_present, present);
    ok &= same("stored pages", r->table.n_stored, stored);
    ok &= same("pages held", r->held, present + frames + MEMX_FAULTS_MAX);
    ok &= same("frames in staging, bytes",
               honesty_held_bytes(r->pagemap_fd, r->staging.base,
                                  r->staging.bytes),
               frames * MEMX_PAGE_BYTES);
    return ok;
}

/* A server holds what the table says and nothing in vain. */
static bool audit_servers(MemxRegion *r, PoolUnderTest *pool)
{
    bool ok = true;

    for (unsigned i = 0; i < r->n_servers; i++) {
        g_autofree char *what = g_strdup_printf("pages on server %u", i);

        ok &= same(what, pool_held_pages(pool, i),
                   r->server[i].remote_pages + r->server[i].kept_pages);
    }
    return ok;
}

bool audit(MemxRegion *r, PoolUnderTest *pool)
{
    MemxStats stats;
    bool ok;

    /* One that takes pages away all the time waits meanwhile. */
    memx_region_stats(r, &stats);
    memx_region_set_tracking(r, 3600 * 1000, stats.tracking.cpu_percent,
                             NULL);
    if (!await_quiet_lock(r)) {
        printf("# BOOKS: something is in flight for ever\n");
        audit_print(r);
        return false;
    }
    ok = audit_counts(r) & audit_mappings(r) & audit_servers(r, pool);
    g_mutex_unlock(&r->lock);
    memx_region_set_tracking(r, stats.tracking.adapts
                             ? 0 : stats.tracking.period_ms,
                             stats.tracking.cpu_percent, NULL);
    return ok;
}
