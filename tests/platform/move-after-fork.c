/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reason for MADV_DONTFORK on guest memory and staging: a page that a
 * fork shared is EBUSY for MOVE, and stays so when the child is long gone,
 * until somebody writes to it. Memory marked DONTFORK is not affected.
 */
#include "platform.h"

#include <sys/wait.h>

int main(void)
{
    int fd = open_uffd();
    char *shared = map_filled(fd, 1, 0x11), *kept = map_filled(fd, 1, 0x22);
    char *staging = map_registered(fd, 2);
    pid_t child;

    expect(madvise(kept, PAGE, MADV_DONTFORK), 0);
    child = fork();
    if (child == 0) {
        _exit(0);
    }
    check(child > 0 && waitpid(child, NULL, 0) == child, "fork");

    expect(memx_uffd_move(fd, staging, shared, PAGE, 0), -EBUSY);
    expect(memx_uffd_move(fd, staging + PAGE, kept, PAGE, 0), PAGE);
    shared[0] = 0x11;
    expect(memx_uffd_move(fd, staging, shared, PAGE, 0), PAGE);
    check(page_is(staging, 0x11) && page_is(staging + PAGE, 0x22), "content");
    return 0;
}
