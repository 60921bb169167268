/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What memx_uffd_move_sure() counts has moved, and nothing else has, while the
 * kernel migrates the same pages (compaction). MOVE alone miscounts on 6.18: it
 * calls pages that it has just moved obstacles, -EEXIST.
 */
#include <fcntl.h>
#include "platform.h"

#define GROUP 64
#define GROUPS 512
#define ROUNDS 40000
#define LEAST_ROUNDS 500

static atomic_bool stop;

static void compact(struct thread *t)
{
    while (!atomic_load(&stop)) {
        if (write(t->fd, "1", 1) != 1) {
            return;
        }
    }
}

/* Moves a group; returns how often the kernel alone counted too little. */
static unsigned move_group(int fd, int pagemap, char *to, char *from)
{
    unsigned wrong = 0;

    for (size_t at = 0; at < GROUP * PAGE; ) {
        ssize_t done = memx_uffd_move_sure(fd, pagemap, to + at, from + at,
                                           GROUP * PAGE - at, 0);

        check(done > 0 || done == -EAGAIN || done == -EBUSY,
              "page %zu: %s", at / PAGE, strerror(-done));
        for (ssize_t i = 0; i < done; i += PAGE) {
            check(mapped(to + at + i) && !mapped(from + at + i),
                  "page %zu of %zd was counted", (at + i) / PAGE,
                  done / PAGE);
        }
        at += done > 0 ? done : 0;
        wrong += at < GROUP * PAGE && mapped(to + at) && !mapped(from + at);
    }
    return wrong;
}

int main(void)
{
    int fd = open_uffd(), pagemap = open("/proc/self/pagemap", O_RDONLY);
    struct thread compactor = {
        .fd = open("/proc/sys/vm/compact_memory", O_WRONLY)
    };
    char *guest = map_filled(fd, GROUPS * GROUP, 1);
    char *staging = map_registered(fd, GROUP);
    unsigned seed = 7, wrong = 0;
    int rounds = 0;

    check(pagemap >= 0, "pagemap: %s", strerror(errno));
    if (compactor.fd < 0) {
        skip("no compaction on demand: %s", strerror(errno));
    }
    for (size_t page = 0; page < GROUPS * GROUP; page++) {
        *(size_t *)(guest + page * PAGE) = page;
    }
    thread_start(&compactor, compact);
    while (rounds < ROUNDS && (rounds < LEAST_ROUNDS || !long_enough())) {
        char *group = guest + (unsigned)rand_r(&seed) % GROUPS * GROUP * PAGE;

        wrong += move_group(fd, pagemap, staging, group);
        wrong += move_group(fd, pagemap, group, staging);
        rounds++;
    }
    atomic_store(&stop, true);
    thread_join(&compactor);
    for (size_t page = 0; page < GROUPS * GROUP; page++) {
        check(*(size_t *)(guest + page * PAGE) == page, "page %zu", page);
    }
    printf("%d rounds; the kernel counted too little %u times\n", rounds,
           wrong);
    return 0;
}
