/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reason why zero-copy-send is refused on memx RAM: a reader's reference
 * (FOLL_GET: vmsplice, MSG_ZEROCOPY) does not keep a page from being moved.
 * Its frame is then reused, and the reader sends what it holds by then.
 */
#include "platform.h"

#include <fcntl.h>
#include <sys/uio.h>

int main(void)
{
    int fd = open_uffd(), pipe_fds[2];
    char *guest = map_filled(fd, 1, 0x11), *staging = map_registered(fd, 1);
    char got[PAGE];
    struct iovec iov = { .iov_base = guest, .iov_len = PAGE };

    check(pipe(pipe_fds) == 0, "%s", strerror(errno));
    expect(vmsplice(pipe_fds[1], &iov, 1, 0), PAGE);
    expect(memx_uffd_move(fd, staging, guest, PAGE, 0), PAGE);
    memset(staging, 0x22, PAGE); /* the frame circulates */
    expect(read(pipe_fds[0], got, PAGE), PAGE);
    check(page_is(got, 0x22), "the reader got 0x%x", got[0]);
    return 0;
}
