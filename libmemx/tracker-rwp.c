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
#include <unistd.h>
#include "pagemap-abi.h"
#include "tracker.h"
#include "uffd.h"

#define SCAN_VEC 512

typedef struct Rwp {
    const MemxRange *range;
    int uffd;
    bool own;           /* the descriptor is */
    int pagemap_fd;
} Rwp;

static void rwp_close(void *opaque)
{
    Rwp *t = opaque;

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

static void *rwp_open(const MemxWatch *watch, GError **error)
{
    Rwp *t = g_new0(Rwp, 1);
    bool ok = true;

    t->range = watch->range;
    t->uffd = watch->uffd;
    t->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (t->pagemap_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot open /proc/self/pagemap: %s", g_strerror(errno));
        ok = false;
    } else if (watch->region && t->uffd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "this kernel's userfaultfd has no read-write protection: "
                    "it needs Linux 7.3");
        ok = false;
    } else if (!watch->region) {
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

/* The accessed pages of some groups, and protects them again. */
static void rwp_run(Rwp *t, MemxSlice *slice, unsigned first, unsigned n)
{
    const MemxRange *range = &t->range[slice->range];
    uint64_t origin = (uintptr_t)memx_slice_hva(range, slice, 0);
    uint64_t start = (uintptr_t)memx_slice_hva(range, slice, first);
    uint64_t low = UINT64_MAX, high = 0;
    struct page_region vec[SCAN_VEC];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = start,
        .end = start + memx_slice_bytes(range, slice, first, n),
        .vec = (uintptr_t)vec,
        .vec_len = SCAN_VEC,
        .category_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
    };

    while (arg.start < arg.end) {
        int got = ioctl(t->pagemap_fd, PAGEMAP_SCAN, &arg);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            skip(slice, first, n);
            return;
        }
        for (int i = 0; i < got; i++) {
            uint64_t pages = (vec[i].end - vec[i].start) / MEMX_PAGE_BYTES;

            memx_slice_set(slice, (vec[i].start - origin) / MEMX_PAGE_BYTES,
                           pages);
            slice->faults += pages;
            low = MIN(low, vec[i].start);
            high = MAX(high, vec[i].end);
        }
        if (arg.walk_end <= arg.start) {
            break;
        }
        arg.start = arg.walk_end;
    }
    if (low < high) {
        memx_uffd_rwprotect(t->uffd, (void *)(uintptr_t)low, high - low);
    }
}

static void rwp_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                        uint64_t dwell_ns)
{
    unsigned at = 0, first, n;

    while (memx_slice_run(slice, &at, &first, &n)) {
        rwp_run(opaque, slice, first, n);
    }
}

const MemxTrackerOps memx_tracker_rwp = {
    .kind = MEMX_TRACKER_RWP,
    .moved_is_idle = true,
    .open = rwp_open,
    .harvest = rwp_harvest,
    .close = rwp_close,
};
