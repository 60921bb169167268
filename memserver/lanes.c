/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A space has at most one connection for each lane.  A client that lost a
 * connection opens the lane again, maybe before the server noticed the loss.
 * The predecessor's channel is shut down then, which makes its thread's
 * calls fail, and OPEN is answered only after that thread has left the lane:
 * so whatever the client sends on the new connection comes after everything
 * of the old one.
 *
 * A space has one owner, a client id with an epoch.
 *   same client, same epoch     replaces the lane's predecessor
 *   same client, higher epoch   ends all lanes of the lower epoch first
 *   same client, lower epoch    EPOCH: it has been fenced
 *   other client, owner here    OWNED
 *   other client, owner gone    becomes the owner if its epoch is higher,
 *                               else EPOCH
 * That somebody may open the space at all was proven before, with its secret.
 *
 * The lock is released while waiting, so a space may be gone, and even
 * another one be there, when the wait is over: it is looked up again, by its
 * id, every time.
 */
#include <errno.h>
#include <string.h>
#include "lanes.h"
#include "urgent.h"

bool ms_lanes_any_locked(const MsSpace *space)
{
    for (int lane = 0; lane < MS_LANES; lane++) {
        if (space->lanes[lane]) {
            return true;
        }
    }
    return false;
}

void ms_lanes_secret(MsServer *server, const uint8_t *id, uint8_t *secret)
{
    MsSpace *space;

    memx_random(secret, MEMX_ID_BYTES);
    g_mutex_lock(&server->lock);
    space = server->store ? ms_store_find(server->store, id) : NULL;
    if (space) {
        memcpy(secret, space->record->secret, MEMX_ID_BYTES);
    }
    g_mutex_unlock(&server->lock);
}

static MemxError check_owner_locked(const MsSpace *space,
                                    const MemxOpen *open)
{
    const MsOwner *owner = ms_space_owner(space);
    bool same = !memcmp(owner->client, open->client, MEMX_ID_BYTES);

    if (!same && ms_lanes_any_locked(space)) {
        return MEMX_ERR_OWNED;
    }
    if (open->epoch < owner->epoch ||
        (!same && open->epoch == owner->epoch)) {
        return MEMX_ERR_EPOCH;
    }
    if (open->size_pages && open->size_pages != space->size_pages) {
        return MEMX_ERR_RANGE;
    }
    return MEMX_ERR_NONE;
}

/* Shuts down what must be gone before @open can be granted; true if there is
 * any such. */
static bool clear_way_locked(MsSpace *space, const MemxOpen *open)
{
    bool fences = open->epoch > ms_space_owner(space)->epoch;
    bool any = false;

    for (unsigned lane = 0; lane < MS_LANES; lane++) {
        if (space->lanes[lane] && (fences || lane == open->lane)) {
            memx_channel_shutdown(space->lanes[lane]->channel);
            any = true;
        }
    }
    return any;
}

static void join_locked(MsConnection *connection, MsSpace *space,
                        const MemxOpen *open, MemxOpened *opened)
{
    const MsOwner *owner = ms_space_owner(space);

    if (owner->epoch != open->epoch ||
        memcmp(owner->client, open->client, MEMX_ID_BYTES)) {
        ms_space_set_owner(space, open->client, open->epoch);
    }
    atomic_store(&space->record->orphaned_s, 0);
    space->lanes[open->lane] = connection;
    connection->space = space;
    connection->lane = open->lane;
    if (open->lane == MEMX_LANE_FAULT) {
        memx_channel_urgent(connection->channel);
        memx_thread_urgent(); /* this connection's own */
    }
    connection->stage = MS_STAGE_SERVED;
    *opened = (MemxOpened) {
        .epoch = open->epoch,
        .size_pages = space->size_pages,
        .reserved_pages = atomic_load(&space->record->reserved_pages),
        .held_pages = atomic_load(&space->held_pages),
    };
}

static MemxError create_locked(MsConnection *connection, const MemxOpen *open,
                               const uint8_t *secret, MemxOpened *opened)
{
    MsServer *server = connection->server;
    MsSpace *space;

    if (server->stopping) {
        return MEMX_ERR_SHUTDOWN;
    }
    switch (ms_store_create(server->store, open, secret, &space)) {
    case 0:
        join_locked(connection, space, open, opened);
        return MEMX_ERR_NONE;
    case -EEXIST:
        return MEMX_ERR_EXISTS;
    case -ERANGE:
        return MEMX_ERR_RANGE;
    default:
        return MEMX_ERR_FULL;
    }
}

static MemxError attach_locked(MsConnection *connection, const MemxOpen *open,
                               const uint8_t *secret, MemxOpened *opened)
{
    MsServer *server = connection->server;

    for (;;) {
        MsSpace *space;
        MemxError error;

        if (server->stopping) {
            return MEMX_ERR_SHUTDOWN;
        }
        space = ms_store_find(server->store, open->space);
        if (!space || space->ending ||
            !memx_auth_equal(space->record->secret, secret, MEMX_ID_BYTES)) {
            return MEMX_ERR_NO_SPACE;
        }
        error = check_owner_locked(space, open);
        if (error != MEMX_ERR_NONE) {
            return error;
        }
        if (!clear_way_locked(space, open)) {
            join_locked(connection, space, open, opened);
            return MEMX_ERR_NONE;
        }
        g_cond_wait(&server->changed, &server->lock);
    }
}

MemxError ms_lanes_open(MsConnection *connection, const MemxOpen *open,
                        const uint8_t *secret, MemxOpened *opened)
{
    MsServer *server = connection->server;
    MemxError error;

    g_mutex_lock(&server->lock);
    if (open->flags & MEMX_OPEN_CREATE) {
        error = create_locked(connection, open, secret, opened);
    } else {
        error = attach_locked(connection, open, secret, opened);
    }
    g_mutex_unlock(&server->lock);
    return error;
}

void ms_lanes_leave(MsConnection *connection)
{
    MsServer *server = connection->server;
    MsSpace *space;

    g_mutex_lock(&server->lock);
    space = connection->space;
    if (space) {
        for (int i = 0; i < MS_N_COUNTERS; i++) {
            space->counters[i] += atomic_load(&connection->counters[i]);
        }
        space->lanes[connection->lane] = NULL;
        connection->space = NULL;
        if (!ms_lanes_any_locked(space)) {
            atomic_store(&space->record->orphaned_s,
                         g_get_real_time() / G_USEC_PER_SEC);
        }
        g_cond_broadcast(&server->changed);
    }
    g_mutex_unlock(&server->lock);
}

bool ms_lanes_end_space_locked(MsServer *server, MsSpace *space,
                               MsConnection *self)
{
    bool others;

    if (space->ending) {
        return false;
    }
    space->ending = true;
    do {
        others = false;
        for (int lane = 0; lane < MS_LANES; lane++) {
            if (space->lanes[lane] && space->lanes[lane] != self) {
                memx_channel_shutdown(space->lanes[lane]->channel);
                others = true;
            }
        }
        if (others) {
            g_cond_wait(&server->changed, &server->lock);
        }
    } while (others);
    if (self) {
        self->space = NULL;
        self->stage = MS_STAGE_ADMITTED;
    }
    ms_store_unlink(server->store, space);
    return true;
}
