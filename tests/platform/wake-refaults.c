/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * WAKE of a page that is still missing makes the thread fault again, with a
 * new message; the old one may be dropped. A range wakes all in it.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_registered(fd, 8), page[PAGE];
    struct thread t = { .addr = guest + 5 * PAGE };
    struct uffd_msg msg;

    memset(page, 0x11, PAGE);
    thread_start(&t, touch_byte);
    wait_fault(fd);
    for (int i = 0; i < 3; i++) {
        wait_asleep(t.tid);
        expect(memx_uffd_read(fd, &msg, 1), 0);
        expect(memx_uffd_wake(fd, guest, 8 * PAGE), 0);
        msg = wait_fault(fd);
        check((msg.arg.pagefault.address & ~(PAGE - 1)) == (uintptr_t)t.addr,
              "another page");
    }
    expect(memx_uffd_copy(fd, (char *)t.addr, page, PAGE, 0), PAGE);
    thread_join(&t);
    expect(t.result, 0x11);
    return 0;
}
