/*
 * Child: a process that the benchmark starts: memservers, raw TCP servers,
 * workers in a memory cgroup.
 *
 * Its lines (of stderr for a server, of stdout for a worker) are read by a
 * thread of the child's and queued.  The guard kills it if the benchmark
 * dies.  All functions are for the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_CHILD_H
#define BENCH_CHILD_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct Child Child;

typedef enum ChildLines {
    CHILD_STDOUT,           /* a worker: stderr is the benchmark's */
    CHILD_STDERR,           /* a server: stdout is thrown away */
} ChildLines;

/* The child inherits the calling thread's CPUs and network namespace. */
Child *child_start(const char *const *argv, ChildLines lines, GError **error);

/* SIGTERM, and SIGKILL if that doesn't help within seconds. */
void child_stop(Child *child);

pid_t child_pid(Child *child);

/* It was ended by SIGKILL: not of our doing, so by the OOM killer. */
bool child_killed(Child *child);

/* Sends a line to its standard input. */
bool child_tell(Child *child, const char *line, GError **error);

/* Waits for a line that starts with @prefix, and returns what follows it.
 * On failure @error has the last line that came instead. */
char *child_hear(Child *child, const char *prefix, unsigned timeout_s,
                 GError **error);

/* Nanoseconds of CPU that this process and its children have used. */
guint64 child_cpu_ns_all(void);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Child, child_stop)

#endif
