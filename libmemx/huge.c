/*
 * Huge pages for local memory that is in use.
 *
 * Theory of operation
 *
 * A region's memory comes and goes page by page, so it is made of small pages,
 * and each access of a guest to local memory pays for that in the TLB, where it
 * misses, and in KVM's page tables.  So a thread of its own looks for windows
 * (window.h) of which every page is present, but for a few that were never
 * written, fills these in, and has the kernel collapse each into a huge page
 * (MADV_COLLAPSE; about a millisecond).  While memory is being evicted only those
 * of chunks in use are worth it.
 * It goes over all memory again and again, with a bounded share of a CPU.
 *
 * The engine's books know nothing of it: the pages of a huge page are present
 * like others, each at its place.  What the kernel does for us:
 *
 *   a page is missing    MISSING is registered, so it collapses nothing: no page
 *                        ever comes to be but by us
 *   pages are moved out  it splits the huge page, or refuses if somebody holds
 *                        any of it; as for a small page that is pinned
 *   pages are discarded  so it does, a little later
 *
 * Linux before 6.18 tries to split one that is held for as long as it is, in
 * the kernel, with the lock of all mappings: there is no thread then.
 *
 * The sampler moves a huge page as a whole, so that it stays one
 * (tracker-sample.c).
 *
 * What that takes beside the memory itself, a huge page for a moment, is in the
 * budget.  It stands still while a switch-over or a split is under way.  So does
 * not, nor ask for room, the kernel's own khugepaged; it is slow: 16 MiB each 10 s.
 *
 * MADV_HUGEPAGE, without which a missing page's fault would put a page table
 * where a huge page is to come back to, has a price: the first touch of 2 MiB
 * has the kernel zero a huge page before it asks us, and throw it away.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include "huge.h"
#include "window.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define KERNEL "6.18"
#define SHARE_PERCENT 25u   /* of a CPU, at most */
#define AT_ONCE 64u         /* windows */
#define PASS_MS 1000
#define RUN 8u              /* windows, of one call */
#define AGAIN_MAX 63u
#define HOLES_MAX 64u       /* of 512 pages */
#define HOT MEMX_HISTORY_NEW

typedef struct Huge {
    MemxRegion *region;
    uint64_t n;             /* windows */
    uint64_t at;            /* window to go on with; 0: all were looked at */
    uint64_t start_ns, cpu_ns; /* of this pass */
    uint64_t found;         /* huge pages, up to there */
    uint64_t evicted;       /* until the last pass */
    unsigned least;         /* history that makes it worth while now */
    uint8_t *refused;       /* passes for which a window is left alone, */
    uint8_t *again;         /* and for how many it was the last time */
} Huge;

static bool kernel_splits(void)
{
    struct utsname u;
    unsigned major, minor;

    return uname(&u) == 0 && sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
           (major > 6 || (major == 6 && minor >= 18));
}

/* NULL: they can be had. */
static const char *why_not(const MemxRegion *r)
{
    g_autofree char *enabled = NULL;

    if (!kernel_splits()) {
        return "that needs Linux " KERNEL;
    }
    if (!g_file_get_contents("/sys/kernel/mm/transparent_hugepage/enabled",
                             &enabled, NULL, NULL)) {
        return "this kernel has no transparent huge pages";
    }
    if (strstr(enabled, "[never]")) {
        return "/sys/kernel/mm/transparent_hugepage/enabled says never";
    }
    if ((uintptr_t)r->base % MEMX_WINDOW_BYTES) {
        return "the memory does not start at a multiple of 2 MiB";
    }
    return NULL;
}

bool memx_huge_choose(MemxRegion *r, const MemxOptions *o, GError **error)
{
    const char *why = r->passive ? NULL : why_not(r);

    r->huge = o->huge_pages != MEMX_HUGE_PAGES_OFF && !r->passive && !why;
    if (o->huge_pages == MEMX_HUGE_PAGES_ON && why) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "no huge pages (huge-pages=on): %s", why);
        return false;
    }
    return true;
}

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Sleeps.  False: the thread is to end. */
static bool nap(Huge *h, int ms)
{
    struct pollfd pfd = { .fd = h->region->collapse.wake_fd, .events = POLLIN };

    poll(&pfd, 1, ms);
    return !memx_stopping(h->region);
}

/* Sleeps for as long as its share demands. */
static bool pace(Huge *h)
{
    uint64_t due = h->start_ns + (cpu_ns() - h->cpu_ns) * 100 / SHARE_PERCENT;
    uint64_t now = memx_now_ns();

    return due < now + 1000000 || nap(h, (due - now) / 1000000);
}

/* Some pages may be missing that were never written: they are filled in. */
static bool ready_locked(MemxRegion *r, uint64_t g, unsigned least)
{
    uint64_t end = g + MEMX_WINDOW_GROUPS;
    unsigned holes = 0;

    for (uint64_t i = g; i < end; i++) {
        uint32_t c = memx_chunk_of_group(&r->table, i);

        holes += memx_mask_pages(~r->table.present[i]);
        if (~r->table.present[i] & r->table.stored[i] || holes > HOLES_MAX ||
            memx_chunk_exclusive(&r->table.chunk[c]) ||
            memx_history_value(&r->history, c) < least) {
            return false;
        }
    }
    return true;
}

static bool calm_locked(MemxRegion *r)
{
    return !r->quiet && !r->out && r->side == MEMX_SIDE_OWNER && !r->starved;
}

/* Which of @n windows from @w on would make good huge pages now. */
static uint64_t choose(Huge *h, uint64_t w, unsigned n)
{
    MemxRegion *r = h->region;
    uint64_t ready = 0;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; calm_locked(r) && i < n; i++) {
        uint64_t g = (w + i) * MEMX_WINDOW_GROUPS;

        ready |= (uint64_t)ready_locked(r, g, h->least) << i;
    }
    g_mutex_unlock(&r->lock);
    return ready;
}

/* Room for one more huge page, which nobody is evicted for. */
static bool take_room(MemxRegion *r)
{
    bool ok;

    g_mutex_lock(&r->lock);
    ok = calm_locked(r) &&
         memx_free_pages(r) >= r->low + MEMX_WINDOW_PAGES;
    r->held += ok ? MEMX_WINDOW_PAGES : 0;
    g_mutex_unlock(&r->lock);
    return ok;
}

static void give_room(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    memx_budget_give_locked(r, MEMX_WINDOW_PAGES);
    g_mutex_unlock(&r->lock);
}

/* A run of windows, one after the other.  False: there is no room for it. */
static bool collapse(Huge *h, uint64_t w, unsigned n)
{
    MemxRegion *r = h->region;
    uint8_t *hva = r->base + w * MEMX_WINDOW_BYTES;
    uint64_t huge;

    for (uint64_t g = w * MEMX_WINDOW_GROUPS;
         g < (w + n) * MEMX_WINDOW_GROUPS; g++) {
        memx_touch_fill(r, g, UINT64_MAX);
    }
    if (!take_room(r)) {
        return false;
    }
    madvise(hva, n * MEMX_WINDOW_BYTES, MADV_COLLAPSE);
    give_room(r);
    huge = memx_windows_huge(r->pagemap_fd, hva, n);
    for (unsigned i = 0; i < n; i++) {
        if (huge >> i & 1) {
            h->again[w + i] = 0;
            h->found++;
        } else { /* somebody holds a page, or the host has none so large */
            h->again[w + i] = MIN(h->again[w + i] * 2u + 1, AGAIN_MAX);
            h->refused[w + i] = h->again[w + i];
        }
    }
    return true;
}

/* False: for want of room it goes on here, later. */
static bool some(Huge *h, uint64_t w, unsigned n)
{
    MemxRegion *r = h->region;
    uint64_t huge = memx_windows_huge(r->pagemap_fd,
                                      r->base + w * MEMX_WINDOW_BYTES, n);
    uint64_t wanted = 0, ready;

    h->found += memx_mask_pages(huge);
    for (unsigned i = 0; i < n; i++) {
        if (h->refused[w + i]) {
            h->refused[w + i]--;
        } else {
            wanted |= (1ull << i) & ~huge;
        }
    }
    /* What was ready a moment ago may be on its way out. */
    while ((ready = choose(h, w, n) & wanted)) {
        unsigned first = __builtin_ctzll(ready), length = 1;

        while (length < RUN && first + length < n &&
               ready >> (first + length) & 1) {
            length++;
        }
        if (!collapse(h, w + first, length)) {
            return false;
        }
        wanted &= ~memx_run_mask(first, length);
        if (!pace(h)) {
            return false;
        }
    }
    return pace(h);
}

/* What is left of all memory, or as much as there is room for. */
static void pass(Huge *h)
{
    MemxRegion *r = h->region;

    h->start_ns = memx_now_ns();
    h->cpu_ns = cpu_ns();
    g_mutex_lock(&r->lock);
    h->least = r->count.evicted == h->evicted ? 0 : HOT;
    h->evicted = r->count.evicted;
    g_mutex_unlock(&r->lock);
    while (h->at < h->n && some(h, h->at, MIN(h->n - h->at, AT_ONCE))) {
        h->at += AT_ONCE;
    }
    if (h->at >= h->n) {
        h->at = 0;
    }
}

void *memx_huge_thread(void *opaque)
{
    MemxRegion *r = opaque;
    Huge h = { .region = r, .n = r->size_bytes / MEMX_WINDOW_BYTES };

    h.refused = g_malloc0(h.n);
    h.again = g_malloc0(h.n);
    do {
        pass(&h);
        if (!h.at) {
            g_mutex_lock(&r->lock);
            r->huge_windows = h.found;
            g_mutex_unlock(&r->lock);
            h.found = 0;
        }
    } while (nap(&h, PASS_MS));
    g_free(h.refused);
    g_free(h.again);
    return NULL;
}
