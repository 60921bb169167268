/*
 * evict: the local size of a full region, all of it changed, is lowered to a
 * tenth; against raw TCP sending over the same link.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "raw-tcp.h"
#include "region-tools.h"
#include "testbed.h"

#include <math.h>
#include <poll.h>

#define POLL_MS 1
#define TIMEOUT_S 120
#define SAMPLE_PAGES 2000

/* A tenth, in whole MiB. */
static uint64_t low_bytes(uint64_t bytes)
{
    return bytes / 10 & ~(MIB - 1);
}

typedef struct EvictRun {
    Testbed *testbed;
    MemxRegion *region;
    char *base;
    uint64_t bytes;
    uint32_t generation;
    double raw;             /* bytes per second */
    uint64_t wrong;
} EvictRun;

typedef struct Figures {
    Figure rate;
    Figure cpu;             /* time of this process and its servers */
} Figures;

static gpointer raw_out(gpointer opaque)
{
    EvictRun *run = opaque;

    run->raw = raw_tcp_stream_out(run->testbed->raw_fd, run->bytes);
    return NULL;
}

static gpointer rewrite(gpointer opaque)
{
    EvictRun *run = opaque;

    run->generation++;
    pattern_fill_pages(run->base, 0, run->bytes / PAGE_BYTES,
                       run->generation);
    return NULL;
}

static gpointer check_some(gpointer opaque)
{
    EvictRun *run = opaque;
    Random random = { run->generation };

    for (int i = 0; i < SAMPLE_PAGES; i++) {
        uint64_t page = random_below(&random, run->bytes / PAGE_BYTES);

        run->wrong += !pattern_check(run->base + page * PAGE_BYTES, page,
                                     run->generation);
    }
    return NULL;
}

/* Until the bound holds and all is acknowledged; bytes per second. */
static bool evict(EvictRun *run, double *rate, GError **error)
{
    MemxStats before, stats;
    uint64_t start = bench_now_ns();

    memx_region_stats(run->region, &before);
    if (!memx_region_set_local_bytes(run->region, low_bytes(run->bytes),
                                     error)) {
        return false;
    }
    do {
        poll(NULL, 0, POLL_MS);
        memx_region_stats(run->region, &stats);
        if (bench_seconds_since(start) > TIMEOUT_S) {
            g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                        "local memory is still %" G_GUINT64_FORMAT " bytes, "
                        "%d s after its size was lowered to %"
                        G_GUINT64_FORMAT, stats.local_bytes, TIMEOUT_S,
                        low_bytes(run->bytes));
            return false;
        }
    } while (stats.local_bytes > low_bytes(run->bytes));
    *rate = (double)(stats.servers[0].stored_bytes -
                     before.servers[0].stored_bytes) /
            bench_seconds_since(start);
    return true;
}

static double cpu_ms_per_gib(uint64_t start_ns, double bytes)
{
    return (double)(child_cpu_ns_all() - start_ns) / 1e6 /
           (bytes / (double)GIB);
}

static bool repetition(EvictRun *run, Figures *figures, bool keep,
                       GError **error)
{
    double rate, raw_cpu, memx_cpu;
    uint64_t cpu_ns = child_cpu_ns_all();

    run_on(run->testbed->pinning.engine_cpu, raw_out, run);
    raw_cpu = cpu_ms_per_gib(cpu_ns, (double)run->bytes);
    if (isnan(run->raw)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "the raw TCP connection broke");
        return false;
    }
    if (!memx_region_set_local_bytes(run->region, run->bytes, error)) {
        return false;
    }
    run_on(run->testbed->pinning.app_cpu, rewrite, run);
    if (!region_settle(run->region, error)) {
        return false;
    }
    cpu_ns = child_cpu_ns_all();
    if (!evict(run, &rate, error)) {
        return false;
    }
    memx_cpu = cpu_ms_per_gib(cpu_ns, (double)(run->bytes -
                                               low_bytes(run->bytes)));
    run_on(run->testbed->pinning.app_cpu, check_some, run);
    if (run->wrong) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                    "%" G_GUINT64_FORMAT " pages came back with another "
                    "content than was written", run->wrong);
        return false;
    }
    if (keep) {
        figure_add(&figures->rate, run->raw / 1e6, rate / 1e6);
        figure_add(&figures->cpu, raw_cpu, memx_cpu);
    }
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    const Link *link, Report *report, Series *ratio,
                    GError **error)
{
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(MemxRegion) region = NULL;
    EvictRun run = { .bytes = options->quick ? 192 * MIB : 1 * GIB };
    CpuLoad load;
    Figures figures;

    testbed = testbed_new(options, pinning, link, 2 * run.bytes, error);
    if (!testbed) {
        return false;
    }
    region = testbed_region_new(testbed, run.bytes, run.bytes,
                                MEMX_KEEP_COPIES_AUTO, error);
    if (!region) {
        return false;
    }
    run.testbed = testbed;
    run.region = region;
    run.base = memx_region_base(region);
    figures.rate = figure_begin("eviction", "MB/s", "TCP, 1 MiB chunks",
                                &testbed->pinning, link->name, &load);
    figures.cpu = figure_begin("  CPU time of both sides, per GiB", "ms",
                               "TCP", &testbed->pinning, link->name, &load);
    for (int i = -1; i < options->repetitions; i++) {
        if (!repetition(&run, &figures, i >= 0, error)) {
            return false;
        }
        report_verified(report, SAMPLE_PAGES);
    }
    figure_end(&figures.rate, &load);
    figure_end(&figures.cpu, &load);
    if (!link->loopback) {
        report_link_filled(report, &figures.rate, options->link_gbit);
    }
    report_figure(report, &figures.rate);
    report_figure(report, &figures.cpu);
    *ratio = figures.rate.ratio;
    return true;
}

bool bench_evict(const Options *options, Report *report, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(Link) veth = link_veth_new(options->link_gbit, &local);
    g_autoptr(Link) loopback = link_loopback_new();
    Series ratio, other;

    if (!veth) {
        report_verdict_missing(report, "ratio", local->message);
    } else {
        if (!measure(options, PINNING_FREE, veth, report, &ratio, error) ||
            (pinning_cpus() > 1 &&
             !measure(options, PINNING_TWO_HOSTS, veth, report, &other,
                      error))) {
            return false;
        }
        report_verdict(report, "ratio", series_median(&ratio), 0.8, 0.95);
    }
    return measure(options, PINNING_FREE, loopback, report, &other, error);
}
