/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * O_DIRECT reads that race with MOVE lose nothing: a page under DMA is EBUSY
 * and stays, a page that went before the DMA began is faulted back in by it.
 */
#include "platform.h"

#include <poll.h>

#define PAGES 256
#define ROUNDS 2000
#define LEAST_ROUNDS 10

static char *guest, *staging;
static atomic_bool stop;

/* Serve faults on t->fd: move the page back from staging, or wake. */
static void serve(struct thread *t)
{
    struct pollfd pfd = { .fd = t->fd, .events = POLLIN };

    while (!atomic_load(&stop)) {
        struct uffd_msg msg;
        char *page;

        if (poll(&pfd, 1, 10) != 1 || memx_uffd_read(t->fd, &msg, 1) != 1) {
            continue;
        }
        page = (char *)((uintptr_t)msg.arg.pagefault.address & ~(PAGE - 1));
        if (memx_uffd_move(t->fd, page, staging + (page - guest), PAGE, 0) !=
            (ssize_t)PAGE) {
            memx_uffd_wake(t->fd, page, PAGE);
        }
    }
}

static void read_file(struct thread *t)
{
    t->result = pread(t->fd, (void *)t->addr, PAGES * PAGE, 0);
}

int main(void)
{
    int fd = open_uffd();
    int file = open_direct_file(PAGES * PAGE, 0x44);
    struct thread server = { .fd = fd };
    long moved = 0, busy = 0;
    int rounds = 0;

    guest = map_filled(fd, PAGES, 0);
    staging = map_registered(fd, PAGES);
    thread_start(&server, serve);
    while (rounds < ROUNDS && (!busy || rounds < 100) &&
           (rounds < LEAST_ROUNDS || !long_enough())) {
        struct thread reader = { .fd = file, .addr = guest };

        memset(guest, rounds & 1, PAGES * PAGE);
        thread_start(&reader, read_file);
        for (size_t at = 0; at < PAGES * PAGE; at += PAGE) {
            long ret = memx_uffd_move(fd, staging + at, guest + at, PAGE, 0);

            moved += ret == (long)PAGE;
            busy += ret == -EBUSY;
            check(ret == (long)PAGE || ret == -EBUSY || ret == -ENOENT ||
                  ret == -EEXIST, "%s", strerror(-ret));
        }
        thread_join(&reader);
        expect(reader.result, PAGES * PAGE);
        for (size_t at = 0; at < PAGES * PAGE; at += PAGE) {
            check(page_is(guest + at, 0x44), "lost a write at page %zu of "
                  "round %d", at / PAGE, rounds);
        }
        rounds++;
    }
    atomic_store(&stop, true);
    thread_join(&server);
    if (!busy || !moved) {
        skip("no MOVE met a read in flight in %d rounds", rounds);
    }
    printf("%ld pages moved, %ld times EBUSY\n", moved, busy);
    return 0;
}
