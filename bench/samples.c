/*
 * Samples and series: see samples.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "samples.h"

#include <errno.h>
#include <glib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t bench_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

double bench_seconds_since(uint64_t start_ns)
{
    return (double)(bench_now_ns() - start_ns) / 1e9;
}

void bench_sleep_until(uint64_t ns)
{
    struct timespec t = { (time_t)(ns / 1000000000u),
                          (long)(ns % 1000000000u) };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) ==
           EINTR) {
    }
}

Samples *samples_new(size_t max)
{
    Samples *samples = g_new0(Samples, 1);

    samples->ns = g_new(uint64_t, max);
    memset(samples->ns, 0xff, max * sizeof(uint64_t));
    samples->max = max;
    return samples;
}

void samples_free(Samples *samples)
{
    if (samples) {
        g_free(samples->ns);
        g_free(samples);
    }
}

void samples_clear(Samples *samples)
{
    samples->n = 0;
    samples->sorted = false;
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

double samples_percentile_us(Samples *samples, double fraction)
{
    if (samples->n == 0) {
        return NAN;
    }
    if (!samples->sorted) {
        qsort(samples->ns, samples->n, sizeof(uint64_t), compare_ns);
        samples->sorted = true;
    }
    return (double)samples->ns[(size_t)(fraction * (double)(samples->n - 1))] /
           1e3;
}

void series_add(Series *series, double value)
{
    if (series->n < SERIES_MAX && !isnan(value)) {
        series->value[series->n++] = value;
    }
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double series_median(const Series *series)
{
    double sorted[SERIES_MAX];
    int n = series->n;

    if (n == 0) {
        return NAN;
    }
    memcpy(sorted, series->value, (size_t)n * sizeof(double));
    qsort(sorted, (size_t)n, sizeof(double), compare_double);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

double series_min(const Series *series)
{
    double least = NAN;

    for (int i = 0; i < series->n; i++) {
        least = fmin(least, series->value[i]); /* ignores the NAN */
    }
    return least;
}

double series_max(const Series *series)
{
    double most = NAN;

    for (int i = 0; i < series->n; i++) {
        most = fmax(most, series->value[i]);
    }
    return most;
}
