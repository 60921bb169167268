/*
 * Threads and their time slices; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "urgent.h"

#define SLICE_NS 100000 /* the least that the kernel takes */
/* A yield is charged the rest of the slice (from Linux 6.18 on): who yields
 * more often gets little of a CPU that others want as well. */
#define YIELD_NS (SLICE_NS / 2)

/* struct sched_attr of the kernel's first version; older C libraries lack it */
typedef struct SchedAttr {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime;
    uint64_t deadline;
    uint64_t period;
} SchedAttr;

static __thread bool short_slice;
static __thread uint64_t yielded_ns;

void memx_thread_urgent(void)
{
    SchedAttr attr = { .size = sizeof(attr) };

    if (prctl(PR_GET_SECCOMP) != 0 ||
        syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) ||
        attr.policy != SCHED_OTHER) {
        return;
    }
    attr.size = sizeof(attr);
    attr.flags = 0;
    attr.runtime = SLICE_NS;
    if (!syscall(SYS_sched_setattr, 0, &attr, 0) &&
        !syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0)) {
        short_slice = attr.runtime == SLICE_NS; /* older kernels ignore it */
    }
}

void memx_thread_yield(void)
{
    struct timespec t;
    uint64_t now;

    if (!short_slice) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &t);
    now = t.tv_sec * 1000000000ull + t.tv_nsec;
    if (now - yielded_ns >= YIELD_NS) {
        yielded_ns = now;
        sched_yield();
    }
}
