/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reason why MOVE is the only way out: MADV_DONTNEED takes even a page
 * that is pinned for DMA, and what the device then writes is lost.
 */
#include "platform-uring.h"

int main(void)
{
    int fd = open_uffd(), file = open_direct_file(PAGE, 0x33);
    char *guest = map_filled(fd, 1, 0x11), old[PAGE];
    struct io_uring ring;

    memset(old, 0x11, PAGE);
    ring_pin(&ring, guest, PAGE);
    expect(madvise(guest, PAGE, MADV_DONTNEED), 0);
    check(!mapped(guest), "it stayed");
    ring_read_fixed(&ring, file, guest, PAGE);
    check(!mapped(guest), "the DMA faulted it back in");
    /* What a pager would bring back knows nothing of the write. */
    expect(memx_uffd_copy(fd, guest, old, PAGE, 0), PAGE);
    check(page_is(guest, 0x11), "the write arrived after all");
    return 0;
}
