/*
 * Pinning: which CPU each party of a measurement runs on, the same for the
 * raw operation and for ours.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_PINNING_H
#define BENCH_PINNING_H

#include <glib.h>
#include <stdbool.h>

#define CPU_ANY (-1)

typedef struct Pinning {
    const char *name;
    int app_cpu;            /* who touches memory */
    int engine_cpu;         /* who handles faults, and the client's sockets */
    int server_cpu;
} Pinning;

typedef enum PinningKind {
    PINNING_ONE_CPU,        /* all on one CPU: the most repeatable */
    PINNING_ACROSS,         /* each wake-up crosses from one CPU to another */
    PINNING_TWO_HOSTS,      /* client on one CPU, server on another */
    PINNING_FREE,           /* the scheduler decides */
} PinningKind;

/* Finds the CPUs that this process may use.  Call it first. */
void pinning_init(void);

/* false: this machine has too few CPUs for it; @error says so. */
bool pinning_get(PinningKind kind, Pinning *pinning, GError **error);

int pinning_cpus(void);

/* The calling thread, and what it creates from now on.  CPU_ANY unpins. */
void pin_thread(int cpu);

/* Runs @func(@opaque) on a thread of its own on @cpu, and waits for it. */
void *run_on(int cpu, GThreadFunc func, void *opaque);

/* Starts one; wait for it with g_thread_join(). */
GThread *start_on(int cpu, GThreadFunc func, void *opaque);

#endif
