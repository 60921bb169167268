/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * EEXIST wakes nobody: a thread that waited when another filled its page
 * without waking (or raced with the fill) sleeps on, until WAKE.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_registered(fd, 1), page[PAGE];
    struct thread t = { .addr = guest };

    memset(page, 0x11, PAGE);
    thread_start(&t, touch_byte);
    wait_fault(fd);
    wait_asleep(t.tid);
    expect(memx_uffd_copy(fd, guest, page, PAGE, MEMX_MOVE_DONTWAKE), PAGE);
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), -EEXIST);
    linger(50);
    check(!t.done && strchr("SD", thread_state(t.tid)), "it woke");
    expect(memx_uffd_wake(fd, guest, PAGE), 0);
    thread_join(&t);
    expect(t.result, 0x11);
    return 0;
}
