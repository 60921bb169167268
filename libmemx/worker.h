/*
 * A worker: an engine thread and its doorbell, an eventfd by which others wake
 * it.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_WORKER_H
#define MEMX_WORKER_H

#include <glib.h>
#include <stdbool.h>

typedef struct MemxWorker {
    GThread *thread;
    int wake_fd;
    int rung;               /* atomic: wake_fd was written, not yet read */
} MemxWorker;

/* Any other thread of ours: it takes none of the program's signals. */
GThread *memx_thread_new(const char *name, GThreadFunc func, void *data,
                         GError **error);
/* First all are made, since they ring each other, then started.
 * False when there is no descriptor or thread. */
bool memx_worker_init(MemxWorker *worker, GError **error);
bool memx_worker_start(MemxWorker *worker, const char *name,
                       GThreadFunc func, void *data, GError **error);
void memx_worker_join(MemxWorker *worker);
void memx_worker_destroy(MemxWorker *worker);
void memx_worker_ring(MemxWorker *worker);    /* Fault path. */
/* By the worker, when its wake_fd is readable, before it looks. */
void memx_worker_silence(MemxWorker *worker);

#endif
