/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * With MADV_NOHUGEPAGE one written byte costs one page, even where huge pages
 * were asked for before: never-written memory stays free. (With huge pages it
 * costs 2 MiB, as the output shows where the machine has them.)
 */
#include "platform.h"

#define PAGES 1024 /* an aligned 2 MiB is somewhere in it */

static size_t pages_of_one_byte(bool huge)
{
    char *guest = map_pages(PAGES);
    size_t there = 0;

    madvise(guest, PAGES * PAGE, MADV_HUGEPAGE);
    if (!huge) {
        madvise(guest, PAGES * PAGE, MADV_NOHUGEPAGE);
    }
    *(char *)(((uintptr_t)guest + PAGES * PAGE / 2) & -(512 * PAGE)) = 1;
    for (size_t i = 0; i < PAGES; i++) {
        there += mapped(guest + i * PAGE);
    }
    return there;
}

int main(void)
{
    printf("one byte where huge pages are allowed: %zu pages\n",
           pages_of_one_byte(true));
    expect(pages_of_one_byte(false), 1);
    return 0;
}
