/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One line of JSON in, one out, then the connection is closed:
 *   {"command": "status"}                      what status.c says
 *   {"command": "drop", "space": "<hex prefix>", "force": false}    {}
 *   {"command": "drain", "undo": false}        {}
 *   {"command": "hand-over"}                   see handover.h
 * or {"error": "..."}, also to what is no such line.  Each connection has a
 * thread, blocking; who may connect is the administrator, by the socket's
 * mode.
 */
#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include "control.h"
#include "handover.h"
#include "log.h"
#include "question.h"
#include "status.h"

#define QUESTION_TIMEOUT_S 10
/* For a hand-over that is just failing: clients are served again before it
 * has quite ended, so that the next successor may be here already. */
#define ENDING_TIMEOUT_S 10

struct MsControl {
    /* Constant. */
    MsServer *server;
    char *path;
    int fd;
    dev_t device;           /* of the socket's inode: is it still ours? */
    ino_t inode;
    void (*handed_over)(void *opaque);
    void *opaque;

    guint source;           /* the main loop's: watches fd, or waits to */

    GMutex lock;            /* protects what follows; a leaf */
    GCond changed;
    enum { KEEPING, HANDING_OVER, HANDED_OVER } state;
};

typedef struct Client {
    MsControl *control;
    int fd;
} Client;

static gboolean tell_handed_over(gpointer opaque)
{
    MsControl *control = opaque;

    control->handed_over(control->opaque);
    return G_SOURCE_REMOVE;
}

static void hand_over(MsControl *control, int fd)
{
    int64_t end = g_get_monotonic_time() + ENDING_TIMEOUT_S * G_USEC_PER_SEC;
    bool given, mine;

    g_mutex_lock(&control->lock);
    while (control->state == HANDING_OVER &&
           g_cond_wait_until(&control->changed, &control->lock, end)) {
        ;
    }
    mine = control->state == KEEPING;
    if (mine) {
        control->state = HANDING_OVER;
    }
    g_mutex_unlock(&control->lock);
    if (!mine) {
        ms_control_send(fd, "{\"error\":\"a hand-over is going on\"}", NULL,
                        0, NULL);
        return;
    }
    given = ms_handover_give(control->server, fd);
    g_mutex_lock(&control->lock);
    control->state = given ? HANDED_OVER : KEEPING;
    g_cond_broadcast(&control->changed);
    g_mutex_unlock(&control->lock);
    if (given) {
        g_idle_add(tell_handed_over, control);
    }
}

bool ms_control_settle(MsControl *control)
{
    bool handed_over;

    g_mutex_lock(&control->lock);
    while (control->state == HANDING_OVER) {
        g_cond_wait(&control->changed, &control->lock);
    }
    handed_over = control->state == HANDED_OVER;
    g_mutex_unlock(&control->lock);
    return handed_over;
}

static char *error_line(const char *message)
{
    g_autoptr(JsonBuilder) json = json_builder_new();
    g_autoptr(JsonNode) root = NULL;

    json_builder_begin_object(json);
    json_builder_set_member_name(json, "error");
    json_builder_add_string_value(json, message);
    json_builder_end_object(json);
    root = json_builder_get_root(json);
    return json_to_string(root, FALSE);
}

static char *answer(MsControl *control, const MsQuestion *question)
{
    g_autoptr(GError) error = NULL;

    switch (question->command) {
    case MS_COMMAND_STATUS:
        return ms_status_json(control->server);
    case MS_COMMAND_DROP:
        if (!ms_server_drop(control->server, question->space,
                            question->force, &error)) {
            return error_line(error->message);
        }
        return g_strdup("{}");
    case MS_COMMAND_DRAIN:
        ms_server_drain(control->server, !question->undo);
        return g_strdup("{}");
    case MS_COMMAND_HAND_OVER: /* a conversation; see client_thread() */
        break;
    }
    g_assert_not_reached();
}

static void *client_thread(void *opaque)
{
    Client *client = opaque;
    g_autofree char *line = NULL, *reply = NULL;
    g_autoptr(GError) error = NULL;
    MsQuestion question = { 0 };

    line = ms_control_receive(client->fd, MS_QUESTION_MAX_BYTES,
                              QUESTION_TIMEOUT_S, NULL, NULL, &error);
    if (!line || !ms_question_parse(&question, line, &error)) {
        reply = error_line(error->message);
    } else if (question.command == MS_COMMAND_HAND_OVER) {
        hand_over(client->control, client->fd);
    } else {
        reply = answer(client->control, &question);
    }
    if (reply) {
        ms_control_send(client->fd, reply, NULL, 0, NULL);
    }
    ms_question_clear(&question);
    close(client->fd);
    g_free(client);
    return NULL;
}

static gboolean accept_client(int fd, GIOCondition condition, gpointer opaque);

static gboolean watch(gpointer opaque)
{
    MsControl *control = opaque;

    control->source = g_unix_fd_add(control->fd, G_IO_IN, accept_client,
                                    control);
    return G_SOURCE_REMOVE;
}

static gboolean accept_client(int fd, GIOCondition condition, gpointer opaque)
{
    MsControl *control = opaque;
    int client_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    GThread *thread;
    Client *client;

    if (client_fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) {
            return G_SOURCE_CONTINUE;
        }
        /* No descriptors left, most likely: don't spin. */
        ms_log_stranger("control socket: can't accept a connection: %s",
                        g_strerror(errno));
        control->source = g_timeout_add(MS_ACCEPT_PAUSE_MS, watch, control);
        return G_SOURCE_REMOVE;
    }
    client = g_new0(Client, 1);
    client->control = control;
    client->fd = client_fd;
    thread = g_thread_try_new("control", client_thread, client, NULL);
    if (!thread) {
        close(client->fd);
        g_free(client);
        return G_SOURCE_CONTINUE;
    }
    g_thread_unref(thread);
    return G_SOURCE_CONTINUE;
}

/* Binds under another name first: the socket appears whole, and replaces
 * whatever was there, at one moment. */
static int bind_socket(const char *path, GError **error)
{
    g_autofree char *temporary = g_strdup_printf("%s.%d", path, getpid());
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd, saved;
    mode_t mask;

    if (strlen(temporary) >= sizeof(address.sun_path)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FILENAME_TOO_LONG,
                    "--control '%s': a socket's path has at most 100 "
                    "characters", path);
        return -1;
    }
    strcpy(address.sun_path, temporary);
    unlink(temporary);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mask = umask(0177);
    if (fd < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, 16) < 0 || rename(temporary, path) < 0) {
        saved = errno;
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved),
                    "cannot make the control socket '%s': %s; give another "
                    "path with --control", path, g_strerror(saved));
        unlink(temporary);
        if (fd >= 0) {
            close(fd);
        }
        fd = -1;
    }
    umask(mask);
    return fd;
}

MsControl *ms_control_open(const char *path, bool replace, MsServer *server,
                           void (*handed_over)(void *opaque), void *opaque,
                           GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    MsControl *control;
    struct stat st;
    int fd;

    fd = replace ? -1 : ms_control_connect(path, NULL);
    if (fd >= 0) {
        close(fd);
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE,
                    "another memserver runs with control socket '%s'; give "
                    "this one another with --control PATH, or let it succeed "
                    "the other with --take-over '%s'", path, path);
        return NULL;
    }
    g_mkdir(directory, 0755);
    fd = bind_socket(path, error);
    if (fd < 0) {
        return NULL;
    }
    control = g_new0(MsControl, 1);
    control->server = server;
    control->path = g_strdup(path);
    control->fd = fd;
    control->handed_over = handed_over;
    control->opaque = opaque;
    g_mutex_init(&control->lock);
    g_cond_init(&control->changed);
    if (stat(path, &st) == 0) {
        control->device = st.st_dev;
        control->inode = st.st_ino;
    }
    watch(control);
    return control;
}

void ms_control_close(MsControl *control)
{
    struct stat st;

    g_source_remove(control->source);
    close(control->fd);
    if (stat(control->path, &st) == 0 && st.st_dev == control->device &&
        st.st_ino == control->inode) {
        unlink(control->path);
    }
    /* Threads of clients may still be about: the process is ending. */
}
