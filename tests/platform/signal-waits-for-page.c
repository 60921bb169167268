/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A signal is not delivered while a system call waits for a page: the handler
 * runs after the page came. So nobody may wait for such a thread to answer.
 * Instead of sleeping on, the thread faults again and again until then (seen
 * on 6.18): one page may cause any number of messages.
 */
#include "platform.h"

#include <signal.h>

static atomic_bool handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_store(&handled, true);
}

static void read_pipe(struct thread *t)
{
    t->result = read(t->fd, (void *)t->addr, 100);
}

int main(void)
{
    int fd = open_uffd(), pipe_fds[2];
    char *guest = map_registered(fd, 1), page[PAGE] = { 0 };
    struct thread t = { .addr = guest };
    struct uffd_msg msgs[64];
    long again = 0;

    signal(SIGUSR1, on_signal);
    check(pipe(pipe_fds) == 0, "%s", strerror(errno));
    expect(write(pipe_fds[1], page, 100), 100);
    t.fd = pipe_fds[0];
    thread_start(&t, read_pipe);
    wait_fault(fd);
    wait_asleep(t.tid);

    expect(pthread_kill(t.thread, SIGUSR1), 0);
    for (int i = 0; i < 100; i++) {
        linger(1);
        again += memx_uffd_read(fd, msgs, 64);
    }
    check(!handled && !t.done, "the signal came through");
    printf("state %c, %ld more messages in 100 ms\n", thread_state(t.tid),
           again);
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), PAGE);
    thread_join(&t);
    expect(t.result, 100);
    check(handled, "the signal was lost");
    return 0;
}
