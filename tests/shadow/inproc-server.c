/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memserver within this process; see the header.
 *
 * The server accepts from the default main context, which a thread of its
 * own iterates for all servers.
 */
#include <glib.h>
#include "inproc-server.h"
#include "server.h"
#include "transport-inproc.h"

struct InprocServer {
    MsServer *server;
    char *address;
};

static unsigned n_servers;
static GMainLoop *loop;
static GThread *loop_thread;

static void *iterate(void *opaque)
{
    g_main_loop_run(opaque);
    return NULL;
}

InprocServer *inproc_server_new(uint64_t capacity_bytes)
{
    InprocServer *s = g_new0(InprocServer, 1);
    g_autoptr(GError) error = NULL;
    MemxListener *listener;
    MsBacking backing;
    MsStore *store;

    listener = memx_transport_inproc.listen("127.0.0.1", "0", &error);
    g_assert_no_error(error);
    g_assert_true(ms_backing_create(&backing, &error));
    store = ms_store_new(&backing, capacity_bytes / MEMX_PAGE_BYTES, &error);
    g_assert_no_error(error);
    s->address = memx_transport_inproc.listener_address(listener);
    s->server = ms_server_new("inproc", listener, store, NULL, 0);
    s->server->transport = &memx_transport_inproc;
    ms_server_start(s->server);
    if (!n_servers++) {
        loop = g_main_loop_new(NULL, FALSE);
        loop_thread = g_thread_new("inproc-loop", iterate, loop);
    }
    return s;
}

void inproc_server_free(InprocServer *s)
{
    if (!s) {
        return;
    }
    ms_server_stop(s->server);
    if (!--n_servers) {
        g_main_loop_quit(loop);
        g_thread_join(loop_thread);
        g_clear_pointer(&loop, g_main_loop_unref);
    }
    ms_server_free(s->server);
    g_free(s->address);
    g_free(s);
}

const char *inproc_server_address(const InprocServer *s)
{
    return s->address;
}

uint64_t inproc_server_held_pages(InprocServer *s)
{
    return ms_store_held_pages(s->server->store);
}

void inproc_server_cut(InprocServer *s)
{
    g_mutex_lock(&s->server->lock);
    for (GList *l = s->server->connections.head; l; l = l->next) {
        MsConnection *connection = l->data;

        if (g_random_boolean()) {
            memx_channel_shutdown(connection->channel);
        }
    }
    g_mutex_unlock(&s->server->lock);
}

void inproc_server_restart(InprocServer *s)
{
    ms_server_stop(s->server);
    ms_server_start(s->server);
}
