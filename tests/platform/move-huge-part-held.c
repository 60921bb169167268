/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE of a part of a huge page of which somebody holds another page (pinned,
 * or in a pipe): the kernel can't split it.  Linux 6.18 refuses, EBUSY.  Linux
 * 6.12 tries again for ever, inside, with the mapping locked, until it is let
 * go: so memx must never ask for that.  Both are shown; neither is a failure.
 */
#include <fcntl.h>
#include <sys/uio.h>
#include "platform-huge.h"

static char *staging, *guest;

static void move_part(struct thread *t)
{
    t->result = memx_uffd_move(t->fd, staging, guest, 64 * PAGE, 0);
}

int main(void)
{
    struct thread mover = { .fd = open_uffd() };
    struct iovec iov;
    int held[2];

    guest = map_aligned(mover.fd, 1);
    staging = map_aligned(mover.fd, 1);
    fill_by_copy(mover.fd, guest, HUGE_BYTES, 0x11);
    collapse(guest);
    iov = (struct iovec) { guest + 100 * PAGE, PAGE };
    check(pipe2(held, O_CLOEXEC) == 0, "%s", strerror(errno));
    expect(vmsplice(held[1], &iov, 1, 0), PAGE);

    thread_start(&mover, move_part);
    for (int i = 0; i < 500 && !atomic_load(&mover.done); i++) {
        linger(1);
    }
    if (atomic_load(&mover.done)) {
        printf("refused: %s\n", strerror(-mover.result));
        check(mover.result == -EBUSY || mover.result == -EAGAIN, "%ld",
              mover.result);
        check(mapped(guest) && !mapped(staging), "it went");
    } else {
        printf("it waits in the kernel\n");
    }
    close(held[0]);
    close(held[1]); /* lets the page go */
    thread_join(&mover);
    return 0;
}
