/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One MOVE or COPY stays within one mapping on each side: across the border
 * of two it is refused whole. madvise(), mbind() and mlock() make borders.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 4, 0x11), *staging = map_registered(fd, 4);

    expect(madvise(guest + 2 * PAGE, 2 * PAGE, MADV_DONTDUMP), 0);
    expect(memx_uffd_move(fd, staging + PAGE, guest + PAGE, 2 * PAGE, 0),
           -EINVAL);
    expect(memx_uffd_move(fd, staging, guest, 2 * PAGE, 0), 2 * PAGE);
    expect(memx_uffd_move(fd, staging + 2 * PAGE, guest + 2 * PAGE, 2 * PAGE,
                          0), 2 * PAGE);
    expect(memx_uffd_move(fd, guest + PAGE, staging + PAGE, 2 * PAGE, 0),
           -EINVAL);
    expect(memx_uffd_copy(fd, guest, staging, 4 * PAGE, 0), -ENOENT);
    return 0;
}
