/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A range belongs to one userfaultfd: a second one is refused, whatever the
 * mode. So postcopy and background snapshots cannot share memx RAM silently.
 */
#include "platform.h"

#include <sys/ioctl.h>

int main(void)
{
    int first = open_uffd(), second = open_uffd();
    char *guest = map_registered(first, 4);
    g_autoptr(GError) error = NULL;
    struct uffdio_register wp = {
        .range = { (uintptr_t)guest + PAGE, PAGE },
        .mode = UFFDIO_REGISTER_MODE_WP,
    };

    check(!memx_uffd_register(second, guest + PAGE, PAGE, &error), "allowed");
    check(strstr(error->message, "another userfaultfd"), "%s", error->message);
    check(ioctl(second, UFFDIO_REGISTER, &wp) < 0 && errno == EBUSY,
          "write-protect mode allowed");
    check(memx_uffd_register(first, guest, 4 * PAGE, NULL),
          "registering again with the same one is refused");
    return 0;
}
