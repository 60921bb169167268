/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lanes: which connection serves which lane of which space.
 */
#ifndef MS_LANES_H
#define MS_LANES_H

#include "server.h"

/*
 * Makes @connection a lane of the space that @open names; @secret is the
 * space's, as the client gave it (CREATE) or as ms_lanes_secret() told it
 * (attach, and the client has proven that it knows it).  Waits until a
 * predecessor's thread is gone.
 */
MemxError ms_lanes_open(MsConnection *connection, const MemxOpen *open,
                        const uint8_t *secret, MemxOpened *opened);

/* The space's secret, or a random one if there is no such space: a proof of
 * it fails like any wrong proof. */
void ms_lanes_secret(MsServer *server, const uint8_t *id, uint8_t *secret);

/* The connection's thread is about to end: it touches its space no more. */
void ms_lanes_leave(MsConnection *connection);

/*
 * Ends all connections of @space but @self (or NULL) and unlinks it.  False
 * if somebody else is doing so already.  Releases the server's lock while it
 * waits.  Afterwards the space is the caller's, to ms_store_destroy().
 */
bool ms_lanes_end_space_locked(MsServer *server, MsSpace *space,
                               MsConnection *self);

/* Whether anybody has a lane; whether anybody of that side. */
bool ms_lanes_any_locked(const MsSpace *space);
bool ms_lanes_side_any_locked(const MsSpace *space, unsigned side);

/* Ends all connections of that side, which lost the space.  They leave soon
 * after (server->changed). */
void ms_lanes_fence_locked(MsSpace *space, unsigned side);

#endif
