/*
 * Workers; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <signal.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "memx.h"
#include "worker.h"

bool memx_worker_init(MemxWorker *w, GError **error)
{
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->wake_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot create an eventfd: %s", g_strerror(errno));
        w->wake_fd = 0;
        return false;
    }
    return true;
}

GThread *memx_thread_new(const char *name, GThreadFunc func, void *data,
                         GError **error)
{
    sigset_t all, old;
    GThread *thread;

    /* The program's signals are for its own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    thread = g_thread_try_new(name, func, data, error);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return thread;
}

bool memx_worker_start(MemxWorker *w, const char *name, GThreadFunc func,
                       void *data, GError **error)
{
    w->thread = memx_thread_new(name, func, data, error);
    return w->thread;
}

void memx_worker_join(MemxWorker *w)
{
    if (w->thread) {
        memx_worker_ring(w);
        g_thread_join(w->thread);
        w->thread = NULL;
    }
}

void memx_worker_destroy(MemxWorker *w)
{
    if (w->wake_fd) {
        close(w->wake_fd);
        w->wake_fd = 0;
    }
}

void memx_worker_ring(MemxWorker *w)
{
    uint64_t one = 1;

    if (g_atomic_int_compare_and_exchange(&w->rung, 0, 1)) {
        ssize_t n = write(w->wake_fd, &one, sizeof(one));
        (void)n; /* can't overflow: it is read before it is rung again */
    }
}

void memx_worker_silence(MemxWorker *w)
{
    uint64_t count;
    ssize_t n = read(w->wake_fd, &count, sizeof(count));

    (void)n; /* EAGAIN: nobody rang */
    g_atomic_int_set(&w->rung, 0);
}
