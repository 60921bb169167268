/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A fault taken inside the kernel, here by read(2) into a missing page, is a
 * message like any other, with the thread that caused it; the call goes on
 * when the page is there, as KVM does.
 */
#include "platform.h"

static void read_pipe(struct thread *t)
{
    t->result = read(t->fd, (void *)t->addr, 100);
}

int main(void)
{
    int fd = open_uffd(), pipe_fds[2];
    char *guest = map_registered(fd, 1), page[PAGE], text[100];
    struct thread t = { .addr = guest };
    struct uffd_msg msg;

    memset(page, 0x11, PAGE);
    memset(text, 0x22, sizeof(text));
    check(pipe(pipe_fds) == 0, "%s", strerror(errno));
    expect(write(pipe_fds[1], text, sizeof(text)), sizeof(text));
    t.fd = pipe_fds[0];
    thread_start(&t, read_pipe);

    msg = wait_fault(fd);
    check(msg.arg.pagefault.address == (uintptr_t)guest, "wrong address");
    check(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE, "no write");
    check((int)msg.arg.pagefault.feat.ptid == t.tid, "wrong thread");
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), PAGE);
    thread_join(&t);
    expect(t.result, 100);
    check(memcmp(guest, text, 100) == 0 && guest[100] == 0x11, "content");
    return 0;
}
