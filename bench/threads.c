/*
 * threads: faults per second of 1, 2, 4 and 8 threads, over raw userfaultfd
 * with as many: on memory touched for the first time, and on remote memory
 * (where raw makes a TCP round trip for each fault).
 *
 * Pages are touched in random order, so that each touch is a fault.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "raw-uffd.h"
#include "region-tools.h"
#include "testbed.h"
#include "toucher.h"

#define THREADS_MAX 8

static const int thread_counts[] = { 1, 2, 4, 8 };
#define N_COUNTS ((int)G_N_ELEMENTS(thread_counts))

typedef struct ThreadsRun {
    const Options *options;
    Testbed *testbed;
    RawUffd *raw;           /* answers at once */
    RawUffd *raw_tcp;       /* after a TCP round trip */
    MemxRegion *region;
    uint64_t bytes;
    size_t touches;
    uint32_t *order;
    uint64_t wrong;
} ThreadsRun;

/* Faults per second of @n threads that share the first touches of the order;
 * 0 if fewer pages than that are missing. */
static double touch(ThreadsRun *run, char *base, int n, uint32_t generation,
                    uint64_t seed)
{
    size_t missing = missing_pages(base, run->bytes / PAGE_BYTES, run->order,
                                   seed);
    size_t share = MIN(run->touches, missing) / (size_t)n;
    Toucher toucher[THREADS_MAX];
    GThread *thread[THREADS_MAX];
    uint64_t start = bench_now_ns();

    for (int i = 0; i < n; i++) {
        toucher[i] = (Toucher) {
            .base = base, .order = run->order + (size_t)i * share, .n = share,
            .generation = generation, .write = generation == NOT_CHECKED,
        };
        thread[i] = start_on(run->testbed->pinning.app_cpu, toucher_run,
                             &toucher[i]);
    }
    for (int i = 0; i < n; i++) {
        g_thread_join(thread[i]);
        run->wrong += toucher[i].wrong;
    }
    return (double)(share * (size_t)n) / bench_seconds_since(start);
}

/* Touches that were no faults, since the engine was ahead, don't count. */
static double touch_region(ThreadsRun *run, int n, uint32_t generation,
                           uint64_t seed)
{
    MemxStats before, after;
    double rate;

    memx_region_stats(run->region, &before);
    rate = touch(run, memx_region_base(run->region), n, generation, seed);
    memx_region_stats(run->region, &after);
    return rate * MIN(1.0, (double)(after.faults - before.faults) /
                           (double)(run->touches / (size_t)n * (size_t)n));
}

static bool first_touch(ThreadsRun *run, int n, int number, Figure *figure,
                        GError **error)
{
    double raw, memx;
    int ret;

    raw_uffd_empty(run->raw);
    raw = touch(run, raw_uffd_base(run->raw), n, NOT_CHECKED,
                (uint64_t)number);
    ret = memx_region_discard(run->region, 0, run->bytes);
    if (ret != 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "discarding the region failed: %s", g_strerror(-ret));
        return false;
    }
    if (!region_settle(run->region, error)) {
        return false;
    }
    memx = touch_region(run, n, NOT_CHECKED, (uint64_t)number);
    if (number >= 0) {
        figure_add(figure, raw, memx);
    }
    return true;
}

static bool remote(ThreadsRun *run, int n, int number, Figure *figure,
                   GError **error)
{
    double raw, memx;

    raw_uffd_empty(run->raw_tcp);
    raw = touch(run, raw_uffd_base(run->raw_tcp), n, NOT_CHECKED,
                (uint64_t)number);
    if (!region_make_remote(run->region, run->bytes / 8, run->bytes / 8 * 7,
                            error)) {
        return false;
    }
    memx = touch_region(run, n, 1, (uint64_t)number);
    if (number >= 0) {
        figure_add(figure, raw, memx);
    }
    return true;
}

typedef bool StepFunc(ThreadsRun *run, int n, int number, Figure *figure,
                      GError **error);

static bool repeat(ThreadsRun *run, StepFunc *step, const char *const *names,
                   const char *raw_name, const char *link, Report *report,
                   double *ratio, GError **error)
{
    Figure figure[N_COUNTS];
    CpuLoad load;

    for (int c = 0; c < N_COUNTS; c++) {
        figure[c] = figure_begin(names[c], "1/s", raw_name,
                                 &run->testbed->pinning, link, &load);
    }
    for (int i = -1; i < run->options->repetitions; i++) {
        for (int c = 0; c < N_COUNTS; c++) {
            if (!step(run, thread_counts[c], i, &figure[c], error)) {
                return false;
            }
        }
    }
    for (int c = 0; c < N_COUNTS; c++) {
        figure_end(&figure[c], &load);
        report_figure(report, &figure[c]);
        ratio[c] = series_median(&figure[c].ratio);
    }
    return true;
}

static bool both(ThreadsRun *run, Report *report, double *ratio,
                 double *remote_ratio, GError **error)
{
    static const char *const first_names[] = {
        "first touch, 1 thread", "first touch, 2 threads",
        "first touch, 4 threads", "first touch, 8 threads",
    };
    static const char *const remote_names[] = {
        "remote, 1 thread", "remote, 2 threads", "remote, 4 threads",
        "remote, 8 threads",
    };
    size_t touched = (size_t)(run->options->repetitions + 1) * N_COUNTS;

    if (!repeat(run, first_touch, first_names, "userfaultfd", NULL, report,
                ratio, error)) {
        return false;
    }
    pattern_fill_pages(memx_region_base(run->region), 0,
                       run->bytes / PAGE_BYTES, 1);
    if (!repeat(run, remote, remote_names, "userfaultfd + TCP",
                run->testbed->link->name, report, remote_ratio, error)) {
        return false;
    }
    report_verified(report, touched * run->touches);
    if (run->wrong) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                    "%" G_GUINT64_FORMAT " pages came back with another "
                    "content than was written", run->wrong);
        return false;
    }
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    Report *report, double *ratio, double *remote_ratio,
                    GError **error)
{
    ThreadsRun run = {
        .options = options,
        .bytes = options->quick ? 128 * MIB : 256 * MIB,
        .touches = options->quick ? 1600 : 32000,
    };
    g_autoptr(Link) link = link_loopback_new();
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(MemxRegion) region = NULL;
    g_autoptr(RawUffd) raw = NULL;
    g_autoptr(RawUffd) raw_tcp = NULL;
    bool ok;

    testbed = testbed_new(options, pinning, link, 2 * run.bytes, error);
    if (!testbed) {
        return false;
    }
    raw = raw_uffd_new(run.bytes, testbed->pinning.engine_cpu, -1, error);
    raw_tcp = raw ? raw_uffd_new(run.bytes, testbed->pinning.engine_cpu,
                                 testbed->raw_fd, error) : NULL;
    region = raw_tcp ? testbed_region_new(testbed, run.bytes, run.bytes,
                                          MEMX_KEEP_COPIES_AUTO, error)
                     : NULL;
    if (!region) {
        return false;
    }
    run.testbed = testbed;
    run.raw = raw;
    run.raw_tcp = raw_tcp;
    run.region = region;
    run.order = g_new(uint32_t, run.bytes / PAGE_BYTES);
    ok = both(&run, report, ratio, remote_ratio, error);
    g_free(run.order);
    return ok;
}

bool bench_threads(const Options *options, Report *report, GError **error)
{
    double ratio[N_COUNTS], remote_ratio[N_COUNTS];

    if (!measure(options, PINNING_ONE_CPU, report, ratio, remote_ratio,
                 error)) {
        return false;
    }
    report_verdict_list(report, "ratio", ratio, N_COUNTS, 0.6, 0.8);
    report_verdict_list(report, "remote_ratio", remote_ratio, N_COUNTS, 0.6,
                        0.8);
    return measure(options, PINNING_FREE, report, ratio, remote_ratio,
                   error);
}
