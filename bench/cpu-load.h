/*
 * CPU load: what else ran on this machine while a figure was measured.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_CPU_LOAD_H
#define BENCH_CPU_LOAD_H

#include <stdint.h>

typedef struct CpuLoad {
    uint64_t start_ns;
    uint64_t busy_ns;       /* of the machine */
    uint64_t ours_ns;       /* of the benchmark and its children */
    double loadavg;
} CpuLoad;

void cpu_load_begin(CpuLoad *load);

/* CPUs kept busy by others since then: 0.0 to the number of CPUs.  Kernel
 * threads and interrupts count as others. */
double cpu_load_others(const CpuLoad *load);

#endif
