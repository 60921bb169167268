/*
 * Windows; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include "pagemap-abi.h"
#include "uffd.h"
#include "window.h"

#define RETRY_MS 1
#define MOVES_MAX 100u  /* refused, of a window; then pages are copied */

static void advise(void *map, uint64_t bytes)
{
    /* A page that was merged (systemd's MemoryKSM=) can't be moved. */
    madvise(map, bytes, MADV_UNMERGEABLE);
    madvise(map, bytes, MADV_DONTFORK);
}

void *memx_window_map(uint64_t bytes, void **map, uint64_t *map_bytes)
{
    *map_bytes = bytes + MEMX_WINDOW_BYTES;
    *map = mmap(NULL, *map_bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*map == MAP_FAILED) {
        *map = NULL;
        return NULL;
    }
    advise(*map, *map_bytes);
    return (void *)(((uintptr_t)*map + MEMX_WINDOW_BYTES - 1) &
                    ~(MEMX_WINDOW_BYTES - 1));
}

bool memx_window_renew(int uffd, int pagemap_fd, void *place)
{
    if (memx_pages_mapped(pagemap_fd, place, MEMX_WINDOW_PAGES) != 0 ||
        mmap(place, MEMX_WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_FIXED |
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != place) {
        return false;
    }
    advise(place, MEMX_WINDOW_BYTES);
    return memx_uffd_register(uffd, place, MEMX_WINDOW_BYTES, NULL);
}

bool memx_window_move(int uffd, int pagemap_fd, void *to, void *from,
                      uint64_t bytes, bool must)
{
    unsigned refused = 0;
    uint64_t at = 0;

    while (at < bytes) {
        uint8_t *dst = (uint8_t *)to + at, *src = (uint8_t *)from + at;
        ssize_t done = memx_uffd_move_sure(uffd, pagemap_fd, dst, src,
                                           bytes - at, MEMX_MOVE_ALLOW_HOLES |
                                           MEMX_MOVE_DONTWAKE);

        if (!must && !at && done <= 0) {
            return false;
        }
        if (must && done <= 0 && done != -EEXIST && done != -ENOENT) {
            if (refused++ < MOVES_MAX || memx_page_mapped(pagemap_fd, src) != 1 ||
                memx_uffd_copy(uffd, dst, src, MEMX_PAGE_BYTES,
                               MEMX_MOVE_DONTWAKE) <= 0) {
                poll(NULL, 0, RETRY_MS); /* somebody is busy with it */
                continue;
            }
            madvise(src, MEMX_PAGE_BYTES, MADV_DONTNEED);
        }
        at += done > 0 ? done : MEMX_PAGE_BYTES;
    }
    return true;
}

uint64_t memx_windows_huge(int pagemap_fd, const void *hva, unsigned n)
{
    struct page_region vec[64];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = (uintptr_t)hva,
        .end = (uintptr_t)hva + n * MEMX_WINDOW_BYTES,
        .vec = (uintptr_t)vec,
        .vec_len = G_N_ELEMENTS(vec),
        .category_mask = PAGE_IS_HUGE | PAGE_IS_PRESENT,
        .return_mask = PAGE_IS_HUGE,
    };
    int found = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
    uint64_t huge = 0;

    for (int i = 0; i < found; i++) {
        uint64_t from = (vec[i].start - arg.start) / MEMX_WINDOW_BYTES;
        uint64_t to = (vec[i].end - arg.start) / MEMX_WINDOW_BYTES;

        for (; from < to; from++) {
            huge |= 1ull << from;
        }
    }
    return huge;
}
