/*
 * Threads for which others wait.
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

#endif
