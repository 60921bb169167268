/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reason why everything is brought home before UNREGISTER, and why the
 * descriptor is never closed before: who waits then gets a page of zeros.
 */
#include "platform.h"

int main(void)
{
    for (int closing = 0; closing <= 1; closing++) {
        int fd = open_uffd();
        char *guest = map_registered(fd, 1);
        struct thread t = { .addr = guest, .result = 0x55 };

        thread_start(&t, touch_byte);
        wait_fault(fd);
        wait_asleep(t.tid);
        if (closing) {
            close(fd);
        } else {
            check(memx_uffd_unregister(fd, guest, PAGE, NULL), "unregister");
        }
        thread_join(&t);
        expect(t.result, 0);
    }
    return 0;
}
