/*
 * What the source of a split tells the destination: records.
 *
 * BEGIN, then chunks as they become settled (nothing of them is to be sent),
 * again whenever they changed; with the VM stopped, all that are left, and
 * END.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "split-out.h"
#include "split-record.h"

#define LOOK_MAX 4096

/* The destination doesn't hear of servers that were released. */
static unsigned told_index(const MemxRegion *r, unsigned server)
{
    unsigned index = 0;

    if (server == MEMX_SERVER_NONE) {
        return server;
    }
    for (unsigned i = 0; i < server; i++) {
        index += !r->server[i].released;
    }
    return index;
}

static size_t begin_locked(MemxRegion *r, void *buf)
{
    g_autofree MemxSplitBegin *begin = g_new0(MemxSplitBegin, 1);

    begin->chunk_bytes = r->chunk_bytes;
    begin->size_bytes = r->size_bytes;
    begin->main_bytes = r->out->main_bytes;
    memcpy(begin->session, r->session_id, sizeof(begin->session));
    memcpy(begin->heir, r->heir_id, sizeof(begin->heir));
    memcpy(begin->hash_key, r->hash_key, sizeof(begin->hash_key));
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        MemxSplitServer *to = &begin->servers[begin->n_servers];

        if (s->released) {
            continue;
        }
        begin->n_servers++;
        g_strlcpy(to->address, s->peer->address, sizeof(to->address));
        memcpy(to->space, s->open.space, sizeof(to->space));
        memcpy(to->secret, s->open.secret, sizeof(to->secret));
        to->epoch = s->open.epoch;
    }
    r->out->begun_told = true;
    return memx_split_begin_encode(buf, begin);
}

static bool settled_locked(MemxRegion *r, uint32_t c)
{
    uint64_t end = memx_group_end(&r->table, c);

    for (uint64_t g = memx_group_of_chunk(&r->table, c); g < end; g++) {
        if (r->out->todo[g]) {
            return false;
        }
    }
    return true;
}

/* The next chunk that may be told, from @c on; n_chunks: none.  Of a large VM
 * it looks at a part, so that no fault waits: *next is where to go on. */
static uint32_t next_locked(MemxRegion *r, uint32_t c, uint32_t *next)
{
    uint32_t n = r->table.n_chunks;

    for (unsigned i = 0; c < n && i < LOOK_MAX; i++) {
        uint64_t word = r->out->changed[c / 64] & UINT64_MAX << c % 64;

        if (!word) {
            c = (c / 64 + 1) * 64;
            continue;
        }
        c = c / 64 * 64 + __builtin_ctzll(word);
        if (settled_locked(r, c)) {
            return c;
        }
        c++;
    }
    *next = c < n ? c : 0;
    return n;
}

static bool add_locked(MemxRegion *r, MemxSplitWriter *writer, uint32_t c)
{
    MemxPageTable *t = &r->table;
    uint64_t g = memx_group_of_chunk(t, c), end = memx_group_end(t, c);

    if (!memx_split_writer_add(writer, told_index(r, t->chunk[c].server),
                               memx_history_value(&r->history, c),
                               r->out->handed + g, r->out->main + g, end - g,
                               memx_group_mask(t, end - 1))) {
        return false;
    }
    r->out->changed[c / 64] &= ~(1ull << c % 64);
    r->out->n_changed--;
    return true;
}

static size_t chunks_locked(MemxRegion *r, void *buf)
{
    MemxSplitOut *out = r->out;
    uint32_t n = r->table.n_chunks;
    MemxSplitWriter writer;
    uint32_t c;

    if (!out->n_changed) {
        return 0;
    }
    c = next_locked(r, out->tell_from, &out->tell_from);
    if (c >= n) {
        return 0;
    }
    memx_split_writer_start(&writer, buf, c);
    while (c < n && memx_bit(out->changed, c) && settled_locked(r, c) &&
           add_locked(r, &writer, c)) {
        c++;
    }
    out->tell_from = c;
    return memx_split_writer_end(&writer);
}

size_t memx_split_record(MemxRegion *r, bool last, void *buf)
{
    MemxSplitOut *out;
    size_t bytes = 0;

    g_mutex_lock(&r->lock);
    out = r->out;
    if (!out) {
        ;
    } else if (!out->begun_told) {
        bytes = begin_locked(r, buf);
    } else {
        bytes = chunks_locked(r, buf);
        while (!bytes && last && out->n_changed && !out->todo_pages) {
            bytes = chunks_locked(r, buf);
        }
        if (!bytes && last && !out->n_changed && !out->end_told) {
            MemxSplitEnd end = {
                .remote_pages = out->handed_pages,
                .main_pages = out->main_pages,
                .n_chunks = r->table.n_chunks,
            };

            bytes = memx_split_end_encode(buf, &end);
            out->end_told = true;
        }
    }
    g_mutex_unlock(&r->lock);
    return bytes;
}
