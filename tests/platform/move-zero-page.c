/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shared zero page (read but never written): Linux 6.9 and later move
 * it, 6.8 says EBUSY and leaves it. Either is fine, anything else is not.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_pages(1), *staging = map_registered(fd, 1);
    long ret;

    check(page_is(guest, 0) && mapped(guest), "no zero page");
    check(memx_uffd_register(fd, guest, PAGE, NULL), "register");
    ret = memx_uffd_move(fd, staging, guest, PAGE, 0);
    printf("MOVE of the zero page: %s\n", ret < 0 ? strerror(-ret) : "moved");
    if (ret == -EBUSY) {
        check(mapped(guest) && !mapped(staging), "it went");
        return 0;
    }
    expect(ret, PAGE);
    check(!mapped(guest) && mapped(staging) && page_is(staging, 0), "lost");
    return 0;
}
