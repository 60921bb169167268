/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE stops at a hole of the source, with ENOENT when it begins there. With
 * ALLOW_SRC_HOLES it spans holes, counts them, and leaves holes.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 4, 0x11), *staging = map_registered(fd, 4);

    expect(madvise(guest + PAGE, PAGE, MADV_DONTNEED), 0);
    expect(madvise(guest + 3 * PAGE, PAGE, MADV_DONTNEED), 0);

    expect(memx_uffd_move(fd, staging, guest, 4 * PAGE, 0), PAGE);
    expect(memx_uffd_move(fd, staging + PAGE, guest + PAGE, PAGE, 0), -ENOENT);
    expect(memx_uffd_move(fd, guest, staging, PAGE, 0), PAGE);

    expect(memx_uffd_move(fd, staging, guest, 4 * PAGE, HOLES_OK), 4 * PAGE);
    check(page_is(staging, 0x11) && page_is(staging + 2 * PAGE, 0x11), "data");
    check(!mapped(staging + PAGE) && !mapped(staging + 3 * PAGE), "no holes");
    for (int i = 0; i < 4; i++) {
        check(!mapped(guest + i * PAGE), "page %d stayed", i);
    }
    /* Nothing but holes, not even a page table: still counted. */
    expect(memx_uffd_move(fd, guest, map_pages(4), 4 * PAGE, HOLES_OK),
           4 * PAGE);
    return 0;
}
