/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The destination of a MOVE must be registered with that very userfaultfd;
 * the source need not be. An unregistered source reads as zeros afterwards:
 * whence staging is registered too, so that a stray access shows.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd(), other = open_uffd();
    char *guest = map_registered(fd, 2), *plain = map_pages(2);

    memset(plain, 0x11, PAGE);
    expect(memx_uffd_move(fd, guest, plain, PAGE, 0), PAGE);
    check(page_is(guest, 0x11), "content");
    check(page_is(plain, 0), "the source does not read as zeros");

    expect(memx_uffd_move(fd, plain + PAGE, guest, PAGE, 0), -EINVAL);
    memset(plain, 0x22, PAGE);
    expect(memx_uffd_move(other, guest + PAGE, plain, PAGE, 0), -EINVAL);
    return 0;
}
