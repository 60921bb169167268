/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * COPY never overwrites: it stops before a page that is there, says how far
 * it came, and asked from there says EEXIST.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 4, 0x11), *data = map_pages(4);

    expect(madvise(guest, 2 * PAGE, MADV_DONTNEED), 0);
    expect(madvise(guest + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
    memset(data, 0x22, 4 * PAGE);

    expect(memx_uffd_copy(fd, guest, data, 4 * PAGE, 0), 2 * PAGE);
    expect(memx_uffd_copy(fd, guest + 2 * PAGE, data, 2 * PAGE, 0), -EEXIST);
    check(page_is(guest, 0x22) && page_is(guest + PAGE, 0x22), "not copied");
    check(page_is(guest + 2 * PAGE, 0x11), "overwritten");
    check(!mapped(guest + 3 * PAGE), "went past the obstacle");
    return 0;
}
