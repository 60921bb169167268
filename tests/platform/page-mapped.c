/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pagemap tells a missing page from one that is there, without a fault and
 * without privilege; so does mincore(), for memory that is not swapped out.
 */
#include "platform.h"

static int in_core(char *page)
{
    unsigned char vec = 0;

    expect(mincore(page, PAGE, &vec), 0);
    return vec & 1;
}

int main(void)
{
    int fd = open_uffd();
    char *guest = map_registered(fd, 3), *staging = map_registered(fd, 1);
    char page[PAGE] = { 1 };
    struct uffd_msg msg;

    check(!mapped(guest) && !in_core(guest), "a missing page is there");
    expect(memx_uffd_copy(fd, guest, page, PAGE, 0), PAGE);
    check(mapped(guest) && in_core(guest), "a copied page is not there");
    expect(memx_uffd_move(fd, staging, guest, PAGE, 0), PAGE);
    check(!mapped(guest) && !in_core(guest), "a moved page is there");
    check(mapped(staging) && in_core(staging), "a moved page did not arrive");
    expect(madvise(staging, PAGE, MADV_DONTNEED), 0);
    check(!mapped(staging) && !in_core(staging), "a discarded page is there");
    expect(munmap(staging, PAGE), 0);
    check(!mapped(staging), "an unmapped page is there");
    expect(memx_uffd_read(fd, &msg, 1), 0);
    return 0;
}
