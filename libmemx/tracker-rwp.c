/*
 * The tracker `rwp`: userfaultfd's read-write protection (Linux 7.3).
 *
 * Theory of operation
 *
 * The memory is registered in RWP mode, a region's together with MISSING mode on
 * the region's own userfaultfd.  Pages are protected; the first access to one
 * has the kernel lift its protection and go on (UFFD_FEATURE_RWP_ASYNC): no
 * message, no thread of ours, one short fault.  PAGEMAP_SCAN then tells which
 * pages were accessed, and these are protected again.  What is accessed between
 * the two is not seen this time; what is hot will be seen the next.
 *
 * Each page in use costs the guest a fault a period.  Where that would be too
 * much (MemxSlice.arm_pages), only some neighbouring pages of a group are
 * protected again, others the next time.  Those that are not are *open*: they
 * read as accessed, which says nothing, until they are protected or gone.  What
 * was not accessed stays protected: a group is quick to show that it is in
 * use again, and costs little while it is.
 *
 * A huge page costs one fault, and would be split if only a part of it were
 * protected: it always is as a whole.
 *
 * The synchronous mode, in which the accessing thread waits for a message, is
 * not needed, not even for the moment in which a chunk is evicted: our eviction
 * is a MOVE, which is atomic against any access.  A page that was accessed
 * just before it moved was a poor choice, but it is whole, and the next access
 * is an ordinary fault.
 *
 * A range can't have write protection and RWP at a time: the engine doesn't use
 * write protection, and a background snapshot of tracked memory is refused by
 * the kernel (EBUSY).
 *
 * Under KVM protecting a page takes it out of the second-level page table; if
 * dirty logging is on, the refault of a page that was written before may log it
 * as dirty though it is only read.  So a migration sends such a page again;
 * nothing is missed.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "pagemap-abi.h"
#include "staging.h"
#include "tracker.h"
#include "uffd.h"

#define SCAN_VEC 512
#define GROUPS_AT_ONCE 64u  /* 16 MiB: no huge page is cut in two */
#define HUGE_PAGES 512      /* of 4 KiB, in one */

typedef _Atomic uint64_t Word;

typedef struct Rwp {
    const MemxRange *range;
    unsigned n_ranges;
    Word **open;        /* of each range: a word of pages a group */
    atomic_uint turn;   /* where to begin in a group; any value will do */
    int uffd;
    bool own;           /* the descriptor is */
    int pagemap_fd;
} Rwp;

static uint64_t groups_of(const MemxRange *range)
{
    return (range->bytes + MEMX_GROUP_BYTES - 1) / MEMX_GROUP_BYTES;
}

static void rwp_close(void *opaque)
{
    Rwp *t = opaque;

    for (unsigned i = 0; i < t->n_ranges; i++) {
        if (t->open[i]) {
            munmap(t->open[i], groups_of(&t->range[i]) * sizeof(Word));
        }
    }
    g_free(t->open);

    if (t->own && t->uffd >= 0) {
        close(t->uffd); /* lifts all protection */
    }
    if (t->pagemap_fd >= 0) {
        close(t->pagemap_fd);
    }
    g_free(t);
}

static bool rwp_register(Rwp *t, const MemxWatch *watch, GError **error)
{
    uint64_t got = 0;

    t->uffd = memx_uffd_open(UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC, &got,
                             error);
    if (t->uffd < 0) {
        return false;
    }
    t->own = true;
    if (!(got & UFFD_FEATURE_RWP_ASYNC)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "this kernel's userfaultfd has no read-write protection: "
                    "it needs Linux 7.3");
        return false;
    }
    for (unsigned i = 0; i < watch->n_ranges; i++) {
        if (!memx_uffd_register_rwp(t->uffd, watch->range[i].base,
                                    watch->range[i].bytes, false, error)) {
            return false;
        }
    }
    return true;
}

/* Taken as it is used: a word for 256 KiB. */
static bool map_open(Rwp *t, GError **error)
{
    t->open = g_new0(Word *, t->n_ranges);
    for (unsigned i = 0; i < t->n_ranges; i++) {
        void *map = mmap(NULL, groups_of(&t->range[i]) * sizeof(Word),
                         PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (map == MAP_FAILED) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                        "cannot map a tracker's table: %s",
                        g_strerror(errno));
            return false;
        }
        t->open[i] = map;
    }
    return true;
}

static void *rwp_open(const MemxWatch *watch, GError **error)
{
    Rwp *t = g_new0(Rwp, 1);
    bool ok;

    t->range = watch->range;
    t->n_ranges = watch->n_ranges;
    t->uffd = watch->uffd;
    t->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    ok = map_open(t, error);
    if (ok && t->pagemap_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot open /proc/self/pagemap: %s", g_strerror(errno));
        ok = false;
    } else if (ok && watch->region && t->uffd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "this kernel's userfaultfd has no read-write protection: "
                    "it needs Linux 7.3");
        ok = false;
    } else if (ok && !watch->region) {
        ok = rwp_register(t, watch, error);
    }
    if (!ok) {
        rwp_close(t);
        return NULL;
    }
    return t;
}

/* Groups of which nothing is known. */
static void skip(MemxSlice *slice, unsigned first, unsigned n)
{
    for (unsigned g = first; g < first + n; g++) {
        slice->skipped[g / 64] |= 1ull << g % 64;
    }
}

/* Sets the pages of some groups that read as accessed, and in @huge the groups
 * that are of huge pages.  False: not known. */
static bool scan(Rwp *t, MemxSlice *slice, unsigned first, unsigned n,
                 uint64_t *huge)
{
    const MemxRange *range = &t->range[slice->range];
    uint64_t origin = (uintptr_t)memx_slice_hva(range, slice, 0);
    uint64_t start = (uintptr_t)memx_slice_hva(range, slice, first);
    struct page_region vec[SCAN_VEC];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = start,
        .end = start + memx_slice_bytes(range, slice, first, n),
        .vec = (uintptr_t)vec,
        .vec_len = SCAN_VEC,
        .category_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED | PAGE_IS_HUGE,
    };

    while (arg.start < arg.end) {
        int got = ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return false;
        }
        for (int i = 0; i < got; i++) {
            uint64_t page = (vec[i].start - origin) / MEMX_PAGE_BYTES;
            uint64_t end = (vec[i].end - origin) / MEMX_PAGE_BYTES;

            memx_slice_set(slice, page, end - page);
            for (uint64_t g = page / MEMX_GROUP_PAGES;
                 vec[i].categories & PAGE_IS_HUGE &&
                 g * MEMX_GROUP_PAGES < end; g++) {
                huge[g / 64] |= 1ull << g % 64;
            }
        }
        if (arg.walk_end <= arg.start) {
            break;
        }
        arg.start = arg.walk_end;
    }
    return true;
}

/* The pages of a group to protect, of those that are @accessed: up to @most in
 * a row, those next to them from another period on.  Returns all that lie in
 * [*first, *end). */
static uint64_t choose(uint64_t accessed, unsigned most, unsigned turn,
                       unsigned *first, unsigned *end)
{
    uint64_t from = accessed & UINT64_MAX << turn % MEMX_GROUP_PAGES;
    uint64_t chosen = 0;

    if ((unsigned)memx_mask_pages(accessed) <= most || !from) {
        from = accessed;
    }
    while (from && most--) {
        chosen |= from & -from;
        from &= from - 1;
    }
    *first = chosen ? __builtin_ctzll(chosen) : 0;
    *end = chosen ? 64 - __builtin_clzll(chosen) : 0;
    return chosen;
}

/* Groups' pages are protected in one call as long as they follow each other
 * closely: what lies between is protected anyway, or not there. */
typedef struct Span {
    uint8_t *start, *end;
} Span;

static void span_end(Rwp *t, Span *span)
{
    if (span->start) {
        memx_uffd_rwprotect(t->uffd, span->start, span->end - span->start);
        span->start = NULL;
    }
}

static void span_add(Rwp *t, Span *span, uint8_t *start, uint8_t *end,
                     bool joins)
{
    if (span->start && !joins) {
        span_end(t, span);
    }
    if (!span->start) {
        span->start = start;
    }
    span->end = end;
}

static void rwp_run(Rwp *t, MemxSlice *slice, unsigned first, unsigned n)
{
    const MemxRange *range = &t->range[slice->range];
    Word *open = t->open[slice->range] + slice->first_group;
    uint64_t huge[MEMX_SLICE_WORDS] = { 0 }, huge_pages = 0;
    Span span = { NULL, NULL };
    bool whole = true; /* nothing was left open in the group before */

    if (!scan(t, slice, first, n, huge)) {
        memset(slice->touched + first, 0, n * sizeof(slice->touched[0]));
        skip(slice, first, n);
        return;
    }
    for (unsigned g = first; g < first + n; g++) {
        uint8_t *hva = memx_slice_hva(range, slice, g);
        uint64_t accessed = slice->touched[g], chosen;
        bool is_huge = huge[g / 64] >> g % 64 & 1;
        unsigned from, to;

        slice->blind[g] = accessed & open[g];
        slice->touched[g] &= ~slice->blind[g];
        *(is_huge ? &huge_pages : &slice->faults) +=
            memx_mask_pages(slice->touched[g]);
        chosen = choose(accessed, is_huge ? MEMX_GROUP_PAGES
                        : slice->arm_pages, t->turn, &from, &to);
        open[g] = accessed & ~chosen;
        if (chosen) {
            span_add(t, &span, hva + (uint64_t)from * MEMX_PAGE_BYTES,
                     hva + (uint64_t)to * MEMX_PAGE_BYTES,
                     whole && !open[g]);
        }
        whole = !open[g];
    }
    span_end(t, &span);
    slice->faults += (huge_pages + HUGE_PAGES - 1) / HUGE_PAGES;
}

/* Nothing of these groups is there: what comes is protected. */
static void forget(Rwp *t, const MemxSlice *slice)
{
    Word *open = t->open[slice->range] + slice->first_group;

    for (unsigned g = 0; g < slice->n_groups; g++) {
        if (open[g] && !memx_slice_wanted(slice, g)) {
            open[g] = 0;
        }
    }
}

static void rwp_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                        uint64_t dwell_ns)
{
    Rwp *t = opaque;
    unsigned at = 0, first, n;

    forget(t, slice);
    while (memx_slice_run(slice, &at, &first, &n)) {
        for (unsigned k; n; first += k, n -= k) {
            k = MIN(n, GROUPS_AT_ONCE);
            rwp_run(t, slice, first, k);
            memx_pace(slice->pace);
        }
    }
    atomic_fetch_add(&t->turn, 7); /* no pattern that a guest has */
}

static uint64_t rwp_peek(void *opaque, unsigned range, uint64_t group,
                         uint64_t *known)
{
    Rwp *t = opaque;
    uint64_t start = (uintptr_t)t->range[range].base + group * MEMX_GROUP_BYTES;
    struct page_region vec[MEMX_GROUP_PAGES / 2];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = start,
        .end = start + MIN(MEMX_GROUP_BYTES, t->range[range].bytes -
                                             group * MEMX_GROUP_BYTES),
        .vec = (uintptr_t)vec,
        .vec_len = G_N_ELEMENTS(vec), /* others lie between them */
        .category_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
    };
    uint64_t open = t->open[range][group], accessed = 0;
    int got = ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg);

    for (int i = 0; i < got; i++) {
        unsigned first = (vec[i].start - start) / MEMX_PAGE_BYTES;
        unsigned end = (vec[i].end - start) / MEMX_PAGE_BYTES;

        accessed |= memx_run_mask(first, end - first);
    }
    *known = got < 0 || arg.walk_end < arg.end ? 0 : ~(open & accessed);
    return accessed & *known;
}

const MemxTrackerOps memx_tracker_rwp = {
    .kind = MEMX_TRACKER_RWP,
    .regions = true,
    .ordinary = true,
    .every_slice = true,
    .moved_is_idle = true,
    .open = rwp_open,
    .harvest = rwp_harvest,
    .peek = rwp_peek,
    .close = rwp_close,
};
