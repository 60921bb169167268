/*
 * Pinning: see pinning.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "pinning.h"

#include <errno.h>
#include <sched.h>

static cpu_set_t allowed;
static int first_cpu = CPU_ANY; /* the last two allowed ones: interrupts */
static int other_cpu = CPU_ANY; /* tend to go to CPU 0 */

void pinning_init(void)
{
    if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) {
        g_error("sched_getaffinity: %s", g_strerror(errno));
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed)) {
            other_cpu = first_cpu;
            first_cpu = cpu;
        }
    }
}

int pinning_cpus(void)
{
    return CPU_COUNT(&allowed);
}

bool pinning_get(PinningKind kind, Pinning *pinning, GError **error)
{
    int a = first_cpu, b = other_cpu;

    switch (kind) {
    case PINNING_ONE_CPU:
        *pinning = (Pinning) { "one-cpu", a, a, a };
        break;
    case PINNING_ACROSS:
        *pinning = (Pinning) { "across", a, b, a };
        break;
    case PINNING_TWO_HOSTS:
        *pinning = (Pinning) { "two-hosts", a, a, b };
        break;
    case PINNING_FREE:
        *pinning = (Pinning) { "free", CPU_ANY, CPU_ANY, CPU_ANY };
        return true;
    }
    if (kind != PINNING_ONE_CPU && b == CPU_ANY) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "pinning \"%s\" needs two CPUs, this process may use one",
                    pinning->name);
        return false;
    }
    return true;
}

void pin_thread(int cpu)
{
    cpu_set_t set = allowed;

    if (cpu != CPU_ANY) {
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
    }
    if (sched_setaffinity(0, sizeof set, &set) < 0) {
        static gsize warned;

        if (g_once_init_enter(&warned)) {
            g_printerr("memx-bench: warning: cannot pin to CPU %d: %s; "
                       "figures will vary\n", cpu, g_strerror(errno));
            g_once_init_leave(&warned, 1);
        }
    }
}

typedef struct Start {
    int cpu;
    GThreadFunc func;
    void *opaque;
} Start;

static gpointer pinned_run(gpointer opaque)
{
    g_autofree Start *start = opaque;

    pin_thread(start->cpu);
    return start->func(start->opaque);
}

GThread *start_on(int cpu, GThreadFunc func, void *opaque)
{
    Start *start = g_new(Start, 1);

    *start = (Start) { cpu, func, opaque };
    return g_thread_new("bench", pinned_run, start);
}

void *run_on(int cpu, GThreadFunc func, void *opaque)
{
    return g_thread_join(start_on(cpu, func, opaque));
}
