/*
 * stream: sequential reading of a region four times its local size, against
 * raw TCP streaming over the same link.  With keep-copies=off every page
 * fetched also forces one to be sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "raw-tcp.h"
#include "region-tools.h"
#include "testbed.h"

#include <math.h>

#define LOCAL_SHARE 4

typedef struct StreamRun {
    Testbed *testbed;
    char *base;
    uint64_t bytes;
    double raw;             /* bytes per second */
    double memx;
    uint64_t wrong;
} StreamRun;

/* CPU time of this process and its servers since @start, per GiB. */
static double cpu_ms_per_gib(StreamRun *run, uint64_t start_ns)
{
    return (double)(child_cpu_ns_all() - start_ns) / 1e6 /
           ((double)run->bytes / (double)GIB);
}

static gpointer raw_in(gpointer opaque)
{
    StreamRun *run = opaque;

    run->raw = raw_tcp_stream_in(run->testbed->raw_fd, run->bytes);
    return NULL;
}

static gpointer read_all_pages(gpointer opaque)
{
    StreamRun *run = opaque;
    uint64_t start = bench_now_ns();

    for (uint64_t page = 0; page < run->bytes / PAGE_BYTES; page++) {
        if (!pattern_check(run->base + page * PAGE_BYTES, page, 1)) {
            run->wrong++;
        }
    }
    run->memx = (double)run->bytes / bench_seconds_since(start);
    return NULL;
}

typedef struct Moved {
    uint64_t fetched;
    uint64_t stored;
} Moved;

static Moved moved(MemxRegion *region)
{
    MemxStats stats;

    memx_region_stats(region, &stats);
    return (Moved) { stats.servers[0].fetched_bytes,
                     stats.servers[0].stored_bytes };
}

static bool repeat(StreamRun *run, MemxRegion *region, const char *name,
                   const Options *options, Report *report, Series *ratio,
                   GError **error)
{
    const Pinning *pinning = &run->testbed->pinning;
    CpuLoad load;
    Figure figure = figure_begin(name, "MB/s", "TCP, 1 MiB chunks", pinning,
                                 run->testbed->link->name, &load);
    Figure fetched = figure_begin("  fetched / read", "MiB", "read", pinning,
                                  run->testbed->link->name, &load);
    Figure cpu = figure_begin("  CPU time of both sides, per GiB", "ms",
                              "TCP", pinning, run->testbed->link->name,
                              &load);
    Figure sent = figure_begin("  sent / read", "MiB", "read", pinning,
                               run->testbed->link->name, &load);

    for (int i = -1; i < options->repetitions; i++) {
        uint64_t cpu_ns = child_cpu_ns_all();
        double raw_cpu, memx_cpu;
        Moved before;

        run_on(pinning->engine_cpu, raw_in, run);
        raw_cpu = cpu_ms_per_gib(run, cpu_ns);
        if (isnan(run->raw)) {
            g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                        "the raw TCP connection broke");
            return false;
        }
        before = moved(region);
        cpu_ns = child_cpu_ns_all();
        run_on(pinning->app_cpu, read_all_pages, run);
        memx_cpu = cpu_ms_per_gib(run, cpu_ns);
        if (i >= 0) {
            Moved after = moved(region);
            double read_mib = (double)run->bytes / (double)MIB;

            figure_add(&figure, run->raw / 1e6, run->memx / 1e6);
            figure_add(&cpu, raw_cpu, memx_cpu);
            figure_add(&fetched, read_mib, (double)(after.fetched -
                       before.fetched) / (double)MIB);
            figure_add(&sent, read_mib, (double)(after.stored -
                       before.stored) / (double)MIB);
        }
        report_verified(report, run->bytes / PAGE_BYTES);
        if (run->wrong) {
            g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                        "%" G_GUINT64_FORMAT " pages came back with another "
                        "content than was written", run->wrong);
            return false;
        }
    }
    figure_end(&figure, &load);
    cpu.others_cpus = fetched.others_cpus = sent.others_cpus =
        figure.others_cpus;
    if (!run->testbed->link->loopback) {
        report_link_filled(report, &figure, options->link_gbit);
    }
    report_figure(report, &figure);
    report_figure(report, &cpu);
    report_figure(report, &fetched);
    report_figure(report, &sent);
    *ratio = figure.ratio;
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    const Link *link, MemxKeepCopies keep, Report *report,
                    Series *ratio, GError **error)
{
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(MemxRegion) region = NULL;
    StreamRun run = { .bytes = options->quick ? 96 * MIB : 1 * GIB };

    testbed = testbed_new(options, pinning, link, 2 * run.bytes, error);
    if (!testbed) {
        return false;
    }
    region = testbed_region_new(testbed, run.bytes, run.bytes / LOCAL_SHARE,
                                keep, error);
    if (!region) {
        return false;
    }
    run.testbed = testbed;
    run.base = memx_region_base(region);
    pattern_fill_pages(run.base, 0, run.bytes / PAGE_BYTES, 1);
    return region_settle(region, error) &&
           repeat(&run, region, keep == MEMX_KEEP_COPIES_OFF ?
                  "sequential read, exclusive" : "sequential read",
                  options, report, ratio, error);
}

bool bench_stream(const Options *options, Report *report, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(Link) veth = link_veth_new(options->link_gbit, &local);
    g_autoptr(Link) loopback = link_loopback_new();
    Series ratio, exclusive, other;

    if (!veth) {
        report_verdict_missing(report, "ratio", local->message);
        report_verdict_missing(report, "ratio_exclusive", local->message);
    } else {
        if (!measure(options, PINNING_FREE, veth, MEMX_KEEP_COPIES_AUTO,
                     report, &ratio, error) ||
            !measure(options, PINNING_FREE, veth, MEMX_KEEP_COPIES_OFF,
                     report, &exclusive, error) ||
            (pinning_cpus() > 1 &&
             (!measure(options, PINNING_TWO_HOSTS, veth,
                       MEMX_KEEP_COPIES_AUTO, report, &other, error) ||
              !measure(options, PINNING_TWO_HOSTS, veth,
                       MEMX_KEEP_COPIES_OFF, report, &other, error)))) {
            return false;
        }
        report_verdict(report, "ratio", series_median(&ratio), 0.8, 0.95);
        report_verdict(report, "ratio_exclusive", series_median(&exclusive),
                       0.4, 0.8);
    }
    return measure(options, PINNING_FREE, loopback, MEMX_KEEP_COPIES_AUTO,
                   report, &other, error) &&
           measure(options, PINNING_FREE, loopback, MEMX_KEEP_COPIES_OFF,
                   report, &other, error);
}
