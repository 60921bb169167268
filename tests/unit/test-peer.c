/*
 * Peers: addresses, key files, proofs, and the handshake with servers that
 * do it well, badly, or not at all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include "memx.h"
#include "peer.h"
#include "transport-inproc.h"

#define DEADLINE_MS 20000

/* --- Addresses --- */

static void test_addresses(void)
{
    static const struct {
        const char *text, *host, *port, *address;
    } good[] = {
        { "127.0.0.1:7701", "127.0.0.1", "7701", "127.0.0.1:7701" },
        { "Mem-1.example.org:1", "mem-1.example.org", "1",
          "mem-1.example.org:1" },
        { "localhost:65535", "localhost", "65535", "localhost:65535" },
        { "[::1]:7701", "::1", "7701", "[::1]:7701" },
        { "[2001:DB8:0:0::1]:7", "2001:db8::1", "7", "[2001:db8::1]:7" },
        { "[fe80::1%eth0]:7", "fe80::1%eth0", "7", "[fe80::1%eth0]:7" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        MemxPeer *peer = memx_peer_new(&memx_transport_tcp, good[i].text,
                                       NULL, &error);

        g_assert_no_error(error);
        g_assert_cmpstr(peer->host, ==, good[i].host);
        g_assert_cmpstr(peer->port, ==, good[i].port);
        g_assert_cmpstr(peer->address, ==, good[i].address);
        memx_peer_free(peer);
    }
}

static void test_wrong_addresses(void)
{
    static const char *const bad[] = {
        "", ":", "host", "host:", ":7701", "host:0", "host:65536", "host:-1",
        "host:7701 ", " host:7701", "host:77x", "host:0x10", "host:+5",
        "a:1,b:2", "a:1:2", "::1:7701", "[::1]", "[::1]7701", "[::1]:",
        "[::1:7701", "[127.0.0.1]:7701", "[]:1", "[::g]:1", "ho st:1",
        "host\n:1", "host/x:1", "h\303\266st:1", "[fe80::1%e/0]:1",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *quoted = g_strdup_printf("'%s'", bad[i]);

        g_assert_null(memx_peer_new(&memx_transport_tcp, bad[i], NULL,
                                    &error));
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
        g_assert_nonnull(strstr(error->message, quoted));
    }
}

/* --- Key files --- */

static GBytes *load(const char *content, gssize bytes, int mode,
                    GError **error)
{
    g_autofree char *dir = g_dir_make_tmp("memx-peer-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "key", NULL);
    GBytes *key;

    g_assert_true(g_file_set_contents(path, content, bytes, NULL));
    g_assert_cmpint(g_chmod(path, mode), ==, 0);
    key = memx_key_load(path, error);
    if (!key) {
        g_assert_nonnull(*error);
        g_assert_nonnull(strstr((*error)->message, path));
    }
    g_remove(path);
    g_rmdir(dir);
    return key;
}

static void assert_key(const char *content, gssize bytes, const char *expect)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) key = load(content, bytes, 0600, &error);

    g_assert_no_error(error);
    g_assert_cmpmem(g_bytes_get_data(key, NULL), g_bytes_get_size(key),
                    expect, strlen(expect));
}

static void assert_no_key(const char *content, gssize bytes, int mode,
                          const char *why)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(load(content, bytes, mode, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_assert_nonnull(strstr(error->message, why));
}

static void test_key_files(void)
{
    g_autofree char *longest = g_strnfill(1024, 'k');
    g_autofree char *longest_line = g_strconcat(longest, "\n", NULL);
    g_autofree char *too_long = g_strnfill(1025, 'k');
    g_autofree char *huge = g_strnfill(100000, 'k');

    assert_key("0123456789abcdef", -1, "0123456789abcdef");
    assert_key("0123456789 abcdef \t\r\n\n", -1, "0123456789 abcdef");
    assert_key(" 0123456789abcdef", -1, " 0123456789abcdef");
    assert_key(longest_line, -1, longest);

    assert_no_key("", 0, 0600, "0 bytes");
    assert_no_key("0123456789abcde\n", -1, 0600, "15 bytes");
    assert_no_key("                    ", -1, 0600, "0 bytes");
    assert_no_key(too_long, -1, 0600, "1025 bytes");
    assert_no_key(huge, -1, 0600, "too long");
    assert_no_key("0123456789abcdef", -1, 0640, "chmod 600");
    assert_no_key("0123456789abcdef", -1, 0604, "chmod 600");
    assert_no_key("0123456789abcdef", -1, 0602, "chmod 600");
}

static void test_key_is_no_file(void)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(memx_key_load("/nonexistent/key", &error));
    g_assert_nonnull(strstr(error->message, "/nonexistent/key"));
    g_clear_error(&error);
    g_assert_null(memx_key_load("/", &error));
    g_assert_nonnull(strstr(error->message, "regular file"));
}

/* --- Proofs, against values made with Python's hmac --- */

static void count_up(uint8_t *bytes, size_t n, uint8_t first)
{
    for (size_t i = 0; i < n; i++) {
        bytes[i] = first + i;
    }
}

static void assert_hex(const uint8_t *bytes, size_t n, const char *hex)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (size_t i = 0; i < n; i++) {
        g_string_append_printf(text, "%02x", bytes[i]);
    }
    g_assert_cmpstr(text->str, ==, hex);
}

static void test_proofs(void)
{
    g_autoptr(GBytes) key = g_bytes_new("0123456789abcdef", 16);
    uint8_t client_nonce[MEMX_NONCE_BYTES], server_nonce[MEMX_NONCE_BYTES];
    uint8_t proof[MEMX_PROOF_BYTES], secret[MEMX_ID_BYTES];
    MemxOpen open = {
        .lane = MEMX_LANE_FAULT, .epoch = 0x0807060504030201,
    };

    count_up(client_nonce, MEMX_NONCE_BYTES, 0x20);
    count_up(server_nonce, MEMX_NONCE_BYTES, 0x80);
    count_up(open.space, MEMX_ID_BYTES, 0x10);
    count_up(open.client, MEMX_ID_BYTES, 0x30);
    count_up(secret, MEMX_ID_BYTES, 0x50);

    memx_auth_proof(key, MEMX_LABEL_CLIENT, client_nonce, server_nonce, NULL,
                    0, proof);
    assert_hex(proof, sizeof(proof), "71408102df7cdc164b80e40f2aea86c4"
               "001bda022c382d5e2f4253e23aca88ad");
    memx_auth_proof(key, MEMX_LABEL_SERVER, client_nonce, server_nonce, NULL,
                    0, proof);
    assert_hex(proof, sizeof(proof), "1a5fe23561dd730647c586c6c2678d3e"
               "b1bc992c4ceaa9a39822b187c575476d");
    memx_auth_space_proof(&open, secret, client_nonce, server_nonce, proof);
    assert_hex(proof, sizeof(proof), "96cd507953c3d7d92135f4e06a9fec35"
               "713f1f55d16112d679260d6b5f783c62");
    open.flags = MEMX_OPEN_HEIR;
    count_up(open.session, MEMX_ID_BYTES, 0xb0);
    memx_auth_space_proof(&open, secret, client_nonce, server_nonce, proof);
    assert_hex(proof, sizeof(proof), "92b44c23eae29f98a32500d85201e6dd"
               "1bdbda1cad57ac4bbf787d2d0fa84540");

    memx_auth_wrap(key, open.space, client_nonce, server_nonce, secret);
    assert_hex(secret, sizeof(secret), "feb83c726eaaad6bd378ecae51bf635c");
    memx_auth_wrap(key, open.space, client_nonce, server_nonce, secret);
    assert_hex(secret, sizeof(secret), "505152535455565758595a5b5c5d5e5f");

    g_assert_true(memx_auth_equal((uint8_t *)"ab", (uint8_t *)"ab", 2));
    g_assert_false(memx_auth_equal((uint8_t *)"ab", (uint8_t *)"ac", 2));
}

/* --- Handshakes --- */

/* What the server does.  Zero is: all well, without a key. */
typedef struct Script {
    const char *name;
    const char *server_key;
    const char *client_key;
    unsigned refuse_opcode;     /* with: */
    unsigned refuse_error;
    unsigned silent_opcode;     /* no answer */
    unsigned close_opcode;      /* the connection, instead of an answer */
    unsigned welcome_version;   /* other than 1 */
    uint64_t welcome_features;
    bool bad_server_proof;
    uint64_t opened_pages;      /* other than what was asked for */
    bool attach;
    uint8_t wrong_secret;       /* the client's differs by this */
    const char *why;            /* the error says so; NULL: none is expected */
} Script;

#define KEY_A "key A 0123456789"
#define KEY_B "key B 0123456789"

static const Script scripts[] = {
    { "create" },
    { "create-with-key", .server_key = KEY_A, .client_key = KEY_A },
    { "attach", .attach = true },
    { "attach-with-key", .attach = true, .server_key = KEY_A,
      .client_key = KEY_A },
    { "wrong-secret", .attach = true, .wrong_secret = 1,
      .why = "wrong secret" },
    { "wrong-key", .server_key = KEY_A, .client_key = KEY_B,
      .why = "does not accept the key" },
    { "server-demands-key", .server_key = KEY_A, .why = "demands a key" },
    { "server-has-no-key", .client_key = KEY_A, .why = "has no key" },
    { "server-only-claims-the-key", .server_key = KEY_A, .client_key = KEY_A,
      .bad_server_proof = true, .why = "does not know the key" },
    { "other-version", .refuse_opcode = MEMX_OP_HELLO,
      .refuse_error = MEMX_ERR_VERSION, .why = "protocol version" },
    { "version-not-offered", .welcome_version = 2,
      .why = "does not speak MemX's protocol" },
    { "feature-not-offered", .welcome_features = MEMX_FEATURE_TLS,
      .why = "does not speak MemX's protocol" },
    { "full", .refuse_opcode = MEMX_OP_OPEN, .refuse_error = MEMX_ERR_FULL,
      .why = "12 MiB of its 16 MiB are free" },
    { "exists", .refuse_opcode = MEMX_OP_OPEN,
      .refuse_error = MEMX_ERR_EXISTS, .why = "exists already" },
    { "owned", .refuse_opcode = MEMX_OP_OPEN, .attach = true,
      .refuse_error = MEMX_ERR_OWNED, .why = "owned by another" },
    { "shutting-down", .refuse_opcode = MEMX_OP_HELLO,
      .refuse_error = MEMX_ERR_SHUTDOWN, .why = "shutting down" },
    { "unknown-error", .refuse_opcode = MEMX_OP_OPEN, .refuse_error = 999,
      .why = "unknown error" },
    { "opened-other-size", .opened_pages = 5, .why = "OPEN" },
    { "closes-at-hello", .close_opcode = MEMX_OP_HELLO, .why = "HELLO" },
    { "closes-at-auth", .server_key = KEY_A, .client_key = KEY_A,
      .close_opcode = MEMX_OP_AUTH, .why = "AUTH" },
    { "closes-at-open", .close_opcode = MEMX_OP_OPEN, .why = "OPEN" },
    { "silent-at-hello", .silent_opcode = MEMX_OP_HELLO,
      .why = "was not answered within" },
    { "silent-at-open", .silent_opcode = MEMX_OP_OPEN,
      .why = "was not answered within" },
};

typedef struct Handshake {
    const Script *script;
    const MemxTransport *transport;
    MemxListener *listener;
    MemxChannel *channel;
    int over_fd;                /* readable when the client gave up */
    MemxHello hello;
    uint8_t nonce[MEMX_NONCE_BYTES];
    uint8_t secret[MEMX_ID_BYTES];  /* the space's */
    MemxOpen open;              /* as received, secret unwrapped */
} Handshake;

static GBytes *text_key(const char *text)
{
    return text ? g_bytes_new(text, strlen(text)) : NULL;
}

static void answer_hello(Handshake *h, MemxReply *reply, uint8_t *out,
                         const uint8_t *body, size_t bytes)
{
    const Script *script = h->script;
    MemxWelcome welcome = {
        .version = script->welcome_version ? script->welcome_version : 1,
        .flags = script->server_key ? MEMX_WELCOME_AUTH : 0,
        .features = script->welcome_features,
    };

    g_assert_cmpint(memx_hello_decode(&h->hello, body, bytes), ==, 0);
    g_assert_cmpuint(h->hello.version_min, ==, 1);
    g_assert_cmpuint(h->hello.version_max, ==, 1);
    g_assert_cmpuint(h->hello.features, ==, 0);
    memx_random(h->nonce, sizeof(h->nonce));
    memcpy(welcome.nonce, h->nonce, sizeof(h->nonce));
    memset(welcome.instance, 0x1d, MEMX_ID_BYTES);
    memx_welcome_encode(out, &welcome);
    reply->body_bytes = MEMX_WELCOME_BYTES;
}

static void answer_auth(Handshake *h, MemxReply *reply, uint8_t *out,
                        const uint8_t *body)
{
    g_autoptr(GBytes) key = text_key(h->script->server_key);
    uint8_t proof[MEMX_PROOF_BYTES];

    if (!key) {
        reply->error = MEMX_ERR_AUTH;
        return;
    }
    memx_auth_proof(key, MEMX_LABEL_CLIENT, h->hello.nonce, h->nonce, NULL,
                    0, proof);
    if (!memx_auth_equal(proof, body, MEMX_PROOF_BYTES)) {
        reply->error = MEMX_ERR_AUTH;
        return;
    }
    memx_auth_proof(key, MEMX_LABEL_SERVER, h->hello.nonce, h->nonce, NULL,
                    0, out);
    out[0] ^= h->script->bad_server_proof;
    reply->body_bytes = MEMX_PROOF_BYTES;
}

static void answer_open(Handshake *h, MemxReply *reply, uint8_t *out,
                        const uint8_t *body, size_t bytes)
{
    g_autoptr(GBytes) key = text_key(h->script->server_key);
    MemxOpened opened = { .reserved_pages = 50, .held_pages = 3 };
    uint8_t proof[MEMX_PROOF_BYTES];

    g_assert_cmpint(memx_open_decode(&h->open, body, bytes), ==, 0);
    if (h->open.flags & MEMX_OPEN_CREATE) {
        if (key) {
            /* On the wire it is not the secret. */
            g_assert_false(memx_auth_equal(h->open.secret, h->secret,
                                           MEMX_ID_BYTES));
            memx_auth_wrap(key, h->open.space, h->hello.nonce, h->nonce,
                           h->open.secret);
        }
    } else {
        memx_auth_space_proof(&h->open, h->secret, h->hello.nonce, h->nonce,
                              proof);
        if (!memx_auth_equal(proof, h->open.proof, MEMX_PROOF_BYTES)) {
            reply->error = MEMX_ERR_NO_SPACE;
            return;
        }
    }
    opened.size_pages = h->script->opened_pages ? h->script->opened_pages
                                                : h->open.size_pages;
    memx_opened_encode(out, &opened);
    reply->body_bytes = MEMX_OPENED_BYTES;
}

static void *server_thread(void *opaque)
{
    Handshake *h = opaque;
    const Script *script = h->script;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;

    g_assert_cmpint(memx_wait_fd(h->transport->listener_fd(h->listener),
                                 POLLIN, -1, g_get_monotonic_time() +
                                 DEADLINE_MS * 1000LL), ==, 0);
    h->channel = h->transport->accept(h->listener, NULL);
    g_assert_nonnull(h->channel);
    while (memx_channel_next(h->channel, &request, body) == 0) {
        MemxReply reply = { .free_pages = 3072, .capacity_pages = 4096 };
        uint8_t out[MEMX_WELCOME_BYTES];

        if (request.opcode == script->silent_opcode) {
            eventfd_t count;

            eventfd_read(h->over_fd, &count);
            break;
        } else if (request.opcode == script->close_opcode) {
            break;
        } else if (request.opcode == script->refuse_opcode) {
            reply.error = script->refuse_error;
        } else if (request.opcode == MEMX_OP_HELLO) {
            answer_hello(h, &reply, out, body, request.body_bytes);
        } else if (request.opcode == MEMX_OP_AUTH) {
            answer_auth(h, &reply, out, body);
        } else if (request.opcode == MEMX_OP_OPEN) {
            answer_open(h, &reply, out, body, request.body_bytes);
        }
        memx_channel_reply(h->channel, &reply, out, NULL, 0);
    }
    memx_channel_close(h->channel);
    return NULL;
}

static void assert_opened(const Handshake *h, const MemxPeerInfo *info)
{
    g_assert_cmpuint(info->protocol_error, ==, MEMX_ERR_NONE);
    g_assert_cmpuint(info->free_pages, ==, 3072);
    g_assert_cmpuint(info->capacity_pages, ==, 4096);
    g_assert_cmpuint(info->opened.size_pages, ==, 100);
    g_assert_cmpuint(info->opened.reserved_pages, ==, 50);
    g_assert_cmpuint(info->opened.held_pages, ==, 3);
    g_assert_cmpuint(info->instance[0], ==, 0x1d);
    g_assert_cmpstr(h->open.vm_name, ==, "vm");
    if (!h->script->attach) {
        g_assert_cmpmem(h->open.secret, MEMX_ID_BYTES, h->secret,
                        MEMX_ID_BYTES);
    }
}

static void run_script(const Script *script, const MemxTransport *transport)
{
    g_autoptr(GError) error = NULL;
    Handshake h = { .script = script, .transport = transport };
    MemxOpen open = {
        .lane = MEMX_LANE_ORDERED,
        .flags = script->attach ? 0 : MEMX_OPEN_CREATE,
        .size_pages = 100,
        .reserve_pages = script->attach ? 0 : 50,
    };
    MemxPeerInfo info;

    h.over_fd = eventfd(0, EFD_CLOEXEC);
    memx_random(h.secret, sizeof(h.secret));
    memcpy(open.secret, h.secret, sizeof(h.secret));
    open.secret[0] ^= script->wrong_secret;
    memx_random(open.space, sizeof(open.space));
    memx_name_set(open.vm_name, "vm");
    h.listener = transport->listen("127.0.0.1", "0", &error);
    g_assert_no_error(error);
    g_autofree char *address = transport->listener_address(h.listener);
    g_autoptr(GBytes) key = text_key(script->client_key);
    MemxPeer *peer = memx_peer_new(transport, address, key, &error);
    g_assert_no_error(error);
    GThread *thread = g_thread_new("server", server_thread, &h);

    MemxChannel *channel =
        memx_peer_connect(peer, &open, script->silent_opcode ? 50
                                                             : DEADLINE_MS,
                          -1, &info, &error);
    if (script->why) {
        g_assert_null(channel);
        g_assert_nonnull(error);
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, address));
        g_assert_nonnull(strstr(error->message, script->why));
        g_assert_cmpint(error->code, ==,
                        script->refuse_error == MEMX_ERR_FULL
                            ? MEMX_ERROR_FULL : MEMX_ERROR_CONNECT);
        if (script->refuse_error) {
            g_assert_cmpuint(info.protocol_error, ==, script->refuse_error);
        }
    } else {
        g_assert_no_error(error);
        memx_channel_close(channel);
    }
    eventfd_write(h.over_fd, 1);
    g_thread_join(thread);
    if (!script->why) {
        assert_opened(&h, &info);
    }
    close(h.over_fd);
    transport->listener_close(h.listener);
    memx_peer_free(peer);
}

static void test_handshake_tcp(const void *script)
{
    run_script(script, &memx_transport_tcp);
}

static void test_handshake_inproc(const void *script)
{
    run_script(script, &memx_transport_inproc);
}

/* Without a space: HELLO, and that is all. */
static void test_no_lane(void)
{
    static const Script script = { "no-lane" };
    g_autoptr(GError) error = NULL;
    Handshake h = { .script = &script, .transport = &memx_transport_tcp };
    MemxOpen open = { .lane = MEMX_LANE_NONE };
    MemxPeerInfo info;

    h.listener = memx_transport_tcp.listen("127.0.0.1", "0", &error);
    g_assert_no_error(error);
    g_autofree char *address =
        memx_transport_tcp.listener_address(h.listener);
    MemxPeer *peer = memx_peer_new(&memx_transport_tcp, address, NULL,
                                   &error);
    GThread *thread = g_thread_new("server", server_thread, &h);
    MemxChannel *channel = memx_peer_connect(peer, &open, DEADLINE_MS, -1,
                                             &info, &error);

    g_assert_no_error(error);
    g_assert_cmpuint(info.free_pages, ==, 3072);
    memx_channel_close(channel);
    g_thread_join(thread);
    memx_transport_tcp.listener_close(h.listener);
    memx_peer_free(peer);
}

static void test_cancelled(void)
{
    g_autoptr(GError) error = NULL;
    MemxListener *listener = memx_transport_tcp.listen("127.0.0.1", "0",
                                                       &error);
    g_autofree char *address =
        memx_transport_tcp.listener_address(listener);
    MemxPeer *peer = memx_peer_new(&memx_transport_tcp, address, NULL,
                                   &error);
    MemxOpen open = { .lane = MEMX_LANE_NONE };
    MemxPeerInfo info;
    int fd = eventfd(1, EFD_CLOEXEC);

    /* Connected by the kernel, and never answered. */
    g_assert_null(memx_peer_connect(peer, &open, DEADLINE_MS, fd, &info,
                                    &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, address));
    close(fd);
    memx_transport_tcp.listener_close(listener);
    memx_peer_free(peer);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    alarm(100); /* whatever hangs */
    g_test_add_func("/memx/peer/address", test_addresses);
    g_test_add_func("/memx/peer/wrong-address", test_wrong_addresses);
    g_test_add_func("/memx/peer/key-file", test_key_files);
    g_test_add_func("/memx/peer/key-is-no-file", test_key_is_no_file);
    g_test_add_func("/memx/peer/proofs", test_proofs);
    for (size_t i = 0; i < G_N_ELEMENTS(scripts); i++) {
        g_autofree char *tcp = g_strconcat("/memx/peer/handshake/tcp/",
                                           scripts[i].name, NULL);
        g_autofree char *inproc = g_strconcat("/memx/peer/handshake/inproc/",
                                              scripts[i].name, NULL);

        g_test_add_data_func(tcp, &scripts[i], test_handshake_tcp);
        g_test_add_data_func(inproc, &scripts[i], test_handshake_inproc);
    }
    g_test_add_func("/memx/peer/handshake/no-lane", test_no_lane);
    g_test_add_func("/memx/peer/handshake/cancelled", test_cancelled);
    return g_test_run();
}
