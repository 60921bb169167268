/*
 * The destination of a split migration: an arrival becomes a region.
 *
 * Theory of operation
 *
 * Records are collected in tables of two words a group (on the server; came
 * by the stream) and two bytes a chunk (server, history).  When all is there:
 *
 *   region    registered: who touches from now on what isn't there waits
 *   spaces    opened as their heir: we may read
 *   memory    what isn't the stream's is given back, and so are zero pages
 *             (their first touch shall fault as any other's); what is left is
 *             `present`, the server's is `stored`, the rest never written
 *   threads   are started, as any other region's, from that on
 *
 * The VM stands still during that.  So the region is prepared when the records
 * begin, and spaces are opened while memory is looked at.
 *
 * Nothing is written to the servers before memx_region_commit(): store
 * threads know by `side` (handover.c).
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include "page-scan.h"
#include "region.h"
#include "split-record.h"
#include "tracker.h"

struct MemxArrival {
    MemxOptions o;
    GBytes *key;
    MemxIdleFiles idle;
    MemxSplitBegin begin;
    bool begun, ended;
    MemxSplitEnd end;
    uint32_t n_chunks, groups_per_chunk;
    uint64_t n_groups;
    uint32_t n_told;            /* chunks */
    uint64_t remote_pages, main_pages;
    uint64_t *remote, *main;    /* a word per group */
    uint8_t *server, *history;  /* a byte per chunk */
    uint64_t *told;             /* a bit per chunk */
    MemxRegion *region;         /* what of it can be made before the end */
};

static bool G_GNUC_PRINTF(2, 3) refuse(GError **error, const char *format,
                                       ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, format);
    text = g_strdup_vprintf(format, ap);
    va_end(ap);
    g_set_error_literal(error, MEMX_ERROR, MEMX_ERROR_INVALID, text);
    return false;
}

MemxArrival *memx_arrival_new(const MemxOptions *o, GError **error)
{
    MemxOptions least = *o;
    MemxArrival *a;

    if (!o->base || o->servers) {
        refuse(error, "an arrival needs memory, and no servers: these come "
               "with the migration");
        return NULL;
    }
    least.chunk_bytes = MEMX_GROUP_BYTES; /* the source's comes later */
    if (!memx_check_options(&least, error)) {
        return NULL;
    }
    a = g_new0(MemxArrival, 1);
    a->o = *o;
    a->o.vm_name = g_strdup(o->vm_name);
    a->o.region_name = g_strdup(o->region_name);
    a->key = o->key ? g_bytes_new(o->key, o->key_bytes) : NULL;
    a->o.key = NULL;
    /* What a child process has inherited can't be moved, unless it is written
     * to again; and pages come from now on. */
    madvise(o->base, o->size_bytes, MADV_DONTFORK);
    if (o->tracker.idle) {
        a->idle = memx_idle_files_dup(o->tracker.idle);
        a->o.tracker.idle = &a->idle;
    }
    return a;
}

void memx_arrival_free(MemxArrival *a)
{
    if (a) {
        g_free((char *)a->o.vm_name);
        g_free((char *)a->o.region_name);
        g_clear_pointer(&a->key, g_bytes_unref);
        if (a->o.tracker.idle) {
            memx_idle_files_close(&a->idle);
        }
        g_free(a->remote);
        g_free(a->main);
        g_free(a->server);
        g_free(a->history);
        g_free(a->told);
        memx_region_free(a->region);
        memset(&a->begin, 0, sizeof(a->begin)); /* secrets */
        g_free(a);
    }
}

/* --- Records --- */

static bool take_begin(MemxArrival *a, const void *record, size_t bytes,
                       GError **error)
{
    MemxSplitBegin *b = &a->begin;

    if (a->begun) {
        return refuse(error, "the source began twice");
    }
    if (!memx_split_begin_decode(b, record, bytes, error)) {
        return false;
    }
    if (b->size_bytes != a->o.size_bytes) {
        return refuse(error, "the source's memory has %" PRIu64 " bytes, this "
                      "one has %" PRIu64 "; give both sides the same size",
                      b->size_bytes, a->o.size_bytes);
    }
    if (b->main_bytes > a->o.local_bytes) {
        return refuse(error, "the source means to send %" PRIu64 " bytes to "
                      "this host, but local-size is %" PRIu64 "; raise it, or "
                      "lower split-local-size at the source", b->main_bytes,
                      a->o.local_bytes);
    }
    a->o.chunk_bytes = b->chunk_bytes;
    if (!memx_check_options(&a->o, error)) {
        return false;
    }
    a->n_chunks = memx_split_n_chunks(b);
    a->groups_per_chunk = b->chunk_bytes / MEMX_GROUP_BYTES;
    a->n_groups = (memx_split_n_pages(b) + MEMX_GROUP_PAGES - 1) /
                  MEMX_GROUP_PAGES;
    a->remote = g_try_new0(uint64_t, a->n_groups);
    a->main = g_try_new0(uint64_t, a->n_groups);
    a->server = g_try_malloc0(a->n_chunks);
    a->history = g_try_malloc0(a->n_chunks);
    a->told = g_try_new0(uint64_t, (a->n_chunks + 63) / 64);
    if (!a->remote || !a->main || !a->server || !a->history || !a->told) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "no memory for the tables of an arrival");
        return false;
    }
    a->region = memx_region_prepare(&a->o, &memx_transport_tcp, b->hash_key,
                                    error);
    a->begun = a->region;
    return a->begun;
}

static void take_chunk(MemxArrival *a, const MemxSplitChunk *chunk)
{
    uint32_t c = chunk->chunk;
    uint64_t g = (uint64_t)c * a->groups_per_chunk;

    if (!(a->told[c / 64] >> c % 64 & 1)) {
        a->told[c / 64] |= 1ull << c % 64;
        a->n_told++;
    }
    for (unsigned i = 0; i < chunk->n_groups; i++, g++) {
        a->remote_pages += memx_mask_pages(chunk->remote[i]);
        a->remote_pages -= memx_mask_pages(a->remote[g]);
        a->main_pages += memx_mask_pages(chunk->main[i]);
        a->main_pages -= memx_mask_pages(a->main[g]);
        a->remote[g] = chunk->remote[i];
        a->main[g] = chunk->main[i];
    }
    a->server[c] = chunk->server;
    a->history[c] = chunk->history;
}

static bool take_chunks(MemxArrival *a, const void *record, size_t bytes,
                        GError **error)
{
    g_autofree MemxSplitChunk *chunk = g_new(MemxSplitChunk, 1);
    MemxSplitReader reader;
    int got;

    if (!memx_split_reader_start(&reader, &a->begin, record, bytes, error)) {
        return false;
    }
    while ((got = memx_split_reader_next(&reader, chunk, error)) > 0) {
        take_chunk(a, chunk);
    }
    return !got;
}

static bool take_end(MemxArrival *a, const void *record, size_t bytes,
                     GError **error)
{
    MemxSplitEnd *end = &a->end;

    if (!memx_split_end_decode(end, &a->begin, record, bytes, error)) {
        return false;
    }
    if (a->n_told != a->n_chunks || end->remote_pages != a->remote_pages ||
        end->main_pages != a->main_pages) {
        return refuse(error, "the source's sums are not those of its table: %"
                      PRIu32 " of %" PRIu32 " chunks, %" PRIu64 " of %" PRIu64
                      " remote pages, %" PRIu64 " of %" PRIu64 " others",
                      a->n_told, a->n_chunks, a->remote_pages,
                      end->remote_pages, a->main_pages, end->main_pages);
    }
    a->ended = true;
    return true;
}

bool memx_arrival_record(MemxArrival *a, const void *record, size_t bytes,
                         GError **error)
{
    unsigned type = memx_split_record_type(record, bytes, error);

    if (!type) {
        return false;
    }
    if (type == MEMX_SPLIT_BEGIN) {
        return take_begin(a, record, bytes, error);
    }
    if (!a->begun || a->ended) {
        return refuse(error, "a record came %s", a->ended
                      ? "after the end" : "before the beginning");
    }
    return type == MEMX_SPLIT_CHUNKS ? take_chunks(a, record, bytes, error)
                                     : take_end(a, record, bytes, error);
}

/* --- Memory --- */

/* Gives back all but the pages of @keep. */
static bool keep_only(const MemxOptions *o, const uint64_t *keep,
                      GError **error)
{
    uint64_t n = o->size_bytes / MEMX_PAGE_BYTES;
    uint8_t *base = o->base;

    for (uint64_t page = 0; page < n; ) {
        uint64_t from;

        while (page < n && keep[page / 64] >> page % 64 & 1) {
            page++;
        }
        from = page;
        while (page < n && !(keep[page / 64] >> page % 64 & 1)) {
            page += page % 64 || keep[page / 64] ? 1 : 64;
        }
        page = MIN(page, n);
        if (page > from && madvise(base + from * MEMX_PAGE_BYTES,
                                   (page - from) * MEMX_PAGE_BYTES,
                                   MADV_DONTNEED)) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                        "cannot give memory back: %s", g_strerror(errno));
            return false;
        }
    }
    return true;
}

/* What has come by the stream, and nothing else, is here.  In @main's place:
 * what of it has frames. */
static bool trim_memory(MemxArrival *a, MemxRegion *r, uint64_t *kept,
                        GError **error)
{
    g_autofree uint64_t *there = g_try_new0(uint64_t, a->n_groups);

    if (!there) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "no memory for the tables of an arrival");
        return false;
    }
    if (!memx_page_scan(r->pagemap_fd, a->o.base, a->o.size_bytes, there,
                        error)) {
        return false;
    }
    *kept = 0;
    for (uint64_t g = 0; g < a->n_groups; g++) {
        a->main[g] &= there[g];
        *kept += memx_mask_pages(a->main[g]);
    }
    return keep_only(&a->o, a->main, error);
}

/* --- Servers --- */

static bool add_servers(MemxArrival *a, MemxRegion *r, MemxServer **list,
                        GError **error)
{
    MemxSplitBegin *b = &a->begin;

    r->server = g_new0(MemxServer, MEMX_SERVERS_MAX);
    r->side = MEMX_SIDE_HEIR;
    memcpy(r->client_id, b->heir, sizeof(r->client_id));
    memcpy(r->session_id, b->session, sizeof(r->session_id));
    for (unsigned i = 0; i < b->n_servers; i++) {
        MemxServer *s = memx_pool_add(r, &a->o, a->key, b->servers[i].address,
                                      error);

        if (!s) {
            return false;
        }
        memcpy(s->open.space, b->servers[i].space, sizeof(s->open.space));
        memcpy(s->open.secret, b->servers[i].secret, sizeof(s->open.secret));
        s->open.epoch = b->servers[i].epoch + 1;
        s->told = false;
        list[i] = s;
    }
    return true;
}

/* Is what they have what we were told of? */
static bool check_spaces(MemxRegion *r, const MemxOpened *opened,
                         GError **error)
{
    uint64_t reserved = 0;

    for (unsigned i = 0; i < r->n_servers; i++) {
        if (opened[i].size_pages != r->table.n_pages) {
            return refuse(error, "the space on memory server %s has another "
                          "size", r->server[i].peer->address);
        }
        reserved += opened[i].reserved_pages;
    }
    if (reserved + r->limit < r->table.n_pages) {
        return refuse(error, "the servers have reserved %" PRIu64 " pages, "
                      "which is not what %" PRIu64 " less %" PRIu64 " need",
                      reserved, r->table.n_pages, r->limit);
    }
    memx_pool_quotas_locked(r);
    return true;
}

/* The VM stands still meanwhile: the servers are asked, and the memory is
 * looked at, at the same time. */
static bool open_and_trim(MemxArrival *a, MemxRegion *r, uint64_t *kept,
                          GError **error)
{
    MemxServer *list[MEMX_SERVERS_MAX];
    MemxOpened opened[MEMX_SERVERS_MAX];
    MemxOpening *opening;
    bool trimmed;

    if (!add_servers(a, r, list, error)) {
        return false;
    }
    opening = memx_opening_attach(r, list, r->n_servers,
                                  a->o.connect_timeout_ms);
    trimmed = trim_memory(a, r, kept, error);
    return memx_opening_end(opening, opened, trimmed ? error : NULL) &&
           trimmed && check_spaces(r, opened, error);
}

/* --- The region --- */

/* No other thread knows the region yet. */
static void fill_tables(MemxArrival *a, MemxRegion *r)
{
    MemxPageTable *t = &r->table;

    for (uint32_t c = 0; c < t->n_chunks; c++) {
        uint64_t end = memx_group_end(t, c);

        memx_history_set(&r->history, c, a->history[c]);
        if (a->server[c] != MEMX_SERVER_NONE) {
            t->chunk[c].server = a->server[c];
            r->server[a->server[c]].n_chunks++;
            memx_history_move(&r->history, c, a->server[c] + 1);
            memx_trim_set(t, c); /* whatever else the source left there */
        }
        for (uint64_t g = memx_group_of_chunk(t, c); g < end; g++) {
            if (a->main[g] | a->remote[g]) {
                memx_set_group_locked(r, g, a->main[g], a->remote[g]);
            }
        }
    }
}

MemxRegion *memx_arrival_finish(MemxArrival *a, GError **error)
{
    MemxRegion *r = g_steal_pointer(&a->region);
    uint64_t kept = 0;
    bool ok = false;

    if (!a->ended) {
        refuse(error, "the source has not told all of its memory");
    } else if (!memx_region_register(r, &a->o, error) ||
               !open_and_trim(a, r, &kept, error)) {
        ;
    } else if (kept > r->limit) {
        refuse(error, "the source sent %" PRIu64 " pages, more than fit a "
               "local size of %" PRIu64, kept, r->limit);
    } else {
        fill_tables(a, r);
        r->held += kept;
        ok = memx_region_start(r, error);
    }
    memx_arrival_free(a);
    if (!ok) {
        g_clear_pointer(&r, memx_region_free);
    }
    return r;
}
