/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The main loop can't accept a connection, and meanwhile another thread stops
 * the server and starts it again: a hand-over that fails does.
 */
#include <errno.h>
#include <glib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "memx.h"
#include "server.h"

#define PAUSES_MS (3 * MS_ACCEPT_PAUSE_MS)

static MsServer *server;
static int listener_fd;         /* readable: somebody waits there */
static unsigned n_accepts;

static gpointer restart(gpointer unused)
{
    ms_server_stop(server);
    ms_server_start(server);
    return NULL;
}

static MemxChannel *accept_none(MemxListener *listener, GError **error)
{
    eventfd_t count;

    n_accepts++;
    if (n_accepts == 1) {
        g_thread_join(g_thread_new("restart", restart, NULL));
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM, "too many files");
    } else {
        eventfd_read(listener_fd, &count); /* it has gone again */
    }
    return NULL;
}

static int get_fd(MemxListener *listener)
{
    return listener_fd;
}

static gboolean quit(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static void run_for(unsigned ms)
{
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);

    g_timeout_add(ms, quit, loop);
    g_main_loop_run(loop);
}

static void test_restarted_meanwhile(void)
{
    MemxTransport transport = {
        .accept = accept_none,
        .listener_fd = get_fd,
    };

    listener_fd = eventfd(1, EFD_CLOEXEC);
    server = ms_server_new("test", NULL, NULL, NULL, 0);
    server->transport = &transport;
    ms_server_start(server);
    run_for(PAUSES_MS);
    g_assert_cmpuint(n_accepts, ==, 2);
    /* Now it is the successor's to accept. */
    ms_server_stop(server);
    eventfd_write(listener_fd, 1);
    run_for(PAUSES_MS);
    g_assert_cmpuint(n_accepts, ==, 2);
    ms_server_free(server);
    close(listener_fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memserver/accept/restarted-meanwhile",
                    test_restarted_meanwhile);
    return g_test_run();
}
