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
#define AGAIN_MAX 63u
#define HOLES_MAX 64u       /* of 512 pages */
#define HOT MEMX_HISTORY_NEW

typedef struct Huge {
    MemxRegion *region;
    uint64_t n;             /* windows */
    uint64_t at;            /* window to go on with */
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
    if (r->rwp) { /* whether both get on is not known yet */
        return "they don't go together with tracker rwp yet";
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

/* Sleeps for as long as its share demands.  False: the thread is to end. */
static bool pace(Huge *h)
{
    uint64_t due = h->start_ns + (cpu_ns() - h->cpu_ns) * 100 / SHARE_PERCENT;
    uint64_t now = memx_now_ns();

    return nap(h, due > now ? (due - now) / 1000000 : 0);
}

/* Some pages may be missing that were never written: they are filled in.  But
 * not where the guest gave pages back. */
static bool ready_locked(MemxRegion *r, uint64_t w, unsigned least)
{
    uint64_t g = w * MEMX_WINDOW_GROUPS, end = g + MEMX_WINDOW_GROUPS;
    bool given_back = r->given_back[w / 64] >> w % 64 & 1;
    unsigned holes = 0;

    for (; g < end; g++) {
        uint32_t c = memx_chunk_of_group(&r->table, g);

        holes += memx_mask_pages(~r->table.present[g]);
        if (~r->table.present[g] & r->table.stored[g] ||
            holes > (given_back ? 0 : HOLES_MAX) ||
            memx_chunk_exclusive(&r->table.chunk[c]) ||
            memx_history_value(&r->history, c) < least) {
            return false;
        }
    }
    if (!holes) {
        r->given_back[w / 64] &= ~(1ull << w % 64);
    }
    return true;
}

static bool calm_locked(MemxRegion *r)
{
    return !r->quiet && !r->out && r->side == MEMX_SIDE_OWNER && !r->starved;
}

static bool is_ready(Huge *h, uint64_t w)
{
    MemxRegion *r = h->region;
    bool yes;

    g_mutex_lock(&r->lock);
    yes = calm_locked(r) && ready_locked(r, w, h->least);
    g_mutex_unlock(&r->lock);
    return yes;
}

/* Room for one more huge page, which nobody is evicted for. */
static bool take_room(MemxRegion *r)
{
    bool ok;

    g_mutex_lock(&r->lock);
    ok = memx_free_pages(r) >= r->low + MEMX_WINDOW_PAGES;
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

/* False: there is no room for it. */
static bool collapse(Huge *h, uint64_t w)
{
    MemxRegion *r = h->region;
    uint64_t g = w * MEMX_WINDOW_GROUPS;
    bool ok;

    if (!take_room(r)) {
        return false;
    }
    for (unsigned i = 0; i < MEMX_WINDOW_GROUPS; i++) {
        memx_touch_fill(r, g + i, UINT64_MAX);
    }
    ok = madvise(memx_group_hva(r, g), MEMX_WINDOW_BYTES, MADV_COLLAPSE) == 0;
    give_room(r);
    /* Else somebody holds a page, or the host has none so large. */
    h->again[w] = ok ? 0 : MIN(h->again[w] * 2u + 1, AGAIN_MAX);
    h->refused[w] = h->again[w];
    return true;
}

/* Of @n windows from @w on.  False: there is no room, or no time, for more. */
static bool some(Huge *h, uint64_t w, unsigned n)
{
    MemxRegion *r = h->region;
    uint8_t *hva = r->base + w * MEMX_WINDOW_BYTES;
    uint64_t huge = memx_windows_huge(r->pagemap_fd, hva, n);

    for (unsigned i = 0; i < n; i++) {
        if (h->refused[w + i]) {
            h->refused[w + i]--;
        } else if (!(huge >> i & 1) && is_ready(h, w + i) &&
                   (!collapse(h, w + i) || !pace(h))) {
            return false;
        }
    }
    h->found += memx_mask_pages(memx_windows_huge(r->pagemap_fd, hva, n));
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
        g_mutex_lock(&r->lock);
        r->huge_windows = h->found;
        g_mutex_unlock(&r->lock);
        h->at = h->found = 0;
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
    } while (nap(&h, PASS_MS));
    g_free(h.refused);
    g_free(h.again);
    return NULL;
}
