/*
 * MemxTracker: a history of ordinary memory.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "ager.h"

struct MemxTracker {
    /* Constant after creation. */
    MemxRange *range;
    unsigned n_ranges;
    uint64_t chunk_bytes;
    unsigned groups_per_chunk;
    uint32_t *n_chunks;     /* of each range */
    MemxAger *ager;
    int paused;             /* atomic */

    GMutex lock;
    uint8_t **value;        /* protected by the lock */
};

static bool object_begin(void *opaque, bool *pressure)
{
    MemxTracker *t = opaque;

    *pressure = false;
    return !g_atomic_int_get(&t->paused);
}

static bool object_want(void *opaque, MemxSlice *slice)
{
    for (unsigned i = 0; i < slice->n_groups; i++) {
        slice->wanted[i / 64] |= 1ull << i % 64;
    }
    return true;
}

static void object_age(void *opaque, const MemxSlice *slice, bool looked,
                       MemxFound *found)
{
    MemxTracker *t = opaque;
    unsigned per = t->groups_per_chunk;
    uint32_t first = slice->first_group / per;

    if (!looked) {
        return;
    }
    g_mutex_lock(&t->lock);
    for (unsigned i = 0; i < slice->n_groups; i += per) {
        uint8_t *value = &t->value[slice->range][first + i / per];
        bool touched = false, known = false;

        for (unsigned g = i; g < MIN(i + per, slice->n_groups); g++) {
            known |= !(slice->skipped[g / 64] >> g % 64 & 1);
            touched |= slice->touched[g] != 0;
            found->touched_pages += memx_mask_pages(slice->touched[g]);
            found->touched_groups += slice->touched[g] != 0;
        }
        if (known) {
            *value = *value >> !slice->out_of_turn | touched << 7;
            found->looked_chunks++;
            found->touched_chunks += touched;
        }
        found->chunks[*value]++;
    }
    g_mutex_unlock(&t->lock);
}

static unsigned object_turnover(void *opaque)
{
    return 0;
}

static const MemxAgerClient client = {
    .begin = object_begin,
    .want = object_want,
    .age = object_age,
    .turnover = object_turnover,
};

static bool check(const MemxRange *range, unsigned n, uint64_t chunk_bytes,
                  const MemxTrackerOptions *o, GError **error)
{
    if (!n || o->kind == MEMX_TRACKER_OFF) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "a tracker needs memory to track, and a kind other than "
                    "off");
        return false;
    }
    if (chunk_bytes < MEMX_GROUP_BYTES || chunk_bytes > 64 << 20 ||
        chunk_bytes & (chunk_bytes - 1)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "chunk-size %" G_GUINT64_FORMAT " must be a power of two "
                    "from 262144 (256 KiB) to 67108864 (64 MiB)", chunk_bytes);
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!range[i].bytes || range[i].bytes % MEMX_PAGE_BYTES ||
            (uintptr_t)range[i].base % MEMX_PAGE_BYTES) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                        "the memory to track must be whole pages");
            return false;
        }
    }
    return memx_tracker_check(o->period_ms, o->cpu_percent, error);
}

static MemxTracker *object_new(const MemxRange *range, unsigned n,
                               uint64_t chunk_bytes)
{
    MemxTracker *t = g_new0(MemxTracker, 1);

    g_mutex_init(&t->lock);
    t->n_ranges = n;
    t->range = g_new(MemxRange, n);
    memcpy(t->range, range, n * sizeof(*range));
    t->chunk_bytes = chunk_bytes;
    t->groups_per_chunk = chunk_bytes / MEMX_GROUP_BYTES;
    t->n_chunks = g_new(uint32_t, n);
    t->value = g_new(uint8_t *, n);
    for (unsigned i = 0; i < n; i++) {
        t->n_chunks[i] = (range[i].bytes + chunk_bytes - 1) / chunk_bytes;
        t->value[i] = g_malloc0(t->n_chunks[i]);
    }
    return t;
}

MemxTracker *memx_tracker_new(const MemxRange *range, unsigned n,
                              uint64_t chunk_bytes,
                              const MemxTrackerOptions *options,
                              GError **error)
{
    const MemxTrackerOps *ops;
    MemxWatch watch;
    MemxTracker *t;
    void *tracker;
    char *why;

    if (!check(range, n, chunk_bytes, options, error)) {
        return NULL;
    }
    t = object_new(range, n, chunk_bytes);
    watch = (MemxWatch) {
        .range = t->range, .n_ranges = n, .huge = true, .uffd = -1,
        .idle = options->idle,
    };
    if (memx_tracker_choose(&watch, options, &ops, &tracker, &why, error)) {
        t->ager = memx_ager_new(&watch, ops, tracker, why, chunk_bytes,
                                options, &client, t, error);
    }
    if (!t->ager || !memx_ager_start(t->ager, error)) {
        memx_tracker_free(t);
        return NULL;
    }
    return t;
}

void memx_tracker_free(MemxTracker *t)
{
    if (!t) {
        return;
    }
    memx_ager_free(t->ager);
    for (unsigned i = 0; i < t->n_ranges; i++) {
        g_free(t->value[i]);
    }
    g_free(t->value);
    g_free(t->n_chunks);
    g_free(t->range);
    g_mutex_clear(&t->lock);
    g_free(t);
}

void memx_tracker_stats(MemxTracker *t, MemxTrackerStats *stats)
{
    memx_ager_stats(t->ager, stats);
}

bool memx_tracker_set(MemxTracker *t, unsigned period_ms,
                      unsigned cpu_percent, GError **error)
{
    if (!memx_tracker_check(period_ms, cpu_percent, error)) {
        return false;
    }
    memx_ager_set(t->ager, period_ms, cpu_percent);
    return true;
}

void memx_tracker_pause(MemxTracker *t, bool pause)
{
    g_atomic_int_set(&t->paused, pause);
    memx_ager_pause(t->ager, pause);
}

void memx_tracker_await_paused(MemxTracker *t)
{
    memx_ager_await_paused(t->ager);
}

void memx_tracker_look(MemxTracker *t)
{
    memx_ager_ask(t->ager);
}

bool memx_tracker_has_looked(MemxTracker *t)
{
    return memx_ager_has_looked(t->ager);
}

void memx_tracker_discard(MemxTracker *t, unsigned range, uint64_t offset,
                          uint64_t bytes)
{
    if (range < t->n_ranges && offset <= t->range[range].bytes &&
        bytes <= t->range[range].bytes - offset) {
        memx_ager_discard(t->ager, range, offset, bytes);
    }
}

uint32_t memx_tracker_history(MemxTracker *t, unsigned range, uint8_t *value,
                              uint32_t n_chunks)
{
    if (range >= t->n_ranges) {
        return 0;
    }
    n_chunks = MIN(n_chunks, t->n_chunks[range]);
    g_mutex_lock(&t->lock);
    memcpy(value, t->value[range], n_chunks);
    g_mutex_unlock(&t->lock);
    return n_chunks;
}
