/*
 * Memory cgroup: bounds the memory of a process; of either version.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_MEMORY_CGROUP_H
#define BENCH_MEMORY_CGROUP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct MemoryCgroup MemoryCgroup;

/* BENCH_ERROR_UNAVAILABLE where none can be made. */
MemoryCgroup *memory_cgroup_new(GError **error);
/* Its processes must be gone. */
void memory_cgroup_free(MemoryCgroup *cgroup);

bool memory_cgroup_add(MemoryCgroup *cgroup, pid_t pid, GError **error);
bool memory_cgroup_limit(MemoryCgroup *cgroup, uint64_t bytes,
                         GError **error);

#endif
