/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which transition of a page's state was seen under which fault.
 *
 * The engine calls memx_trace_pages() (libmemx/trace.h), defined here.
 */
#ifndef COVERAGE_H
#define COVERAGE_H

#include <stdbool.h>
#include "trace.h"

typedef enum Fault {
    FAULT_NONE,
    FAULT_CUT,        /* connections end after a random byte */
    FAULT_HALF_CLOSE, /* one direction of them does */
    FAULT_DELAY,
    FAULT_STALL,      /* the network carries nothing */
    FAULT_STOP,       /* the server is stopped (SIGSTOP) and continued */
    FAULT_CRASH,      /* it is killed, and starts again with its pages */
    FAULT_TAKE_OVER,  /* a successor takes over */
    FAULT_FULL,       /* somebody else reserves what is free */
    N_FAULTS,
} Fault;

extern const char *const fault_names[N_FAULTS];

/* What happens from now on happens under @fault. */
void coverage_set_fault(Fault fault);
Fault coverage_fault(void);

/* How many pages went from the region to staging or back, until now. */
uint64_t coverage_moved_pages(void);

/* Prints the table; columns are those of @faults (a bit each).  Returns how
 * many cells that must not be empty are. */
unsigned coverage_print(unsigned faults, bool copies_kept);

#endif
