/*
 * load: the latency of a fault on a remote page while memory is sent away at
 * half of what the link carries, against the same with eviction idle.
 *
 * A writer touches fresh memory for the first time, at the pace wanted, so
 * that as much has to be evicted; what it wrote a whole zone ago it discards,
 * which makes it fresh again.  So nothing is fetched but what the measuring
 * thread faults on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "raw-tcp.h"
#include "region-tools.h"
#include "testbed.h"
#include "toucher.h"

#include <math.h>
#include <unistd.h>

#define STEP_NS 1000000     /* the writer's */
#define RAMP_MS 500         /* from the writer's start to the measurement */

/* [0, read_bytes): what is faulted on.  Behind it: the writer's zone. */
typedef struct LoadRun {
    Testbed *testbed;
    MemxRegion *region;
    char *base;
    uint64_t read_bytes;
    uint64_t write_bytes;
    uint64_t local_bytes;
    double pace;            /* bytes per second wanted */
    uint32_t *order;
    Samples *samples;
    int bulk_fd;            /* a second raw TCP connection */
    double tcp_p999;        /* of a raw round trip beside it */
    int stop_writer;
    uint64_t written_bytes;
    uint64_t wrong;
} LoadRun;

static gpointer raw_out(gpointer opaque)
{
    LoadRun *run = opaque;

    run->pace = raw_tcp_stream_out(run->testbed->raw_fd, 1 * GIB) / 2;
    return NULL;
}

static gpointer writer_run(gpointer opaque)
{
    LoadRun *run = opaque;
    uint64_t start = bench_now_ns(), next = start;
    uint64_t first = run->read_bytes / PAGE_BYTES;
    uint64_t pages = run->write_bytes / PAGE_BYTES, done = 0;

    while (!g_atomic_int_get(&run->stop_writer)) {
        double due = run->pace * bench_seconds_since(start);

        while ((double)(done * PAGE_BYTES) < due &&
               !g_atomic_int_get(&run->stop_writer)) {
            uint64_t page = first + done % pages;

            if (page * PAGE_BYTES % MIB == 0) {
                memx_region_discard(run->region, page * PAGE_BYTES, MIB);
            }
            pattern_write(run->base + page * PAGE_BYTES, page, 1);
            done++;
        }
        next += STEP_NS;
        bench_sleep_until(next);
    }
    run->written_bytes = done * PAGE_BYTES;
    return NULL;
}

static void touch(LoadRun *run, uint64_t seed)
{
    Toucher toucher = { .base = run->base, .order = run->order,
                        .generation = 1, .samples = run->samples };

    samples_clear(run->samples);
    toucher.n = missing_pages(run->base, run->read_bytes / PAGE_BYTES,
                              run->order, seed);
    run_on(run->testbed->pinning.app_cpu, toucher_run, &toucher);
    run->wrong += toucher.wrong;
}

static uint64_t sent_bytes(MemxRegion *region)
{
    MemxStats stats;

    memx_region_stats(region, &stats);
    return stats.servers[0].stored_bytes;
}

typedef struct Figures {
    Figure p999;            /* under load, over the idle p99 */
    Figure p50, p99;        /* under load, over the same idle */
    Figure rate;            /* bytes sent, over those wanted */
    Figure tcp;             /* p99.9 of a raw round trip, alike */
    Figure over_tcp;        /* p99.9 of ours over that */
} Figures;

static gpointer raw_ping_pong(gpointer opaque)
{
    LoadRun *run = opaque;

    samples_clear(run->samples);
    return GINT_TO_POINTER(raw_tcp_ping_pong(run->testbed->raw_fd,
                                             run->samples));
}

static gpointer raw_bulk(gpointer opaque)
{
    LoadRun *run = opaque;

    raw_tcp_stream_out_paced(run->bulk_fd, run->pace, &run->stop_writer);
    return NULL;
}

/* What raw TCP itself makes of a second connection that sends as much. */
static bool raw_under_load(LoadRun *run, Figures *figures, bool keep)
{
    int cpu = run->testbed->pinning.engine_cpu;
    GThread *bulk;
    double idle99;
    bool ok;

    ok = run_on(cpu, raw_ping_pong, run) != NULL;
    idle99 = samples_percentile_us(run->samples, 0.99);
    run->stop_writer = 0;
    bulk = start_on(cpu, raw_bulk, run);
    bench_sleep_until(bench_now_ns() + RAMP_MS * 1000000ull);
    ok = ok && run_on(cpu, raw_ping_pong, run) != NULL;
    g_atomic_int_set(&run->stop_writer, 1);
    g_thread_join(bulk);
    run->tcp_p999 = samples_percentile_us(run->samples, 0.999);
    if (keep) {
        figure_add(&figures->tcp, idle99, run->tcp_p999);
    }
    return ok;
}

static bool repetition(LoadRun *run, Figures *figures, int number,
                       GError **error)
{
    double idle50, idle99, seconds;
    uint64_t start_ns, start_bytes;
    GThread *writer;

    run_on(run->testbed->pinning.engine_cpu, raw_out, run);
    if (isnan(run->pace) || !raw_under_load(run, figures, number >= 0)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "the raw TCP connection broke");
        return false;
    }
    if (!region_make_remote(run->region, run->local_bytes / 2,
                            run->local_bytes, error)) {
        return false;
    }
    touch(run, (uint64_t)number);
    idle50 = samples_percentile_us(run->samples, 0.5);
    idle99 = samples_percentile_us(run->samples, 0.99);

    run->stop_writer = 0;
    writer = start_on(run->testbed->pinning.app_cpu, writer_run, run);
    bench_sleep_until(bench_now_ns() + RAMP_MS * 1000000ull);
    start_ns = bench_now_ns();
    start_bytes = sent_bytes(run->region);
    touch(run, (uint64_t)number + 1000);
    seconds = bench_seconds_since(start_ns);
    start_bytes = sent_bytes(run->region) - start_bytes;
    g_atomic_int_set(&run->stop_writer, 1);
    g_thread_join(writer);

    if (number >= 0) {
        figure_add(&figures->p999, idle99,
                   samples_percentile_us(run->samples, 0.999));
        figure_add(&figures->over_tcp, run->tcp_p999,
                   samples_percentile_us(run->samples, 0.999));
        figure_add(&figures->p99, idle99,
                   samples_percentile_us(run->samples, 0.99));
        figure_add(&figures->p50, idle50,
                   samples_percentile_us(run->samples, 0.5));
        figure_add(&figures->rate, run->pace / 1e6,
                   (double)start_bytes / seconds / 1e6);
    }
    return true;
}

static bool repeat(LoadRun *run, const Options *options, Report *report,
                   Figures *figures, GError **error)
{
    const Pinning *pinning = &run->testbed->pinning;
    const char *link = run->testbed->link->name;
    Figure *all[] = { &figures->p999, &figures->p99, &figures->p50,
                      &figures->rate, &figures->tcp,
                      &figures->over_tcp };
    CpuLoad load;

    figures->p999 = figure_begin("p99.9 under load / p99 idle", "us",
                                 "p99 idle", pinning, link, &load);
    figures->p99 = figure_begin("p99 under load / idle", "us", "p99 idle",
                                pinning, link, &load);
    figures->p50 = figure_begin("p50 under load / idle", "us", "p50 idle",
                                pinning, link, &load);
    figures->rate = figure_begin("sent / half of the link", "MB/s",
                                 "half of raw TCP", pinning, link, &load);
    figures->tcp = figure_begin("  TCP alone: p99.9 / p99 idle", "us",
                                "p99 idle", pinning, link, &load);
    figures->over_tcp = figure_begin("  p99.9 under load / TCP alone's", "us",
                                     "TCP alone", pinning, link, &load);
    for (int i = -1; i < options->repetitions; i++) {
        if (!repetition(run, figures, i, error)) {
            return false;
        }
        report_verified(report, 2 * run->samples->n);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
        figure_end(all[i], &load);
        report_figure(report, all[i]);
    }
    if (series_median(&figures->rate.ratio) < 0.9) {
        report_warn(report, "%s, %s: the writer and the evictor reached only "
                    "%.0f %% of the rate wanted", pinning->name, link,
                    100 * series_median(&figures->rate.ratio));
    }
    if (run->wrong) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_WRONG_DATA,
                    "%" G_GUINT64_FORMAT " pages came back with another "
                    "content than was written", run->wrong);
        return false;
    }
    return true;
}

static bool measure(const Options *options, PinningKind pinning,
                    const Link *link, Report *report, Figures *figures,
                    GError **error)
{
    LoadRun run = {
        .read_bytes = options->quick ? 64 * MIB : 512 * MIB,
        .write_bytes = options->quick ? 64 * MIB : 1 * GIB,
        .local_bytes = options->quick ? 48 * MIB : 256 * MIB,
    };
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(MemxRegion) region = NULL;
    uint64_t bytes = run.read_bytes + run.write_bytes;
    bool ok;

    testbed = testbed_new(options, pinning, link, 2 * bytes, error);
    if (!testbed) {
        return false;
    }
    run.bulk_fd = raw_tcp_connect(testbed->raw_address, error);
    if (run.bulk_fd < 0) {
        return false;
    }
    region = testbed_region_new(testbed, bytes, run.local_bytes,
                                MEMX_KEEP_COPIES_AUTO, error);
    if (!region) {
        close(run.bulk_fd);
        return false;
    }
    run.testbed = testbed;
    run.region = region;
    run.base = memx_region_base(region);
    run.order = g_new(uint32_t, run.read_bytes / PAGE_BYTES);
    run.samples = samples_new(options->quick ? 1000 : 20000);
    pattern_fill_pages(run.base, 0, run.read_bytes / PAGE_BYTES, 1);
    ok = repeat(&run, options, report, figures, error);
    close(run.bulk_fd);
    samples_free(run.samples);
    g_free(run.order);
    return ok;
}

bool bench_load(const Options *options, Report *report, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(Link) veth = link_veth_new(options->link_gbit, &local);
    g_autoptr(Link) loopback = link_loopback_new();
    Figures figures;

    if (!veth) {
        report_verdict_missing(report, "p999_over_idle_p99", local->message);
        return measure(options, PINNING_FREE, loopback, report, &figures,
                       error);
    }
    if (!measure(options, PINNING_FREE, veth, report, &figures, error)) {
        return false;
    }
    report_verdict(report, "p999_over_idle_p99",
                   series_median(&figures.p999.ratio), 5, 3);
    if (pinning_cpus() > 1) {
        return measure(options, PINNING_TWO_HOSTS, veth, report, &figures,
                       error);
    }
    return true;
}
