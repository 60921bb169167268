/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The ordered lane's thread fetches the pages itself, as a client of the other
 * server, and stores them as it would a STORE's payload: so all that changes a
 * space still comes over its one ordered lane, in order, and a COPY that got
 * no answer can be repeated or undone like any other request.  The price is
 * that the lane waits for the other server meanwhile; hence the deadline, and
 * owners have one COPY in flight on a lane.
 *
 * The connection to the other server stays for the next COPY.  It is a
 * READER's: it knows the reader secret only, with which nothing of the other
 * space can be changed.  Admission is by this server's own key.
 */
#include <errno.h>
#include <string.h>
#include "copy.h"
#include "log.h"

#define COPY_MS 1500

typedef struct MsCopySource {
    MemxSource source;      /* what the channel is to */
    MemxChannel *channel;
} MsCopySource;

static void forget(MsConnection *connection)
{
    if (connection->source) {
        memx_channel_close(connection->source->channel);
        explicit_bzero(connection->source, sizeof(*connection->source));
        g_free(connection->source);
        connection->source = NULL;
    }
}

void ms_copy_end(MsConnection *connection)
{
    forget(connection);
}

static int left_ms(int64_t end_us)
{
    return MAX((end_us - g_get_monotonic_time()) / 1000, 0);
}

static MemxChannel *open_reader(MsConnection *connection,
                                const MemxSource *source, int64_t end_us)
{
    MsServer *server = connection->server;
    MemxOpen open = {
        .lane = MEMX_LANE_READER,
        .size_pages = connection->space->size_pages,
    };
    g_autoptr(GError) error = NULL;
    MemxChannel *channel = NULL;
    MemxPeerInfo info;
    MemxPeer *peer;

    peer = memx_peer_new(server->transport, source->address, server->key,
                         &error);
    if (peer) {
        memcpy(open.space, source->space, sizeof(open.space));
        memcpy(open.secret, source->secret, sizeof(open.secret));
        memx_random(open.client, sizeof(open.client));
        channel = memx_peer_connect(peer, &open, left_ms(end_us), -1, &info,
                                    &error);
        explicit_bzero(open.secret, sizeof(open.secret));
        memx_peer_free(peer);
    }
    if (!channel) {
        ms_log_stranger("%s asked for a copy: %s", connection->peer,
                        error->message);
    }
    return channel;
}

/* Connects to @source, unless that is so already.  False: it can't be. */
static bool reach(MsConnection *connection, const MemxSource *source,
                  int64_t end_us)
{
    MsCopySource *last = connection->source;
    MemxChannel *channel;

    if (last && !memx_channel_is_dead(last->channel) &&
        !memcmp(&last->source, source, sizeof(*source))) {
        return true;
    }
    forget(connection);
    channel = open_reader(connection, source, end_us);
    if (channel) {
        connection->source = g_new0(MsCopySource, 1);
        connection->source->source = *source;
        connection->source->channel = channel;
    }
    return channel;
}

/* The other server's answer to @opcode.  In trouble it is forgotten. */
static MemxError ask(MsConnection *connection, unsigned opcode,
                     const MemxRequest *request, const struct iovec *iov,
                     int n, int64_t end_us)
{
    MemxCall call = {
        .request = { .opcode = opcode, .group = request->group,
                     .mask = request->mask },
        .in = iov,
        .n_in = n,
    };
    int ret = memx_channel_call(connection->source->channel, &call,
                                left_ms(end_us), -1);

    if (!ret && call.reply.error == MEMX_ERR_NONE) {
        return MEMX_ERR_NONE;
    }
    ms_log_stranger("%s asked for a copy: server %s did not give it: %s",
                    connection->peer, connection->source->source.address,
                    ret ? g_strerror(-ret)
                    : memx_error_name(call.reply.error));
    forget(connection);
    return !ret && call.reply.error == MEMX_ERR_NOT_HELD ? MEMX_ERR_NOT_HELD
                                                         : MEMX_ERR_SOURCE;
}

static MemxError fetch(MsConnection *connection, const MemxRequest *request,
                       const MsFrame *frames, uint8_t *hashes, int64_t end_us)
{
    struct iovec page = { hashes, MEMX_PAGE_BYTES };
    struct iovec iov[MEMX_GROUP_PAGES];
    int n = ms_frames_iov(connection->space->store->frames, frames,
                          memx_mask_pages(request->mask), iov);
    MemxError error = ask(connection, MEMX_OP_FETCH, request, iov, n, end_us);

    return error != MEMX_ERR_NONE ? error
           : ask(connection, MEMX_OP_HASHES, request, &page, 1, end_us);
}

MemxError ms_copy(MsConnection *connection, const MemxRequest *request,
                  const uint8_t *body)
{
    int64_t end_us = g_get_monotonic_time() + COPY_MS * 1000;
    GBytes *key = connection->server->key;
    MsSpace *space = connection->space;
    uint8_t hashes[MEMX_PAGE_BYTES];
    MsFrame frames[MEMX_GROUP_PAGES];
    MemxSource source;
    MemxError error;
    int ret;

    if (memx_source_decode(&source, body, request->body_bytes) < 0) {
        return MEMX_ERR_MALFORMED;
    }
    if (key) {
        memx_auth_wrap_reader(key, source.space, connection->client_nonce,
                              connection->server_nonce, source.secret);
    }
    ret = ms_space_store_begin(space, request->group, request->mask, frames);
    if (ret < 0) {
        return ret == -ERANGE ? MEMX_ERR_RANGE : MEMX_ERR_FULL;
    }
    error = reach(connection, &source, end_us)
            ? fetch(connection, request, frames, hashes, end_us)
            : MEMX_ERR_SOURCE;
    if (error == MEMX_ERR_NONE) {
        ms_space_store_commit(space, request->group, request->mask, frames,
                              hashes);
    } else {
        ms_space_store_abort(space, frames, request->mask);
    }
    explicit_bzero(&source, sizeof(source));
    return error;
}
