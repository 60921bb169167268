/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE refuses a page that is pinned for DMA: EBUSY, nothing happened to it.
 * Pages before it are moved, and the count says so. Unpinned it moves.
 */
#include "platform-uring.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 3, 0x11), *staging = map_registered(fd, 3);
    struct io_uring ring;
    long ret;

    ring_pin(&ring, guest + PAGE, PAGE);

    expect(memx_uffd_move(fd, staging, guest, 3 * PAGE, 0), PAGE);
    expect(memx_uffd_move(fd, staging + PAGE, guest + PAGE, PAGE, 0), -EBUSY);
    expect(memx_uffd_move(fd, staging + PAGE, guest + PAGE, PAGE, HOLES_OK),
           -EBUSY);
    check(!mapped(staging + PAGE) && mapped(guest + PAGE), "it went");
    check(page_is(guest + PAGE, 0x11), "content changed");
    check(mapped(guest + 2 * PAGE), "the page behind the obstacle went");

    io_uring_unregister_buffers(&ring);
    /* The pin may go a little later than the call: it is asynchronous. */
    while ((ret = memx_uffd_move(fd, staging + PAGE, guest + PAGE, PAGE, 0)) ==
           -EBUSY) {
        linger(1);
    }
    expect(ret, PAGE);
    check(page_is(staging + PAGE, 0x11), "content changed");
    return 0;
}
