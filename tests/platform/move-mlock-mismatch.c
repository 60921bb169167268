/* SPDX-License-Identifier: GPL-2.0-or-later */
/* MOVE wants both sides mlocked or neither: else EINVAL, nothing moved. */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 1, 0x11), *staging = map_registered(fd, 1);

    if (mlock(guest, PAGE) < 0) {
        skip("cannot mlock a page: %s (ulimit -l)", strerror(errno));
    }
    expect(memx_uffd_move(fd, staging, guest, PAGE, 0), -EINVAL);
    check(page_is(guest, 0x11), "content");
    /* MLOCK_ONFAULT: a plain mlock() would populate staging. */
    expect(mlock2(staging, PAGE, MLOCK_ONFAULT), 0);
    expect(memx_uffd_move(fd, staging, guest, PAGE, 0), PAGE);
    return 0;
}
