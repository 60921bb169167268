/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A space has at most one connection for each lane and side: its owner, and
 * its heir while it is offered (offer.c).  A client that lost a
 * connection opens the lane again, maybe before the server noticed the loss.
 * The predecessor's channel is shut down then, which makes its thread's
 * calls fail, and OPEN is answered only after that thread has left the lane:
 * so whatever the client sends on the new connection comes after everything
 * of the old one.
 *
 * A space has one owner, a client id with an epoch.
 *   same client, same epoch     replaces the lane's predecessor
 *   same client, higher epoch   ends all lanes of the lower epoch first
 *   any client, lower epoch     EPOCH: it has been fenced
 *   other client, owner here    OWNED
 *   other client, owner gone    becomes the owner if its epoch is higher,
 *                               else EPOCH
 * That somebody may open the space at all was proven before, with its secret.
 * While the space is offered only the owner and its heir may.
 *
 * Readers are other servers, which copy pages at the owner's word; several, each
 * with pins of its own.  They belong to no side and make no difference to whose
 * the space is, or whether it is orphaned; they end with it.
 *
 * The lock is released while waiting, so a space may be gone, and even
 * another one be there, when the wait is over: it is looked up again, by its
 * id, every time.
 */
#include <errno.h>
#include <string.h>
#include "lanes.h"
#include "offer.h"
#include "urgent.h"

bool ms_lanes_side_any_locked(const MsSpace *space, unsigned side)
{
    for (int lane = 0; lane < MS_LANES; lane++) {
        if (space->sides[side].lanes[lane]) {
            return true;
        }
    }
    return false;
}

bool ms_lanes_any_locked(const MsSpace *space)
{
    return ms_lanes_side_any_locked(space, 0) ||
           ms_lanes_side_any_locked(space, 1);
}

void ms_lanes_fence_locked(MsSpace *space, unsigned side)
{
    for (int lane = 0; lane < MS_LANES; lane++) {
        MsConnection *connection = space->sides[side].lanes[lane];

        if (connection) {
            connection->fenced = true;
            memx_channel_shutdown(connection->channel);
        }
    }
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

/* Shuts down what must be gone before @open can be granted; true if there is
 * any such. */
static bool clear_way_locked(MsSpace *space, const MemxOpen *open,
                             unsigned side)
{
    const MsOwner *owner = ms_space_owner(space);
    bool fences = side == space->owner_side && open->epoch > owner->epoch;
    bool any = false;

    for (unsigned lane = 0; lane < MS_LANES; lane++) {
        MsConnection *connection = space->sides[side].lanes[lane];

        if (connection && (fences || lane == open->lane)) {
            memx_channel_shutdown(connection->channel);
            any = true;
        }
    }
    /* A side that has lost, and is about to leave. */
    return any || (owner->offer_state == MS_OFFER_NONE &&
                   ms_lanes_side_any_locked(space, !side));
}

/* The space's owner, with @open a lane of it. */
static void take_locked(MsSpace *space, const MemxOpen *open)
{
    MsOwner next = *ms_space_owner(space);

    if (memcmp(next.client, open->client, MEMX_ID_BYTES)) {
        next = (MsOwner) { 0 };
        memcpy(next.client, open->client, MEMX_ID_BYTES);
    } else if (next.epoch == open->epoch) {
        return;
    }
    next.epoch = open->epoch;
    ms_space_set_owner(space, &next);
}

static void join_locked(MsConnection *connection, MsSpace *space,
                        const MemxOpen *open, unsigned side,
                        MemxOpened *opened)
{
    if (side == space->owner_side) {
        take_locked(space, open);
    }
    atomic_store(&space->record->orphaned_s, 0);
    space->sides[side].lanes[open->lane] = connection;
    connection->space = space;
    connection->side = side;
    connection->lane = open->lane;
    connection->pins = ms_space_pins(space, side, open->lane);
    connection->may_write = side == space->owner_side &&
        ms_space_owner(space)->offer_state == MS_OFFER_NONE;
    if (open->lane == MEMX_LANE_FAULT) {
        memx_channel_urgent(connection->channel);
    }
    memx_thread_urgent(); /* this connection's own */
    connection->stage = MS_STAGE_SERVED;
    *opened = (MemxOpened) {
        .epoch = ms_space_owner(space)->epoch,
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
    if (ms_store_draining(server->store)) {
        return MEMX_ERR_DRAINING;
    }
    switch (ms_store_create(server->store, open, secret, &space)) {
    case 0:
        join_locked(connection, space, open, space->owner_side, opened);
        return MEMX_ERR_NONE;
    case -EEXIST:
        return MEMX_ERR_EXISTS;
    case -ERANGE:
        return MEMX_ERR_RANGE;
    default:
        return MEMX_ERR_FULL;
    }
}

static MemxError attach_reader_locked(MsConnection *connection,
                                      const MemxOpen *open,
                                      const uint8_t *secret,
                                      MemxOpened *opened)
{
    MsServer *server = connection->server;
    MsSpace *space;
    unsigned i = 0;

    if (server->stopping) {
        return MEMX_ERR_SHUTDOWN;
    }
    space = ms_store_find(server->store, open->space);
    if (!space || space->ending ||
        !memx_auth_equal(space->record->secret, secret, MEMX_ID_BYTES)) {
        return MEMX_ERR_NO_SPACE;
    }
    if (open->size_pages && open->size_pages != space->size_pages) {
        return MEMX_ERR_RANGE;
    }
    while (i < MS_READERS && space->readers[i]) {
        i++;
    }
    if (i == MS_READERS) {
        return MEMX_ERR_FULL;
    }
    space->readers[i] = connection;
    connection->space = space;
    connection->lane = open->lane;
    connection->pins = &space->reader_pins[i];
    connection->stage = MS_STAGE_SERVED;
    *opened = (MemxOpened) {
        .epoch = ms_space_owner(space)->epoch,
        .size_pages = space->size_pages,
        .reserved_pages = atomic_load(&space->record->reserved_pages),
        .held_pages = atomic_load(&space->held_pages),
    };
    return MEMX_ERR_NONE;
}

static MemxError attach_locked(MsConnection *connection, const MemxOpen *open,
                               const uint8_t *secret, MemxOpened *opened)
{
    MsServer *server = connection->server;

    for (;;) {
        MsSpace *space;
        MemxError error;
        unsigned side;

        if (server->stopping) {
            return MEMX_ERR_SHUTDOWN;
        }
        space = ms_store_find(server->store, open->space);
        if (!space || space->ending ||
            !memx_auth_equal(space->record->secret, secret, MEMX_ID_BYTES)) {
            return MEMX_ERR_NO_SPACE;
        }
        error = ms_offer_find_side_locked(space, open, &side);
        if (error != MEMX_ERR_NONE) {
            return error;
        }
        if (open->size_pages && open->size_pages != space->size_pages) {
            return MEMX_ERR_RANGE;
        }
        if (!clear_way_locked(space, open, side)) {
            join_locked(connection, space, open, side, opened);
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
    } else if (open->lane == MEMX_LANE_READER) {
        error = attach_reader_locked(connection, open, secret, opened);
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
        if (connection->lane == MEMX_LANE_READER) {
            space->readers[connection->pins - space->reader_pins] = NULL;
        } else {
            space->sides[connection->side].lanes[connection->lane] = NULL;
        }
        connection->space = NULL;
        if (connection->lane != MEMX_LANE_READER &&
            !ms_lanes_any_locked(space)) {
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
        for (int i = 0; i < MS_SIDES * MS_LANES; i++) {
            MsConnection *lane =
                space->sides[i / MS_LANES].lanes[i % MS_LANES];

            if (lane && lane != self) {
                memx_channel_shutdown(lane->channel);
                others = true;
            }
        }
        for (int i = 0; i < MS_READERS; i++) {
            if (space->readers[i]) {
                memx_channel_shutdown(space->readers[i]->channel);
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
