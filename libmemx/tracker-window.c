/*
 * The tracker `sample` for ordinary memory: takes 2 MiB away, and looks who
 * misses them.
 *
 * Theory of operation
 *
 * As tracker-sample.c, but nobody pages this memory, so nothing serves its
 * faults but this: *windows* of 2 MiB, aligned, are registered with a
 * userfaultfd of our own and moved out for a moment, the dwell.  Who touches one
 * meanwhile waits; the window is moved back as a whole, unregistered, and
 * counts as touched.  Being moved as a whole a huge page isn't copied, and stays one
 * where the kernel moves it as one; elsewhere it is split.  That is why this is
 * never chosen by `auto`.
 *
 * All windows of a slice, a GiB, are away together.  A window costs its two
 * moves however long it is away, so this is as long as the tracker's share of
 * a CPU asks for: some seconds, in which memory that is in use is touched.
 *
 * Memory that is written for the first time is seen by having come since the
 * last look.
 *
 * Out of a dwell nothing is registered, and nothing is away.  What can't be moved
 * (pinned for DMA) stays where it is, and isn't seen.
 *
 * While a window is away nobody may discard memory in it (balloon, virtio-mem):
 * it would come back.  Who tracks has to see to that; memx.h says so.
 *
 * All of it runs on the ager's thread, which touches no tracked memory: it
 * takes, waits for faults, and gives back.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "tracker.h"
#include "uffd.h"

#define WINDOW_BYTES (2ull << 20)
#define WINDOW_PAGES (unsigned)(WINDOW_BYTES / MEMX_PAGE_BYTES)
#define WINDOWS (MEMX_SLICE_GROUPS_MAX / 8) /* all of a slice */
#define MESSAGES 16
#define DWELL_MIN_NS 5000000ull
#define DWELL_MAX_NS 1000000000ull
#define RETRY_MS 1
#define MOVES_MAX 100u  /* refused, then the page is copied */

/* What a look found in a window's place. */
typedef enum Content { UNSEEN, EMPTY, FILLED } Content;

typedef struct Window {
    uint8_t *hva;
    uint8_t *staging;
    unsigned page;              /* of the slice, its first */
    bool filled;                /* since the last look: touched, that is */
} Window;

typedef struct Windows {
    const MemxRange *range;
    unsigned n_ranges;
    int uffd;
    uint8_t *map;               /* for WINDOWS, and to align them */
    uint8_t *staging;
    uint8_t **content;          /* of each range's windows, a Content */
    bool registered;            /* some memory still is, of nobody's window */
    unsigned n;                 /* taken; those with an hva are still away */
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
    if (t->map) {
        munmap(t->map, (WINDOWS + 1) * WINDOW_BYTES);
    }
    for (unsigned i = 0; i < t->n_ranges; i++) {
        g_free(t->content[i]);
    }
    g_free(t->content);
    g_free(t);
}

static bool map_staging(Windows *t, GError **error)
{
    void *map = mmap(NULL, (WINDOWS + 1) * WINDOW_BYTES,
                     PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map memory for samples: %s", g_strerror(errno));
        return false;
    }
    t->map = map;
    t->staging = (uint8_t *)(((uintptr_t)map + WINDOW_BYTES - 1) &
                             ~(WINDOW_BYTES - 1));
    /* A page that was merged (systemd's MemoryKSM=) can't be moved. */
    madvise(map, (WINDOWS + 1) * WINDOW_BYTES, MADV_UNMERGEABLE);
    madvise(map, (WINDOWS + 1) * WINDOW_BYTES, MADV_DONTFORK);
    madvise(map, (WINDOWS + 1) * WINDOW_BYTES, MADV_DONTDUMP);
    return memx_uffd_register(t->uffd, t->staging, WINDOWS * WINDOW_BYTES,
                              error);
}

/* The kernel registers shared memory, too, but doesn't move it. */
static bool check_kind(Windows *t, const MemxRange *range, GError **error)
{
    ssize_t done = memx_uffd_move(t->uffd, t->staging, range->base,
                                  MEMX_PAGE_BYTES, MEMX_MOVE_ALLOW_HOLES);
    ssize_t back = done > 0 ? -EAGAIN : 0;

    while (back == -EAGAIN || back == -EBUSY) {
        poll(NULL, 0, RETRY_MS);
        back = memx_uffd_move(t->uffd, range->base, t->staging,
                              MEMX_PAGE_BYTES, MEMX_MOVE_ALLOW_HOLES);
    }
    if (done != -EINVAL) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "the memory at %p can't be sampled: only private anonymous "
                "memory can", range->base);
    return false;
}

static void *window_open(const MemxWatch *watch, GError **error)
{
    Windows *t = g_new0(Windows, 1);
    bool ok;

    t->range = watch->range;
    t->n_ranges = watch->n_ranges;
    t->content = g_new(uint8_t *, t->n_ranges);
    for (unsigned i = 0; i < t->n_ranges; i++) {
        t->content[i] = g_malloc0(t->range[i].bytes / WINDOW_BYTES + 1);
    }
    t->uffd = memx_uffd_open(0, NULL, error);
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

/* Moves a window; what can't be moved stays.  @must: all of it has to go; of
 * what the kernel refuses to move (somebody has pinned it) a copy does, since
 * nobody writes to it there. */
static bool move_window(Windows *t, uint8_t *to, uint8_t *from, bool must)
{
    unsigned refused = 0;
    uint64_t at = 0;
    bool any = false;

    while (at < WINDOW_BYTES) {
        ssize_t done = memx_uffd_move(t->uffd, to + at, from + at,
                                      WINDOW_BYTES - at,
                                      MEMX_MOVE_ALLOW_HOLES |
                                      MEMX_MOVE_DONTWAKE);

        if (must && done <= 0 && done != -EEXIST && done != -ENOENT) {
            if (refused++ < MOVES_MAX ||
                memx_uffd_copy(t->uffd, to + at, from + at, MEMX_PAGE_BYTES,
                               MEMX_MOVE_DONTWAKE) <= 0) {
                poll(NULL, 0, RETRY_MS); /* somebody is busy with it */
                continue;
            }
            madvise(from + at, MEMX_PAGE_BYTES, MADV_DONTNEED);
        }
        any |= done > 0;
        at += done > 0 ? done : MEMX_PAGE_BYTES;
        refused = 0;
    }
    return any;
}

/* Its pages are where they belong.  If the kernel can't part it from what is
 * registered beside it (ENOMEM), it stays so until all is given back. */
static void let_go(Windows *t, uint8_t *hva)
{
    if (!memx_uffd_unregister(t->uffd, hva, WINDOW_BYTES, NULL)) {
        memx_uffd_wake(t->uffd, hva, WINDOW_BYTES);
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

static void take(Windows *t, uint8_t *hva, unsigned page, uint8_t *content)
{
    Window *w = &t->window[t->n];

    *w = (Window) { hva, t->staging + t->n * WINDOW_BYTES, page,
                    *content == EMPTY };
    if (!memx_uffd_register(t->uffd, hva, WINDOW_BYTES, NULL)) {
        return; /* it has become somebody else's */
    }
    *content = move_window(t, w->staging, hva, false) ? FILLED : EMPTY;
    if (*content == FILLED) {
        t->n++;
    } else {
        let_go(t, hva);
    }
}

/* What a window's dwell has shown. */
typedef enum Verdict { UNKNOWN, IDLE, TOUCHED } Verdict;

/* Gives a window back, and wakes who waits for it.  Its staging is another's
 * when all are back. */
static void give_back(Windows *t, MemxSlice *slice, unsigned i,
                      Verdict verdict)
{
    Window *w = &t->window[i];

    if (!w->hva) {
        return;
    }
    move_window(t, w->hva, w->staging, true);
    let_go(t, w->hva);
    w->hva = NULL;
    if (verdict == UNKNOWN && !w->filled) {
        return;
    }
    for (unsigned g = w->page / MEMX_GROUP_PAGES;
         g <= (w->page + WINDOW_PAGES - 1) / MEMX_GROUP_PAGES; g++) {
        slice->skipped[g / 64] &= ~(1ull << g % 64);
    }
    if (verdict == TOUCHED || w->filled) {
        memx_slice_set(slice, w->page, WINDOW_PAGES);
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

            if (hva && at >= hva && at < hva + WINDOW_BYTES) {
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

static void window_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                           uint64_t dwell_ns)
{
    Windows *t = opaque;
    const MemxRange *range = &t->range[slice->range];
    uint8_t *start = memx_slice_hva(range, slice, 0);
    uint64_t bytes = memx_slice_bytes(range, slice, 0, slice->n_groups);
    uint64_t at = -(uintptr_t)start & (WINDOW_BYTES - 1);
    bool calm = true;
    Verdict verdict;

    memset(slice->skipped, 0xff, (slice->n_groups + 63) / 64 *
           sizeof(slice->skipped[0]));
    for (; calm && at + WINDOW_BYTES <= bytes; at += WINDOW_BYTES) {
        take(t, start + at, at / MEMX_PAGE_BYTES,
             &t->content[slice->range][(start + at - (uint8_t *)range->base) /
                                       WINDOW_BYTES]);
        calm = attend(t, slice, wake_fd, memx_pace_ns(slice->pace));
    }
    calm = calm && t->n &&
        attend(t, slice, wake_fd, CLAMP(dwell_ns, DWELL_MIN_NS, DWELL_MAX_NS));
    verdict = calm ? IDLE : UNKNOWN;
    for (unsigned i = 0; i < t->n; i++) {
        give_back(t, slice, i, verdict);
        calm = calm &&
            attend(t, slice, wake_fd, memx_pace_ns(slice->pace));
    }
    t->n = 0;
    let_all_go(t);
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
    .close = window_close,
};
