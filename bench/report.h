/*
 * Report: the result of one command, printed as a table or as JSON.
 *
 * A *verdict* is a figure that the project set itself a limit for: a key at
 * the top of the JSON.  A *figure* is what was measured, the raw operation
 * beside ours, each with the median, least and greatest of its repetitions.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <glib.h>
#include <stdbool.h>

#include "cpu-load.h"
#include "pinning.h"
#include "samples.h"

typedef struct Report Report;

typedef struct Figure {
    const char *name;       /* "remote fault, p50" */
    const char *unit;       /* "us", "MB/s", ... */
    const char *raw_name;   /* what raw is; NULL: there is no raw operation */
    const char *pinning;
    const char *link;       /* "loopback", ...; NULL: no network involved */
    double others_cpus;     /* kept busy by others meanwhile */
    double loadavg;         /* when it began */
    Series raw;
    Series ours;
    Series ratio;           /* ours over raw of the same repetition */
} Figure;

Report *report_new(const char *command, bool quick, int repetitions);
void report_free(Report *report);

/* @must and @aim are limits: upper ones if @aim is below @must, else lower
 * ones. */
void report_verdict(Report *report, const char *key, double value,
                    double must, double aim);
void report_verdict_list(Report *report, const char *key,
                         const double *values, int n, double must,
                         double aim);
/* It could not be measured: null, and why. */
void report_verdict_missing(Report *report, const char *key,
                            const char *reason);

/* The figure is copied. */
void report_figure(Report *report, const Figure *figure);

/* Warns if what is raw, in MB/s, did not fill a link of so many Gbit/s: then
 * the ratio is one of CPU time. */
void report_link_filled(Report *report, const Figure *figure, int gbit);

/* Puts one repetition into a figure. */
void figure_add(Figure *figure, double raw, double ours);
/* Begins and ends a measurement: pinning, link and load.  @name, @unit and
 * @raw_name are constants; @link is copied. */
Figure figure_begin(const char *name, const char *unit, const char *raw_name,
                    const Pinning *pinning, const char *link,
                    CpuLoad *load);
void figure_end(Figure *figure, const CpuLoad *load);

/* A number worth knowing; @key in JSON's style. */
void report_detail(Report *report, const char *key, double value);
/* Pages whose content was compared with what was written there. */
void report_verified(Report *report, uint64_t pages);
void report_warn(Report *report, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

char *report_json(Report *report);
char *report_table(Report *report);

#endif
