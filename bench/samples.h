/*
 * Samples: the latencies of one measurement, and their percentiles.
 * Series: one figure over the repetitions of a measurement.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_SAMPLES_H
#define BENCH_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nanoseconds of the monotonic clock. */
uint64_t bench_now_ns(void);
double bench_seconds_since(uint64_t start_ns);
void bench_sleep_until(uint64_t ns);

typedef struct Samples {
    uint64_t *ns;           /* touched when created: adding never faults */
    size_t n;
    size_t max;
    bool sorted;
} Samples;

Samples *samples_new(size_t max);
void samples_free(Samples *samples);
void samples_clear(Samples *samples);

/* What doesn't fit any more is not recorded. */
static inline void samples_add(Samples *samples, uint64_t ns)
{
    if (samples->n < samples->max) {
        samples->ns[samples->n++] = ns;
    }
}

/* @fraction 0.5 is the median; in microseconds; NAN without samples. */
double samples_percentile_us(Samples *samples, double fraction);

#define SERIES_MAX 64

typedef struct Series {
    double value[SERIES_MAX];
    int n;
} Series;

void series_add(Series *series, double value);
double series_median(const Series *series);
double series_min(const Series *series);
double series_max(const Series *series);

#endif
