/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MADV_DONTNEED of a registered range makes it missing again: the next touch
 * is a fault message, not a zero page. Balloon and free page reporting do it.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 1, 0x11), page[PAGE];
    struct thread t = { .addr = guest };

    memset(page, 0x22, PAGE);
    expect(madvise(guest, PAGE, MADV_DONTNEED), 0);
    thread_start(&t, touch_byte);
    wait_fault(fd);
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), PAGE);
    thread_join(&t);
    expect(t.result, 0x22);
    return 0;
}
