/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *             OFFER               RESIGN
 *   (none) ----------> made -----------------> resigned
 *      ^                |                         |
 *      |----------------| RECLAIM                 |
 *      |----------------| COMMIT                  |
 *      |------------------------------------------| COMMIT
 *
 * COMMIT makes the heir the owner, with the next epoch.  The state is a part
 * of the space's MsOwner, which is replaced as a whole by one store: after a
 * crash it is the old one or the new one.  So who wins is decided in one
 * moment, under the server's lock, and for ever.
 *
 * Sides.  While a space is offered the owner and the heir both have lanes,
 * each on a side of its own.  COMMIT makes the heir's side the owner's, its
 * lanes are what they were.  The side that lost is fenced: its channels are
 * shut down, and whoever won is answered when its threads have left.  A
 * thread of it may itself be in RECLAIM or COMMIT: it finds that it is fenced
 * and waits for nobody, hence no two wait for each other.
 *
 * Who may write is said by may_write of the connection, not by the state of
 * the space: when a COMMIT ends the offer, the old owner's thread may still
 * be about to serve a STORE.  It lost its may_write at its own OFFER, and
 * nobody but its own RECLAIM gives it back.  So STORE takes no lock.  And so
 * there is never one that writes while the other side's lanes, or another
 * writer, are there:
 *   - nobody may write from OFFER on; the owner's earlier writes were on the
 *     same thread, hence are done
 *   - the one that COMMITs or RECLAIMs may when the other side's are gone
 *   - a lane that is opened while nothing is offered waits for the same
 *     (lanes.c), in case its predecessor was in COMMIT or RECLAIM
 */
#include <string.h>
#include "lanes.h"
#include "log.h"
#include "offer.h"

static bool same_id(const uint8_t *a, const uint8_t *b)
{
    return !memcmp(a, b, MEMX_ID_BYTES);
}

static bool is_offered(const MsOwner *owner, const uint8_t *session)
{
    return owner->offer_state != MS_OFFER_NONE &&
           same_id(owner->offer.session, session);
}

/* OPEN. */

/* An heir may not know yet whether its COMMIT was done. */
static bool is_committed(const MsOwner *owner, const MemxOpen *open)
{
    return same_id(owner->client, open->client) &&
           same_id(owner->session, open->session) &&
           owner->epoch == open->epoch;
}

static bool is_heir(const MsOwner *owner, const MemxOpen *open)
{
    return is_offered(owner, open->session) &&
           same_id(owner->offer.heir, open->client) &&
           owner->epoch + 1 == open->epoch;
}

static MemxError check_owner_locked(const MsSpace *space,
                                    const MemxOpen *open)
{
    const MsOwner *owner = ms_space_owner(space);
    bool same = same_id(owner->client, open->client);

    if (open->epoch < owner->epoch) {
        return MEMX_ERR_EPOCH;
    }
    if (same && open->epoch == owner->epoch) {
        return MEMX_ERR_NONE;
    }
    if (owner->offer_state != MS_OFFER_NONE) {
        return MEMX_ERR_OFFERED;
    }
    if (!same && ms_lanes_any_locked(space)) {
        return MEMX_ERR_OWNED;
    }
    return open->epoch == owner->epoch ? MEMX_ERR_EPOCH : MEMX_ERR_NONE;
}

MemxError ms_offer_find_side_locked(const MsSpace *space,
                                    const MemxOpen *open, unsigned *side)
{
    const MsOwner *owner = ms_space_owner(space);

    *side = space->owner_side;
    if (!(open->flags & MEMX_OPEN_HEIR)) {
        return check_owner_locked(space, open);
    }
    if (is_committed(owner, open)) {
        return MEMX_ERR_NONE;
    }
    *side = !space->owner_side;
    return is_heir(owner, open) ? MEMX_ERR_NONE : MEMX_ERR_EPOCH;
}

/* Deciding. */

/* Whether @connection is what it was when its request came. */
static MemxError check_lane_locked(const MsConnection *connection)
{
    if (connection->space->ending) {
        return MEMX_ERR_NO_SPACE;
    }
    return connection->fenced ? MEMX_ERR_EPOCH : MEMX_ERR_NONE;
}

static MemxError check_owner_side_locked(const MsConnection *connection)
{
    MemxError error = check_lane_locked(connection);

    if (error == MEMX_ERR_NONE &&
        connection->side != connection->space->owner_side) {
        return MEMX_ERR_OFFERED;
    }
    return error;
}

/* The winner's side is the owner's from now on, and there is no other. */
static void win_locked(MsConnection *winner)
{
    MsServer *server = winner->server;
    MsSpace *space = winner->space;

    space->owner_side = winner->side;
    ms_lanes_fence_locked(space, !winner->side);
    while (ms_lanes_side_any_locked(space, !winner->side)) {
        g_cond_wait(&server->changed, &server->lock);
    }
    winner->may_write = true;
}

static void log_change(const MsConnection *connection, const char *what)
{
    const MsRecord *record = connection->space->record;

    ms_log_info("space of VM '%s' (region '%s') %s by %s", record->vm_name,
                record->region_name, what, connection->peer);
}

static MemxError make_locked(MsConnection *connection, const MemxOffer *offer)
{
    MsSpace *space = connection->space;
    MsOwner next = *ms_space_owner(space);

    if (next.offer_state != MS_OFFER_NONE) {
        return !memcmp(&next.offer, offer, sizeof(*offer)) ? MEMX_ERR_NONE :
                                                             MEMX_ERR_OFFERED;
    }
    if (same_id(next.client, offer->heir)) {
        return MEMX_ERR_OWNED;
    }
    if (same_id(next.session, offer->session)) {
        return MEMX_ERR_EPOCH;
    }
    if (next.epoch == UINT64_MAX) {
        return MEMX_ERR_RANGE;
    }
    next.offer_state = MS_OFFER_MADE;
    next.offer = *offer;
    connection->may_write = false;
    ms_space_set_owner(space, &next);
    log_change(connection, "offered to another host");
    return MEMX_ERR_NONE;
}

MemxError ms_offer_make(MsConnection *connection, const MemxOffer *offer)
{
    MsServer *server = connection->server;
    MemxError error;

    g_mutex_lock(&server->lock);
    error = check_owner_side_locked(connection);
    if (error == MEMX_ERR_NONE) {
        error = make_locked(connection, offer);
    }
    g_mutex_unlock(&server->lock);
    return error;
}

static MemxError reclaim_locked(MsConnection *connection,
                                const uint8_t *session)
{
    MsSpace *space = connection->space;
    MsOwner next = *ms_space_owner(space);

    if (!is_offered(&next, session)) {
        return MEMX_ERR_NONE;
    }
    if (next.offer_state == MS_OFFER_RESIGNED) {
        return MEMX_ERR_EPOCH;
    }
    next.offer_state = MS_OFFER_NONE;
    memset(&next.offer, 0, sizeof(next.offer));
    ms_space_set_owner(space, &next);
    win_locked(connection);
    log_change(connection, "taken back");
    return MEMX_ERR_NONE;
}

MemxError ms_offer_reclaim(MsConnection *connection, const uint8_t *session)
{
    MsServer *server = connection->server;
    MemxError error;

    g_mutex_lock(&server->lock);
    error = check_owner_side_locked(connection);
    if (error == MEMX_ERR_NONE) {
        error = reclaim_locked(connection, session);
    }
    g_mutex_unlock(&server->lock);
    return error;
}

static MemxError commit_locked(MsConnection *connection,
                               const uint8_t *session)
{
    MsSpace *space = connection->space;
    const MsOwner *owner = ms_space_owner(space);
    MsOwner next = { .epoch = owner->epoch + 1 };

    if (connection->side == space->owner_side) {
        if (same_id(owner->session, session)) {
            return MEMX_ERR_NONE;
        }
        return is_offered(owner, session) ? MEMX_ERR_OFFERED : MEMX_ERR_EPOCH;
    }
    if (!is_offered(owner, session)) {
        return MEMX_ERR_EPOCH;
    }
    memcpy(next.client, owner->offer.heir, MEMX_ID_BYTES);
    memcpy(next.session, session, MEMX_ID_BYTES);
    ms_space_set_owner(space, &next);
    win_locked(connection);
    log_change(connection, "taken over");
    return MEMX_ERR_NONE;
}

MemxError ms_offer_commit(MsConnection *connection, const uint8_t *session)
{
    MsServer *server = connection->server;
    MemxError error;

    g_mutex_lock(&server->lock);
    error = check_lane_locked(connection);
    if (error == MEMX_ERR_NONE) {
        error = commit_locked(connection, session);
    }
    g_mutex_unlock(&server->lock);
    return error;
}

MemxError ms_offer_resign(MsConnection *connection, const uint8_t *session)
{
    MsServer *server = connection->server;
    MemxError error;
    MsOwner next;

    g_mutex_lock(&server->lock);
    error = check_owner_side_locked(connection);
    if (error == MEMX_ERR_NONE) {
        next = *ms_space_owner(connection->space);
        if (!is_offered(&next, session)) {
            error = MEMX_ERR_LANE;
        } else if (next.offer_state != MS_OFFER_RESIGNED) {
            next.offer_state = MS_OFFER_RESIGNED;
            ms_space_set_owner(connection->space, &next);
            log_change(connection, "left to the host that it is offered to,");
        }
    }
    g_mutex_unlock(&server->lock);
    return error;
}

/* Writing and closing. */

MemxError ms_offer_write_error(MsConnection *connection)
{
    MsServer *server = connection->server;
    MemxError error;

    g_mutex_lock(&server->lock);
    error = check_lane_locked(connection);
    g_mutex_unlock(&server->lock);
    return error != MEMX_ERR_NONE ? error : MEMX_ERR_OFFERED;
}

MemxError ms_offer_check_close_locked(const MsConnection *connection)
{
    const MsSpace *space = connection->space;
    MemxError error = check_lane_locked(connection);
    uint32_t state = ms_space_owner(space)->offer_state;

    if (error == MEMX_ERR_NONE &&
        state != (connection->side == space->owner_side ?
                  MS_OFFER_NONE : MS_OFFER_RESIGNED)) {
        return MEMX_ERR_OFFERED;
    }
    return error;
}
