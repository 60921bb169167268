/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>
#include <unistd.h>
#include <gio/gio.h>
#include "control.h"
#include "handover.h"
#include "log.h"

/* For a successor that hangs: recovering a store of 16 TiB takes less. */
#define READY_TIMEOUT_S 120
/* For a predecessor: threads end at once, giving back the memory of a space
 * that is just being closed may take some seconds. */
#define TAKE_TIMEOUT_S 120

#define N_FDS (MS_N_FILES + 1)

static void resume(MsServer *server, const MsBacking *backing,
                   uint64_t capacity_pages)
{
    g_autoptr(GError) error = NULL;
    MsStore *store = NULL;
    MsBacking mapped;

    if (ms_backing_adopt(&mapped, backing->fds, &error)) {
        store = ms_store_new(&mapped, capacity_pages, &error);
    }
    if (!store) {
        /* The service manager, if there is one, still has the pages. */
        ms_log_error("cannot resume after a hand-over that failed: %s",
                     error->message);
        _exit(1);
    }
    g_mutex_lock(&server->lock);
    server->store = store;
    g_mutex_unlock(&server->lock);
    ms_server_start(server);
}

static bool give(MsServer *server, const MsBacking *backing,
                 uint64_t capacity_pages, int fd, GError **error)
{
    g_autofree char *line = g_strdup_printf(
        "%" G_GUINT64_FORMAT, capacity_pages * MEMX_PAGE_BYTES);
    g_autofree char *ready = NULL, *serving = NULL;
    int fds[N_FDS];

    memcpy(fds, backing->fds, sizeof(backing->fds));
    fds[MS_N_FILES] = memx_transport_tcp.listener_fd(server->listener);
    if (!ms_control_send(fd, line, fds, N_FDS, error)) {
        return false;
    }
    ready = ms_control_receive(fd, MS_ANSWER_MAX_BYTES, READY_TIMEOUT_S, NULL,
                               NULL, error);
    if (!ready || !ms_control_send(fd, "go", NULL, 0, error)) {
        return false;
    }
    serving = ms_control_receive(fd, MS_ANSWER_MAX_BYTES, 0, NULL, NULL,
                                 error);
    return serving;
}

bool ms_handover_give(MsServer *server, int fd)
{
    g_autoptr(GError) error = NULL;
    MsBacking backing = { .super = NULL };
    uint64_t capacity_pages;
    MsStore *store;

    ms_log_info("a successor asks for the store; closing all connections");
    ms_server_stop(server);
    g_mutex_lock(&server->lock);
    store = server->store;
    server->store = NULL;
    g_mutex_unlock(&server->lock);
    capacity_pages = store->capacity_pages;
    ms_store_free(store, backing.fds);

    if (give(server, &backing, capacity_pages, fd, &error)) {
        ms_log_info("the successor serves");
        ms_backing_close(&backing);
        return true;
    }
    ms_log_warn("the successor failed (%s); serving on", error->message);
    resume(server, &backing, capacity_pages);
    return false;
}

bool ms_handover_take(MsHandover *handover, const char *path, GError **error)
{
    g_autofree char *line = NULL;
    int fds[N_FDS], n_fds = N_FDS;

    handover->fd = ms_control_connect(path, error);
    if (handover->fd < 0) {
        return false;
    }
    if (ms_control_send(handover->fd, "{\"command\":\"hand-over\"}", NULL, 0,
                        error)) {
        line = ms_control_receive(handover->fd, MS_ANSWER_MAX_BYTES,
                                  TAKE_TIMEOUT_S, fds, &n_fds, error);
    }
    if (!line) {
        return false;
    }
    if (n_fds != N_FDS || !g_ascii_isdigit(line[0])) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "control socket '%s': no hand-over, the answer was: %s",
                    path, line);
        return false;
    }
    memcpy(handover->fds, fds, sizeof(handover->fds));
    handover->listener_fd = fds[MS_N_FILES];
    handover->capacity_bytes = g_ascii_strtoull(line, NULL, 10);
    return true;
}

bool ms_handover_ready(MsHandover *handover, GError **error)
{
    g_autofree char *go = NULL;

    if (ms_control_send(handover->fd, "ready", NULL, 0, error)) {
        go = ms_control_receive(handover->fd, MS_ANSWER_MAX_BYTES,
                                TAKE_TIMEOUT_S, NULL, NULL, error);
    }
    return go;
}

void ms_handover_done(MsHandover *handover)
{
    ms_control_send(handover->fd, "serving", NULL, 0, NULL);
    close(handover->fd);
    handover->fd = -1;
}
