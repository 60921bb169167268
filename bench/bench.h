/*
 * memx-bench: what its commands share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "report.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define PAGE_BYTES 4096ull

#define BENCH_ERROR bench_error_quark()
typedef enum BenchErrorCode {
    BENCH_ERROR_UNAVAILABLE, /* this machine or user can't measure it */
    BENCH_ERROR_FAILED,
    BENCH_ERROR_WRONG_DATA,  /* what was read isn't what was written */
} BenchErrorCode;
GQuark bench_error_quark(void);

#define LINK_GBIT 10
#define LINK_GBIT_MAX 100

typedef struct Options {
    char *memserver;        /* path of the daemon */
    char *self;             /* path of this program, to start workers */
    char *scratch;          /* directory for a swap file */
    char *output;           /* file for the JSON, or NULL */
    int repetitions;        /* without the warm-up, which is dropped */
    int link_gbit;          /* what the shaped link carries a second */
    gboolean quick;         /* small: to see that it works, not how fast */
    bool json;
} Options;

/* One file each.  false: nothing sensible could be measured. */
typedef bool CommandFunc(const Options *options, Report *report,
                         GError **error);
CommandFunc bench_fault;
CommandFunc bench_load;
CommandFunc bench_stream;
CommandFunc bench_evict;
CommandFunc bench_touch;
CommandFunc bench_random;
CommandFunc bench_threads;
CommandFunc bench_scale;

#endif
