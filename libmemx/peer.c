/*
 * A memory server as a client sees it: address and handshake.
 *
 * Theory of operation
 *
 * The handshake is HELLO, AUTH (with a key) and OPEN (for a space), one
 * after another under one deadline.  The client's nonce in HELLO and the
 * server's in its answer make every proof good for one connection only.
 * Whoever has a key also checks the server's proof, so that a key is never
 * quietly of no use.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include "memx.h"
#include "peer.h"

G_DEFINE_QUARK(memx-error-quark, memx_error)

/* --- Address --- */

/* The canonical text of an IPv6 address, or NULL; a scope ("%eth0") stays. */
static char *canonical_v6(const char *text)
{
    const char *scope = strchrnul(text, '%');
    g_autofree char *plain = g_strndup(text, scope - text);
    char canonical[INET6_ADDRSTRLEN];
    struct in6_addr address;

    if (inet_pton(AF_INET6, plain, &address) != 1 ||
        strspn(scope, "%.-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"
               "WXYZ0123456789") != strlen(scope)) {
        return NULL;
    }
    inet_ntop(AF_INET6, &address, canonical, sizeof(canonical));
    return g_strconcat(canonical, scope, NULL);
}

static char *canonical_host(const char *text)
{
    size_t length = strlen(text);

    if (length == 0 || length > 253 ||
        strspn(text, "-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
               "0123456789") != length) {
        return NULL;
    }
    return g_ascii_strdown(text, -1);
}

/* Where the colon before the port is, and what stands before it. */
static char *parse_host(const char *address, const char **port)
{
    const char *end;

    if (address[0] == '[') {
        end = strstr(address, "]:");
        if (!end) {
            return NULL;
        }
        *port = end + 2;
        g_autofree char *text = g_strndup(address + 1, end - address - 1);
        return canonical_v6(text);
    }
    end = strchr(address, ':');
    if (!end) {
        return NULL;
    }
    *port = end + 1;
    g_autofree char *text = g_strndup(address, end - address);
    return canonical_host(text);
}

MemxPeer *memx_peer_new(const MemxTransport *transport, const char *address,
                        GBytes *key, GError **error)
{
    const char *port_text = "";
    g_autofree char *host = parse_host(address, &port_text);
    guint64 port = 0;

    if (!host ||
        !g_ascii_string_to_unsigned(port_text, 10, 1, 65535, &port, NULL)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "server address '%s' is not host:port or [IPv6]:port "
                    "with a port of 1 to 65535, such as 192.0.2.1:7701",
                    address);
        return NULL;
    }

    MemxPeer *peer = g_new0(MemxPeer, 1);
    peer->transport = transport;
    peer->host = g_steal_pointer(&host);
    peer->port = g_strdup_printf("%u", (unsigned)port);
    peer->address = g_strdup_printf(strchr(peer->host, ':') ? "[%s]:%s"
                                                            : "%s:%s",
                                    peer->host, peer->port);
    peer->key = key ? g_bytes_ref(key) : NULL;
    return peer;
}

void memx_peer_free(MemxPeer *peer)
{
    if (peer) {
        g_free(peer->host);
        g_free(peer->port);
        g_free(peer->address);
        g_clear_pointer(&peer->key, g_bytes_unref);
        g_free(peer);
    }
}

/* --- Handshake --- */

typedef struct Handshake {
    const MemxPeer *peer;
    const MemxOpen *open;
    MemxPeerInfo *info;
    MemxChannel *channel;
    int64_t deadline_us;
    int timeout_ms;
    int cancel_fd;
    MemxHello hello;
    MemxWelcome welcome;
    GError **error;
} Handshake;

static bool G_GNUC_PRINTF(2, 3) fail(Handshake *h, const char *format, ...)
{
    g_autofree char *what = NULL;
    va_list ap;

    va_start(ap, format);
    what = g_strdup_vprintf(format, ap);
    va_end(ap);
    g_set_error(h->error, MEMX_ERROR,
                h->info->protocol_error == MEMX_ERR_FULL
                    ? MEMX_ERROR_FULL : MEMX_ERROR_CONNECT,
                "server %s: %s", h->peer->address, what);
    return false;
}

static int left_ms(const Handshake *h)
{
    int64_t left_us = h->deadline_us - g_get_monotonic_time();

    return CLAMP(left_us / 1000, 0, h->timeout_ms);
}

static bool fail_status(Handshake *h, unsigned opcode, int status)
{
    const char *name = memx_opcode_name(opcode);

    switch (-status) {
    case ETIMEDOUT:
        return fail(h, "%s was not answered within %d ms; is the server "
                    "stopped, or something else listening there?", name,
                    h->timeout_ms);
    case ECANCELED:
        return fail(h, "connecting was given up");
    case EPROTO:
        return fail(h, "what answered %s does not speak MemX's protocol; "
                    "check the address and port", name);
    case EPIPE:
    case ECONNRESET:
        return fail(h, "closed the connection instead of answering %s; its "
                    "log says why", name);
    default:
        return fail(h, "%s: %s", name, g_strerror(-status));
    }
}

static bool fail_refused(Handshake *h, unsigned opcode)
{
    const char *why = memx_error_name(h->info->protocol_error);
    const char *name = memx_opcode_name(opcode);

    switch (h->info->protocol_error) {
    case MEMX_ERR_VERSION:
        return fail(h, "%s: %s; this side speaks version %u: upgrade the "
                    "older one", name, why, MEMX_PROTOCOL_VERSION);
    case MEMX_ERR_AUTH:
        if (h->welcome.flags & MEMX_WELCOME_AUTH) {
            return fail(h, "does not accept the key; use the one of the "
                        "server's --key-file");
        }
        return fail(h, "has no key; start it with --key-file, or give no "
                    "key here");
    case MEMX_ERR_FULL:
        return fail(h, "can't reserve %" PRIu64 " MiB: %" PRIu64 " MiB of "
                    "its %" PRIu64 " MiB are free; add servers, raise the "
                    "server's --capacity, or raise the local size",
                    h->open->reserve_pages / 256, h->info->free_pages / 256,
                    h->info->capacity_pages / 256);
    case MEMX_ERR_EXISTS:
    case MEMX_ERR_OWNED:
        return fail(h, "%s: %s; memxctl status shows its spaces", name, why);
    case MEMX_ERR_OFFERED:
        return fail(h, "%s: %s to another host; memxctl status shows its "
                    "state", name, why);
    case MEMX_ERR_DRAINING:
        return fail(h, "is being drained and takes no new VM; name another "
                    "server, or undo that with memxctl drain --undo there");
    case MEMX_ERR_SHUTDOWN:
        return fail(h, "%s: %s; try again when it is back", name, why);
    default:
        return fail(h, "%s was refused: %s; its log says more", name, why);
    }
}

/* One step.  The answer's body is in call->reply_body. */
static bool step(Handshake *h, MemxCall *call, unsigned opcode,
                 const void *body, size_t body_bytes)
{
    *call = (MemxCall) {
        .request.opcode = opcode,
        .request.body_bytes = body_bytes,
        .body = body,
    };
    int r = memx_channel_call(h->channel, call, left_ms(h), h->cancel_fd);
    if (r < 0) {
        return fail_status(h, opcode, r);
    }
    h->info->free_pages = call->reply.free_pages;
    h->info->capacity_pages = call->reply.capacity_pages;
    h->info->protocol_error = call->reply.error;
    h->info->draining = call->reply.flags & MEMX_REPLY_DRAINING;
    if (call->reply.error != MEMX_ERR_NONE) {
        return fail_refused(h, opcode);
    }
    return true;
}

static bool say_hello(Handshake *h)
{
    uint8_t body[MEMX_HELLO_BYTES];
    MemxCall call;

    h->hello = (MemxHello) {
        .version_min = MEMX_PROTOCOL_VERSION,
        .version_max = MEMX_PROTOCOL_VERSION,
    };
    memx_random(h->hello.nonce, MEMX_NONCE_BYTES);
    memx_hello_encode(body, &h->hello);
    if (!step(h, &call, MEMX_OP_HELLO, body, sizeof(body))) {
        return false;
    }
    if (memx_welcome_decode(&h->welcome, call.reply_body,
                            call.reply.body_bytes) < 0 ||
        h->welcome.version != MEMX_PROTOCOL_VERSION ||
        (h->welcome.features & ~h->hello.features)) {
        return fail_status(h, MEMX_OP_HELLO, -EPROTO);
    }
    memcpy(h->info->instance, h->welcome.instance, MEMX_ID_BYTES);
    memcpy(h->info->client_nonce, h->hello.nonce, MEMX_NONCE_BYTES);
    memcpy(h->info->server_nonce, h->welcome.nonce, MEMX_NONCE_BYTES);
    return true;
}

static bool authenticate(Handshake *h)
{
    uint8_t proof[MEMX_PROOF_BYTES];
    MemxCall call;

    memx_auth_proof(h->peer->key, MEMX_LABEL_CLIENT, h->hello.nonce,
                    h->welcome.nonce, NULL, 0, proof);
    if (!step(h, &call, MEMX_OP_AUTH, proof, sizeof(proof))) {
        return false;
    }
    memx_auth_proof(h->peer->key, MEMX_LABEL_SERVER, h->hello.nonce,
                    h->welcome.nonce, NULL, 0, proof);
    if (!memx_auth_equal(proof, call.reply_body, MEMX_PROOF_BYTES)) {
        return fail(h, "does not know the key although it says so; it is not "
                    "the server it should be: check the address");
    }
    return true;
}

static bool open_space(Handshake *h)
{
    bool create = h->open->flags & MEMX_OPEN_CREATE;
    MemxOpen open = *h->open;
    MemxOpened *opened = &h->info->opened;
    uint8_t body[MEMX_OPEN_BYTES];
    MemxCall call;

    memset(open.proof, 0, sizeof(open.proof));
    if (!create) {
        memx_auth_space_proof(&open, h->open->secret, h->hello.nonce,
                              h->welcome.nonce, open.proof);
        memset(open.secret, 0, sizeof(open.secret));
        open.reserve_pages = 0;
    } else if (h->peer->key) {
        memx_auth_wrap(h->peer->key, open.space, h->hello.nonce,
                       h->welcome.nonce, open.secret);
    }
    memx_open_encode(body, &open);
    if (!step(h, &call, MEMX_OP_OPEN, body, sizeof(body))) {
        return false;
    }
    if (memx_opened_decode(opened, call.reply_body,
                           call.reply.body_bytes) < 0 ||
        (open.size_pages && opened->size_pages != open.size_pages)) {
        return fail_status(h, MEMX_OP_OPEN, -EPROTO);
    }
    return true;
}

static bool shake_hands(Handshake *h)
{
    if (!say_hello(h)) {
        return false;
    }
    if (h->peer->key) {
        if (!authenticate(h)) {
            return false;
        }
    } else if (h->welcome.flags & MEMX_WELCOME_AUTH) {
        h->info->protocol_error = MEMX_ERR_AUTH;
        return fail(h, "demands a key; give the one of its --key-file");
    }
    return h->open->lane == MEMX_LANE_NONE || open_space(h);
}

MemxChannel *memx_peer_connect(const MemxPeer *peer, const MemxOpen *open,
                               int timeout_ms, int cancel_fd,
                               MemxPeerInfo *info, GError **error)
{
    Handshake h = {
        .peer = peer,
        .open = open,
        .info = info,
        .deadline_us = g_get_monotonic_time() + timeout_ms * 1000LL,
        .timeout_ms = timeout_ms,
        .cancel_fd = cancel_fd,
        .error = error,
    };

    *info = (MemxPeerInfo) { 0 };
    h.channel = memx_channel_connect(peer->transport, peer->host, peer->port,
                                     timeout_ms, cancel_fd, error);
    if (h.channel && !shake_hands(&h)) {
        memx_channel_close(h.channel);
        return NULL;
    }
    if (h.channel && open->lane == MEMX_LANE_FAULT) {
        memx_channel_urgent(h.channel);
    }
    return h.channel;
}
