/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One thread a connection; it blocks in the channel and does one request at a
 * time, start to end.  What it does to its space is final when it answers,
 * and it does nothing to it between requests; so when the thread is gone
 * (ms_lanes_leave) nothing of the connection can still be applied.
 *
 * It ends when the channel fails: the peer closed it or went silent, sent
 * what no correct peer sends, or somebody called memx_channel_shutdown().
 *
 * Fault path: next, FETCH, reply; no lock and no allocation in between.
 */
#include <errno.h>
#include <string.h>
#include "connection.h"
#include "copy.h"
#include "lanes.h"
#include "log.h"
#include "offer.h"
#include "urgent.h"

/* Fault path. */
int ms_connection_reply(MsConnection *connection, MemxReply *reply,
                        const void *body, const struct iovec *iov, int n)
{
    MsServer *server = connection->server;

    reply->load_permille = atomic_load_explicit(&server->load_permille,
                                                memory_order_relaxed);
    if (connection->space) {
        const MsStore *store = connection->space->store;

        reply->free_pages = ms_store_spare_pages(store);
        reply->capacity_pages = store->capacity_pages;
        reply->space_pages = atomic_load_explicit(
            &connection->space->held_pages, memory_order_relaxed);
        reply->flags = ms_store_draining(store) ? MEMX_REPLY_DRAINING : 0;
    } else if (connection->stage != MS_STAGE_STRANGER) {
        /* What it is about to reserve, or doctor wants to know. */
        g_mutex_lock(&server->lock);
        if (server->store) {
            bool draining = ms_store_draining(server->store);

            reply->free_pages = draining ? 0
                                : ms_store_free_pages(server->store);
            reply->capacity_pages = server->store->capacity_pages;
            reply->flags = draining ? MEMX_REPLY_DRAINING : 0;
        }
        g_mutex_unlock(&server->lock);
    }
    return memx_channel_reply(connection->channel, reply, body, iov, n);
}

int ms_connection_refuse(MsConnection *connection, MemxError error)
{
    MemxReply reply = { .error = error };

    ms_count(connection, MS_COUNT_REFUSALS, 1);
    memx_channel_pull(connection->channel, NULL, -1);
    return ms_connection_reply(connection, &reply, NULL, NULL, 0);
}

static int refuse_errno(MsConnection *connection, int error)
{
    switch (error) {
    case -ERANGE:
        return ms_connection_refuse(connection, MEMX_ERR_RANGE);
    case -ENOENT:
        return ms_connection_refuse(connection, MEMX_ERR_NOT_HELD);
    case -ENOSPC:
        return ms_connection_refuse(connection, MEMX_ERR_FULL);
    default:
        ms_log_error("%s: unexpected: %s", connection->peer,
                     g_strerror(-error));
        return ms_connection_refuse(connection, MEMX_ERR_INTERNAL);
    }
}

static int done(MsConnection *connection, uint64_t mask)
{
    MemxReply reply = { .mask = mask };

    return ms_connection_reply(connection, &reply, NULL, NULL, 0);
}

/* Fault path. */
static int serve_fetch(MsConnection *connection, const MemxRequest *request)
{
    MsSpace *space = connection->space;
    MsPins *pins = connection->pins;
    unsigned n = memx_mask_pages(request->mask);
    MemxReply reply = {
        .mask = request->mask,
        .payload_bytes = n * MEMX_PAGE_BYTES,
    };
    MsFrame frames[MEMX_GROUP_PAGES];
    struct iovec iov[MEMX_GROUP_PAGES];
    int ret;

    ret = ms_space_pin(space, pins, request->group, request->mask, frames);
    if (ret < 0) {
        return refuse_errno(connection, ret);
    }
    ms_count(connection, MS_COUNT_FETCHES, 1);
    ms_count(connection, MS_COUNT_FETCHED_PAGES, n);
    ret = ms_connection_reply(
        connection, &reply, NULL, iov,
        ms_frames_iov(space->store->frames, frames, n, iov));
    ms_space_unpin(pins);
    return ret;
}

/* Without pins on the ordered lane: it is the one that frees. */
static int serve_hashes(MsConnection *connection, const MemxRequest *request)
{
    uint8_t page[MEMX_PAGE_BYTES] = { 0 };
    struct iovec iov = { page, sizeof(page) };
    MemxReply reply = { .mask = request->mask, .payload_bytes = sizeof(page) };
    MsFrame frames[MEMX_GROUP_PAGES];
    int ret = ms_space_pin(connection->space, connection->pins,
                           request->group, request->mask, frames);

    if (ret < 0) {
        return refuse_errno(connection, ret);
    }
    for (unsigned i = 0; i < memx_mask_pages(request->mask); i++) {
        memcpy(page + i * MEMX_HASH_BYTES,
               ms_space_hash(connection->space, frames[i]), MEMX_HASH_BYTES);
    }
    ms_space_unpin(connection->pins);
    return ms_connection_reply(connection, &reply, NULL, &iov, 1);
}

static int serve_store(MsConnection *connection, const MemxRequest *request,
                       const uint8_t *body)
{
    MsSpace *space = connection->space;
    unsigned n = memx_mask_pages(request->mask);
    MsFrame frames[MEMX_GROUP_PAGES];
    struct iovec iov[MEMX_GROUP_PAGES];
    int ret;

    ret = ms_space_store_begin(space, request->group, request->mask, frames);
    if (ret < 0) {
        return refuse_errno(connection, ret);
    }
    ret = memx_channel_pull(
        connection->channel, iov,
        ms_frames_iov(space->store->frames, frames, n, iov));
    if (ret < 0) {
        ms_space_store_abort(space, frames, request->mask);
        return ret;
    }
    ms_space_store_commit(space, request->group, request->mask, frames, body);
    ms_count(connection, MS_COUNT_STORES, 1);
    ms_count(connection, MS_COUNT_STORED_PAGES, n);
    return done(connection, 0);
}

static int serve_copy(MsConnection *connection, const MemxRequest *request,
                      const uint8_t *body)
{
    MemxError error = ms_copy(connection, request, body);

    if (error == MEMX_ERR_MALFORMED) {
        ms_connection_refuse(connection, error);
        return -EPROTO;
    }
    if (error != MEMX_ERR_NONE) {
        return ms_connection_refuse(connection, error);
    }
    ms_count(connection, MS_COUNT_COPIED_PAGES,
             memx_mask_pages(request->mask));
    return done(connection, 0);
}

static int serve_compare(MsConnection *connection, const MemxRequest *request,
                         const uint8_t *body)
{
    unsigned n = memx_mask_pages(request->mask);
    uint64_t differ;
    int ret;

    ret = ms_space_compare(connection->space, request->group, request->mask,
                           body, &differ);
    if (ret < 0) {
        return refuse_errno(connection, ret);
    }
    ms_count(connection, MS_COUNT_COMPARED_PAGES, n);
    ms_count(connection, MS_COUNT_SAME_PAGES, n - memx_mask_pages(differ));
    return done(connection, differ);
}

static int serve_drop(MsConnection *connection, const MemxRequest *request)
{
    int ret = ms_space_drop(connection->space, request->group,
                            request->mask);

    if (ret < 0) {
        return refuse_errno(connection, ret);
    }
    ms_count(connection, MS_COUNT_DROPPED_PAGES,
             memx_mask_pages(request->mask));
    return done(connection, 0);
}

static int serve_reserve(MsConnection *connection, const MemxRequest *request)
{
    MsSpace *space = connection->space;
    int ret;

    if (request->group > atomic_load(&space->record->reserved_pages) &&
        ms_store_draining(space->store)) {
        return ms_connection_refuse(connection, MEMX_ERR_DRAINING);
    }
    ret = ms_space_reserve(space, request->group);
    return ret < 0 ? refuse_errno(connection, ret) : done(connection, 0);
}

static int serve_close(MsConnection *connection)
{
    MsServer *server = connection->server;
    MsSpace *space = connection->space;
    MemxError error;

    g_mutex_lock(&server->lock);
    error = ms_offer_check_close_locked(connection);
    if (error == MEMX_ERR_NONE &&
        !ms_lanes_end_space_locked(server, space, connection)) {
        error = MEMX_ERR_NO_SPACE;
    }
    g_mutex_unlock(&server->lock);
    if (error != MEMX_ERR_NONE) {
        return ms_connection_refuse(connection, error);
    }
    ms_log_info("space of VM '%s' closed by its client",
                space->record->vm_name);
    ms_store_destroy(space->store, space);
    return done(connection, 0);
}

static int serve_handover(MsConnection *connection,
                          const MemxRequest *request, const uint8_t *body)
{
    bool made = request->opcode == MEMX_OP_OFFER;
    MemxOffer offer;
    MemxError error;

    if ((made ? memx_offer_decode(&offer, body, request->body_bytes) :
         memx_session_decode(offer.session, body, request->body_bytes)) < 0) {
        ms_connection_refuse(connection, MEMX_ERR_MALFORMED);
        return -EPROTO;
    }
    switch (request->opcode) {
    case MEMX_OP_OFFER:
        error = ms_offer_make(connection, &offer);
        break;
    case MEMX_OP_RECLAIM:
        error = ms_offer_reclaim(connection, offer.session);
        break;
    case MEMX_OP_COMMIT:
        error = ms_offer_commit(connection, offer.session);
        break;
    default:
        error = ms_offer_resign(connection, offer.session);
        break;
    }
    return error != MEMX_ERR_NONE ? ms_connection_refuse(connection, error) :
           done(connection, 0);
}

static int serve_write(MsConnection *connection, const MemxRequest *request,
                       const uint8_t *body)
{
    if (!connection->may_write) {
        return ms_connection_refuse(connection,
                                    ms_offer_write_error(connection));
    }
    switch (request->opcode) {
    case MEMX_OP_STORE:
        return serve_store(connection, request, body);
    case MEMX_OP_COPY:
        return serve_copy(connection, request, body);
    case MEMX_OP_DROP:
        return serve_drop(connection, request);
    default:
        return serve_reserve(connection, request);
    }
}

static int serve_ordered(MsConnection *connection, const MemxRequest *request,
                         const uint8_t *body)
{
    switch (request->opcode) {
    case MEMX_OP_STORE:
    case MEMX_OP_COPY:
    case MEMX_OP_DROP:
    case MEMX_OP_RESERVE:
        return serve_write(connection, request, body);
    case MEMX_OP_COMPARE:
        return serve_compare(connection, request, body);
    case MEMX_OP_CLOSE:
        return serve_close(connection);
    case MEMX_OP_OFFER:
    case MEMX_OP_RECLAIM:
    case MEMX_OP_COMMIT:
    case MEMX_OP_RESIGN:
        return serve_handover(connection, request, body);
    default:
        return ms_connection_refuse(connection, MEMX_ERR_LANE);
    }
}

static int serve_ping(MsConnection *connection, const MemxRequest *request)
{
    MsServer *server = connection->server;

    if (request->group && !connection->space) {
        g_mutex_lock(&server->lock);
        if (server->store && connection->stage == MS_STAGE_ADMITTED) {
            ms_store_want(server->store, request->group);
        }
        g_mutex_unlock(&server->lock);
    }
    return done(connection, 0);
}

static int serve(MsConnection *connection, const MemxRequest *request,
                 const uint8_t *body)
{
    if (request->opcode == MEMX_OP_FETCH && connection->space) {
        return serve_fetch(connection, request);
    }
    if (request->opcode == MEMX_OP_HASHES && connection->space) {
        return serve_hashes(connection, request);
    }
    if (!connection->space) {
        atomic_store_explicit(&connection->active_us,
                              g_get_monotonic_time(), memory_order_relaxed);
    }
    if (request->opcode == MEMX_OP_PING &&
        connection->stage != MS_STAGE_STRANGER) {
        return serve_ping(connection, request);
    }
    if (!connection->space) {
        return ms_handshake(connection, request, body);
    }
    if (connection->lane == MEMX_LANE_ORDERED) {
        return serve_ordered(connection, request, body);
    }
    return ms_connection_refuse(connection, MEMX_ERR_LANE);
}

static void end(MsConnection *connection)
{
    MsServer *server = connection->server;

    ms_copy_end(connection);
    ms_lanes_leave(connection);
    g_mutex_lock(&server->lock);
    g_queue_unlink(&server->connections, &connection->link);
    if (connection->stage == MS_STAGE_STRANGER && !connection->doomed) {
        server->n_strangers--;
    }
    for (int i = 0; i < MS_N_COUNTERS; i++) {
        server->counters[i] += atomic_load(&connection->counters[i]);
    }
    memx_channel_close(connection->channel);
    g_free(connection->peer);
    g_free(connection);
    g_cond_broadcast(&server->changed);
    g_mutex_unlock(&server->lock);
}

void *ms_connection_thread(void *opaque)
{
    MsConnection *connection = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    int ret;

    do {
        ret = memx_channel_next(connection->channel, &request, body);
        if (ret == 0) {
            ret = serve(connection, &request, body);
        } else if (ret == -EPROTO) {
            ms_log_stranger("%s: sent what is not MemX's protocol; connection "
                            "closed", connection->peer);
            ms_connection_refuse(connection, MEMX_ERR_MALFORMED);
        }
        if (connection->lane != MEMX_LANE_FAULT) {
            memx_thread_yield();
        }
    } while (ret == 0);
    end(connection);
    return NULL;
}
