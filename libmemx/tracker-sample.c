/*
 * The tracker `sample`: takes pages away, and looks who misses them.
 *
 * Theory of operation
 *
 * It needs nothing but UFFDIO_MOVE.  Groups of a slice are moved out into slots
 * of staging that are the sampler's own, as if they were to be evicted, but
 * nothing is sent: for a moment, the *dwell*, they are nowhere but there.  Who
 * touches a page meanwhile faults, gets it back at once by the fault thread
 * (pager-fault.c), and with that fault says that the chunk is touched: then
 * the rest of the chunk is moved back without delay, since more of it will be
 * wanted.  So a hot chunk costs one short fault a period, a cold one none.
 * What nobody missed is moved back when the dwell is over.
 *
 * All local groups have their turn within a period, a slice after the other;
 * the dwell is as long as that allows, so that the rate adapts to the period,
 * and the period to what is found (ager.c).  A 32nd of the local memory at most,
 * and 64 MiB, is away at a time; and as much again in huge pages.
 *
 * A huge page (huge.c) is taken as a whole, into a place of its own, so that it
 * stays one; its chunks are exclusive meanwhile.  Who touches it waits until it
 * is back: that is as quick as to copy a page of it.
 *
 * A page in a slot is as safe as one that is being evicted, and counts in
 * local-size as before: its frame moved along.  Sampling stands still while the
 * memory must not be disturbed: before a switch-over, during a split, and
 * while threads wait for room.
 *
 * What it learns is less than what the others do: whether a chunk was touched
 * in its dwell, not in the whole period.
 *
 * Runs on the ager's thread.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include "evict.h"
#include "uffd.h"
#include "window.h"

#define PART 32u            /* of the local memory, at a time */
#define SLOTS_MIN 4u
#define SLOTS_MAX 256u
#define DWELL_MIN_NS 10000000ull
#define DWELL_MAX_NS 500000000ull
#define TICK_MS 20          /* looks whether it must stand still */
#define RETRY_MS 1
#define MOVES_MAX 100u      /* refused, then it is copied */
#define WINDOWS_MAX (SLOTS_MAX / MEMX_WINDOW_GROUPS)
#define FAULT_NS 20000ull   /* of CPUs, for one: the guest's and ours */

typedef struct Sample {
    MemxRegion *region;
    uint64_t faults;        /* that have been counted */
    unsigned refused;       /* times that something couldn't be given back */
    unsigned n;
    MemxSlot *slot[SLOTS_MAX]; /* away */
    uint64_t taken[SLOTS_MAX]; /* pages of each, when it was taken */
    void *map;
    uint64_t map_bytes;
    uint8_t *place;         /* of huge pages */
    unsigned places;
    unsigned n_windows;     /* huge pages away, each in its place; */
    uint64_t window[WINDOWS_MAX]; /* its first group; TAKEN_BACK: no more */
} Sample;

#define TAKEN_BACK UINT64_MAX

static void sample_close(void *opaque)
{
    Sample *t = opaque;

    if (t->map) { /* nothing is away between two slices */
        munmap(t->map, t->map_bytes);
    }
    g_free(t);
}

static bool map_places(Sample *t, GError **error)
{
    uint64_t bytes = t->places * MEMX_WINDOW_BYTES;

    t->place = memx_window_map(bytes, &t->map, &t->map_bytes);
    if (!t->place) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map memory for samples: %s", g_strerror(errno));
        return false;
    }
    return memx_uffd_register(t->region->uffd, t->place, bytes, error);
}

static void *sample_open(const MemxWatch *watch, GError **error)
{
    MemxRegion *r = watch->region;
    Sample *t;
    unsigned n;

    n = CLAMP(r->limit / MEMX_GROUP_PAGES / PART, SLOTS_MIN, SLOTS_MAX);
    if (!memx_staging_add_samples(&r->staging, n)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map memory for samples: %s", g_strerror(errno));
        return NULL;
    }
    if (!memx_uffd_register(r->uffd, r->staging.sample_base,
                            n * (size_t)MEMX_GROUP_BYTES, error)) {
        return NULL;
    }
    t = g_new0(Sample, 1);
    t->region = r;
    t->places = r->huge ? MAX(n / MEMX_WINDOW_GROUPS, 1) : 0;
    if (t->places && !map_places(t, error)) {
        sample_close(t);
        return NULL;
    }
    return t;
}

static bool stand_still_locked(MemxRegion *r)
{
    return r->quiet || r->out || r->starved || r->tracking_paused ||
           r->side != MEMX_SIDE_OWNER || memx_stopping(r);
}

static bool stand_still(MemxRegion *r)
{
    bool yes;

    g_mutex_lock(&r->lock);
    yes = stand_still_locked(r);
    g_mutex_unlock(&r->lock);
    return yes;
}

/* Takes a group away.  False: it is busy, or there is no slot. */
static bool take_away(Sample *t, uint64_t g)
{
    MemxRegion *r = t->region;
    uint32_t c = memx_chunk_of_group(&r->table, g);
    MemxChunk *chunk = &r->table.chunk[c];
    MemxSlot *slot = NULL;
    uint64_t mask, moved;
    bool wanted;

    g_mutex_lock(&r->lock);
    mask = r->table.present[g];
    if (mask && memx_chunk_idle(chunk) && !stand_still_locked(r) &&
        !memx_staging_find(&r->staging, g, true) &&
        !memx_staging_find(&r->staging, g, false)) {
        slot = memx_staging_take_sample(&r->staging, g);
    }
    if (slot) {
        slot->mask = mask;
        chunk->flags |= MEMX_CHUNK_EXCLUSIVE;
    }
    g_mutex_unlock(&r->lock);
    if (!slot) {
        return false;
    }

    moved = memx_move_pages(r, slot->base, memx_group_hva(r, g), mask,
                            MEMX_MOVE_DONTWAKE);

    g_mutex_lock(&r->lock);
    memx_set_group_locked(r, g, mask & ~moved, r->table.stored[g]);
    memx_trace_pages(MEMX_LOCAL_TO_STAGED, moved & ~r->table.stored[g]);
    memx_trace_pages(MEMX_KEPT_TO_STAGED, moved & r->table.stored[g]);
    memx_trace_pages(MEMX_LOCAL_REFUSED, mask & ~moved);
    slot->staged = slot->frames = moved;
    slot->state = MEMX_SLOT_SAMPLED;
    wanted = memx_exclusive_end_locked(r, c);
    if (!moved) {
        memx_staging_put(&r->staging, slot); /* pinned, all of it */
    }
    g_mutex_unlock(&r->lock);
    if (wanted) {
        memx_wake_chunk(r, c);
    }
    if (moved) {
        t->taken[t->n] = moved;
        t->slot[t->n++] = slot;
    }
    return moved;
}

/* A page whose frame the kernel doesn't move, since somebody has pinned it in
 * staging: what is there is final, so a copy is as good. */
static uint64_t copy_back(MemxRegion *r, MemxSlot *slot, uint64_t mask)
{
    uint64_t copied = 0;

    for (; mask; mask &= mask - 1) {
        unsigned i = __builtin_ctzll(mask);
        uint64_t offset = (uint64_t)i * MEMX_PAGE_BYTES;
        bool ok;

        g_mutex_lock(&r->lock);
        ok = memx_budget_take_locked(r, 1);
        g_mutex_unlock(&r->lock);
        if (!ok) {
            break;
        }
        if (memx_uffd_copy(r->uffd, memx_group_hva(r, slot->group) + offset,
                           slot->base + offset, MEMX_PAGE_BYTES, 0) > 0) {
            copied |= 1ull << i;
        } else {
            g_mutex_lock(&r->lock);
            memx_budget_give_locked(r, 1);
            g_mutex_unlock(&r->lock);
        }
    }
    return copied;
}

/* Moves what is still away back.  False: somebody is busy with it. */
static bool give_back(MemxRegion *r, MemxSlot *slot, bool copy)
{
    uint64_t g = slot->group, mask, moved, copied = 0;
    uint32_t c = memx_chunk_of_group(&r->table, g);
    MemxChunk *chunk = &r->table.chunk[c];
    bool wanted, done;

    g_mutex_lock(&r->lock);
    if (slot->users || chunk->installing || memx_chunk_exclusive(chunk)) {
        g_mutex_unlock(&r->lock);
        return false;
    }
    chunk->flags |= MEMX_CHUNK_EXCLUSIVE;
    mask = slot->staged & ~r->table.present[g];
    g_mutex_unlock(&r->lock);

    moved = memx_move_back(r, slot, mask);
    if (copy) {
        copied = copy_back(r, slot, mask & ~moved);
    }

    g_mutex_lock(&r->lock);
    slot->frames &= ~moved;
    slot->staged &= ~(moved | copied);
    memx_set_group_locked(r, g, r->table.present[g] | moved | copied,
                          r->table.stored[g]);
    memx_trace_pages(MEMX_STAGED_UNDONE, moved | copied);
    done = !(slot->staged & ~r->table.present[g]);
    wanted = memx_exclusive_end_locked(r, c);
    g_mutex_unlock(&r->lock);
    if (wanted || moved | copied) {
        memx_wake_chunk(r, c);
    }
    if (done) {
        memx_slot_drop_frames(r, slot); /* of pages that were copied back */
        g_mutex_lock(&r->lock);
        memx_staging_put(&r->staging, slot);
        if (r->out) {
            memx_worker_ring(&r->store); /* a split waits for the last one */
        }
        g_mutex_unlock(&r->lock);
    }
    return done;
}

static void window_chunks(MemxRegion *r, uint64_t g, uint32_t *first,
                          uint32_t *last)
{
    *first = memx_chunk_of_group(&r->table, g);
    *last = memx_chunk_of_group(&r->table, g + MEMX_WINDOW_GROUPS - 1);
}

/* Makes a window's chunks exclusive, if they are idle and all of it is here. */
static bool window_begin(MemxRegion *r, uint64_t g)
{
    uint32_t first, last;
    bool ok = !stand_still_locked(r);

    window_chunks(r, g, &first, &last);
    for (unsigned i = 0; i < MEMX_WINDOW_GROUPS; i++) {
        ok = ok && r->table.present[g + i] == UINT64_MAX;
    }
    for (uint32_t c = first; c <= last; c++) {
        ok = ok && memx_chunk_idle(&r->table.chunk[c]);
    }
    for (uint32_t c = first; ok && c <= last; c++) {
        r->table.chunk[c].flags |= MEMX_CHUNK_EXCLUSIVE;
    }
    r->windows_away += ok;
    return ok;
}

/* Returns the groups of chunks that somebody waited for, a bit each. */
static unsigned window_end(MemxRegion *r, uint64_t g)
{
    unsigned per = r->table.groups_per_chunk, missed = 0;
    uint32_t first, last;

    window_chunks(r, g, &first, &last);
    g_mutex_lock(&r->lock);
    r->windows_away--;
    for (uint32_t c = first; c <= last; c++) {
        if (memx_exclusive_end_locked(r, c)) {
            missed |= ((1u << per) - 1) << (c - first) * per;
        }
    }
    g_mutex_unlock(&r->lock);
    for (uint32_t c = first; c <= last; c++) {
        memx_wake_chunk(r, c); /* whoever waits for it, or for more of it */
    }
    return missed;
}

/* Of chunks that are larger one window alone would hide the others. */
static bool is_huge(const Sample *t, const MemxSlice *slice, unsigned i)
{
    MemxRegion *r = t->region;

    return t->places && i % MEMX_WINDOW_GROUPS == 0 &&
           i + MEMX_WINDOW_GROUPS <= slice->n_groups &&
           r->table.groups_per_chunk <= MEMX_WINDOW_GROUPS &&
           memx_windows_huge(r->pagemap_fd,
                             memx_group_hva(r, slice->first_group + i), 1);
}

/* Takes a huge page away.  False: it is busy, or somebody holds it. */
static bool take_window(Sample *t, uint64_t g)
{
    MemxRegion *r = t->region;
    bool ok;

    g_mutex_lock(&r->lock);
    ok = window_begin(r, g);
    g_mutex_unlock(&r->lock);
    if (!ok) {
        return false;
    }
    if (!memx_window_move(r->uffd, r->pagemap_fd,
                          t->place + t->n_windows * MEMX_WINDOW_BYTES,
                          memx_group_hva(r, g), MEMX_WINDOW_BYTES, false)) {
        window_end(r, g);
        return false;
    }
    t->window[t->n_windows++] = g;
    return true;
}

/* It came or went as small pages: its place has a page table now.  A place that
 * can't be made anew isn't used any more, nor are those behind it. */
static void renew_place(Sample *t, unsigned i)
{
    if (!memx_window_renew(t->region->uffd, t->region->pagemap_fd,
                           t->place + i * MEMX_WINDOW_BYTES)) {
        t->places = MIN(t->places, i);
    }
}

/* Nothing is known of these groups. */
static void skip(MemxSlice *slice, unsigned group, unsigned n)
{
    for (unsigned i = group; i < group + n; i++) {
        slice->skipped[i / 64] |= 1ull << i % 64;
    }
}

/* Of a huge page's chunks only those that were missed are known to be in use;
 * the others were away too briefly to tell. */
static void note_window(MemxSlice *slice, unsigned group, unsigned missed)
{
    for (unsigned i = 0; i < MEMX_WINDOW_GROUPS; i++) {
        if (missed >> i & 1) {
            slice->touched[group + i] = UINT64_MAX;
            slice->skipped[(group + i) / 64] &= ~(1ull << (group + i) % 64);
        } else {
            skip(slice, group + i, 1);
        }
    }
}

/* Those which somebody waits for come back, or all. */
static void collect_windows(Sample *t, MemxSlice *slice, bool all)
{
    MemxRegion *r = t->region;

    for (unsigned i = 0; i < t->n_windows; i++) {
        uint64_t g = t->window[i];
        bool wanted = false;
        uint32_t c, last;
        unsigned missed;

        if (g == TAKEN_BACK) {
            continue;
        }
        g_mutex_lock(&r->lock);
        for (window_chunks(r, g, &c, &last); c <= last; c++) {
            wanted |= r->table.chunk[c].flags & MEMX_CHUNK_WANTED;
        }
        g_mutex_unlock(&r->lock);
        if (!all && !wanted) {
            continue;
        }
        memx_window_move(r->uffd, r->pagemap_fd, memx_group_hva(r, g),
                         t->place + i * MEMX_WINDOW_BYTES, MEMX_WINDOW_BYTES,
                         true);
        if (!memx_windows_huge(r->pagemap_fd, memx_group_hva(r, g), 1)) {
            renew_place(t, i);
        }
        missed = window_end(r, g);
        t->window[i] = TAKEN_BACK;
        if (missed) {
            note_window(slice, g - slice->first_group, missed);
            slice->faults++;
            memx_pace_charge(slice->pace, FAULT_NS);
        }
    }
    if (all) {
        t->n_windows = 0;
    }
}

/* Notes which pages were missed, and which chunks of the slice (bits). */
static void note_missed(Sample *t, MemxSlice *slice, uint64_t *chunks)
{
    MemxRegion *r = t->region;
    uint32_t first = memx_chunk_of_group(&r->table, slice->first_group);

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < t->n; i++) {
        uint64_t g = t->slot[i]->group;
        uint64_t pages = t->taken[i] & r->table.present[g];
        uint32_t c = memx_chunk_of_group(&r->table, g) - first;

        slice->touched[g - slice->first_group] |= pages;
        if (pages) {
            chunks[c / 64] |= 1ull << c % 64;
        }
    }
    g_mutex_unlock(&r->lock);
}

/* Gives back the chunks that were missed, or all.  What is busy stays for the
 * next time. */
static void collect(Sample *t, MemxSlice *slice, bool all)
{
    MemxRegion *r = t->region;
    uint32_t first = memx_chunk_of_group(&r->table, slice->first_group);
    uint64_t chunks[MEMX_SLICE_WORDS] = { 0 };
    unsigned left = 0;

    collect_windows(t, slice, all);
    note_missed(t, slice, chunks);
    for (unsigned i = 0; i < t->n; i++) {
        uint32_t c = memx_chunk_of_group(&r->table, t->slot[i]->group) -
                     first;

        if (!(all || chunks[c / 64] >> c % 64 & 1) ||
            !give_back(r, t->slot[i], t->refused >= MOVES_MAX)) {
            t->slot[left] = t->slot[i];
            t->taken[left++] = t->taken[i];
        }
        if (all && !stand_still(r)) {
            memx_pace(slice->pace);
        }
    }
    t->n = left;
}

/* Waits, and serves who misses something. */
static void attend(Sample *t, MemxSlice *slice, int wake_fd, int ms)
{
    struct pollfd pfd = { .fd = wake_fd, .events = POLLIN };

    poll(&pfd, 1, MIN(ms, TICK_MS));
    if (pfd.revents) {
        memx_ager_silence(t->region->ager);
        collect(t, slice, false);
    }
}

/* Its share of a CPU may be used up for now.  Who misses a huge page, which
 * nobody else can give back, is served in any case. */
static void rest(Sample *t, MemxSlice *slice, int wake_fd)
{
    uint64_t ns;

    if (t->n_windows) {
        attend(t, slice, wake_fd, 0);
    }
    ns = memx_pace_ns(slice->pace);
    while (ns && !stand_still(t->region)) {
        attend(t, slice, wake_fd, (ns + 999999) / 1000000);
        ns = memx_pace_left_ns(slice->pace);
    }
}

/* Until the dwell is over, or the sampler must stand still. */
static void dwell(Sample *t, MemxSlice *slice, int wake_fd, uint64_t ns)
{
    uint64_t end = memx_now_ns() + ns, now;

    while ((t->n || t->n_windows) && (now = memx_now_ns()) < end &&
           !stand_still(t->region)) {
        attend(t, slice, wake_fd, (end - now + 999999) / 1000000);
    }
}

static void give_all_back(Sample *t, MemxSlice *slice)
{
    for (t->refused = 0;; t->refused++) {
        collect(t, slice, true);
        if (!t->n) {
            t->refused = 0;
            return;
        }
        poll(NULL, 0, RETRY_MS);
    }
}

/* What its faults cost is its, too; it is waited for when nothing is away. */
static void charge_faults(Sample *t, MemxSlice *slice)
{
    uint64_t n;

    g_mutex_lock(&t->region->lock);
    n = t->region->count.sampled;
    g_mutex_unlock(&t->region->lock);
    slice->faults += n - t->faults;
    memx_pace_charge(slice->pace, (n - t->faults) * FAULT_NS);
    t->faults = n;
}

/* A dwell that had to end early tells only what was missed. */
static void note_unknown(Sample *t, MemxSlice *slice)
{
    uint64_t chunks[MEMX_SLICE_WORDS] = { 0 };

    note_missed(t, slice, chunks);
    for (unsigned i = 0; i < t->n; i++) {
        uint64_t g = t->slot[i]->group - slice->first_group;

        if (!slice->touched[g]) {
            skip(slice, g, 1);
        }
    }
    for (unsigned i = 0; i < t->n_windows; i++) {
        if (t->window[i] != TAKEN_BACK) {
            skip(slice, t->window[i] - slice->first_group,
                 MEMX_WINDOW_GROUPS);
        }
    }
}

static void end_dwell(Sample *t, MemxSlice *slice, int wake_fd, uint64_t ns)
{
    dwell(t, slice, wake_fd, ns);
    if (stand_still(t->region)) {
        note_unknown(t, slice);
    }
    give_all_back(t, slice);
    charge_faults(t, slice);
}

static void sample_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                           uint64_t dwell_ns)
{
    Sample *t = opaque;
    MemxRegion *r = t->region;
    unsigned n_slots = r->staging.n_samples, groups = 0;
    uint64_t each;

    for (unsigned i = 0; i < slice->n_groups; i++) {
        groups += memx_slice_wanted(slice, i);
    }
    each = CLAMP(dwell_ns / ((groups + n_slots - 1) / n_slots),
                 DWELL_MIN_NS, DWELL_MAX_NS);
    for (unsigned i = 0; i < slice->n_groups; i++) {
        uint64_t g = slice->first_group + i;

        if (!memx_slice_wanted(slice, i)) {
            continue;
        }
        if (is_huge(t, slice, i)) {
            if (!take_window(t, g)) {
                skip(slice, i, MEMX_WINDOW_GROUPS); /* to take parts would split it */
            }
            i += MEMX_WINDOW_GROUPS - 1;
        } else if (!take_away(t, g)) {
            skip(slice, i, 1);
        }
        rest(t, slice, wake_fd);
        if (t->n == n_slots || (t->n_windows && t->n_windows >= t->places)) {
            end_dwell(t, slice, wake_fd, each);
            memx_pace(slice->pace);
        }
    }
    end_dwell(t, slice, wake_fd, each);
}

const MemxTrackerOps memx_tracker_sample = {
    .kind = MEMX_TRACKER_SAMPLE,
    .regions = true,
    .serial = true,
    .waits = true,
    .fault_ns = FAULT_NS,
    .open = sample_open,
    .harvest = sample_harvest,
    .close = sample_close,
};
