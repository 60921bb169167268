/*
 * CPU load: see cpu-load.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "child.h"
#include "cpu-load.h"
#include "samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* All but idle and waiting for I/O: user, nice, system, interrupts, stolen. */
static uint64_t machine_busy_ns(void)
{
    unsigned long long user = 0, nice = 0, sys = 0, irq = 0, soft = 0;
    unsigned long long stolen = 0;
    FILE *file = fopen("/proc/stat", "re");

    if (!file) {
        return 0;
    }
    if (fscanf(file, "cpu %llu %llu %llu %*u %*u %llu %llu %llu", &user,
               &nice, &sys, &irq, &soft, &stolen) != 6) {
        user = nice = sys = irq = soft = stolen = 0;
    }
    fclose(file);
    return (user + nice + sys + irq + soft + stolen) *
           (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

void cpu_load_begin(CpuLoad *load)
{
    load->loadavg = -1;
    if (getloadavg(&load->loadavg, 1) != 1) {
        load->loadavg = -1;
    }
    load->ours_ns = child_cpu_ns_all();
    load->busy_ns = machine_busy_ns();
    load->start_ns = bench_now_ns();
}

double cpu_load_others(const CpuLoad *load)
{
    double seconds = bench_seconds_since(load->start_ns);
    double busy = (double)(machine_busy_ns() - load->busy_ns) / 1e9;
    double ours = (double)(child_cpu_ns_all() - load->ours_ns) / 1e9;

    return seconds > 0 && busy > ours ? (busy - ours) / seconds : 0;
}
