/*
 * What the end of a period means to a region: the ager's client.
 *
 * It has the tracker look at groups that have local pages, and tells the
 * history of all chunks, also of those that are remote: these were not touched,
 * or a fault would have told.  Pages that were prefetched are followed
 * (prefetched.h); how many of them were touched decides how far their kind of
 * stream may read ahead.
 *
 * The lock is taken for a slice at a time.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"
#include "urgent.h"

#define CHUNKS_AT_ONCE 1024u    /* told under the lock; of 64 */
#define BLIND_CHUNKS 256u       /* the same, without a look */
#define BLIND_TURNOVER 200      /* percent: then they are */
#define BLIND_NS 1000000000ull  /* a period that adapts has ended by then */

static bool age_begin(void *opaque, bool *pressure)
{
    MemxRegion *r = opaque;
    uint64_t faults;
    bool yes;

    g_mutex_lock(&r->lock);
    faults = r->count.remote + r->count.prefetched + r->count.staged +
             r->count.first_touch;
    *pressure = r->count.evicted != r->evicted_at_age;
    /* If faults alone tell, and there was none, then nothing was learnt: what
     * was hot stays so. */
    yes = (r->tracked || faults != r->faults_at_age) &&
          r->side != MEMX_SIDE_FENCED && !(r->tracked &&
                                           (r->out || r->tracking_paused));
    r->faults_at_age = faults;
    r->evicted_at_age = r->count.evicted;
    r->entered = 0;
    r->age_ns = memx_now_ns();
    g_mutex_unlock(&r->lock);
    return yes;
}

static bool age_want(void *opaque, MemxSlice *slice)
{
    MemxRegion *r = opaque;
    bool any = false;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < slice->n_groups; i++) {
        if (r->table.present[slice->first_group + i]) {
            slice->wanted[i / 64] |= 1ull << i % 64;
            memx_prefetched_look(&r->prefetched, slice->first_group + i);
            any = true;
        }
    }
    g_mutex_unlock(&r->lock);
    return any;
}

void memx_prefetched_locked(MemxRegion *r, uint64_t group, uint64_t mask,
                            int direction, bool moved)
{
    if (direction && r->tracked && !memx_ager_knows_no_pages(r->ager)) {
        memx_prefetched_came(&r->prefetched, group, mask, direction,
                             moved && memx_ager_moved_is_idle(r->ager));
    }
}

static void judged_locked(MemxRegion *r, MemxJudged judged)
{
    unsigned used = memx_mask_pages(judged.used);
    unsigned untouched = memx_mask_pages(judged.untouched);

    if (used + untouched) {
        r->count.prefetch_judged += used + untouched;
        r->count.prefetch_untouched += untouched;
        memx_streams_judge(&r->streams, judged.direction, used + untouched,
                           used);
    }
}

bool memx_prefetched_peeks_locked(MemxRegion *r, uint64_t group)
{
    return r->tracked && memx_prefetched_asks(&r->prefetched, group);
}

void memx_prefetched_left_locked(MemxRegion *r, uint64_t group, uint64_t left,
                                 uint64_t touched, uint64_t known)
{
    judged_locked(r, memx_prefetched_left(&r->prefetched, group, left,
                                          touched, known));
}

/* What is known of a chunk, from the groups of the slice that are its. */
typedef struct Chunk {
    bool used;      /* it has pages, here or elsewhere */
    bool looked;    /* the tracker was asked, */
    bool known;     /* and knew */
    bool touched;
} Chunk;

static Chunk chunk_locked(MemxRegion *r, const MemxSlice *slice, bool looked,
                          unsigned from, unsigned to, MemxFound *found)
{
    Chunk c = { 0 };

    for (unsigned i = from; i < to; i++) {
        uint64_t g = slice->first_group + i;

        /* All of a group may be away as a sample. */
        c.used |= r->table.present[g] || r->table.stored[g] ||
                  memx_staging_find(&r->staging, g, true);
        if (!looked || !memx_slice_wanted(slice, i)) {
            continue;
        }
        c.looked = true;
        if (slice->skipped[i / 64] >> i % 64 & 1) {
            memx_prefetched_skipped(&r->prefetched, g);
        } else {
            c.known = true;
            c.touched |= slice->touched[i] != 0;
            found->touched_pages += memx_mask_pages(slice->touched[i]);
            found->touched_groups += slice->touched[i] != 0;
            judged_locked(r, memx_prefetched_looked(
                &r->prefetched, g, r->table.present[g], slice->touched[i],
                slice->blind[i], !slice->out_of_turn));
        }
    }
    return c;
}

/* The period goes on. */
static void add_touched_locked(MemxRegion *r, uint32_t first, unsigned n,
                               const uint64_t *touched)
{
    for (unsigned i = 0; i < n; i++) {
        if (touched[i / 64] >> i % 64 & 1) {
            memx_history_set(&r->history, first + i,
                             r->history.value[first + i] | MEMX_HISTORY_TOP);
        }
    }
}

static void age_slice(void *opaque, const MemxSlice *slice, bool looked,
                      MemxFound *found)
{
    MemxRegion *r = opaque;
    unsigned per = r->table.groups_per_chunk;
    unsigned n = (slice->n_groups + per - 1) / per;
    uint32_t first = memx_chunk_of_group(&r->table, slice->first_group);
    uint64_t touched[MEMX_SLICE_WORDS] = { 0 };
    uint64_t left[MEMX_SLICE_WORDS] = { 0 };
    uint64_t used[MEMX_SLICE_WORDS] = { 0 };

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < n; i++) {
        MemxChunk *chunk = &r->table.chunk[first + i];
        Chunk c = chunk_locked(r, slice, looked, i * per,
                               MIN((i + 1) * per, slice->n_groups), found);
        uint64_t bit = 1ull << i % 64;

        if (slice->out_of_turn) {
            chunk->touched |= c.touched;
        } else {
            c.touched |= chunk->touched;
            chunk->touched = 0;
            chunk->evicted -= chunk->evicted > 0;
        }
        touched[i / 64] |= c.touched ? bit : 0;
        left[i / 64] |= c.looked && !c.known && !c.touched ? bit : 0;
        used[i / 64] |= c.used ? bit : 0;
        found->looked_chunks += c.looked && c.known;
        found->touched_chunks += c.looked && c.known && c.touched;
    }
    if (slice->out_of_turn) {
        add_touched_locked(r, first, n, touched);
    } else {
        memx_history_fold(&r->history, first, n, touched, left);
    }
    for (unsigned i = 0; i < n; i++) {
        found->chunks[r->history.value[first + i]] +=
            used[i / 64] >> i % 64 & 1;
    }
    g_mutex_unlock(&r->lock);
}

static unsigned turnover_locked(const MemxRegion *r)
{
    return (uint64_t)r->entered * 100 / MAX(r->history.n_listed, 1);
}

static unsigned turnover(void *opaque)
{
    MemxRegion *r = opaque;
    unsigned percent;

    g_mutex_lock(&r->lock);
    percent = turnover_locked(r);
    g_mutex_unlock(&r->lock);
    return percent;
}

/*
 * Until a look tells more, what was hot before outranks all that comes in; so if
 * the guest now needs something else, that takes turns in what little room there
 * is, and a thread that needs several chunks at a time gets nowhere.  So when
 * looks come too late (a sampler's may take minutes, a period may be set), faults
 * tell, as they do without a tracker: what came in was touched, all else wasn't.
 */
void memx_ageing_blind(MemxRegion *r)
{
    uint32_t n_chunks = r->table.n_chunks, n;
    uint64_t now_ns;
    bool now;

    g_mutex_lock(&r->lock);
    now_ns = memx_now_ns();
    now = r->tracked && !r->out && !r->tracking_paused &&
          now_ns - r->age_ns >= BLIND_NS &&
          r->count.evicted != r->evicted_at_age &&
          turnover_locked(r) >= BLIND_TURNOVER;
    if (now) {
        r->entered = 0;
        r->age_ns = now_ns;
    }
    g_mutex_unlock(&r->lock);
    for (uint32_t c = 0; now && c < n_chunks; c += n) {
        uint64_t came[BLIND_CHUNKS / 64] = { 0 };

        n = MIN(n_chunks - c, BLIND_CHUNKS);
        g_mutex_lock(&r->lock);
        for (unsigned i = 0; i < n; i++) {
            came[i / 64] |= (uint64_t)r->table.chunk[c + i].touched << i % 64;
            r->table.chunk[c + i].touched = 0;
        }
        memx_history_fold(&r->history, c, n, came, NULL);
        g_mutex_unlock(&r->lock);
        memx_thread_yield();
    }
}

static bool calm(void *opaque)
{
    MemxRegion *r = opaque;
    bool yes;

    g_mutex_lock(&r->lock);
    yes = r->count.evicted == r->evicted_at_age;
    g_mutex_unlock(&r->lock);
    return yes;
}

static const MemxAgerClient client = {
    .begin = age_begin,
    .want = age_want,
    .age = age_slice,
    .turnover = turnover,
    .calm = calm,
};

bool memx_ageing_init(MemxRegion *r, const MemxOptions *o, GError **error)
{
    MemxTrackerOptions options = o->tracker;
    const MemxTrackerOps *ops;
    MemxWatch watch = {
        .range = &r->range,
        .n_ranges = 1,
        .region = r,
        .huge = r->huge,
        .uffd = r->rwp ? r->uffd : -1,
        .idle = options.idle,
    };
    void *tracker;
    char *why;

    r->range = (MemxRange) { r->base, r->size_bytes };
    if (!memx_tracker_choose(&watch, &options, &ops, &tracker, &why, error)) {
        return false;
    }
    r->tracked = ops;
    r->ager = memx_ager_new(&watch, ops, tracker, why, r->chunk_bytes,
                            &options, &client, r, error);
    return r->ager;
}

void memx_ageing_stats(MemxRegion *r, MemxTrackerStats *stats)
{
    memset(stats, 0, sizeof(*stats));
    stats->name = memx_tracker_kind_name(MEMX_TRACKER_OFF);
    stats->chunk_bytes = r->chunk_bytes;
    if (r->ager) {
        memx_ager_stats(r->ager, stats);
    }
}

bool memx_region_set_tracking(MemxRegion *r, unsigned period_ms,
                              unsigned cpu_percent, GError **error)
{
    if (!memx_tracker_check(period_ms, cpu_percent, error)) {
        return false;
    }
    if (r->ager) {
        memx_ager_set(r->ager, period_ms, cpu_percent);
    }
    return true;
}

void memx_region_pause_tracking(MemxRegion *r, bool pause)
{
    g_mutex_lock(&r->lock);
    r->tracking_paused = pause;
    g_mutex_unlock(&r->lock);
    if (r->ager) {
        memx_ager_pause(r->ager, pause); /* the look under way, too */
    }
}

void memx_region_await_paused(MemxRegion *r)
{
    if (r->ager) {
        memx_ager_await_paused(r->ager);
    }
}

void memx_region_look(MemxRegion *r)
{
    if (r->ager && r->tracked) {
        memx_ager_ask(r->ager);
    }
}

bool memx_region_has_looked(MemxRegion *r)
{
    return !r->ager || memx_ager_has_looked(r->ager);
}

void memx_region_touched(MemxRegion *r, const uint64_t *chunks)
{
    uint32_t n_chunks = r->table.n_chunks;

    for (uint32_t c = 0; c < n_chunks; c += CHUNKS_AT_ONCE) {
        g_mutex_lock(&r->lock);
        memx_history_fold(&r->history, c, MIN(n_chunks - c, CHUNKS_AT_ONCE),
                          chunks + c / 64, NULL);
        g_mutex_unlock(&r->lock);
    }
}

void memx_region_set_history(MemxRegion *r, const uint8_t *value,
                             uint32_t n_chunks)
{
    n_chunks = MIN(n_chunks, r->table.n_chunks);
    for (uint32_t c = 0; c < n_chunks; c += CHUNKS_AT_ONCE) {
        g_mutex_lock(&r->lock);
        for (uint32_t i = c; i < MIN(n_chunks, c + CHUNKS_AT_ONCE); i++) {
            memx_history_set(&r->history, i, value[i]);
        }
        g_mutex_unlock(&r->lock);
    }
}
