/*
 * Threads for which others wait, or with which they share a CPU.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_URGENT_H
#define MEMX_URGENT_H

/*
 * Asks the scheduler for a short time slice for the calling thread: from Linux
 * 6.12 on, a thread that wakes with a shorter slice than the running one
 * preempts it, instead of waiting for the rest of its slice (some ms).  It
 * gets no more CPU time than others, and needs no privilege.  Does nothing
 * elsewhere, nor under seccomp, which may kill whoever changes scheduling.
 */
void memx_thread_urgent(void);

/*
 * Between two steps of long work: who waits for this CPU goes first.  A kernel
 * without preemption looks for others only when a system call ends after a
 * tick, so threads that work in a row would keep a woken vCPU waiting for
 * milliseconds.  Does nothing before some 50 us of work, nor where
 * memx_thread_urgent() had no effect: a yield costs the rest of the slice, which
 * is little then, and much else.  It reaches threads of the same control group.
 */
void memx_thread_yield(void);

#endif
