/*
 * Toucher: see toucher.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "pattern.h"
#include "toucher.h"
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static inline void touch(Toucher *toucher, char *memory)
{
    volatile uint64_t *word = (volatile uint64_t *)memory;

    if (toucher->write) {
        word[1] = 1;
    } else {
        (void)word[0];
    }
}

/* Looking first whether the page is there costs raw and ours the same. */
static void touch_timed(Toucher *toucher, int pagemap_fd, char *memory)
{
    uint64_t start;

    if (memx_page_mapped(pagemap_fd, memory) != 0) {
        toucher->there++;
        return;
    }
    start = bench_now_ns();
    touch(toucher, memory);
    samples_add(toucher->samples, bench_now_ns() - start);
    toucher->touched++;
}

void *toucher_run(void *opaque)
{
    Toucher *toucher = opaque;
    Samples *samples = toucher->samples;
    int pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (pagemap_fd < 0) {
        g_error("/proc/self/pagemap: %s", g_strerror(errno));
    }
    for (size_t i = 0; i < toucher->n; i++) {
        uint64_t page = toucher->order[i];
        char *memory = toucher->base + page * PAGE_BYTES;

        if (samples) {
            if (samples->n == samples->max ||
                (toucher->stop && g_atomic_int_get(toucher->stop))) {
                break;
            }
            touch_timed(toucher, pagemap_fd, memory);
        } else {
            touch(toucher, memory);
            toucher->touched++;
        }
        if (toucher->generation != NOT_CHECKED &&
            !pattern_check(memory, page, toucher->generation)) {
            toucher->wrong++;
        }
    }
    close(pagemap_fd);
    return NULL;
}
