/*
 * The tracker `sample` for ordinary memory: takes 2 MiB away, and looks who
 * misses them.
 *
 * Theory of operation
 *
 * As tracker-sample.c, but nobody pages this memory, so nothing serves its
 * faults but this: *windows* of 2 MiB, aligned, are registered with a
 * userfaultfd of our own and moved out for some seconds.  Who touches one
 * meanwhile waits; the window is moved back as a whole, unregistered, and
 * counts as touched.  Being moved as a whole a huge page isn't copied, and stays one
 * where the kernel moves it as one; elsewhere it is split.  That is why this is
 * never chosen by `auto`.
 *
 * A window costs its two moves however long it is away, so many are away
 * together for as long as the tracker's share of a CPU asks for: what a
 * program uses now and then is seen, too.  How many is bounded by the time in
 * which all can be given back (away_max), since who migrates or unplugs waits
 * for that.
 *
 * A window that has more pages than at the last look was touched, too; one
 * without pages stays where it is.
 *
 * Out of a dwell nothing is registered, and nothing is away.  What can't be moved
 * (pinned for DMA) stays where it is, and isn't seen.
 *
 * While a window is away nobody may discard memory in it (balloon) without us:
 * it would come back.  Discarding is the one thing that other threads do; the
 * lock keeps it apart from a window's coming and going.
 *
 * All else runs on the ager's thread, which touches no tracked memory: it
 * takes, waits for faults, and gives back.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "tracker.h"
#include "uffd.h"
#include "window.h"

#define WINDOWS (MEMX_SLICE_GROUPS_MAX / MEMX_WINDOW_GROUPS) /* all of a slice */
#define MESSAGES 16
#define DWELL_MIN_NS 5000000ull
#define DWELL_MAX_NS 1000000000ull
#define AWAY_MIN 16u
#define RETURN_MAX_NS 20000000ull /* until all are back */
#define RETURN_NS 1000000ull      /* what one takes, until it is known */

typedef struct Window {
    uint8_t *hva;
    uint8_t *staging;
    unsigned page;              /* of the slice, its first */
    bool grew;                  /* since the last look: touched, that is */
} Window;

typedef struct Windows {
    const MemxRange *range;
    unsigned n_ranges;
    int uffd;
    int pagemap_fd;
    void *map;
    uint64_t map_bytes;         /* for max_away, and to align them */
    uint8_t *staging;
    uint16_t **pages;           /* that each range's windows had, and 1; or 0 */
    bool registered;            /* some memory still is, of nobody's window */
    uint64_t return_ns;         /* what one takes to come back */
    GMutex lock;                /* held while one comes or goes */
    /* Changed by the ager's thread, under the lock. */
    unsigned n;                 /* taken; those with an hva are still away */
    unsigned n_away;
    Window window[WINDOWS];
} Windows;

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void window_close(void *opaque)
{
    Windows *t = opaque;

    if (t->uffd >= 0) {
        close(t->uffd);
    }
    if (t->pagemap_fd >= 0) {
        close(t->pagemap_fd);
    }
    if (t->map) {
        munmap(t->map, t->map_bytes);
    }
    for (unsigned i = 0; i < t->n_ranges; i++) {
        g_free(t->pages[i]);
    }
    g_free(t->pages);
    g_mutex_clear(&t->lock);
    g_free(t);
}

static bool map_staging(Windows *t, GError **error)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < t->n_ranges; i++) {
        bytes = MAX(bytes, t->range[i].bytes);
    }
    bytes = MIN(bytes / MEMX_WINDOW_BYTES + 1, WINDOWS) * MEMX_WINDOW_BYTES;
    t->staging = memx_window_map(bytes, &t->map, &t->map_bytes);
    if (!t->staging) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map memory for samples: %s", g_strerror(errno));
        return false;
    }
    return memx_uffd_register(t->uffd, t->staging, bytes, error);
}

/* The kernel registers shared memory, too, but doesn't move it. */
static bool check_kind(Windows *t, const MemxRange *range, GError **error)
{
    ssize_t done = memx_uffd_move_sure(t->uffd, t->pagemap_fd, t->staging,
                                       range->base,
                                       MIN(range->bytes, MEMX_WINDOW_BYTES),
                                       MEMX_MOVE_ALLOW_HOLES);

    if (done > 0) {
        memx_window_move(t->uffd, t->pagemap_fd, range->base, t->staging,
                         done, true);
    }
    if (done == -EINVAL) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "the memory at %p can't be sampled: only private anonymous "
                    "memory can", range->base);
        return false;
    }
    if (done == -EEXIST) { /* mlockall() fills what is mapped */
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "the memory can't be sampled: all of this process's is "
                    "locked (mem-lock=on)");
        return false;
    }
    return true;
}

static void *window_open(const MemxWatch *watch, GError **error)
{
    Windows *t = g_new0(Windows, 1);
    bool ok;

    g_mutex_init(&t->lock);
    t->range = watch->range;
    t->n_ranges = watch->n_ranges;
    t->pages = g_new(uint16_t *, t->n_ranges);
    for (unsigned i = 0; i < t->n_ranges; i++) {
        t->pages[i] = g_new0(uint16_t, t->range[i].bytes / MEMX_WINDOW_BYTES + 1);
    }
    t->return_ns = RETURN_NS;
    t->uffd = -1;
    t->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (t->pagemap_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot open /proc/self/pagemap: %s", g_strerror(errno));
    } else {
        t->uffd = memx_uffd_open(0, NULL, error);
    }
    ok = t->uffd >= 0 && map_staging(t, error);
    /* Is it of a kind that can be moved, and nobody else's? */
    for (unsigned i = 0; ok && i < watch->n_ranges; i++) {
        ok = memx_uffd_register(t->uffd, watch->range[i].base,
                                watch->range[i].bytes, error) &&
             check_kind(t, &watch->range[i], error) &&
             memx_uffd_unregister(t->uffd, watch->range[i].base,
                                  watch->range[i].bytes, error);
    }
    if (!ok) {
        window_close(t);
        return NULL;
    }
    return t;
}

/* Its pages are where they belong.  If the kernel can't part it from what is
 * registered beside it (ENOMEM), it stays so until all is given back. */
static void let_go(Windows *t, uint8_t *hva)
{
    if (!memx_uffd_unregister(t->uffd, hva, MEMX_WINDOW_BYTES, NULL)) {
        memx_uffd_wake(t->uffd, hva, MEMX_WINDOW_BYTES);
        t->registered = true;
    }
}

/* Nothing is away: a whole range needs no parting. */
static void let_all_go(Windows *t)
{
    bool left = false;

    for (unsigned i = 0; t->registered && i < t->n_ranges; i++) {
        left |= !memx_uffd_unregister(t->uffd, t->range[i].base,
                                      t->range[i].bytes, NULL);
    }
    t->registered = left;
}

/* Without a pagemap all look full, and nothing grows. */
static unsigned count_pages(const Windows *t, const uint8_t *hva)
{
    int n = memx_pages_mapped(t->pagemap_fd, hva, MEMX_WINDOW_PAGES);

    return n < 0 ? MEMX_WINDOW_PAGES : (unsigned)n;
}

/* Of a window that is known to be idle, or touched. */
static void tell(MemxSlice *slice, unsigned page, bool touched)
{
    for (unsigned g = page / MEMX_GROUP_PAGES;
         g <= (page + MEMX_WINDOW_PAGES - 1) / MEMX_GROUP_PAGES; g++) {
        slice->skipped[g / 64] &= ~(1ull << g % 64);
    }
    if (touched) {
        memx_slice_set(slice, page, MEMX_WINDOW_PAGES);
    }
}

/* Takes the window at @page of the slice away. */
static void take(Windows *t, MemxSlice *slice, unsigned page)
{
    const MemxRange *range = &t->range[slice->range];
    uint8_t *hva = memx_slice_hva(range, slice, 0) +
                   (uint64_t)page * MEMX_PAGE_BYTES;
    uint16_t *pages = &t->pages[slice->range][(hva - (uint8_t *)range->base) /
                                              MEMX_WINDOW_BYTES];
    Window *w = &t->window[t->n];
    unsigned before = *pages, now = count_pages(t, hva);

    *pages = now + 1;
    if (!now) { /* moved holes would only leave page tables behind */
        tell(slice, page, false);
        return;
    }
    *w = (Window) { hva, t->staging + page / MEMX_WINDOW_PAGES * MEMX_WINDOW_BYTES,
                    page, before && now + 1 > before };
    if (!memx_uffd_register(t->uffd, hva, MEMX_WINDOW_BYTES, NULL)) {
        return; /* it has become somebody else's */
    }
    g_mutex_lock(&t->lock);
    if (memx_window_move(t->uffd, t->pagemap_fd, w->staging, hva,
                         MEMX_WINDOW_BYTES, false)) {
        t->n++;
        t->n_away++;
    } else {
        let_go(t, hva);
    }
    g_mutex_unlock(&t->lock);
}

/* What a window's dwell has shown. */
typedef enum Verdict { UNKNOWN, IDLE, TOUCHED } Verdict;

/* Gives a window back, and wakes who waits for it. */
static void give_back(Windows *t, MemxSlice *slice, unsigned i,
                      Verdict verdict)
{
    Window *w = &t->window[i];
    uint64_t start = now_ns();

    if (!w->hva) {
        return;
    }
    g_mutex_lock(&t->lock);
    memx_window_move(t->uffd, t->pagemap_fd, w->hva, w->staging,
                     MEMX_WINDOW_BYTES, true);
    let_go(t, w->hva);
    if (!memx_windows_huge(t->pagemap_fd, w->hva, 1)) {
        memx_window_renew(t->uffd, t->pagemap_fd, w->staging);
    }
    w->hva = NULL;
    t->n_away--;
    g_mutex_unlock(&t->lock);
    t->return_ns = (t->return_ns * 7 + now_ns() - start) / 8;
    if (verdict != UNKNOWN || w->grew) {
        tell(slice, w->page, verdict == TOUCHED || w->grew);
    }
    slice->faults += verdict == TOUCHED;
}

/* A page that was never there, of memory that could not be let go. */
static void fill_hole(Windows *t, uint8_t *at)
{
    static const uint8_t zeros[MEMX_PAGE_BYTES];

    at -= (uintptr_t)at % MEMX_PAGE_BYTES;
    if (memx_uffd_copy(t->uffd, at, zeros, MEMX_PAGE_BYTES, 0) <= 0) {
        memx_uffd_wake(t->uffd, at, MEMX_PAGE_BYTES);
    }
}

/* Those whose pages somebody waits for come back. */
static void serve(Windows *t, MemxSlice *slice)
{
    struct uffd_msg msg[MESSAGES];
    int n = memx_uffd_read(t->uffd, msg, MESSAGES);

    for (int m = 0; m < n; m++) {
        uint8_t *at = (uint8_t *)(uintptr_t)msg[m].arg.pagefault.address;
        bool found = false;

        for (unsigned i = 0; i < t->n; i++) {
            uint8_t *hva = t->window[i].hva;

            if (hva && at >= hva && at < hva + MEMX_WINDOW_BYTES) {
                give_back(t, slice, i, TOUCHED);
                found = true;
            }
        }
        if (!found && t->registered) {
            fill_hole(t, at);
        }
    }
}

/* For @ns serves whoever misses something.  False: it has to hurry. */
static bool attend(Windows *t, MemxSlice *slice, int wake_fd, uint64_t ns)
{
    uint64_t now = now_ns(), end = now + ns;
    struct pollfd pfd[2] = {
        { .fd = t->uffd, .events = POLLIN },
        { .fd = wake_fd, .events = POLLIN },
    };

    do {
        poll(pfd, 2, (end - now + 999999) / 1000000);
        if (pfd[0].revents) {
            serve(t, slice);
        }
        now = now_ns();
    } while (now < end && !pfd[1].revents);
    return !pfd[1].revents;
}

/* As many as come back soon enough for who can't wait for them. */
static unsigned away_max(const Windows *t)
{
    return CLAMP(RETURN_MAX_NS / MAX(t->return_ns, 1), AWAY_MIN, WINDOWS);
}

static void window_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                           uint64_t dwell_ns)
{
    Windows *t = opaque;
    const MemxRange *range = &t->range[slice->range];
    uint8_t *start = memx_slice_hva(range, slice, 0);
    uint64_t bytes = memx_slice_bytes(range, slice, 0, slice->n_groups);
    uint64_t at = -(uintptr_t)start & (MEMX_WINDOW_BYTES - 1);
    unsigned oldest = 0;
    bool calm = true;
    Verdict verdict;

    memset(slice->skipped, 0xff, (slice->n_groups + 63) / 64 *
           sizeof(slice->skipped[0]));
    for (; calm && at + MEMX_WINDOW_BYTES <= bytes; at += MEMX_WINDOW_BYTES) {
        take(t, slice, at / MEMX_PAGE_BYTES);
        while (t->n_away > away_max(t)) {
            give_back(t, slice, oldest++, IDLE);
        }
        calm = attend(t, slice, wake_fd, memx_pace_ns(slice->pace));
    }
    calm = calm && t->n_away &&
        attend(t, slice, wake_fd, CLAMP(dwell_ns, DWELL_MIN_NS, DWELL_MAX_NS));
    verdict = calm ? IDLE : UNKNOWN;
    for (; oldest < t->n; oldest++) {
        give_back(t, slice, oldest, verdict);
        if (calm) {
            calm = attend(t, slice, wake_fd, memx_pace_ns(slice->pace));
        } else {
            serve(t, slice);
        }
    }
    g_mutex_lock(&t->lock);
    t->n = 0;
    g_mutex_unlock(&t->lock);
    let_all_go(t);
}

static void window_discard(void *opaque, unsigned range, uint64_t offset,
                           uint64_t bytes)
{
    Windows *t = opaque;
    uint8_t *start = (uint8_t *)t->range[range].base + offset;
    uint8_t *end = start + bytes;

    g_mutex_lock(&t->lock);
    for (unsigned i = 0; i < t->n; i++) {
        const Window *w = &t->window[i];
        uint8_t *from, *to;

        if (!w->hva) {
            continue;
        }
        from = MAX(start, w->hva);
        to = MIN(end, w->hva + MEMX_WINDOW_BYTES);
        if (from < to) {
            madvise(w->staging + (from - w->hva), to - from, MADV_DONTNEED);
        }
    }
    /* Here as well: one that is taken right after this has nothing to take. */
    madvise(start, bytes, MADV_DONTNEED);
    g_mutex_unlock(&t->lock);
}

const MemxTrackerOps memx_tracker_window = {
    .kind = MEMX_TRACKER_SAMPLE,
    .ordinary = true,
    .asked_only = true,
    .serial = true,
    .large_slices = true,
    .waits = true,
    .open = window_open,
    .harvest = window_harvest,
    .discard = window_discard,
    .close = window_close,
};
