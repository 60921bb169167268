/*
 * Guard: whatever the benchmark sets up in the system (swap, cgroups, zram
 * devices, temporary files, processes) is undone, however it ends.
 *
 * Theory of operation
 *
 * guard_start() forks a small process that knows the list of what is to be
 * undone, and that waits for messages on a socket.  When the benchmark ends,
 * in whatever way (SIGKILL too), the socket is closed, and the guard undoes
 * all that is left, latest first.  Each thing is pushed before it is made;
 * undoing what was never made is harmless.
 *
 * SIGINT, SIGTERM, SIGHUP and the time limit (SIGALRM) end the benchmark at
 * once, after the guard has done its work.  All functions are for the main
 * thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_GUARD_H
#define BENCH_GUARD_H

#include <sys/types.h>

typedef enum GuardKind {
    GUARD_NOTHING,
    GUARD_KILL,             /* a process: its id */
    GUARD_UNLINK,           /* a file */
    GUARD_RMDIR,            /* an empty directory, or a cgroup */
    GUARD_RMTEMP,           /* a directory with the files in it */
    GUARD_SWAPOFF,          /* a file or device used as swap */
    GUARD_WRITE,            /* "path value": writes value into the file */
} GuardKind;

/* Call it before any thread is created.  @limit_s: the benchmark may take so
 * many seconds. */
void guard_start(unsigned limit_s);

/* Returns a number for guard_undo() and guard_forget(). */
int guard_push(GuardKind kind, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void guard_undo(int id);
void guard_forget(int id);

/* Undoes all that is left and ends the guard. */
void guard_stop(void);

#endif
