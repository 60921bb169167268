/*
 * Swap: a process in a memory cgroup of limited size whose memory the kernel
 * swaps to a device of ours: what remote memory is to be better than.
 *
 * Swap devices are the system's: while ours exists (with the highest
 * priority) other processes may use it too if the machine is short of memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_SWAP_H
#define BENCH_SWAP_H

#include "bench.h"
#include "random-walk.h"

typedef enum SwapDevice { SWAP_FILE, SWAP_ZRAM } SwapDevice;

typedef struct Swap Swap;

/*
 * Makes the device and starts a worker on @cpu with @pages pages of content,
 * of which @local_bytes (and what the worker needs besides) fit in its
 * cgroup.  BENCH_ERROR_UNAVAILABLE: not as this user or on this machine.
 */
Swap *swap_new(const Options *options, SwapDevice device, uint64_t pages,
               uint64_t local_bytes, int cpu, GError **error);
void swap_free(Swap *swap);

/* A random walk in the worker: operations per second. */
bool swap_walk(Swap *swap, double seconds, double *rate, GError **error);

/* The worker's main(). */
int swap_worker_main(const char *pages);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Swap, swap_free)

#endif
