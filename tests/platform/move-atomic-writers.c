/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MOVE is atomic against writers, and what a MOVE has returned with is final.
 *
 * Two threads count up words of the same pages, while runs of pages are moved
 * to staging and back under them. No increment is lost, and a page in staging
 * never changes once MOVE has returned. Nobody serves faults: the writers
 * sleep until the MOVE back wakes them.
 */
#include <fcntl.h>
#include "platform.h"

#define PAGES 64
#define ROUNDS 20000
#define LEAST_ROUNDS 100
#define WORDS (PAGE / sizeof(uint64_t))

static atomic_bool stop;

/* Increment word t->fd of random pages; t->result counts per program. */
static uint64_t counts[2][PAGES];

static void writer(struct thread *t)
{
    volatile uint64_t *words = (volatile uint64_t *)t->addr;
    unsigned seed = t->fd + 1;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        unsigned page = (unsigned)rand_r(&seed) % PAGES;

        words[page * WORDS + t->fd]++;
        counts[t->fd][page]++;
    }
}

static uint64_t sum(const char *pages, size_t n)
{
    const uint64_t *words = (const uint64_t *)pages;
    uint64_t total = 0;

    for (size_t i = 0; i < n * WORDS; i++) {
        total = total * 31 + words[i];
    }
    return total;
}

/* The kernel may just be migrating one of them. */
static void move_run(int fd, int pagemap, char *to, char *from, size_t n)
{
    for (size_t at = 0; at < n * PAGE; ) {
        ssize_t done = memx_uffd_move_sure(fd, pagemap, to + at, from + at,
                                           n * PAGE - at, 0);

        check(done > 0 || done == -EAGAIN, "%s", strerror(-done));
        at += done > 0 ? done : 0;
    }
}

int main(void)
{
    int fd = open_uffd(), pagemap = open("/proc/self/pagemap", O_RDONLY);
    char *guest = map_filled(fd, PAGES, 0);
    char *staging = map_registered(fd, PAGES);
    struct thread writers[2];
    unsigned seed = 7;
    uint64_t all = 0;
    int rounds = 0;

    check(pagemap >= 0, "pagemap: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        writers[i] = (struct thread) { .addr = guest, .fd = i };
        thread_start(&writers[i], writer);
    }
    while (rounds < ROUNDS && (rounds < LEAST_ROUNDS || !long_enough())) {
        size_t n = 1 + (unsigned)rand_r(&seed) % 8;
        size_t at = (unsigned)rand_r(&seed) % (PAGES - n) * PAGE;
        struct uffd_msg dropped[8];
        uint64_t before;

        move_run(fd, pagemap, staging + at, guest + at, n);
        before = sum(staging + at, n);
        sched_yield();
        check(sum(staging + at, n) == before, "staging changed");
        move_run(fd, pagemap, guest + at, staging + at, n);
        check(memx_uffd_read(fd, dropped, 8) >= 0, "read");
        rounds++;
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        thread_join(&writers[i]);
        for (size_t page = 0; page < PAGES; page++) {
            uint64_t found = ((uint64_t *)guest)[page * WORDS + i];

            check(found == counts[i][page], "writer %d, page %zu: %" PRIu64
                  " of %" PRIu64, i, page, found, counts[i][page]);
            all += found;
        }
    }
    check(all > (uint64_t)rounds, "the writers hardly ran: %" PRIu64, all);
    printf("%" PRIu64 " increments, %d moves out and back\n", all, rounds);
    return 0;
}
