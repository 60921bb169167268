/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The main loop accepts connections and gives each a thread (connection.c).
 * What the threads share is the list of connections and the spaces' lanes,
 * under the server's lock; serving a request takes no lock of the server's.
 *
 * Strangers, connections that have not finished their hello, can only take
 * each other's place: beyond MS_STRANGERS_MAX the oldest of them goes.  So
 * one who floods the port keeps no client from getting in, whose handshake
 * takes a few round trips.  A connection beyond MS_CONNECTIONS_MAX is closed
 * at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include "connection.h"
#include "host.h"
#include "lanes.h"
#include "log.h"
#include "server.h"

const char *const ms_counter_names[MS_N_COUNTERS] = {
    [MS_COUNT_FETCHES] = "fetches",
    [MS_COUNT_FETCHED_PAGES] = "fetched_pages",
    [MS_COUNT_STORES] = "stores",
    [MS_COUNT_STORED_PAGES] = "stored_pages",
    [MS_COUNT_COMPARED_PAGES] = "compared_pages",
    [MS_COUNT_SAME_PAGES] = "same_pages",
    [MS_COUNT_DROPPED_PAGES] = "dropped_pages",
    [MS_COUNT_COPIED_PAGES] = "copied_pages",
    [MS_COUNT_REFUSALS] = "refusals",
};

MsServer *ms_server_new(const char *name, MemxListener *listener,
                        MsStore *store, GBytes *key,
                        int64_t orphan_timeout_s)
{
    MsServer *server = g_new0(MsServer, 1);

    g_mutex_init(&server->lock);
    g_cond_init(&server->changed);
    g_queue_init(&server->connections);
    server->name = g_strdup(name);
    server->transport = &memx_transport_tcp;
    server->listener = listener;
    server->store = store;
    server->key = key ? g_bytes_ref(key) : NULL;
    server->orphan_timeout_s = orphan_timeout_s;
    server->started_us = g_get_monotonic_time();
    server->last_us = server->started_us;
    server->stopping = true;
    return server;
}

void ms_server_free(MsServer *server)
{
    if (server->store) {
        ms_store_free(server->store, NULL);
    }
    if (server->listener) {
        server->transport->listener_close(server->listener);
    }
    g_clear_pointer(&server->key, g_bytes_unref);
    g_free(server->name);
    g_cond_clear(&server->changed);
    g_mutex_clear(&server->lock);
    g_free(server);
}

/* Makes room for a stranger at the expense of the oldest one. */
static void limit_strangers_locked(MsServer *server)
{
    if (server->n_strangers < MS_STRANGERS_MAX) {
        return;
    }
    for (GList *link = server->connections.head; link; link = link->next) {
        MsConnection *connection = link->data;

        if (connection->stage == MS_STAGE_STRANGER && !connection->doomed) {
            memx_channel_shutdown(connection->channel);
            connection->doomed = true;
            server->n_strangers--;
            server->n_turned_away++;
            return;
        }
    }
}

static bool admit_locked(MsServer *server, MemxChannel *channel)
{
    MsConnection *connection;
    g_autoptr(GError) error = NULL;
    GThread *thread;

    if (server->stopping ||
        server->connections.length >= MS_CONNECTIONS_MAX) {
        server->n_turned_away++;
        return false;
    }
    limit_strangers_locked(server);
    connection = g_new0(MsConnection, 1);
    connection->server = server;
    connection->channel = channel;
    connection->peer = memx_channel_peer_address(channel);
    connection->link.data = connection;
    connection->stage = MS_STAGE_STRANGER;
    atomic_init(&connection->active_us, g_get_monotonic_time());
    g_queue_push_tail_link(&server->connections, &connection->link);
    server->n_strangers++;
    server->n_accepted++;
    thread = g_thread_try_new("connection", ms_connection_thread, connection,
                              &error);
    if (!thread) {
        ms_log_stranger("%s: no thread for it: %s", connection->peer,
                        error->message);
        g_queue_unlink(&server->connections, &connection->link);
        server->n_strangers--;
        g_free(connection->peer);
        g_free(connection);
        return false;
    }
    g_thread_unref(thread);
    return true;
}

static gboolean accept_again(gpointer opaque);

static void watch_listener_locked(MsServer *server);

static gboolean accept_one(int fd, GIOCondition condition, gpointer opaque)
{
    MsServer *server = opaque;
    g_autoptr(GError) error = NULL;
    MemxChannel *channel;
    bool admitted;

    channel = server->transport->accept(server->listener, &error);
    if (!channel && !error) {
        return G_SOURCE_CONTINUE; /* the successor has taken it */
    }
    if (!channel) {
        /* No descriptors left, most likely: don't spin. */
        ms_log_stranger("%s", error->message);
        g_mutex_lock(&server->lock);
        /* Not that of one who stopped, and perhaps started, it meanwhile. */
        if (server->accept_source == g_main_current_source()) {
            g_clear_pointer(&server->accept_source, g_source_unref);
            g_timeout_add(MS_ACCEPT_PAUSE_MS, accept_again, server);
        }
        g_mutex_unlock(&server->lock);
        return G_SOURCE_REMOVE;
    }
    g_mutex_lock(&server->lock);
    admitted = admit_locked(server, channel);
    g_mutex_unlock(&server->lock);
    if (!admitted) {
        memx_channel_close(channel);
    }
    return G_SOURCE_CONTINUE;
}

static void watch_listener_locked(MsServer *server)
{
    int fd = server->transport->listener_fd(server->listener);

    server->accept_source = g_unix_fd_source_new(fd, G_IO_IN);
    g_source_set_callback(server->accept_source, G_SOURCE_FUNC(accept_one),
                          server, NULL);
    g_source_attach(server->accept_source, NULL);
}

static gboolean accept_again(gpointer opaque)
{
    MsServer *server = opaque;

    g_mutex_lock(&server->lock);
    if (!server->stopping && !server->accept_source) {
        watch_listener_locked(server);
    }
    g_mutex_unlock(&server->lock);
    return G_SOURCE_REMOVE;
}

void ms_server_start(MsServer *server)
{
    g_mutex_lock(&server->lock);
    server->stopping = false;
    watch_listener_locked(server);
    g_mutex_unlock(&server->lock);
}

void ms_server_stop(MsServer *server)
{
    g_mutex_lock(&server->lock);
    server->stopping = true;
    if (server->accept_source) {
        g_source_destroy(server->accept_source);
        g_clear_pointer(&server->accept_source, g_source_unref);
    }
    for (GList *link = server->connections.head; link; link = link->next) {
        memx_channel_shutdown(((MsConnection *)link->data)->channel);
    }
    /* Those that wait for a lane. */
    g_cond_broadcast(&server->changed);
    while (server->connections.length || server->n_drops) {
        g_cond_wait(&server->changed, &server->lock);
    }
    g_mutex_unlock(&server->lock);
}

/* Counting. */

static void add_counters(uint64_t *sum, const MsConnection *connection)
{
    for (int i = 0; connection && i < MS_N_COUNTERS; i++) {
        sum[i] += atomic_load_explicit(&connection->counters[i],
                                       memory_order_relaxed);
    }
}

void ms_server_count_locked(MsServer *server,
                            uint64_t counters[MS_N_COUNTERS])
{
    memcpy(counters, server->counters, sizeof(server->counters));
    for (GList *link = server->connections.head; link; link = link->next) {
        add_counters(counters, link->data);
    }
}

void ms_space_count_locked(const MsSpace *space,
                           uint64_t counters[MS_N_COUNTERS])
{
    memcpy(counters, space->counters, sizeof(space->counters));
    for (int i = 0; i < MS_SIDES * MS_LANES; i++) {
        add_counters(counters, space->sides[i / MS_LANES].lanes[i % MS_LANES]);
    }
    for (int i = 0; i < MS_READERS; i++) {
        add_counters(counters, space->readers[i]);
    }
}

/* Dropping. */

/* Ends and drops @space; releases the lock meanwhile. */
static bool drop_space_locked(MsServer *server, MsSpace *space)
{
    MsStore *store = server->store;

    server->n_drops++;
    bool mine = ms_lanes_end_space_locked(server, space, NULL);
    if (mine) {
        g_mutex_unlock(&server->lock);
        ms_store_destroy(store, space);
        g_mutex_lock(&server->lock);
    }
    server->n_drops--;
    g_cond_broadcast(&server->changed);
    return mine;
}

static char *space_hex(const MsSpace *space)
{
    GString *hex = g_string_new(NULL);

    for (unsigned i = 0; i < MEMX_ID_BYTES; i++) {
        g_string_append_printf(hex, "%02x", space->record->id[i]);
    }
    return g_string_free(hex, FALSE);
}

/* The one space whose id begins with @prefix. */
static MsSpace *find_prefix_locked(MsServer *server, const char *prefix,
                                   GError **error)
{
    MsSpace *found = NULL;
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, server->store->spaces);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        g_autofree char *hex = space_hex(value);

        if (g_ascii_strncasecmp(hex, prefix, strlen(prefix))) {
            continue;
        }
        if (found) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "'%s' fits more than one space; give more of its id",
                        prefix);
            return NULL;
        }
        found = value;
    }
    if (!found) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
                    "no space has an id that begins with '%s'; memxctl status lists "
                    "them", prefix);
    }
    return found;
}

static bool drop_locked(MsServer *server, const char *prefix, bool force,
                        GError **error)
{
    MsSpace *space;

    if (!server->store || server->stopping) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
                    "the server is stopping or handing over; try again");
        return false;
    }
    space = find_prefix_locked(server, prefix, error);
    if (!space) {
        return false;
    }
    if (ms_lanes_any_locked(space) && !force) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
                    "VM '%s' uses this space and would lose its memory; "
                    "with --force it is dropped all the same",
                    space->record->vm_name);
        return false;
    }
    if (ms_space_owner(space)->offer_state != MS_OFFER_NONE && !force) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
                    "VM '%s' is being migrated and one of its hosts may "
                    "still come for this space; with --force it is dropped "
                    "all the same", space->record->vm_name);
        return false;
    }
    ms_log_warn("space of VM '%s' (region '%s', %" G_GUINT64_FORMAT
                " pages) dropped by the administrator",
                space->record->vm_name, space->record->region_name,
                (uint64_t)atomic_load(&space->held_pages));
    if (!drop_space_locked(server, space)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY,
                    "the space is being dropped already");
        return false;
    }
    return true;
}

void ms_server_drain(MsServer *server, bool drain)
{
    g_mutex_lock(&server->lock);
    if (server->store) {
        atomic_store(&server->store->backing.super->draining, drain);
        ms_log_info("%s", drain ? "draining: clients move what they have here "
                    "to other servers" : "not draining any more");
    }
    g_mutex_unlock(&server->lock);
}

bool ms_server_drop(MsServer *server, const char *prefix, bool force,
                    GError **error)
{
    bool ok;

    g_mutex_lock(&server->lock);
    ok = drop_locked(server, prefix, force, error);
    g_mutex_unlock(&server->lock);
    return ok;
}

/* Every second. */

static void end_idle_locked(MsServer *server, int64_t now_us)
{
    for (GList *link = server->connections.head; link; link = link->next) {
        MsConnection *connection = link->data;
        int64_t idle_s = (now_us - atomic_load_explicit(
            &connection->active_us, memory_order_relaxed)) / G_USEC_PER_SEC;

        if ((connection->stage == MS_STAGE_STRANGER &&
             idle_s >= MS_STRANGER_SECONDS) ||
            (connection->stage == MS_STAGE_ADMITTED &&
             idle_s >= MS_IDLE_SECONDS)) {
            memx_channel_shutdown(connection->channel);
        }
    }
}

static void sample_rates_locked(MsServer *server, int64_t now_us)
{
    double seconds = (now_us - server->last_us) / (double)G_USEC_PER_SEC;
    uint64_t counters[MS_N_COUNTERS];

    ms_server_count_locked(server, counters);
    for (int i = 0; i < MS_N_COUNTERS && seconds > 0; i++) {
        server->rates[i] = (counters[i] - server->last_counters[i]) /
                           seconds;
        server->last_counters[i] = counters[i];
    }
    server->last_us = now_us;
}

/* A space orphaned for longer than the administrator allows, or NULL.  While
 * there was no server nobody could come for it.  One that is offered says who
 * may run the VM: it stays. */
static MsSpace *find_expired_locked(MsServer *server, int64_t now_us)
{
    int64_t now_s = g_get_real_time() / G_USEC_PER_SEC;
    int64_t up_s = (now_us - server->started_us) / G_USEC_PER_SEC;
    GHashTableIter iter;
    gpointer value;

    if (!server->store || !server->orphan_timeout_s ||
        up_s < server->orphan_timeout_s) {
        return NULL;
    }
    g_hash_table_iter_init(&iter, server->store->spaces);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        MsSpace *space = value;
        int64_t orphaned_s = atomic_load(&space->record->orphaned_s);

        if (orphaned_s && now_s - orphaned_s >= server->orphan_timeout_s &&
            ms_space_owner(space)->offer_state == MS_OFFER_NONE &&
            !space->ending && !ms_lanes_any_locked(space)) {
            return space;
        }
    }
    return NULL;
}

void ms_server_tick(MsServer *server)
{
    int64_t now_us = g_get_monotonic_time();
    MsSpace *space;

    atomic_store_explicit(&server->load_permille, ms_host_load_permille(),
                          memory_order_relaxed);
    g_mutex_lock(&server->lock);
    end_idle_locked(server, now_us);
    sample_rates_locked(server, now_us);
    while ((space = find_expired_locked(server, now_us))) {
        ms_log_warn("space of VM '%s' (region '%s', %" G_GUINT64_FORMAT
                    " pages) dropped: orphaned for more than %"
                    G_GINT64_FORMAT " s (--orphan-timeout)",
                    space->record->vm_name, space->record->region_name,
                    (uint64_t)atomic_load(&space->held_pages),
                    server->orphan_timeout_s);
        drop_space_locked(server, space);
    }
    g_mutex_unlock(&server->lock);
}
