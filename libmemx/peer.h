/*
 * A memory server as a client sees it: its address and key, and the
 * handshake that turns a new connection into a lane of a space.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PEER_H
#define MEMX_PEER_H

#include "transport.h"

typedef struct MemxPeer {
    const MemxTransport *transport;
    char *host;
    char *port;
    char *address;          /* "host:port" or "[v6]:port", for messages */
    GBytes *key;            /* or NULL */
} MemxPeer;

/* Parses "host:port", "[v6]:port"; the port is required, a number 1..65535.
 * NULL and a message that names @address on failure.  @key is referenced. */
MemxPeer *memx_peer_new(const MemxTransport *transport, const char *address,
                        GBytes *key, GError **error);
void memx_peer_free(MemxPeer *peer);

/* Reads a key file: its bytes less trailing white space, 16 to 1024 of them;
 * refuses a file that others can read (mode & 077). */
GBytes *memx_key_load(const char *path, GError **error);

/* What the handshake learnt. */
typedef struct MemxPeerInfo {
    uint8_t instance[MEMX_ID_BYTES];
    MemxOpened opened;
    uint64_t free_pages;
    uint64_t capacity_pages;
    unsigned protocol_error;    /* MemxError of a refusal, 0 if none came */
    bool draining;
    uint8_t client_nonce[MEMX_NONCE_BYTES]; /* of this connection */
    uint8_t server_nonce[MEMX_NONCE_BYTES];
} MemxPeerInfo;

/*
 * Connects, says hello, proves the key, and opens @open's space (unless its
 * lane is MEMX_LANE_NONE).  @open->secret holds the plain secret: it is
 * wrapped or proven here, never sent as it is when there is a key.  A server
 * that demands a key which the peer lacks, or that can't prove the key
 * itself, is an error.  Blocks at most timeout_ms.  On failure NULL, @error
 * with what, where and what to do, and @info->protocol_error.
 */
MemxChannel *memx_peer_connect(const MemxPeer *peer, const MemxOpen *open,
                               int timeout_ms, int cancel_fd,
                               MemxPeerInfo *info, GError **error);

/*
 * The proofs of the handshake; both sides use them.  HMAC-SHA256.
 * docs/protocol.md, "Admission" and "Opening a space".
 */
void memx_auth_proof(GBytes *key, const char *label,
                     const uint8_t client_nonce[MEMX_NONCE_BYTES],
                     const uint8_t server_nonce[MEMX_NONCE_BYTES],
                     const void *context, size_t context_bytes,
                     uint8_t proof[MEMX_PROOF_BYTES]);
/* The proof of an attaching @open (whose secret it does not look at). */
void memx_auth_space_proof(const MemxOpen *open,
                           const uint8_t secret[MEMX_ID_BYTES],
                           const uint8_t client_nonce[MEMX_NONCE_BYTES],
                           const uint8_t server_nonce[MEMX_NONCE_BYTES],
                           uint8_t proof[MEMX_PROOF_BYTES]);
/* Wraps, or unwraps, the secret of a CREATE in place. */
void memx_auth_wrap(GBytes *key, const uint8_t space[MEMX_ID_BYTES],
                    const uint8_t client_nonce[MEMX_NONCE_BYTES],
                    const uint8_t server_nonce[MEMX_NONCE_BYTES],
                    uint8_t secret[MEMX_ID_BYTES]);
/* The same for the reader secret in a COPY. */
void memx_auth_wrap_reader(GBytes *key, const uint8_t space[MEMX_ID_BYTES],
                           const uint8_t client_nonce[MEMX_NONCE_BYTES],
                           const uint8_t server_nonce[MEMX_NONCE_BYTES],
                           uint8_t secret[MEMX_ID_BYTES]);
/* What somebody must know who may read a space, but no more: from its secret.
 */
void memx_auth_reader_secret(const uint8_t secret[MEMX_ID_BYTES],
                             const uint8_t space[MEMX_ID_BYTES],
                             uint8_t reader[MEMX_ID_BYTES]);
bool memx_auth_equal(const uint8_t *a, const uint8_t *b, size_t bytes);
void memx_random(void *buf, size_t bytes);

/* The labels; what is proven differs by label and direction. */
#define MEMX_LABEL_CLIENT "memx client 1"
#define MEMX_LABEL_SERVER "memx server 1"
#define MEMX_LABEL_WRAP "memx wrap 1"    /* first 16 bytes XOR the secret;
                                            context: space id */
#define MEMX_LABEL_SPACE "memx space 1"  /* key: the space's secret;
                                            context: space id, client id,
                                            lane, epoch as on the wire */
#define MEMX_LABEL_READER "memx reader 1" /* key: the space's secret, nonces of
                                            zeros, context: space id; first 16
                                            bytes: the reader secret */
#define MEMX_LABEL_COPY "memx copy 1"    /* as wrap, of a COPY's reader secret */
#define MEMX_LABEL_HEIR "memx heir 1"    /* the same of an HEIR's OPEN; its
                                            context has the session, too */
#endif
