/*
 * scale: what grows with a region, for terabytes: the tables, what a period's
 * end makes of the bits that a tracker told, the split, and the choice of a victim.
 *
 * These are the engine's own functions and its default chunk size; no memory
 * of such a size is needed for them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "history.h"
#include "page-table.h"
#include "pattern.h"
#include "split.h"

#include <string.h>

#define TIB (1ull << 40)
#define CHUNK_BYTES MIB
#define GROUPS_PER_CHUNK (CHUNK_BYTES / MEMX_GROUP_BYTES)
#define SLICE_CHUNKS 256u
#define VICTIMS 100000

typedef struct ScaleRun {
    MemxHistory history;
    uint64_t *pages;        /* what a tracker told: a bit a page */
    uint64_t *hot;          /* the split's result */
    uint8_t *copy;          /* for the raw operation */
    uint32_t victims;       /* to choose in a row */
} ScaleRun;

static bool table_bytes(uint64_t bytes, double *result, GError **error)
{
    MemxPageTable table;
    MemxHistory history;
    bool ok = memx_page_table_init(&table, bytes / PAGE_BYTES, CHUNK_BYTES);

    if (ok) {
        *result = (double)memx_page_table_bytes(&table);
        ok = memx_history_init(&history, table.n_chunks);
        if (ok) {
            *result += (double)memx_history_bytes(&history);
            memx_history_destroy(&history);
        }
        memx_page_table_destroy(&table);
    }
    if (!ok) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "no address space for the tables of 4 TiB");
    }
    return ok;
}

static void fill(ScaleRun *run, uint64_t seed)
{
    Random random = { pattern_mix(seed) | 1 };

    for (uint32_t chunk = 0; chunk < run->history.n_chunks; chunk++) {
        memx_history_set(&run->history, chunk,
                         (uint8_t)random_next(&random));
        memx_history_list(&run->history, chunk);
        /* A page in half of the chunks, all of them in some. */
        for (unsigned g = 0; g < GROUPS_PER_CHUNK; g++) {
            uint64_t bits = random_next(&random);

            run->pages[(uint64_t)chunk * GROUPS_PER_CHUNK + g] =
                bits % 7 ? 0 : bits;
        }
    }
}

/* The raw operation: one pass over as many bytes. */
static double raw_pass_ms(ScaleRun *run)
{
    uint64_t start = bench_now_ns();

    memcpy(run->copy, run->history.value, run->history.n_chunks);
    return bench_seconds_since(start) * 1e3;
}

static double age_ms(ScaleRun *run)
{
    uint64_t start = bench_now_ns();

    /* As from a tracker: a bit a page to a bit a chunk, and the history. */
    for (uint32_t first = 0; first < run->history.n_chunks;
         first += SLICE_CHUNKS) {
        uint64_t touched[SLICE_CHUNKS / 64] = { 0 };

        for (uint32_t i = 0; i < SLICE_CHUNKS; i++) {
            const uint64_t *pages = run->pages +
                (uint64_t)(first + i) * GROUPS_PER_CHUNK;
            uint64_t any = 0;

            for (unsigned g = 0; g < GROUPS_PER_CHUNK; g++) {
                any |= pages[g];
            }
            touched[i / 64] |= (uint64_t)(any != 0) << i % 64;
        }
        memx_history_fold(&run->history, first, SLICE_CHUNKS, touched, NULL);
    }
    return bench_seconds_since(start) * 1e3;
}

static double split_ms(ScaleRun *run)
{
    uint64_t start = bench_now_ns();
    MemxSplit split;

    memx_split_decide(&split, run->history.value, run->history.n_chunks,
                      run->history.n_chunks / 4);
    memx_split_apply(&split, run->history.value, run->history.n_chunks,
                     run->hot);
    return bench_seconds_since(start) * 1e3;
}

/* As the evictor does: the coldest is chosen and taken out of its list. */
static double victim_us(ScaleRun *run)
{
    uint64_t start = bench_now_ns();

    for (uint32_t i = 0; i < run->victims; i++) {
        uint32_t chunk = memx_history_victim(&run->history,
                                             MEMX_QUEUE_UNPLACED);

        memx_history_unlist(&run->history, chunk);
    }
    return bench_seconds_since(start) * 1e6 / run->victims;
}

static gpointer repeat(gpointer opaque)
{
    ScaleRun *run = ((gpointer *)opaque)[0];
    Figure *figures = ((gpointer *)opaque)[1];
    int repetitions = ((const Options *)((gpointer *)opaque)[2])->repetitions;

    for (int i = -1; i < repetitions; i++) {
        double raw, split, scan, victim;

        fill(run, (uint64_t)i + 2);
        raw = raw_pass_ms(run);
        split = split_ms(run);
        scan = age_ms(run);
        victim = victim_us(run);
        if (i >= 0) {
            figure_add(&figures[0], raw, scan);
            figure_add(&figures[1], raw, split);
            series_add(&figures[2].ours, victim);
        }
    }
    return NULL;
}

bool bench_scale(const Options *options, Report *report, GError **error)
{
    uint64_t bytes = 2 * TIB;
    ScaleRun run = { .victims = VICTIMS };
    uint32_t n_chunks = (uint32_t)(bytes / CHUNK_BYTES);
    gpointer arguments[] = { &run, NULL, (gpointer)options };
    Figure figures[3];
    Pinning pinning;
    CpuLoad load;
    double tables;

    if (!table_bytes(2 * bytes, &tables, error) ||
        !pinning_get(PINNING_ONE_CPU, &pinning, error)) {
        return false;
    }
    if (!memx_history_init(&run.history, n_chunks)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "no memory for the history of 2 TiB");
        return false;
    }
    run.hot = g_new0(uint64_t, (n_chunks + 63) / 64);
    run.copy = g_malloc0(n_chunks);
    run.pages = g_new0(uint64_t, (uint64_t)n_chunks * GROUPS_PER_CHUNK);
    figures[0] = figure_begin("scanning 2 TiB of bits", "ms",
                              "memcpy of the history",
                              &pinning, NULL, &load);
    figures[1] = figure_begin("splitting 2 TiB", "ms",
                              "memcpy of the history", &pinning, NULL, &load);
    figures[2] = figure_begin("choosing a victim in 2 TiB", "us", NULL,
                              &pinning, NULL, &load);
    arguments[1] = figures;
    run_on(pinning.app_cpu, repeat, arguments);
    for (size_t i = 0; i < G_N_ELEMENTS(figures); i++) {
        figure_end(&figures[i], &load);
        report_figure(report, &figures[i]);
    }
    report_verdict(report, "table_bytes", tables, 384.0 * MIB, 256.0 * MIB);
    report_verdict(report, "age_ms", series_median(&figures[0].ours), 60, 20);
    report_verdict(report, "split_ms", series_median(&figures[1].ours), 10,
                   2);
    report_verdict(report, "victim_us", series_median(&figures[2].ours), 1,
                   0.2);
    memx_history_destroy(&run.history);
    g_free(run.hot);
    g_free(run.copy);
    g_free(run.pages);
    return true;
}
