/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * rapid-write MBYTES SECONDS
 *
 * Writes MBYTES of memory, sleeps SECONDS, and so on for ever, as RapidWrite
 * of the S-memV paper does (section V.B).  Prints a line after each round.
 * With 0 SECONDS it writes once and keeps what it wrote.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_WORDS = 4096 / sizeof(uint64_t) };

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* No two pages alike, none zero, and each round changes all of them. */
static void write_page(uint64_t *page, uint64_t number, uint64_t round)
{
    uint64_t word = (number + 1) * UINT64_C(0x9e3779b97f4a7c15) + round;

    for (unsigned i = 0; i < PAGE_WORDS; i += 8) {
        page[i] = page[i + 1] = page[i + 2] = page[i + 3] = word + i;
        page[i + 4] = page[i + 5] = page[i + 6] = page[i + 7] = ~word - i;
    }
}

int main(int argc, char **argv)
{
    uint64_t bytes = argc == 3 ? strtoull(argv[1], NULL, 10) << 20 : 0;
    unsigned seconds = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    char *memory;

    if (!bytes) {
        fprintf(stderr, "usage: rapid-write MBYTES SECONDS\n");
        return 2;
    }
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("rapid-write: mmap");
        return 1;
    }
    for (uint64_t round = 1; ; round++) {
        double began = now_s();

        for (uint64_t at = 0; at < bytes; at += 4096) {
            write_page((uint64_t *)(memory + at), at / 4096, round);
        }
        printf("round %llu: %.2f s\n", (unsigned long long)round,
               now_s() - began);
        fflush(stdout);
        while (seconds == 0) {
            pause();
        }
        sleep(seconds);
    }
}
