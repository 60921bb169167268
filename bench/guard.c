/*
 * Guard: see guard.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEXT_MAX 1024
#define ENTRIES_MAX 64

/* A cgroup or swap may be busy until killed processes are gone. */
#define RETRIES 250
#define RETRY_US 20000

typedef enum Order { ORDER_PUSH, ORDER_UNDO, ORDER_FORGET } Order;

typedef struct Message {
    Order order;
    int id;
    GuardKind kind;
    char text[TEXT_MAX];
} Message;

/* The guard's process only. */
static Message entry[ENTRIES_MAX];
static int n_entries;

/* The benchmark's process only. */
static int guard_fd = -1;
static pid_t guard_pid;
static int last_id;

static int remove_files_in(const char *path)
{
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        unlink(file);
    }
    g_clear_pointer(&dir, g_dir_close);
    return rmdir(path);
}

static int write_value(const char *text)
{
    g_autofree char *path = g_strdup(text);
    char *value = strchr(path, ' ');
    int fd;
    ssize_t n;

    *value++ = '\0';
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    n = write(fd, value, strlen(value));
    close(fd);
    return n < 0 ? -1 : 0;
}

static int undo_once(const Message *m)
{
    switch (m->kind) {
    case GUARD_NOTHING:
        return 0;
    case GUARD_KILL:
        return kill(atoi(m->text), SIGKILL);
    case GUARD_UNLINK:
        return unlink(m->text);
    case GUARD_RMDIR:
        return rmdir(m->text);
    case GUARD_RMTEMP:
        return remove_files_in(m->text);
    case GUARD_SWAPOFF:
        return swapoff(m->text);
    case GUARD_WRITE:
        return write_value(m->text);
    }
    return 0;
}

static void undo(const Message *m)
{
    for (int i = 0; i < RETRIES; i++) {
        /* It was never made, or was not ours to make. */
        if (undo_once(m) == 0 || errno == ENOENT || errno == ESRCH ||
            errno == EINVAL || errno == EPERM) {
            return;
        }
        usleep(RETRY_US);
    }
    fprintf(stderr, "memx-bench: cannot undo: %s: %s\n", m->text,
            strerror(errno));
}

static void entry_remove(int id, gboolean undo_it)
{
    for (int i = n_entries - 1; i >= 0; i--) {
        if (entry[i].id == id) {
            if (undo_it) {
                undo(&entry[i]);
            }
            memmove(&entry[i], &entry[i + 1],
                    (size_t)(n_entries - i - 1) * sizeof(Message));
            n_entries--;
            return;
        }
    }
}

static void guard_run(int fd)
{
    Message m;

    while (recv(fd, &m, sizeof m, 0) == sizeof m) {
        if (m.order == ORDER_PUSH && n_entries < ENTRIES_MAX) {
            entry[n_entries++] = m;
        } else {
            entry_remove(m.id, m.order == ORDER_UNDO);
        }
        if (send(fd, "", 1, MSG_NOSIGNAL) != 1) {
            break;
        }
    }
    while (n_entries > 0) {
        entry_remove(entry[n_entries - 1].id, TRUE);
    }
    _exit(0);
}

/* Only what is async-signal-safe. */
static void on_signal(int sig)
{
    static const char late[] = "memx-bench: the time limit has passed\n";

    if (sig == SIGALRM && write(2, late, sizeof late - 1) < 0) {
        _exit(1);
    }
    close(guard_fd);
    waitpid(guard_pid, NULL, 0);
    _exit(sig == SIGALRM ? 1 : 128 + sig);
}

void guard_start(unsigned limit_s)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGALRM };
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        g_error("socketpair: %s", g_strerror(errno));
    }
    guard_pid = fork();
    if (guard_pid < 0) {
        g_error("fork: %s", g_strerror(errno));
    }
    if (guard_pid == 0) {
        close(pair[0]);
        setsid(); /* no signals of the terminal */
        for (size_t i = 0; i < G_N_ELEMENTS(signals); i++) {
            signal(signals[i], SIG_IGN);
        }
        prctl(PR_SET_NAME, "memx-bench-grd");
        guard_run(pair[1]);
    }
    close(pair[1]);
    guard_fd = pair[0];
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++) {
        signal(signals[i], on_signal);
    }
    signal(SIGPIPE, SIG_IGN);
    alarm(limit_s);
}

static void order(const Message *m)
{
    char answer;

    if (send(guard_fd, m, sizeof *m, MSG_NOSIGNAL) != sizeof *m ||
        recv(guard_fd, &answer, 1, 0) != 1) {
        g_error("the guard process is gone: nothing more can be set up");
    }
}

int guard_push(GuardKind kind, const char *format, ...)
{
    Message m = { .order = ORDER_PUSH, .id = ++last_id, .kind = kind };
    va_list args;

    va_start(args, format);
    g_vsnprintf(m.text, sizeof m.text, format, args);
    va_end(args);
    order(&m);
    return m.id;
}

void guard_undo(int id)
{
    order(&(Message) { .order = ORDER_UNDO, .id = id });
}

void guard_forget(int id)
{
    order(&(Message) { .order = ORDER_FORGET, .id = id });
}

void guard_stop(void)
{
    alarm(0);
    close(guard_fd);
    waitpid(guard_pid, NULL, 0);
}
