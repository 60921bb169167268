/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memserver within this process; see the header.
 *
 * As in the daemon, one thread starts and stops servers and accepts for them,
 * in the default main context.  Other threads tell it what to do, by means
 * that ThreadSanitizer sees: GLib's own between threads it doesn't.
 */
#include <glib.h>
#include <glib-unix.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "inproc-server.h"
#include "server.h"
#include "transport-inproc.h"

struct InprocServer {
    MsServer *server;
    char *address;
};

typedef void ServerFunc(MsServer *server);

static unsigned n_servers;
static pthread_t loop_thread;
static int bell;                /* an eventfd: there is something to do */

/* One thing at a time; all that the loop is told. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static ServerFunc *to_do;       /* NULL: done */
static MsServer *to_whom;       /* NULL: the loop shall end */

static void no_more(MsServer *server)
{
}

static gboolean do_it(int fd, GIOCondition condition, void *opaque)
{
    bool *go_on = opaque;
    eventfd_t count;

    eventfd_read(fd, &count);
    pthread_mutex_lock(&lock);
    *go_on = to_whom;
    to_do(to_whom);
    to_do = NULL;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return *go_on;
}

static void *iterate(void *opaque)
{
    bool go_on = true;

    g_unix_fd_add(bell, G_IO_IN, do_it, &go_on);
    while (go_on) {
        g_main_context_iteration(NULL, TRUE);
    }
    return NULL;
}

/* Has the loop do it; returns when it is done. */
static void in_loop(ServerFunc *func, MsServer *server)
{
    pthread_mutex_lock(&lock);
    to_do = func;
    to_whom = server;
    eventfd_write(bell, 1);
    while (to_do) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void restart(MsServer *server)
{
    ms_server_stop(server);
    ms_server_start(server);
}

InprocServer *inproc_server_new(uint64_t capacity_bytes)
{
    InprocServer *s = g_new0(InprocServer, 1);
    g_autoptr(GError) error = NULL;
    MemxListener *listener;
    MsBacking backing;
    MsStore *store;

    if (!n_servers++) {
        bell = eventfd(0, EFD_CLOEXEC);
        g_assert_cmpint(bell, >=, 0);
        g_assert_cmpint(pthread_create(&loop_thread, NULL, iterate, NULL),
                        ==, 0);
    }
    listener = memx_transport_inproc.listen("127.0.0.1", "0", &error);
    g_assert_no_error(error);
    g_assert_true(ms_backing_create(&backing, &error));
    store = ms_store_new(&backing, capacity_bytes / MEMX_PAGE_BYTES, &error);
    g_assert_no_error(error);
    s->address = memx_transport_inproc.listener_address(listener);
    s->server = ms_server_new("inproc", listener, store, NULL, 0);
    s->server->transport = &memx_transport_inproc;
    in_loop(ms_server_start, s->server);
    return s;
}

void inproc_server_free(InprocServer *s)
{
    if (!s) {
        return;
    }
    in_loop(ms_server_stop, s->server);
    if (!--n_servers) {
        in_loop(no_more, NULL);
        pthread_join(loop_thread, NULL);
        close(bell);
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
    in_loop(restart, s->server);
}
