/*
 * touch: what fresh memory costs: the first write to every page, against
 * plain anonymous memory without huge pages; and the memory that is held
 * when one page in 512 was written.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "raw-uffd.h"
#include "region-tools.h"
#include "testbed.h"

#include <stdio.h>
#include <sys/mman.h>

#define SPARSE_STEP 512     /* a page in so many */

typedef struct TouchRun {
    char *base;
    uint64_t pages;
    uint64_t step;
    double seconds;
} TouchRun;

static gpointer touch(gpointer opaque)
{
    TouchRun *run = opaque;
    uint64_t start = bench_now_ns();

    for (uint64_t page = 0; page < run->pages; page += run->step) {
        *(volatile uint64_t *)(run->base + page * PAGE_BYTES) = 1;
    }
    run->seconds = bench_seconds_since(start);
    return NULL;
}

static double touch_on(int cpu, void *base, uint64_t bytes, uint64_t step)
{
    TouchRun run = { base, bytes / PAGE_BYTES, step, 0 };

    run_on(cpu, touch, &run);
    return run.seconds;
}

static double touch_plain(int cpu, uint64_t bytes)
{
    char *base = plain_memory_new(bytes);
    double seconds = touch_on(cpu, base, bytes, 1);

    munmap(base, bytes);
    return seconds;
}

/* A field of /proc/self/status, which counts in kB. */
static double status_bytes(const char *field)
{
    g_autofree char *text = NULL;
    const char *found;
    unsigned long kb = 0;

    if (!g_file_get_contents("/proc/self/status", &text, NULL, NULL) ||
        !(found = strstr(text, field)) ||
        sscanf(found + strlen(field), ": %lu", &kb) != 1) {
        return 0;
    }
    return (double)kb * 1024;
}

static bool dense(Testbed *testbed, const Options *options, uint64_t bytes,
                  Figure *figure, GError **error)
{
    for (int i = -1; i < options->repetitions; i++) {
        g_autoptr(MemxRegion) region = NULL;
        double raw = touch_plain(testbed->pinning.app_cpu, bytes), memx;

        region = testbed_region_new(testbed, bytes, bytes,
                                    MEMX_KEEP_COPIES_AUTO, error);
        if (!region) {
            return false;
        }
        memx = touch_on(testbed->pinning.app_cpu, memx_region_base(region),
                        bytes, 1);
        if (i >= 0) {
            double pages = (double)(bytes / PAGE_BYTES);

            figure_add(figure, raw / pages * 1e6, memx / pages * 1e6);
        }
    }
    return true;
}

static bool sparse(Testbed *testbed, const Options *options, uint64_t bytes,
                   Figure *held, Figure *tables, GError **error)
{
    double touched = (double)(bytes / SPARSE_STEP);

    for (int i = -1; i < options->repetitions; i++) {
        g_autoptr(MemxRegion) region = NULL;
        MemxStats before, after;
        double rss, pte;

        region = testbed_region_new(testbed, bytes, bytes / 2,
                                    MEMX_KEEP_COPIES_AUTO, error);
        if (!region || !region_settle(region, error)) {
            return false;
        }
        memx_region_stats(region, &before);
        rss = status_bytes("RssAnon");
        pte = status_bytes("VmPTE");
        touch_on(testbed->pinning.app_cpu, memx_region_base(region), bytes,
                 SPARSE_STEP);
        rss = status_bytes("RssAnon") - rss;
        pte = status_bytes("VmPTE") - pte;
        memx_region_stats(region, &after);
        if (i >= 0) {
            /* What the kernel says and what the engine says: the worse. */
            figure_add(held, touched / (double)MIB,
                       MAX(rss, (double)after.local_bytes -
                                (double)before.local_bytes) / (double)MIB);
            figure_add(tables, touched / (double)MIB, pte / (double)MIB);
        }
    }
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    const Link *link, Report *report, Figure *time,
                    Figure *held, GError **error)
{
    uint64_t bytes = options->quick ? 64 * MIB : 1 * GIB;
    uint64_t sparse_bytes = options->quick ? 512 * MIB : 8 * GIB;
    g_autoptr(Testbed) testbed = NULL;
    CpuLoad load;
    Figure tables;

    testbed = testbed_new(options, pinning, link, 2 * sparse_bytes, error);
    if (!testbed) {
        return false;
    }
    *time = figure_begin("first write to each page", "us/page",
                         "plain anonymous memory", &testbed->pinning, NULL,
                         &load);
    if (!dense(testbed, options, bytes, time, error)) {
        return false;
    }
    figure_end(time, &load);
    report_figure(report, time);
    *held = figure_begin("held, a page in 512 written", "MiB",
                         "memory written", &testbed->pinning, NULL, &load);
    tables = *held;
    tables.name = "  kernel page tables, besides";
    if (!sparse(testbed, options, sparse_bytes, held, &tables, error)) {
        return false;
    }
    figure_end(held, &load);
    figure_end(&tables, &load);
    report_figure(report, held);
    report_figure(report, &tables);
    return true;
}

bool bench_touch(const Options *options, Report *report, GError **error)
{
    g_autoptr(Link) link = link_loopback_new();
    Figure time, held;

    if (!measure(options, PINNING_ONE_CPU, link, report, &time, &held,
                 error)) {
        return false;
    }
    report_verdict(report, "ratio", series_median(&time.ratio), 3, 1.5);
    report_verdict(report, "sparse_bytes_ratio", series_median(&held.ratio),
                   4, 2);
    return measure(options, PINNING_FREE, link, report, &time, &held, error);
}
