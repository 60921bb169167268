/*
 * Windows: 2 MiB, aligned; what a huge page fills.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_WINDOW_H
#define MEMX_WINDOW_H

#include <stdbool.h>
#include <stdint.h>
#include "memx-protocol.h"

#define MEMX_WINDOW_BYTES (2ull << 20)
#define MEMX_WINDOW_PAGES (unsigned)(MEMX_WINDOW_BYTES / MEMX_PAGE_BYTES)
#define MEMX_WINDOW_GROUPS (unsigned)(MEMX_WINDOW_PAGES / MEMX_GROUP_PAGES)

/* At least @bytes, a multiple of a window, aligned to one, for pages that are
 * moved in and out; or NULL.  munmap() @map, of @map_bytes. */
void *memx_window_map(uint64_t bytes, void **map, uint64_t *map_bytes);

/*
 * Moves a window, or the first @bytes of one; what can't be moved stays.  False:
 * that is all of it.  @must: all of it has to go; of what the kernel refuses to
 * move (somebody has pinned it) a copy does, since nobody writes to it there.
 * Nobody is woken.
 *
 * What is refused as a whole may be a huge page that somebody holds.  It isn't
 * tried in parts: Linux 6.12 would try to split it for as long as it is held,
 * in the kernel, with the lock of all mappings.
 */
bool memx_window_move(int uffd, int pagemap_fd, void *to, void *from,
                      uint64_t bytes, bool must);

/* Makes a place of one window anew that pages came to one by one: what is left
 * of them, an empty page table, would split the next huge page.  False: it has
 * pages, and keeps them, or is not registered any more. */
bool memx_window_renew(int uffd, int pagemap_fd, void *place);

/* Bit i: window i of the @n (64 at most) from @hva on is one huge page.
 * @pagemap_fd: /proc/self/pagemap.  0 where the kernel can't tell (before 6.7). */
uint64_t memx_windows_huge(int pagemap_fd, const void *hva, unsigned n);

#endif
