/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two threads that wait for one page send a message each; one fill wakes
 * both. So messages are not counted as pages, and the second may be dropped.
 */
#include "platform.h"

int main(void)
{
    int fd = open_uffd();
    char *guest = map_registered(fd, 1), page[PAGE];
    struct thread t[2] = { { .addr = guest }, { .addr = guest + 9 } };

    memset(page, 0x11, PAGE);
    for (int i = 0; i < 2; i++) {
        struct uffd_msg msg;

        thread_start(&t[i], touch_byte);
        msg = wait_fault(fd);
        check((int)msg.arg.pagefault.feat.ptid == t[i].tid, "wrong thread");
        wait_asleep(t[i].tid);
    }
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), PAGE);
    for (int i = 0; i < 2; i++) {
        thread_join(&t[i]);
        expect(t[i].result, 0x11);
    }
    return 0;
}
