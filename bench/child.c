/*
 * Child: see child.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "child.h"
#include "guard.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_TIMEOUT_MS 10000
#define POLL_MS 5

struct Child {
    char *name;
    pid_t pid;
    int guard_id;
    int in_fd;
    FILE *out;
    GThread *reader;
    GAsyncQueue *lines;
};

static GList *children;     /* the main thread's */

/* Ends with the child's last open descriptor; an empty line says so. */
static gpointer reader_run(gpointer opaque)
{
    Child *child = opaque;
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, child->out) > 0) {
        g_async_queue_push(child->lines, g_strdup(g_strchomp(line)));
    }
    free(line);
    g_async_queue_push(child->lines, g_strdup(""));
    return NULL;
}

Child *child_start(const char *const *argv, ChildLines lines, GError **error)
{
    int in_fd, out_fd;
    pid_t pid;
    Child *child;
    gboolean servers = lines == CHILD_STDERR;

    if (!g_spawn_async_with_pipes(NULL, (char **)argv, NULL,
                                  G_SPAWN_DO_NOT_REAP_CHILD |
                                  (servers ? G_SPAWN_STDOUT_TO_DEV_NULL : 0),
                                  NULL, NULL, &pid, &in_fd,
                                  servers ? NULL : &out_fd,
                                  servers ? &out_fd : NULL, error)) {
        return NULL;
    }
    child = g_new0(Child, 1);
    child->name = g_path_get_basename(argv[0]);
    child->pid = pid;
    child->guard_id = guard_push(GUARD_KILL, "%d", (int)pid);
    child->in_fd = in_fd;
    child->out = fdopen(out_fd, "r");
    child->lines = g_async_queue_new_full(g_free);
    child->reader = g_thread_new("child", reader_run, child);
    children = g_list_prepend(children, child);
    return child;
}

static bool ended(Child *child)
{
    siginfo_t info = { 0 };

    return waitid(P_PID, (id_t)child->pid, &info,
                  WEXITED | WNOWAIT | WNOHANG) < 0 || info.si_pid != 0;
}

void child_stop(Child *child)
{
    int sig = SIGTERM;

    if (!child) {
        return;
    }
    close(child->in_fd);
    kill(child->pid, sig);
    for (int ms = 0; !ended(child); ms += POLL_MS) {
        if (ms >= STOP_TIMEOUT_MS && sig == SIGTERM) {
            sig = SIGKILL;
            g_printerr("memx-bench: %s (process %d) did not end when asked "
                       "to, killing it\n", child->name, (int)child->pid);
            kill(child->pid, sig);
        }
        poll(NULL, 0, POLL_MS);
    }
    guard_forget(child->guard_id);
    waitpid(child->pid, NULL, 0);
    g_thread_join(child->reader);
    fclose(child->out);
    g_async_queue_unref(child->lines);
    children = g_list_remove(children, child);
    g_free(child->name);
    g_free(child);
}

pid_t child_pid(Child *child)
{
    return child->pid;
}

bool child_killed(Child *child)
{
    siginfo_t info = { 0 };

    /* Its pipes are closed a moment before it is gone. */
    for (int ms = 0; ms < 1000 && !ended(child); ms += POLL_MS) {
        poll(NULL, 0, POLL_MS);
    }
    return waitid(P_PID, (id_t)child->pid, &info,
                  WEXITED | WNOWAIT | WNOHANG) == 0 && info.si_pid != 0 &&
           info.si_code == CLD_KILLED && info.si_status == SIGKILL;
}

bool child_tell(Child *child, const char *line, GError **error)
{
    g_autofree char *text = g_strconcat(line, "\n", NULL);
    size_t n = strlen(text);

    if (write(child->in_fd, text, n) != (ssize_t)n) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "%s (process %d) does not listen: %s", child->name,
                    (int)child->pid, g_strerror(errno));
        return false;
    }
    return true;
}

char *child_hear(Child *child, const char *prefix, unsigned timeout_s,
                 GError **error)
{
    gint64 deadline = g_get_monotonic_time() + timeout_s * G_USEC_PER_SEC;
    g_autofree char *last = g_strdup("");

    for (;;) {
        gint64 left = deadline - g_get_monotonic_time();
        g_autofree char *line = left <= 0 ? NULL :
            g_async_queue_timeout_pop(child->lines, (guint64)left);

        if (line && g_str_has_prefix(line, prefix)) {
            return g_strdup(line + strlen(prefix));
        }
        if (!line || !*line) {
            g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                        "%s (process %d) %s%s%s", child->name,
                        (int)child->pid,
                        line ? "ended" : "did not answer in time",
                        *last ? "; it said: " : "", last);
            return NULL;
        }
        g_free(last);
        last = g_steal_pointer(&line);
    }
}

static guint64 process_cpu_ns(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    unsigned long user = 0, sys = 0;
    const char *after_name;

    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        !(after_name = strrchr(text, ')')) ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
               "%lu %lu", &user, &sys) != 2) {
        return 0;
    }
    return (user + sys) * (1000000000u / (guint64)sysconf(_SC_CLK_TCK));
}

guint64 child_cpu_ns_all(void)
{
    struct rusage gone;
    guint64 ns = process_cpu_ns(getpid());

    getrusage(RUSAGE_CHILDREN, &gone);
    ns += (guint64)(gone.ru_utime.tv_sec + gone.ru_stime.tv_sec) * 1000000000u;
    ns += (guint64)(gone.ru_utime.tv_usec + gone.ru_stime.tv_usec) * 1000u;
    for (GList *l = children; l; l = l->next) {
        ns += process_cpu_ns(((Child *)l->data)->pid);
    }
    return ns;
}
