/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who gets in: keys, versions, garbage, and strangers by the hundred.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "memserver-client.h"
#include "server-process.h"

#define PAGES 1024u
#define KEY "0123456789abcdef-the-key"
#define DEADLINE_US (30 * G_USEC_PER_SEC)

typedef struct Fixture {
    char *key_path;
    GBytes *key;
    ServerProcess *server;  /* with the key */
    MemxPeer *plain;        /* its address */
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    int fd = g_file_open_tmp("memx-key-XXXXXX", &f->key_path, &error);

    g_assert_no_error(error);
    g_assert_cmpint(write(fd, KEY, strlen(KEY)), ==, strlen(KEY));
    close(fd);
    f->key = g_bytes_new(KEY, strlen(KEY));
    f->server = server_process_new_with(
        "64M", (const char *[]) { "--key-file", f->key_path, NULL });
    f->plain = memx_peer_new(&memx_transport_tcp,
                             server_process_address(f->server), NULL, NULL);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    memx_peer_free(f->plain);
    server_process_free(f->server);
    g_bytes_unref(f->key);
    g_unlink(f->key_path);
    g_free(f->key_path);
}

/* A bare connection, before any handshake. */
static MemxChannel *connect_bare(Fixture *f)
{
    g_autoptr(GError) error = NULL;
    MemxChannel *channel = memx_channel_connect(
        &memx_transport_tcp, f->plain->host, f->plain->port,
        CLIENT_TIMEOUT_MS, -1, &error);

    g_assert_no_error(error);
    return channel;
}

static int ask(MemxChannel *channel, MemxOpcode opcode, const void *body,
               size_t bytes, MemxCall *call)
{
    *call = (MemxCall) {
        .request = { .opcode = opcode, .body_bytes = bytes }, .body = body,
    };
    return memx_channel_call(channel, call, CLIENT_TIMEOUT_MS, -1);
}

static int say_hello(MemxChannel *channel, uint32_t version_min,
                     uint32_t version_max, MemxCall *call)
{
    MemxHello hello = { version_min, version_max, 0, { 1, 2, 3 } };
    uint8_t body[MEMX_HELLO_BYTES];

    memx_hello_encode(body, &hello);
    return ask(channel, MEMX_OP_HELLO, body, sizeof(body), call);
}

static void assert_closed(MemxChannel *channel)
{
    struct pollfd fd = { memx_channel_poll_fd(channel), POLLIN, 0 };
    char byte;

    g_assert_cmpint(poll(&fd, 1, DEADLINE_US / 1000), ==, 1);
    g_assert_cmpint(recv(fd.fd, &byte, 1, 0), <=, 0);
}

/* The server is well, and lets a client with the key in. */
static void assert_serving(Fixture *f)
{
    Client *client = client_new(server_process_address(f->server), f->key);
    uint64_t generation;

    g_assert_cmpint(client_create(client, PAGES, 0), ==, 0);
    g_assert_cmpint(client_attach(client, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpint(client_store(client, 1, ALL_PAGES, 3), ==, 0);
    g_assert_cmpint(client_fetch(client, MEMX_LANE_FAULT, 1, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 3);
    g_assert_cmpint(client_close(client), ==, 0);
    client_free(client);
}

static void test_right_key(Fixture *f, gconstpointer data)
{
    assert_serving(f);
}

static void test_wrong_key(Fixture *f, gconstpointer data)
{
    g_autoptr(GBytes) wrong = g_bytes_new(KEY "x", strlen(KEY) + 1);
    Client *client = client_new(server_process_address(f->server), wrong);

    g_assert_cmpint(client_create(client, PAGES, 0), ==, MEMX_ERR_AUTH);
    client_free(client);
    client = client_new(server_process_address(f->server), NULL);
    g_assert_cmpint(client_create(client, PAGES, 0), !=, 0);
    client_free(client);
    assert_serving(f);
}

/* One who has a key wants it proven: a server without one is not it. */
static void test_server_without_key(void)
{
    g_autoptr(GBytes) key = g_bytes_new(KEY, strlen(KEY));
    ServerProcess *server = server_process_new("64M");
    Client *client = client_new(server_process_address(server), key);

    g_assert_cmpint(client_create(client, PAGES, 0), ==, MEMX_ERR_AUTH);
    client_free(client);
    server_process_free(server);
}

static void test_nothing_without_proof(Fixture *f, gconstpointer data)
{
    static const MemxOpcode opcodes[] = { MEMX_OP_OPEN, MEMX_OP_PING,
                                          MEMX_OP_CLOSE };
    MemxOpen open = { .lane = MEMX_LANE_ORDERED, .flags = MEMX_OPEN_CREATE,
                      .size_pages = 64 };
    uint8_t body[MEMX_OPEN_BYTES], proof[MEMX_PROOF_BYTES] = { 0 };
    MemxCall call;

    memx_open_encode(body, &open);
    for (int greeted = 0; greeted < 2; greeted++) {
        for (unsigned i = 0; i < G_N_ELEMENTS(opcodes); i++) {
            MemxChannel *channel = connect_bare(f);

            if (greeted) {
                g_assert_cmpint(say_hello(channel, 1, 1, &call), ==, 0);
                g_assert_cmpint(call.reply.error, ==, 0);
                g_assert_cmpuint(call.reply.capacity_pages, ==, 0);
            }
            g_assert_cmpint(ask(channel, opcodes[i], body,
                                i ? 0 : sizeof(body), &call), ==, 0);
            g_assert_cmpint(call.reply.error, ==,
                            greeted ? MEMX_ERR_AUTH : MEMX_ERR_LANE);
            g_assert_cmpuint(call.reply.capacity_pages, ==, 0);
            assert_closed(channel);
            memx_channel_close(channel);
        }
    }
    /* Nor by a proof before the nonces are there. */
    MemxChannel *channel = connect_bare(f);
    g_assert_cmpint(ask(channel, MEMX_OP_AUTH, proof, sizeof(proof), &call),
                    ==, 0);
    g_assert_cmpint(call.reply.error, ==, MEMX_ERR_LANE);
    assert_closed(channel);
    memx_channel_close(channel);
}

/* A proof is good for one connection. */
static void test_replayed_proof(Fixture *f, gconstpointer data)
{
    uint8_t proof[MEMX_PROOF_BYTES];
    MemxWelcome welcome;
    MemxCall call;

    for (int replay = 0; replay < 2; replay++) {
        MemxChannel *channel = connect_bare(f);
        uint8_t nonce[MEMX_NONCE_BYTES] = { 1, 2, 3 };

        g_assert_cmpint(say_hello(channel, 1, 1, &call), ==, 0);
        g_assert_cmpint(memx_welcome_decode(&welcome, call.reply_body,
                                            call.reply.body_bytes), ==, 0);
        g_assert_cmpuint(welcome.flags, ==, MEMX_WELCOME_AUTH);
        if (!replay) {
            memx_auth_proof(f->key, MEMX_LABEL_CLIENT, nonce, welcome.nonce,
                            NULL, 0, proof);
        }
        g_assert_cmpint(ask(channel, MEMX_OP_AUTH, proof, sizeof(proof),
                            &call), ==, 0);
        g_assert_cmpint(call.reply.error, ==, replay ? MEMX_ERR_AUTH : 0);
        memx_channel_close(channel);
    }
}

static void test_version(Fixture *f, gconstpointer data)
{
    static const uint32_t ranges[][2] = { { 2, 9 }, { 1000, 1000 } };
    MemxCall call;

    for (unsigned i = 0; i < G_N_ELEMENTS(ranges); i++) {
        MemxChannel *channel = connect_bare(f);

        g_assert_cmpint(say_hello(channel, ranges[i][0], ranges[i][1], &call),
                        ==, 0);
        g_assert_cmpint(call.reply.error, ==, MEMX_ERR_VERSION);
        assert_closed(channel);
        memx_channel_close(channel);
    }
    MemxChannel *channel = connect_bare(f);
    g_assert_cmpint(say_hello(channel, 1, 9, &call), ==, 0);
    g_assert_cmpint(call.reply.error, ==, 0);
    memx_channel_close(channel);
}

/* Garbage costs its sender the connection, and nobody else anything. */
static void test_garbage(Fixture *f, gconstpointer data)
{
    Client *client = client_new(server_process_address(f->server), f->key);
    GRand *rand = g_rand_new_with_seed(g_test_rand_int());
    uint64_t generation;

    g_assert_cmpint(client_create(client, PAGES, 0), ==, 0);
    g_assert_cmpint(client_store(client, 1, ALL_PAGES, 3), ==, 0);
    for (int round = 0; round < 300; round++) {
        MemxChannel *channel = connect_bare(f);
        int fd = memx_channel_poll_fd(channel);
        uint8_t bytes[512];
        MemxRequest request = {
            .opcode = g_rand_int_range(rand, 0, 40),
            .group = g_rand_int(rand), .mask = g_rand_int(rand),
            .body_bytes = g_rand_int_range(rand, 0, 2000),
            .payload_bytes = g_rand_int(rand),
        };

        for (unsigned i = 0; i < sizeof(bytes); i++) {
            bytes[i] = g_rand_int(rand);
        }
        if (round % 2) {
            memx_request_encode(bytes, &request);
        }
        send(fd, bytes, g_rand_int_range(rand, 1, sizeof(bytes) + 1),
             MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        while (recv(fd, bytes, sizeof(bytes), 0) > 0) {
        }
        memx_channel_close(channel);
    }
    /* On a lane that was opened well, too. */
    send(memx_channel_poll_fd(client->lanes[MEMX_LANE_ORDERED]), "garbage"
         "garbagegarbagegarbagegarbagegarbage", 42, MSG_NOSIGNAL);
    assert_closed(client->lanes[MEMX_LANE_ORDERED]);
    client_reattach(client);
    g_assert_cmpint(client_fetch(client, MEMX_LANE_FAULT, 1, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 3);
    g_rand_free(rand);
    client_free(client);
    assert_serving(f);
}

/* Silent connections by the hundred take only each other's places. */
static void test_strangers_crowd_out_nobody(Fixture *f, gconstpointer data)
{
    MemxChannel *strangers[300];

    for (unsigned i = 0; i < G_N_ELEMENTS(strangers); i++) {
        strangers[i] = connect_bare(f);
        if (i % 50 == 49) {
            assert_serving(f);
        }
    }
    assert_closed(strangers[0]);
    for (unsigned i = 0; i < G_N_ELEMENTS(strangers); i++) {
        memx_channel_close(strangers[i]);
    }
    assert_serving(f);
}

/* One who says nothing is sent away. */
static void test_silent_stranger(Fixture *f, gconstpointer data)
{
    MemxChannel *channel = connect_bare(f);

    assert_closed(channel);
    memx_channel_close(channel);
}

/* More connections than there is room for are closed; those inside stay. */
static void test_connection_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < 1100) {
        g_test_skip("needs 1100 descriptors, the hard limit is lower");
        return;
    }

    ServerProcess *server = server_process_new("64M");
    MemxPeer *peer = memx_peer_new(&memx_transport_tcp,
                                   server_process_address(server), NULL,
                                   NULL);
    MemxOpen open = { .lane = MEMX_LANE_NONE };
    g_autoptr(GPtrArray) channels =
        g_ptr_array_new_with_free_func((GDestroyNotify)memx_channel_close);
    Client *client = client_new(server_process_address(server), NULL);
    uint64_t generation;

    g_assert_cmpint(client_create(client, PAGES, 0), ==, 0);
    g_assert_cmpint(client_store(client, 1, ALL_PAGES, 3), ==, 0);
    while (channels->len < 2000) {
        MemxPeerInfo info = { 0 };
        MemxChannel *channel = memx_peer_connect(
            peer, &open, CLIENT_TIMEOUT_MS, -1, &info, NULL);

        if (!channel) {
            break;
        }
        g_ptr_array_add(channels, channel);
    }
    g_assert_cmpuint(channels->len, ==, 1023);
    g_assert_cmpint(client_fetch(client, MEMX_LANE_ORDERED, 1, ALL_PAGES,
                                 &generation), ==, 0);
    memx_peer_free(peer);
    client_free(client);
    server_process_free(server);
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/admission/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("right-key", test_right_key);
    ADD("wrong-key", test_wrong_key);
    g_test_add_func("/memserver/admission/server-without-key",
                    test_server_without_key);
    ADD("nothing-without-proof", test_nothing_without_proof);
    ADD("replayed-proof", test_replayed_proof);
    ADD("version", test_version);
    ADD("garbage", test_garbage);
    ADD("strangers-crowd-out-nobody", test_strangers_crowd_out_nobody);
    ADD("silent-stranger", test_silent_stranger);
    g_test_add_func("/memserver/admission/connection-limit",
                    test_connection_limit);
    return g_test_run();
}
