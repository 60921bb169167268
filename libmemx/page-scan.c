/*
 * Which pages are there; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include "memx-protocol.h"
#include "memx.h"
#include "page-scan.h"
#include "pagemap-abi.h"

#define SCAN_VEC 256

/* Sets the pages [from, to) in @bits. */
static void set_pages(uint64_t *bits, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t g = from / MEMX_GROUP_PAGES;
        unsigned at = from % MEMX_GROUP_PAGES;
        unsigned n = MIN(to - from, MEMX_GROUP_PAGES - at);

        bits[g] |= (n == 64 ? UINT64_MAX : (1ull << n) - 1) << at;
        from += n;
    }
}

bool memx_page_scan(int pagemap_fd, const void *memory, uint64_t bytes,
                    uint64_t *there, GError **error)
{
    struct page_region vec[SCAN_VEC];
    uint64_t base = (uintptr_t)memory;
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = base,
        .end = base + bytes,
        .vec = (uintptr_t)vec,
        .vec_len = SCAN_VEC,
        .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        .category_inverted = PAGE_IS_PFNZERO,
        .category_mask = PAGE_IS_PFNZERO,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };

    while (arg.start < arg.end) {
        int n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);

        if (n < 0) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                        "cannot learn which pages are there: PAGEMAP_SCAN: %s", g_strerror(errno));
            return false;
        }
        for (int i = 0; i < n; i++) {
            set_pages(there, (vec[i].start - base) / MEMX_PAGE_BYTES,
                      (vec[i].end - base) / MEMX_PAGE_BYTES);
        }
        if (arg.walk_end <= arg.start) {
            break;
        }
        arg.start = arg.walk_end;
    }
    return true;
}
