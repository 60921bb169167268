/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reason why unchanged pages are told by a hash: DMA into a page that was
 * pinned before it was write-protected changes it without any write fault.
 */
#include "platform-uring.h"

#include <sys/ioctl.h>

int main(void)
{
    int fd, file = open_direct_file(PAGE, 0x77);
    g_autoptr(GError) error = NULL;
    uint64_t features;
    struct io_uring ring;
    struct uffd_msg msg;
    char *guest = map_pages(1);

    fd = memx_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP, &features, &error);
    if (fd < 0 || !(features & UFFD_FEATURE_PAGEFAULT_FLAG_WP)) {
        skip("%s", error ? error->message : "no write-protect mode");
    }
    struct uffdio_register reg = {
        .range = { (uintptr_t)guest, PAGE },
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    struct uffdio_writeprotect wp = {
        .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
    };

    memset(guest, 0x11, PAGE);
    check(ioctl(fd, UFFDIO_REGISTER, &reg) == 0, "%s", strerror(errno));
    ring_pin(&ring, guest, PAGE);
    check(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0, "%s", strerror(errno));
    ring_read_fixed(&ring, file, guest, PAGE);
    expect(memx_uffd_read(fd, &msg, 1), 0);
    check(page_is(guest, 0x77), "the DMA did not arrive");
    return 0;
}
