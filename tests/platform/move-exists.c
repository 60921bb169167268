/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE never overwrites: a page that is there at the destination is EEXIST,
 * even if the source has a hole, and both stay as they are.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 2, 0x22), *staging = map_filled(fd, 2, 0x11);

    expect(madvise(guest, PAGE, MADV_DONTNEED), 0);
    expect(memx_uffd_move(fd, guest, staging, 2 * PAGE, 0), PAGE);
    expect(memx_uffd_move(fd, guest + PAGE, staging + PAGE, PAGE, 0), -EEXIST);
    check(page_is(guest + PAGE, 0x22), "overwritten");
    check(page_is(staging + PAGE, 0x11), "the source changed");
    expect(memx_uffd_move(fd, guest + PAGE, staging, PAGE, HOLES_OK), -EEXIST);
    return 0;
}
