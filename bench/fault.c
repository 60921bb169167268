/*
 * fault: how long a thread waits for a page that is remote, against the two
 * things that no remote memory can do without: a TCP round trip of 4 KiB and
 * a userfaultfd round trip.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"
#include "raw-tcp.h"
#include "raw-uffd.h"
#include "region-tools.h"
#include "testbed.h"
#include "toucher.h"

#include <unistd.h>

typedef struct FaultRun {
    Testbed *testbed;
    RawUffd *raw;
    MemxRegion *region;
    uint64_t pages;
    uint32_t *order;
    Samples *tcp;
    Samples *uffd;
    Samples *remote;
    uint64_t there;
    uint64_t wrong;
} FaultRun;

typedef struct Figures {
    Figure p50, p99;        /* remote against the sum */
    Figure tcp50, uffd50, tcp99, uffd99;
} Figures;

static gpointer ping_pong(gpointer opaque)
{
    FaultRun *run = opaque;

    return GINT_TO_POINTER(raw_tcp_ping_pong(run->testbed->raw_fd, run->tcp));
}

static void touch(FaultRun *run, char *base, size_t n, uint32_t generation,
                  Samples *samples)
{
    Toucher toucher = {
        .base = base, .order = run->order, .n = n, .generation = generation,
        .samples = samples,
    };

    run_on(run->testbed->pinning.app_cpu, toucher_run, &toucher);
    run->there += toucher.there;
    run->wrong += toucher.wrong;
}

static bool repetition(FaultRun *run, int number, GError **error)
{
    size_t n;

    samples_clear(run->tcp);
    samples_clear(run->uffd);
    samples_clear(run->remote);

    /* Where the engine runs is where its socket is used. */
    if (!run_on(run->testbed->pinning.engine_cpu, ping_pong, run)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "the raw TCP connection broke");
        return false;
    }

    raw_uffd_empty(run->raw);
    n = missing_pages(raw_uffd_base(run->raw), run->pages, run->order,
                      (uint64_t)number);
    touch(run, raw_uffd_base(run->raw), n, NOT_CHECKED, run->uffd);

    if (!region_make_remote(run->region, run->pages * PAGE_BYTES / 8,
                            run->pages * PAGE_BYTES / 8 * 7, error)) {
        return false;
    }
    n = missing_pages(memx_region_base(run->region), run->pages, run->order,
                      (uint64_t)number);
    run->there = 0;
    touch(run, memx_region_base(run->region), n, 1, run->remote);
    return true;
}

static void add(Figure *sum, Figure *tcp, Figure *uffd, FaultRun *run,
                double fraction)
{
    double raw_tcp = samples_percentile_us(run->tcp, fraction);
    double raw_uffd = samples_percentile_us(run->uffd, fraction);

    figure_add(sum, raw_tcp + raw_uffd,
               samples_percentile_us(run->remote, fraction));
    series_add(&tcp->ours, raw_tcp);
    series_add(&uffd->ours, raw_uffd);
}

static bool repeat(FaultRun *run, const Options *options, Report *report,
                   Figures *figures, GError **error)
{
    const Pinning *pinning = &run->testbed->pinning;
    const char *link = run->testbed->link->name;
    CpuLoad load;

    figures->p50 = figure_begin("remote fault, p50", "us", "TCP + userfaultfd",
                                pinning, link, &load);
    figures->p99 = figure_begin("remote fault, p99", "us", "TCP + userfaultfd",
                                pinning, link, &load);
    figures->tcp50 = figure_begin("raw TCP 4 KiB, p50", "us", NULL, pinning,
                                  link, &load);
    figures->uffd50 = figure_begin("raw userfaultfd, p50", "us", NULL,
                                   pinning, NULL, &load);
    figures->tcp99 = figure_begin("raw TCP 4 KiB, p99", "us", NULL, pinning,
                                  link, &load);
    figures->uffd99 = figure_begin("raw userfaultfd, p99", "us", NULL,
                                   pinning, NULL, &load);
    for (int i = -1; i < options->repetitions; i++) {
        if (!repetition(run, i, error)) {
            return false;
        }
        if (i >= 0) {
            add(&figures->p50, &figures->tcp50, &figures->uffd50, run, 0.5);
            add(&figures->p99, &figures->tcp99, &figures->uffd99, run, 0.99);
            report_verified(report, run->remote->n);
        }
        if (run->remote->n < run->remote->max) {
            report_warn(report, "only %zu remote faults in a repetition, %"
                        G_GUINT64_FORMAT " pages were prefetched",
                        run->remote->n, run->there);
        }
    }
    Figure *all[] = { &figures->p50, &figures->p99, &figures->tcp50,
                      &figures->uffd50, &figures->tcp99, &figures->uffd99 };
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
        figure_end(all[i], &load);
        report_figure(report, all[i]);
    }
    return true;
}

static bool run_region(FaultRun *run, const Options *options, Report *report,
                       Figures *figures, GError **error)
{
    g_autoptr(MemxRegion) region = NULL;
    uint64_t bytes = run->pages * PAGE_BYTES;

    region = testbed_region_new(run->testbed, bytes, bytes / 8 * 7,
                                MEMX_KEEP_COPIES_AUTO, error);
    if (!region) {
        return false;
    }
    run->region = region;
    pattern_fill_pages(memx_region_base(region), 0, run->pages, 1);
    if (!repeat(run, options, report, figures, error)) {
        return false;
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
    uint64_t bytes = options->quick ? 192 * MIB : 512 * MIB;
    size_t touches = options->quick ? 1000 : 20000;
    g_autoptr(Testbed) testbed = NULL;
    g_autoptr(RawUffd) raw = NULL;
    FaultRun run = { .pages = bytes / PAGE_BYTES };
    bool ok;

    testbed = testbed_new(options, pinning, link, 2 * bytes, error);
    if (!testbed) {
        return false;
    }
    raw = raw_uffd_new(bytes, testbed->pinning.engine_cpu, -1, error);
    if (!raw) {
        return false;
    }
    run.testbed = testbed;
    run.raw = raw;
    run.order = g_new(uint32_t, run.pages);
    run.tcp = samples_new(touches);
    run.uffd = samples_new(touches);
    run.remote = samples_new(touches);
    ok = run_region(&run, options, report, figures, error);
    samples_free(run.tcp);
    samples_free(run.uffd);
    samples_free(run.remote);
    g_free(run.order);
    return ok;
}

bool bench_fault(const Options *options, Report *report, GError **error)
{
    g_autoptr(Link) link = link_loopback_new();
    g_autoptr(GError) local = NULL;
    Figures figures;

    if (!measure(options, PINNING_ONE_CPU, link, report, &figures, error)) {
        return false;
    }
    report_verdict(report, "ratio_p50", series_median(&figures.p50.ratio),
                   1.3, 1.15);
    report_verdict(report, "ratio_p99", series_median(&figures.p99.ratio),
                   2.0, 1.5);
    if (measure(options, PINNING_ACROSS, link, report, &figures, &local)) {
        report_detail(report, "across_ratio_p50",
                      series_median(&figures.p50.ratio));
        report_detail(report, "across_ratio_p99",
                      series_median(&figures.p99.ratio));
    } else if (g_error_matches(local, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE)) {
        report_warn(report, "not measured across CPUs: %s", local->message);
    } else {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    return true;
}
