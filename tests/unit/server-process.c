/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memserver, as a test uses it; see the header.
 */
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "server-process.h"

#define DEADLINE_US (60 * G_USEC_PER_SEC)
#define POLL_US 2000
#define KEPT_MAX 8
#define ALIVE_MAX 16

/* Sets LISTEN_PID as systemd does, if descriptors are passed; and has the
 * kernel end the server with the test. */
#define LAUNCH "[ -z \"$LISTEN_FDS\" ] || export LISTEN_PID=$$; " \
               "exec setpriv --pdeathsig KILL \"$@\""

struct ServerProcess {
    GSubprocess *process;
    char *capacity;
    char **options;
    char *address;          /* NULL until the first one listens */
    char *directory;
    char *control_path;
    char *log_path;
    char *notify_path;
    int notify_fd;
    int kept[KEPT_MAX];     /* descriptors the daemon handed out */
    char *kept_name[KEPT_MAX];
    int n_kept;
};

/* A failed test ends here: nothing of it stays in /tmp. */
static ServerProcess *alive[ALIVE_MAX];

static void remove_files(const ServerProcess *s)
{
    unlink(s->control_path);
    unlink(s->log_path);
    unlink(s->notify_path);
    rmdir(s->directory);
}

static void remove_all_files(int signal_number)
{
    for (int i = 0; i < ALIVE_MAX; i++) {
        if (alive[i]) {
            remove_files(alive[i]);
        }
    }
    raise(signal_number); /* once this has returned; see SA_RESETHAND */
}

static void remember(ServerProcess *s)
{
    static const int ends[] = { SIGABRT, SIGTRAP, SIGTERM, SIGINT, SIGHUP };
    struct sigaction action = {
        .sa_handler = remove_all_files, .sa_flags = SA_RESETHAND,
    };
    int i = 0;

    for (unsigned k = 0; k < G_N_ELEMENTS(ends); k++) {
        sigaction(ends[k], &action, NULL);
    }
    while (alive[i]) {
        g_assert_cmpint(++i, <, ALIVE_MAX);
    }
    alive[i] = s;
}

static void forget(const ServerProcess *s)
{
    for (int i = 0; i < ALIVE_MAX; i++) {
        if (alive[i] == s) {
            alive[i] = NULL;
        }
    }
}

static void G_GNUC_NORETURN fail(ServerProcess *s, const char *what)
{
    g_autofree char *log = NULL;

    g_file_get_contents(s->log_path, &log, NULL, NULL);
    g_error("memserver %s: %s; its log:\n%s", s->address ?: "", what,
            log ?: "(none)");
}

static void open_notify(ServerProcess *s)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    s->notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                          0);
    g_assert_cmpint(s->notify_fd, >=, 0);
    g_strlcpy(address.sun_path, s->notify_path, sizeof(address.sun_path));
    g_assert_no_errno(bind(s->notify_fd, (struct sockaddr *)&address,
                           sizeof(address)));
}

static void keep(ServerProcess *s, char *text, int fd)
{
    char *name = strstr(text, "FDNAME=");

    if (!g_str_has_prefix(text, "FDSTORE=1") || !name ||
        s->n_kept == KEPT_MAX) {
        close(fd);
        return;
    }
    name += strlen("FDNAME=");
    name[strcspn(name, "\n")] = '\0';
    s->kept_name[s->n_kept] = g_strdup(name);
    s->kept[s->n_kept++] = fd;
}

static void drop_kept(ServerProcess *s)
{
    while (s->n_kept) {
        close(s->kept[--s->n_kept]);
        g_free(s->kept_name[s->n_kept]);
    }
}

/* Takes what the daemon told; true if it said that it is ready. */
static bool hear(ServerProcess *s)
{
    char text[512];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    bool ready = false;

    for (;;) {
        struct iovec iov = { text, sizeof(text) - 1 };
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = &control, .msg_controllen = sizeof(control),
        };
        ssize_t n = recvmsg(s->notify_fd, &message, MSG_CMSG_CLOEXEC);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);

        if (n < 0) {
            return ready;
        }
        text[n] = '\0';
        if (header && header->cmsg_type == SCM_RIGHTS) {
            int fd;

            memcpy(&fd, CMSG_DATA(header), sizeof(fd));
            keep(s, text, fd);
        }
        ready |= strstr(text, "READY=1") != NULL;
    }
}

static char *listened_address(ServerProcess *s)
{
    g_autofree char *log = NULL;
    char *at;

    if (!g_file_get_contents(s->log_path, &log, NULL, NULL)) {
        return NULL;
    }
    at = g_strrstr(log, "listening on ");
    if (!at || !strchr(at, '\n')) {
        return NULL;
    }
    at += strlen("listening on ");
    at[strcspn(at, " \n")] = '\0';
    return g_strdup(at);
}

static bool has_ended(GSubprocess *process)
{
    return !g_subprocess_get_identifier(process);
}

static GSubprocess *spawn(ServerProcess *s, const char *option,
                          const char *value)
{
    GSubprocessLauncher *launcher =
        g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_NONE);
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    const char *const fixed[] = {
        "sh", "-c", LAUNCH, "sh", MEMSERVER_PATH, "--control",
        s->control_path, "--capacity", s->capacity, option, value,
    };
    g_autofree char *count = g_strdup_printf("%d", s->n_kept);
    g_autoptr(GString) names = g_string_new("");
    g_autoptr(GError) error = NULL;
    GSubprocess *process;

    g_subprocess_launcher_set_stderr_file_path(launcher, s->log_path);
    g_subprocess_launcher_setenv(launcher, "NOTIFY_SOCKET", s->notify_path,
                                 true);
    for (int i = 0; i < s->n_kept; i++) {
        g_subprocess_launcher_take_fd(launcher, dup(s->kept[i]), 3 + i);
        g_string_append_printf(names, "%s%s", i ? ":" : "", s->kept_name[i]);
    }
    if (s->n_kept) {
        g_subprocess_launcher_setenv(launcher, "LISTEN_FDS", count, true);
        g_subprocess_launcher_setenv(launcher, "LISTEN_FDNAMES", names->str,
                                     true);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(fixed); i++) {
        g_ptr_array_add(argv, (char *)fixed[i]);
    }
    for (int i = 0; s->options && s->options[i]; i++) {
        g_ptr_array_add(argv, s->options[i]);
    }
    g_ptr_array_add(argv, NULL);
    process = g_subprocess_launcher_spawnv(
        launcher, (const char *const *)argv->pdata, &error);
    g_object_unref(launcher);
    if (!process) {
        fail(s, error->message);
    }
    return process;
}

/* Waits until @process serves. */
static void await_ready(ServerProcess *s, GSubprocess *process)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    bool ready = false;

    for (;;) {
        ready |= hear(s);
        if (ready) {
            g_autofree char *address = listened_address(s);

            if (address) {
                g_free(s->address);
                s->address = g_steal_pointer(&address);
                return;
            }
        }
        if (has_ended(process)) {
            fail(s, "it ended at its start");
        }
        if (g_get_monotonic_time() > deadline) {
            fail(s, "it does not serve");
        }
        g_usleep(POLL_US);
    }
}

static void await_end(ServerProcess *s, GSubprocess *process)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    while (!has_ended(process)) {
        if (g_get_monotonic_time() > deadline) {
            fail(s, "it does not end");
        }
        hear(s); /* it may wait for room in the socket */
        g_usleep(POLL_US);
    }
    g_subprocess_wait(process, NULL, NULL);
    g_object_unref(process);
}

ServerProcess *server_process_new(const char *capacity)
{
    return server_process_new_with(capacity, NULL);
}

ServerProcess *server_process_new_with(const char *capacity,
                                       const char *const *options)
{
    ServerProcess *s = g_new0(ServerProcess, 1);
    g_autoptr(GError) error = NULL;

    s->capacity = g_strdup(capacity);
    s->options = g_strdupv((char **)options);
    s->directory = g_dir_make_tmp("memx-test-XXXXXX", &error);
    g_assert_no_error(error);
    s->control_path = g_build_filename(s->directory, "control", NULL);
    s->log_path = g_build_filename(s->directory, "log", NULL);
    s->notify_path = g_build_filename(s->directory, "notify", NULL);
    remember(s);
    open_notify(s);
    s->process = spawn(s, "--listen", "127.0.0.1:0");
    await_ready(s, s->process);
    return s;
}

void server_process_free(ServerProcess *s)
{
    if (!s) {
        return;
    }
    if (s->process) {
        server_process_continue(s);
        g_subprocess_send_signal(s->process, SIGTERM);
        await_end(s, s->process);
    }
    drop_kept(s);
    close(s->notify_fd);
    forget(s);
    remove_files(s);
    g_free(s->control_path);
    g_free(s->log_path);
    g_free(s->notify_path);
    g_free(s->directory);
    g_free(s->address);
    g_free(s->capacity);
    g_strfreev(s->options);
    g_free(s);
}

const char *server_process_control_path(const ServerProcess *s)
{
    return s->control_path;
}

char *server_process_memxctl(const ServerProcess *s, const char *command,
                             const char *option)
{
    const char *argv[] = {
        g_getenv("MEMXCTL"), command, "--control", s->control_path, option,
        NULL,
    };
    g_autoptr(GError) error = NULL;
    char *out = NULL;
    int status;

    g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, &out, NULL, &status,
                 &error);
    g_assert_no_error(error);
    g_assert_cmpint(status, ==, 0);
    return out;
}

void server_process_await_status(const ServerProcess *s, const char *text)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    for (;;) {
        g_autofree char *out = server_process_memxctl(s, "status", "--json");

        if (strstr(out, text)) {
            return;
        }
        if (g_get_monotonic_time() > deadline) {
            g_error("no %s in: %s", text, out);
        }
        g_usleep(20000);
    }
}

int server_process_pid(const ServerProcess *s)
{
    const char *pid = g_subprocess_get_identifier(s->process);

    return pid ? atoi(pid) : -1;
}

char *server_process_log(const ServerProcess *s)
{
    char *log = NULL;

    g_file_get_contents(s->log_path, &log, NULL, NULL);
    return log ?: g_strdup("");
}

const char *server_process_address(const ServerProcess *s)
{
    return s->address;
}

static bool is_stopped(int pid, const char *task)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%s/stat", pid,
                                            task);
    g_autofree char *stat = NULL;
    const char *state;

    if (!g_file_get_contents(path, &stat, NULL, NULL)) {
        return false;
    }
    state = strrchr(stat, ')');
    return state && g_str_has_prefix(state, ") T");
}

/* All of its threads: until then one may still answer. */
static bool all_stopped(int pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task", pid);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *task;
    bool all = dir;

    while (all && (task = g_dir_read_name(dir))) {
        all = is_stopped(pid, task);
    }
    g_clear_pointer(&dir, g_dir_close);
    return all;
}

/* g_subprocess_send_signal() leaves it to a thread of GLib's, and returns. */
void server_process_stop(ServerProcess *s)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    int pid = server_process_pid(s);

    if (pid <= 0 || kill(pid, SIGSTOP) < 0) {
        fail(s, "it has ended, and can't be stopped");
    }
    while (!all_stopped(pid)) {
        if (g_get_monotonic_time() > deadline) {
            fail(s, "it does not stop");
        }
        g_usleep(POLL_US);
    }
}

void server_process_continue(ServerProcess *s)
{
    int pid = server_process_pid(s);

    if (pid > 0) { /* else it has ended, and GLib knows */
        kill(pid, SIGCONT);
    }
}

void server_process_kill(ServerProcess *s)
{
    hear(s);
    g_subprocess_send_signal(s->process, SIGKILL);
    await_end(s, s->process);
    s->process = NULL;
}

void server_process_restart(ServerProcess *s, bool with_pages)
{
    g_autofree char *address = g_strdup(s->address);

    g_assert_null(s->process);
    if (!with_pages) {
        drop_kept(s);
    }
    g_unlink(s->log_path);
    s->process = spawn(s, "--listen", address);
    await_ready(s, s->process);
}

void server_process_take_over(ServerProcess *s)
{
    GSubprocess *first = s->process;

    g_unlink(s->log_path);
    s->process = spawn(s, "--take-over", s->control_path);
    await_ready(s, s->process);
    await_end(s, first);
}
