/*
 * Swap: see swap.h.
 *
 * The worker (this program, started as "memx-bench swap-worker PAGES") says
 * "ready" when it has all memory but the pages; it is then put into the
 * cgroup, whose limit is set to what the group holds, plus the pages' local
 * share and page tables.  "fill" and "walk SECONDS" are its orders.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "child.h"
#include "memory-cgroup.h"
#include "pinning.h"
#include "raw-uffd.h"
#include "swap.h"
#include "swap-area.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_TIMEOUT_S 300
#define SLACK_BYTES (1 * MIB) /* the worker's stack and the like */

struct Swap {
    SwapArea *area;
    MemoryCgroup *cgroup;
    Child *worker;
};

/* The kernel may find no page to swap out in time, and then kills although
 * there is room: it can't be measured, which says something too. */
static bool order(Swap *swap, const char *line, char **answer,
                  GError **error)
{
    if (child_tell(swap->worker, line, error) &&
        (*answer = child_hear(swap->worker, "done", ANSWER_TIMEOUT_S,
                              error)) != NULL) {
        return true;
    }
    if (child_killed(swap->worker)) {
        g_clear_error(error);
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "the kernel's OOM killer ended the swapping process "
                    "although its swap had room; try again");
    }
    return false;
}

static bool start_worker(Swap *swap, const Options *options, uint64_t pages,
                         int cpu, GError **error)
{
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, pages);
    const char *argv[] = { options->self, "swap-worker", text, NULL };
    g_autofree char *ready = NULL;

    pin_thread(cpu);
    swap->worker = child_start(argv, CHILD_STDOUT, error);
    pin_thread(CPU_ANY);
    if (!swap->worker ||
        !memory_cgroup_add(swap->cgroup, child_pid(swap->worker), error)) {
        return false;
    }
    ready = child_hear(swap->worker, "ready", ANSWER_TIMEOUT_S, error);
    return ready != NULL;
}

Swap *swap_new(const Options *options, SwapDevice device, uint64_t pages,
               uint64_t local_bytes, int cpu, GError **error)
{
    g_autoptr(Swap) swap = g_new0(Swap, 1);
    uint64_t bytes = pages * PAGE_BYTES;
    uint64_t generations = pages * sizeof(uint32_t);
    g_autofree char *answer = NULL;

    swap->cgroup = memory_cgroup_new(error);
    if (!swap->cgroup) {
        return NULL;
    }
    swap->area = device == SWAP_FILE
        ? swap_area_file_new(options->scratch, bytes + 64 * MIB, error)
        : swap_area_zram_new(bytes + 64 * MIB, error);
    if (!swap->area || !start_worker(swap, options, pages, cpu, error)) {
        return NULL;
    }
    if (!memory_cgroup_limit(swap->cgroup, local_bytes + generations +
                             bytes / 512 + SLACK_BYTES, error) ||
        !order(swap, "fill", &answer, error)) {
        return NULL;
    }
    return g_steal_pointer(&swap);
}

void swap_free(Swap *swap)
{
    if (!swap) {
        return;
    }
    child_stop(swap->worker);
    swap_area_free(swap->area);
    memory_cgroup_free(swap->cgroup);
    g_free(swap);
}

bool swap_walk(Swap *swap, double seconds, double *rate, GError **error)
{
    g_autofree char *line = g_strdup_printf("walk %.3f", seconds);
    g_autofree char *answer = NULL;
    unsigned long long operations, wrong;
    double took;

    if (!order(swap, line, &answer, error)) {
        return false;
    }
    if (sscanf(answer, "%llu %lf %llu", &operations, &took, &wrong) != 3 ||
        wrong > 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                    "the swap worker failed: operations, seconds, wrong "
                    "pages:%s", answer);
        return false;
    }
    *rate = (double)operations / took;
    return true;
}

int swap_worker_main(const char *text)
{
    uint64_t pages = g_ascii_strtoull(text, NULL, 10);
    g_autofree char *line = g_malloc(256);
    RandomWalk walk;
    char *base;

    if (pages == 0) {
        return 2;
    }
    random_walk_init(&walk, pages);
    base = plain_memory_new(pages * PAGE_BYTES);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready\n");
    while (fgets(line, 256, stdin)) {
        if (g_str_has_prefix(line, "walk ")) {
            walk.for_seconds = g_ascii_strtod(line + 5, NULL);
            random_walk_run(&walk);
        } else {
            random_walk_fill(&walk, base);
        }
        printf("done %llu %f %llu\n", (unsigned long long)walk.operations,
               walk.seconds, (unsigned long long)walk.wrong);
    }
    return 0;
}
