/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * tick: writes a byte to QEMU's debug port every millisecond, before anything
 * else in the guest: whoever reads the other end sees when the guest stood
 * still, by a clock that went on meanwhile.
 *
 * A tick that is late is not made up for: the next one is a millisecond
 * after it.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <time.h>

enum { PORT = 0xe9, PERIOD_NS = 1000000 };

int main(void)
{
    struct sched_param first = { .sched_priority = 50 };
    struct timespec period = { .tv_nsec = PERIOD_NS };

    if (ioperm(PORT, 1, 1) < 0 || mlockall(MCL_CURRENT | MCL_FUTURE) < 0 ||
        sched_setscheduler(0, SCHED_FIFO, &first) < 0) {
        perror("tick");
        return 1;
    }
    while (1) {
        clock_nanosleep(CLOCK_MONOTONIC, 0, &period, NULL);
        outb('.', PORT);
    }
}
