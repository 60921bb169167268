/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE of a whole huge page, both sides aligned, to where there is no page
 * table: it stays a huge page. If a page of it is pinned: EBUSY, at once.
 */
#include "platform-huge.h"
#include "platform-uring.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_aligned(fd, 1), *staging = map_aligned(fd, 1);
    struct io_uring ring;

    fill_by_copy(fd, guest, HUGE_BYTES, 0x11);
    collapse(guest);
    expect(memx_uffd_move(fd, staging, guest, HUGE_BYTES, 0), HUGE_BYTES);
    check(!mapped(guest) && page_is(staging + 100 * PAGE, 0x11), "content");
    check(huge_kib(staging) == 2048, "split");
    expect(memx_uffd_move(fd, guest, staging, HUGE_BYTES, 0), HUGE_BYTES);
    check(huge_kib(guest) == 2048, "split");

    ring_pin(&ring, guest + 100 * PAGE, PAGE);
    expect(memx_uffd_move(fd, staging, guest, HUGE_BYTES, 0), -EBUSY);
    check(mapped(guest) && !mapped(staging), "it went");
    check(huge_kib(guest) == 2048, "split");
    return 0;
}
