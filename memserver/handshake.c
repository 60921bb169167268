/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The handshake's server side: HELLO, AUTH (if there is a key), OPEN.
 * docs/protocol.md says what each must look like and proves.
 *
 * A connection that has not proven the key can make the server do this much:
 * decode 56 bytes, draw a nonce and compute one HMAC.  It holds a thread and
 * 10 s (server.h) of one of the few places for strangers, no memory.
 */
#include <errno.h>
#include <string.h>
#include "connection.h"
#include "lanes.h"
#include "log.h"

static int refuse_and_end(MsConnection *connection, MemxError error,
                          const char *why)
{
    ms_log_stranger("%s: %s; connection closed", connection->peer, why);
    ms_connection_refuse(connection, error);
    return -ECONNREFUSED;
}

static void admit(MsConnection *connection)
{
    MsServer *server = connection->server;

    g_mutex_lock(&server->lock);
    if (connection->stage == MS_STAGE_STRANGER) {
        connection->stage = MS_STAGE_ADMITTED;
        server->n_strangers -= !connection->doomed;
    }
    g_mutex_unlock(&server->lock);
}

static int serve_hello(MsConnection *connection, const uint8_t *body)
{
    MsServer *server = connection->server;
    MemxReply reply = { .body_bytes = MEMX_WELCOME_BYTES };
    uint8_t wire[MEMX_WELCOME_BYTES];
    MemxWelcome welcome = {
        .version = MEMX_PROTOCOL_VERSION,
        .flags = server->key ? MEMX_WELCOME_AUTH : 0,
    };
    MemxHello hello;

    if (memx_hello_decode(&hello, body, MEMX_HELLO_BYTES) < 0) {
        return refuse_and_end(connection, MEMX_ERR_MALFORMED,
                              "malformed hello");
    }
    if (hello.version_min > MEMX_PROTOCOL_VERSION ||
        hello.version_max < MEMX_PROTOCOL_VERSION) {
        return refuse_and_end(connection, MEMX_ERR_VERSION,
                              "speaks no protocol version of ours");
    }
    g_mutex_lock(&server->lock);
    if (server->store) {
        memcpy(welcome.instance, server->store->backing.super->instance,
               MEMX_ID_BYTES);
    }
    g_mutex_unlock(&server->lock);
    memcpy(connection->client_nonce, hello.nonce, MEMX_NONCE_BYTES);
    memx_random(connection->server_nonce, MEMX_NONCE_BYTES);
    memcpy(welcome.nonce, connection->server_nonce, MEMX_NONCE_BYTES);
    memx_welcome_encode(wire, &welcome);
    connection->greeted = true;
    if (!server->key) {
        admit(connection);
    }
    return ms_connection_reply(connection, &reply, wire, NULL, 0);
}

static int serve_auth(MsConnection *connection, const uint8_t *body)
{
    GBytes *key = connection->server->key;
    MemxReply reply = { .body_bytes = MEMX_PROOF_BYTES };
    uint8_t proof[MEMX_PROOF_BYTES];

    if (!key) {
        /* The client expects one who knows its key. */
        return refuse_and_end(connection, MEMX_ERR_AUTH,
                              "has a key, but this server has none (start "
                              "it with --key-file)");
    }
    memx_auth_proof(key, MEMX_LABEL_CLIENT, connection->client_nonce,
                    connection->server_nonce, NULL, 0, proof);
    if (!memx_auth_equal(proof, body, MEMX_PROOF_BYTES)) {
        return refuse_and_end(connection, MEMX_ERR_AUTH, "has another key");
    }
    memx_auth_proof(key, MEMX_LABEL_SERVER, connection->client_nonce,
                    connection->server_nonce, NULL, 0, proof);
    admit(connection);
    return ms_connection_reply(connection, &reply, proof, NULL, 0);
}

/* The space's secret, if the client gave or proved it. */
static bool find_secret(MsConnection *connection, const MemxOpen *open,
                        uint8_t *secret)
{
    uint8_t proof[MEMX_PROOF_BYTES], reader[MEMX_ID_BYTES];
    bool reads = open->lane == MEMX_LANE_READER;

    if (open->flags & MEMX_OPEN_CREATE) {
        memcpy(secret, open->secret, MEMX_ID_BYTES);
        if (connection->server->key) {
            memx_auth_wrap(connection->server->key, open->space,
                           connection->client_nonce,
                           connection->server_nonce, secret);
        }
        return true;
    }
    ms_lanes_secret(connection->server, open->space, secret);
    memx_auth_reader_secret(secret, open->space, reader);
    memx_auth_space_proof(open, reads ? reader : secret,
                          connection->client_nonce,
                          connection->server_nonce, proof);
    return memx_auth_equal(proof, open->proof, MEMX_PROOF_BYTES);
}

static int serve_open(MsConnection *connection, const uint8_t *body)
{
    MemxReply reply = { .body_bytes = MEMX_OPENED_BYTES };
    uint8_t wire[MEMX_OPENED_BYTES], secret[MEMX_ID_BYTES];
    MemxError error = MEMX_ERR_NO_SPACE;
    MemxOpened opened;
    MemxOpen open;

    if (memx_open_decode(&open, body, MEMX_OPEN_BYTES) < 0) {
        return refuse_and_end(connection, MEMX_ERR_MALFORMED,
                              "malformed open");
    }
    if (find_secret(connection, &open, secret)) {
        error = ms_lanes_open(connection, &open, secret, &opened);
    }
    explicit_bzero(secret, sizeof(secret));
    if (error != MEMX_ERR_NONE) {
        ms_log_stranger("%s: space of VM '%s' not opened: %s",
                        connection->peer, open.vm_name,
                        memx_error_name(error));
        return ms_connection_refuse(connection, error);
    }
    memx_opened_encode(wire, &opened);
    return ms_connection_reply(connection, &reply, wire, NULL, 0);
}

int ms_handshake(MsConnection *connection, const MemxRequest *request,
                 const uint8_t *body)
{
    bool stranger = connection->stage == MS_STAGE_STRANGER;

    switch (request->opcode) {
    case MEMX_OP_HELLO:
        if (!connection->greeted) {
            return serve_hello(connection, body);
        }
        break;
    case MEMX_OP_AUTH:
        if (connection->greeted &&
            (stranger || !connection->server->key)) {
            return serve_auth(connection, body);
        }
        break;
    case MEMX_OP_OPEN:
        if (!stranger) {
            return serve_open(connection, body);
        }
        break;
    }
    if (!stranger) {
        return ms_connection_refuse(connection, MEMX_ERR_LANE);
    }
    return refuse_and_end(connection,
                          connection->greeted ? MEMX_ERR_AUTH : MEMX_ERR_LANE,
                          connection->greeted ? "has shown no key" :
                          "did not begin with a hello");
}
