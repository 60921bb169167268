/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE moves the frame itself: nothing is allocated or copied, so frames can
 * circulate between guest memory and staging. Frame numbers show it (root).
 */
#include "platform.h"

#include <fcntl.h>

static uint64_t frame(const char *page)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entry = 0;

    expect(pread(fd, &entry, sizeof(entry),
                 (uintptr_t)page / PAGE * sizeof(entry)), sizeof(entry));
    close(fd);
    return entry & ((1ULL << 55) - 1);
}

int main(void)
{
    int fd = open_uffd();
    char *guest = map_filled(fd, 1, 0x11), *staging = map_registered(fd, 1);
    uint64_t before;

    before = frame(guest);
    if (!before) {
        skip("frame numbers are hidden without CAP_SYS_ADMIN");
    }
    expect(memx_uffd_move(fd, staging, guest, PAGE, 0), PAGE);
    check(frame(staging) == before, "another frame");
    expect(memx_uffd_move(fd, guest, staging, PAGE, 0), PAGE);
    check(frame(guest) == before, "another frame");
    return 0;
}
