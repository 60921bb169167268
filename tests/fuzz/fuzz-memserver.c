/*
 * A whole session of a hostile client with memserver, which has no key: the
 * input is all that the client sends.  It is run twice: by a stranger, and by
 * the heir of a space, on its ordered lane.
 *
 * Whatever it was, the server goes on, and once the client's spaces are
 * dropped nothing of the capacity is taken.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "connection.h"
#include "fuzz.h"
#include "lanes.h"
#include "memx.h"
#include "transport-tcp.h"

#define STREAM_BYTES_MAX 65536
#define CAPACITY_PAGES 2048

/* A COPY may name any server: it is never there. */
static MemxChannel *connect_nowhere(const char *host, const char *port,
                                    int timeout_ms, int cancel_fd,
                                    GError **error)
{
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT, "no network here");
    return NULL;
}

static MsServer *server_new(void)
{
    static MemxTransport nowhere;
    g_autoptr(GError) error = NULL;
    MsBacking backing;
    MsServer *server;
    MsStore *store;

    FUZZ_CHECK(ms_backing_create(&backing, &error));
    store = ms_store_new(&backing, CAPACITY_PAGES, &error);
    FUZZ_CHECK(store);
    server = ms_server_new("fuzz", NULL, store, NULL, 0);
    nowhere = memx_transport_tcp;
    nowhere.connect = connect_nowhere;
    server->transport = &nowhere;
    server->stopping = false;
    return server;
}

/* As server.c does for one that it accepted. */
static MsConnection *connection_new(MsServer *server, int fd)
{
    MsConnection *connection = g_new0(MsConnection, 1);

    connection->server = server;
    connection->channel = memx_tcp_server_new(fd);
    connection->peer = g_strdup("fuzz");
    connection->link.data = connection;
    connection->stage = MS_STAGE_STRANGER;
    g_queue_push_tail_link(&server->connections, &connection->link);
    server->n_strangers++;
    return connection;
}

/* The server must not block on a client that does not receive. */
static void *drain_thread(void *opaque)
{
    static uint8_t waste[STREAM_BYTES_MAX];

    while (recv(GPOINTER_TO_INT(opaque), waste, sizeof(waste), 0) > 0) {
        continue;
    }
    return NULL;
}

static void drop_spaces(MsServer *server)
{
    GHashTableIter iter;
    MsSpace *space;
    void *key;

    while (g_hash_table_iter_init(&iter, server->store->spaces),
           g_hash_table_iter_next(&iter, &key, (void **)&space)) {
        g_mutex_lock(&server->lock);
        ms_store_unlink(server->store, space);
        g_mutex_unlock(&server->lock);
        ms_store_destroy(server->store, space);
    }
}

/* Makes @heir a lane of a space that is offered to it, whose owner is gone
 * and may have resigned. */
static void inherit(MsConnection *heir, bool resigned)
{
    MemxOpen open = {
        .space = "s", .client = "c", .lane = MEMX_LANE_ORDERED, .epoch = 1,
        .flags = MEMX_OPEN_CREATE, .size_pages = 1024, .reserve_pages = 128,
    };
    MsServer *server = heir->server;
    MsConnection owner = { .server = server, .stage = MS_STAGE_ADMITTED };
    uint8_t secret[MEMX_ID_BYTES] = { 0 };
    MemxOpened opened;
    MsOwner next;

    g_mutex_lock(&server->lock);
    heir->stage = MS_STAGE_ADMITTED;
    server->n_strangers--;
    g_mutex_unlock(&server->lock);
    heir->greeted = true;
    FUZZ_CHECK(ms_lanes_open(&owner, &open, secret, &opened) == 0);
    next = *ms_space_owner(owner.space);
    next.offer_state = resigned ? MS_OFFER_RESIGNED : MS_OFFER_MADE;
    memset(next.offer.session, 'e', MEMX_ID_BYTES); /* the corpus' */
    memset(next.offer.heir, 'h', MEMX_ID_BYTES);
    ms_space_set_owner(owner.space, &next);
    ms_lanes_leave(&owner);
    open.flags = MEMX_OPEN_HEIR;
    open.epoch = 2;
    memcpy(open.client, next.offer.heir, MEMX_ID_BYTES);
    memcpy(open.session, next.offer.session, MEMX_ID_BYTES);
    FUZZ_CHECK(ms_lanes_open(heir, &open, secret, &opened) == 0);
}

static void run(MsServer *server, const uint8_t *data, size_t bytes,
                bool inherits)
{
    MsConnection *connection;
    GThread *drain;
    int fds[2];

    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    if (bytes) {
        FUZZ_CHECK(send(fds[1], data, bytes, MSG_NOSIGNAL) ==
                   (ssize_t)bytes);
    }
    shutdown(fds[1], SHUT_WR);
    connection = connection_new(server, fds[0]);
    if (inherits) {
        inherit(connection, bytes % 2);
    }
    drain = g_thread_new("drain", drain_thread, GINT_TO_POINTER(fds[1]));
    ms_connection_thread(connection);
    g_thread_join(drain);
    close(fds[1]);

    FUZZ_CHECK(server->connections.length == 0);
    FUZZ_CHECK(server->n_strangers == 0);
    drop_spaces(server);
    FUZZ_CHECK(ms_store_free_pages(server->store) == CAPACITY_PAGES);
    FUZZ_CHECK(ms_frames_used(server->store->frames) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static MsServer *server;

    if (bytes > STREAM_BYTES_MAX) {
        return 0;
    }
    if (!server) {
        server = server_new();
    }
    run(server, data, bytes, false);
    run(server, data, bytes, true);
    return 0;
}
