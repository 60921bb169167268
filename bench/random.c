/*
 * random: uniformly random access to pages, half of them local and half of
 * the accesses writes, against kernel swap in a memory cgroup of the same
 * size.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "random-walk.h"
#include "region-tools.h"
#include "swap.h"
#include "testbed.h"

typedef struct RandomRun {
    const Options *options;
    Report *report;
    Testbed *testbed;
    MemxRegion *region;
    RandomWalk walk;
    uint64_t local_bytes;
} RandomRun;

static bool walk_region(RandomRun *run, double *rate, GError **error)
{
    run_on(run->testbed->pinning.app_cpu, random_walk_run, &run->walk);
    if (run->walk.wrong) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                    "%" G_GUINT64_FORMAT " pages came back with another "
                    "content than was written", run->walk.wrong);
        return false;
    }
    report_verified(run->report, run->walk.operations);
    *rate = (double)run->walk.operations / run->walk.seconds;
    return true;
}

static bool against(RandomRun *run, SwapDevice device, Series *ratio,
                    GError **error)
{
    const Pinning *pinning = &run->testbed->pinning;
    g_autoptr(Swap) swap = NULL;
    CpuLoad load;
    Figure figure = figure_begin(device == SWAP_FILE ?
                                 "random access / swap file" :
                                 "random access / zram", "ops/s",
                                 device == SWAP_FILE ? "swap to a file"
                                                     : "swap to zram",
                                 pinning, run->testbed->link->name, &load);

    swap = swap_new(run->options, device, run->walk.pages, run->local_bytes,
                    pinning->app_cpu, error);
    if (!swap) {
        return false;
    }
    for (int i = -1; i < run->options->repetitions; i++) {
        double raw, memx;

        if (!swap_walk(swap, run->walk.for_seconds, &raw, error) ||
            !walk_region(run, &memx, error)) {
            return false;
        }
        if (i >= 0) {
            figure_add(&figure, raw, memx);
        }
    }
    figure_end(&figure, &load);
    report_figure(run->report, &figure);
    *ratio = figure.ratio;
    return true;
}

/* NULL when it was measured; the reason when this machine can't. */
static bool try_against(RandomRun *run, SwapDevice device, Series *ratio,
                        char **reason, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (against(run, device, ratio, &local)) {
        return true;
    }
    if (g_error_matches(local, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE)) {
        *reason = g_strdup(local->message);
        return true;
    }
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

static bool compare(RandomRun *run, const char *key, double must, double aim,
                    GError **error)
{
    g_autofree char *no_file = NULL;
    g_autofree char *no_zram = NULL;
    Series ratio;

    if (!try_against(run, SWAP_FILE, &ratio, &no_file, error)) {
        return false;
    }
    if (no_file && must > 0) {
        report_verdict_missing(run->report, key, no_file);
    } else if (must > 0) {
        report_verdict(run->report, key, series_median(&ratio), must, aim);
    }
    if (!try_against(run, SWAP_ZRAM, &ratio, &no_zram, error)) {
        return false;
    }
    if (no_zram) {
        report_warn(run->report, "not compared with zram: %s", no_zram);
    }
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    Report *report, double must, double aim, GError **error)
{
    uint64_t bytes = options->quick ? 64 * MIB : 1 * GIB;
    g_autoptr(Link) link = link_loopback_new();
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(MemxRegion) region = NULL;
    RandomRun run = { .options = options, .report = report };
    bool ok;

    run.local_bytes = bytes / 2;
    testbed = testbed_new(options, pinning, link, 2 * bytes, error);
    if (!testbed) {
        return false;
    }
    region = testbed_region_new(testbed, bytes, run.local_bytes,
                                MEMX_KEEP_COPIES_AUTO, error);
    if (!region) {
        return false;
    }
    run.testbed = testbed;
    run.region = region;
    random_walk_init(&run.walk, bytes / PAGE_BYTES);
    run.walk.for_seconds = options->quick ? 0.3 : 4;
    random_walk_fill(&run.walk, memx_region_base(region));
    ok = compare(&run, "ops_ratio", must, aim, error);
    random_walk_destroy(&run.walk);
    return ok;
}

bool bench_random(const Options *options, Report *report, GError **error)
{
    return measure(options, PINNING_ONE_CPU, report, 1.5, 2, error) &&
           measure(options, PINNING_FREE, report, 0, 0, error);
}
