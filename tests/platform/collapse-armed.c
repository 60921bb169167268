/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MADV_COLLAPSE of registered memory: a window all of whose pages are there
 * becomes a huge page, content unchanged, also under writers; one with a page
 * missing is refused, and the page stays missing.  MOVE of a part splits it, and
 * leaves the rest where it was; but pages of zeros lose their frames to the
 * kernel's page of zeros (6.12), and can't be collapsed again before they are
 * written.
 */
#include "platform-huge.h"

static char *guest;
static atomic_bool stop;

static void count_up(struct thread *t)
{
    volatile long *word = (volatile long *)(guest + 300 * PAGE);

    while (!atomic_load(&stop)) {
        ++*word;
        ++t->result;
    }
}

int main(void)
{
    int fd = open_uffd();
    char *staging = map_aligned(fd, 1);
    struct thread writer = { .fd = fd };

    guest = map_aligned(fd, 2);
    fill_by_copy(fd, guest, HUGE_BYTES, 0x11); /* of zeros it would keep none */
    fill_by_copy(fd, guest + HUGE_BYTES, HUGE_BYTES - PAGE, 0x22);

    *(long *)(guest + 300 * PAGE) = 0;
    thread_start(&writer, count_up);
    for (int i = 0; i < 20; i++) {
        collapse(guest);
        check(huge_kib(guest) == 2048, "not huge");
        /* A part goes, and comes back: small pages again. */
        expect(memx_uffd_move(fd, staging, guest, 64 * PAGE, 0), 64 * PAGE);
        check(huge_kib(guest) == 0, "still huge");
        check(!mapped(guest) && mapped(guest + 64 * PAGE), "the wrong part");
        expect(memx_uffd_move(fd, guest, staging, 64 * PAGE, 0), 64 * PAGE);
    }
    atomic_store(&stop, true);
    thread_join(&writer);
    check(*(long *)(guest + 300 * PAGE) == writer.result, "%ld of %ld writes",
          *(long *)(guest + 300 * PAGE), writer.result);

    check(madvise(guest + HUGE_BYTES, HUGE_BYTES, MADV_COLLAPSE) < 0,
          "a page was made up");
    check(!mapped(guest + 2 * HUGE_BYTES - PAGE), "a page was made up");
    check(page_is(guest + HUGE_BYTES, 0x22), "content");
    return 0;
}
