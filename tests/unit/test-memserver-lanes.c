/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who may use a space, over which connections, and what becomes of it when
 * they go: the real daemon over TCP.
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include "memserver-client.h"
#include "server-process.h"

#define PAGES 1024u

typedef struct Fixture {
    ServerProcess *server;
    Client *client;         /* with a space of PAGES pages, all lanes open */
    Client *rival;          /* knows the same secret */
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    f->server = server_process_new("64M");
    f->client = client_new(server_process_address(f->server), NULL);
    g_assert_cmpint(client_create(f->client, PAGES, PAGES), ==, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FETCH), ==, 0);
    f->rival = client_new_rival(f->client);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    client_free(f->rival);
    client_free(f->client);
    server_process_free(f->server);
}

/* Until the server has noticed that a connection is gone. */
static void attach_until(Client *client, MemxLane lane, int expected)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    while (client_attach(client, lane) != expected) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
}

static void test_all_operations(Fixture *f, gconstpointer data)
{
    uint64_t generation, differ;

    g_assert_cmpint(client_store(f->client, 3, 0xff, 7), ==, 0);
    g_assert_cmpuint(f->client->reply.space_pages, ==, 8);
    g_assert_cmpuint(f->client->reply.capacity_pages, ==, 16384);
    g_assert_cmpuint(f->client->reply.free_pages, ==, 16384 - PAGES);
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_cmpint(client_fetch(f->client, lane, 3, 0x18, &generation),
                        ==, 0);
        g_assert_cmpuint(generation, ==, 7);
        g_assert_cmpint(client_ping(f->client, lane), ==, 0);
    }
    g_assert_cmpint(client_compare(f->client, 3, 0x1fe, 7, &differ), ==, 0);
    g_assert_cmphex(differ, ==, 0x100);
    g_assert_cmpint(client_compare(f->client, 3, 0xff, 8, &differ), ==, 0);
    g_assert_cmphex(differ, ==, 0xff);
    g_assert_cmpint(client_drop(f->client, 3, 0xf), ==, 0);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 3, 0x8,
                                 &generation), ==, MEMX_ERR_NOT_HELD);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 3, 0xff,
                                 &generation), ==, MEMX_ERR_NOT_HELD);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 3, 0xf0,
                                 &generation), ==, 0);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, PAGES / 64, 1,
                                 &generation), ==, MEMX_ERR_RANGE);
    g_assert_cmpint(client_store(f->client, PAGES / 64, 1, 1), ==,
                    MEMX_ERR_RANGE);
    /* A refused STORE leaves the connection in step. */
    g_assert_cmpint(client_store(f->client, 0, ALL_PAGES, 1), ==, 0);
    g_assert_cmpint(client_reserve(f->client, PAGES / 2), ==, 0);
    g_assert_cmpuint(f->client->reply.free_pages, ==, 16384 - PAGES / 2);
    g_assert_cmpint(client_reserve(f->client, PAGES + 1), ==, MEMX_ERR_RANGE);
}

/* What changes a space is refused on lanes that read. */
static void test_wrong_lane(Fixture *f, gconstpointer data)
{
    MemxChannel *ordered = f->client->lanes[MEMX_LANE_ORDERED];
    uint64_t differ, generation;

    client_store(f->client, 1, 3, 1);
    for (int lane = MEMX_LANE_FAULT; lane <= MEMX_LANE_FETCH; lane++) {
        f->client->lanes[MEMX_LANE_ORDERED] = f->client->lanes[lane];
        g_assert_cmpint(client_store(f->client, 1, 3, 2), ==, MEMX_ERR_LANE);
        g_assert_cmpint(client_compare(f->client, 1, 3, 2, &differ), ==,
                        MEMX_ERR_LANE);
        g_assert_cmpint(client_drop(f->client, 1, 3), ==, MEMX_ERR_LANE);
        g_assert_cmpint(client_reserve(f->client, 3), ==, MEMX_ERR_LANE);
        g_assert_cmpint(client_close(f->client), ==, MEMX_ERR_LANE);
        g_assert_cmpint(client_fetch(f->client, lane, 1, 3, &generation), ==,
                        0);
        g_assert_cmpuint(generation, ==, 1);
    }
    f->client->lanes[MEMX_LANE_ORDERED] = ordered;
}

static void test_wrong_secret_or_no_space(Fixture *f, gconstpointer data)
{
    Client *stranger = client_new(server_process_address(f->server), NULL);

    g_assert_cmpint(client_attach(stranger, MEMX_LANE_FAULT), ==,
                    MEMX_ERR_NO_SPACE);
    f->rival->open.secret[15] ^= 1;
    f->rival->open.epoch = 2;
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_FAULT), ==,
                    MEMX_ERR_NO_SPACE);
    memcpy(f->rival->open.client, f->client->open.client, MEMX_ID_BYTES);
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    client_cut_all(f->client);
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    client_free(stranger);
}

static void test_exists(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(client_create(f->rival, PAGES, 0), ==, MEMX_ERR_EXISTS);
    memcpy(f->rival->open.client, f->client->open.client, MEMX_ID_BYTES);
    g_assert_cmpint(client_create(f->rival, PAGES, 0), ==, MEMX_ERR_EXISTS);
}

static void test_size_must_agree(Fixture *f, gconstpointer data)
{
    f->client->open.size_pages = PAGES + 1;
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FAULT), ==,
                    MEMX_ERR_RANGE);
    f->client->open.size_pages = 0;
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpuint(f->client->info.opened.size_pages, ==, PAGES);
    g_assert_cmpuint(f->client->info.opened.reserved_pages, ==, PAGES);
}

static void test_too_little_room(Fixture *f, gconstpointer data)
{
    Client *big = client_new(server_process_address(f->server), NULL);

    g_assert_cmpint(client_create(big, 1 << 30, 16384 - PAGES + 1), ==,
                    MEMX_ERR_FULL);
    g_assert_cmpuint(big->info.free_pages, ==, 16384 - PAGES);
    g_assert_cmpint(client_create(big, 1 << 30, 16384 - PAGES), ==, 0);
    g_assert_cmpint(client_store(big, 0, ALL_PAGES, 1), ==, 0);
    g_assert_cmpint(client_store(f->client, 0, ALL_PAGES, 1), ==, 0);
    g_assert_cmpint(client_close(big), ==, 0);
    g_assert_cmpuint(big->reply.free_pages, ==, 16384 - PAGES);
    client_free(big);
}

static void test_owned(Fixture *f, gconstpointer data)
{
    uint64_t generation;

    f->rival->open.epoch = 9;
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_cmpint(client_attach(f->rival, lane), ==, MEMX_ERR_OWNED);
    }
    client_cut(f->client, MEMX_LANE_ORDERED);
    client_cut(f->client, MEMX_LANE_FETCH);
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_OWNED);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 0, 1,
                                 &generation), ==, MEMX_ERR_NOT_HELD);
}

static void test_vanished_owner_is_succeeded(Fixture *f, gconstpointer data)
{
    uint64_t generation;

    client_store(f->client, 1, ALL_PAGES, 5);
    client_cut_all(f->client);
    attach_until(f->rival, MEMX_LANE_ORDERED, MEMX_ERR_EPOCH);
    f->rival->open.epoch = 2;
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(f->rival->info.opened.held_pages, ==, 64);
    g_assert_cmpint(client_attach(f->rival, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpint(client_fetch(f->rival, MEMX_LANE_FAULT, 1, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 5);
    /* The old one is fenced, now and when the new one is gone, too. */
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_EPOCH);
    client_cut_all(f->rival);
    attach_until(f->client, MEMX_LANE_ORDERED, MEMX_ERR_EPOCH);
}

static void test_own_epoch(Fixture *f, gconstpointer data)
{
    Client *self = client_new_rival(f->client);

    memcpy(self->open.client, f->client->open.client, MEMX_ID_BYTES);
    self->open.epoch = 0;
    g_assert_cmpint(client_attach(self, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_EPOCH);
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_ORDERED), ==, 0);
    /* A higher one ends all lanes of the lower. */
    self->open.epoch = 5;
    g_assert_cmpint(client_attach(self, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(self->info.opened.epoch, ==, 5);
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_cmpint(client_ping(f->client, lane), <, 0);
    }
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FAULT), ==,
                    MEMX_ERR_EPOCH);
    g_assert_cmpint(client_attach(self, MEMX_LANE_FAULT), ==, 0);
    client_free(self);
}

/*
 * A new connection of a lane is answered only when nothing of its predecessor
 * can still be applied: requests in flight on the old one, never awaited,
 * must not overtake what is sent on the new one.
 */
static void test_predecessor_is_gone(Fixture *f, gconstpointer data)
{
    static uint64_t pages[MEMX_GROUP_BYTES / 8];
    static const uint8_t hashes[MEMX_BODY_MAX];
    struct iovec out = { pages, sizeof(pages) };
    uint64_t generation;

    for (int round = 0; round < 200; round++) {
        MemxChannel *old = f->client->lanes[MEMX_LANE_ORDERED];
        MemxCall calls[4];

        for (unsigned i = 0; i < G_N_ELEMENTS(calls); i++) {
            calls[i] = (MemxCall) {
                .request = {
                    .opcode = MEMX_OP_STORE, .group = 1, .mask = ALL_PAGES,
                    .body_bytes = sizeof(hashes),
                    .payload_bytes = sizeof(pages),
                },
                .body = hashes, .out = &out, .n_out = 1,
            };
            g_assert_cmpint(memx_channel_submit(old, &calls[i]), ==, 0);
        }
        f->client->lanes[MEMX_LANE_ORDERED] = NULL;
        g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==, 0);
        g_assert_cmpint(client_store(f->client, 1, ALL_PAGES, round + 1), ==,
                        0);
        g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 1, ALL_PAGES,
                                     &generation), ==, 0);
        g_assert_cmpuint(generation, ==, round + 1);
        memx_channel_close(old);
    }
}

/* Half a STORE, then the connection is cut: as if it had never been. */
static void test_half_store(Fixture *f, gconstpointer data)
{
    static uint64_t pages[MEMX_GROUP_BYTES / 8];
    static const uint8_t hashes[MEMX_BODY_MAX];
    uint8_t header[MEMX_REQUEST_BYTES];
    MemxRequest request = {
        .opcode = MEMX_OP_STORE, .id = 99, .group = 1, .mask = ALL_PAGES,
        .body_bytes = sizeof(hashes), .payload_bytes = sizeof(pages),
    };
    uint64_t generation;

    client_store(f->client, 1, ALL_PAGES, 5);
    for (size_t part = 0; part < sizeof(pages); part += 50000) {
        int fd = memx_channel_poll_fd(f->client->lanes[MEMX_LANE_ORDERED]);

        memx_request_encode(header, &request);
        g_assert_cmpint(send(fd, header, sizeof(header), 0), ==,
                        sizeof(header));
        g_assert_cmpint(send(fd, hashes, sizeof(hashes), 0), ==,
                        sizeof(hashes));
        for (size_t at = 0; at < part;) {
            ssize_t n = send(fd, pages, MIN(part - at, sizeof(pages)), 0);

            at += MAX(n, 0);
        }
        client_cut(f->client, MEMX_LANE_ORDERED);
        g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==, 0);
        g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FETCH, 1, ALL_PAGES,
                                     &generation), ==, 0);
        g_assert_cmpuint(generation, ==, 5);
        g_assert_cmpuint(f->client->reply.space_pages, ==, 64);
    }
}

static void test_close_drops(Fixture *f, gconstpointer data)
{
    client_store(f->client, 1, ALL_PAGES, 5);
    g_assert_cmpint(client_close(f->client), ==, 0);
    g_assert_cmpuint(f->client->reply.free_pages, ==, 16384);
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_FAULT), <, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    g_assert_cmpint(client_create(f->client, PAGES, PAGES), ==, 0);
    g_assert_cmpuint(f->client->info.opened.held_pages, ==, 0);
}

static void test_orphan_is_kept(Fixture *f, gconstpointer data)
{
    uint64_t generation;

    client_store(f->client, 1, ALL_PAGES, 5);
    client_cut_all(f->client);
    client_reattach(f->client);
    g_assert_cmpint(client_fetch(f->client, MEMX_LANE_FAULT, 1, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 5);
}

/* Those whose client left, and those who had one when the server died; but not
 * what is offered. */
static void test_orphan_timeout(void)
{
    static const char *const options[] = { "--orphan-timeout", "1", NULL };
    static const uint8_t session[MEMX_ID_BYTES] = { 1 };
    ServerProcess *server = server_process_new_with("64M", options);
    Client *offered = client_new(server_process_address(server), NULL);
    Client *heir = client_new_heir(offered, session);

    g_assert_cmpint(client_create(offered, PAGES, PAGES), ==, 0);
    g_assert_cmpint(client_offer(offered, session, heir), ==, 0);
    client_cut_all(offered);
    for (int killed = 0; killed < 2; killed++) {
        Client *gone = client_new(server_process_address(server), NULL);
        Client *here = client_new(server_process_address(server), NULL);
        int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

        g_assert_cmpint(client_create(gone, PAGES, PAGES), ==, 0);
        client_store(gone, 1, ALL_PAGES, 5);
        if (killed) {
            server_process_kill(server);
            server_process_restart(server, true);
        }
        client_cut_all(gone);
        g_assert_cmpint(client_create(here, PAGES, PAGES), ==, 0);
        do {
            g_assert_cmpint(client_ping(here, MEMX_LANE_ORDERED), ==, 0);
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(10000);
        } while (here->reply.free_pages != 16384 - 2 * PAGES);
        g_assert_cmpint(client_attach(gone, MEMX_LANE_ORDERED), ==,
                        MEMX_ERR_NO_SPACE);
        g_assert_cmpint(client_close(here), ==, 0);
        client_free(gone);
        client_free(here);
    }
    g_assert_cmpint(client_attach(offered, MEMX_LANE_ORDERED), ==, 0);
    client_free(heir);
    client_free(offered);
    server_process_free(server);
}

typedef struct Worker {
    const char *address;
    unsigned seed;
} Worker;

static void *work(void *opaque)
{
    Worker *worker = opaque;
    Client *client = client_new(worker->address, NULL);
    GRand *rand = g_rand_new_with_seed(worker->seed);
    uint64_t expected[PAGES / 64] = { 0 }, generation;

    g_assert_cmpint(client_create(client, PAGES, PAGES), ==, 0);
    client_reattach(client);
    for (unsigned round = 1; round < 1500; round++) {
        unsigned group = g_rand_int_range(rand, 0, PAGES / 64);
        MemxLane lane = g_rand_int_range(rand, MEMX_LANE_ORDERED,
                                         MEMX_LANE_FETCH + 1);

        if (g_rand_boolean(rand)) {
            expected[group] = (uint64_t)worker->seed << 32 | round;
            g_assert_cmpint(client_store(client, group, ALL_PAGES,
                                         expected[group]), ==, 0);
        } else if (g_rand_int_range(rand, 0, 4) == 0) {
            expected[group] = 0;
            g_assert_cmpint(client_drop(client, group, ALL_PAGES), ==, 0);
        } else if (!expected[group]) {
            g_assert_cmpint(client_fetch(client, lane, group, 1, &generation),
                            ==, MEMX_ERR_NOT_HELD);
        } else {
            g_assert_cmpint(client_fetch(client, lane, group, ALL_PAGES,
                                         &generation), ==, 0);
            g_assert_cmpuint(generation, ==, expected[group]);
        }
        if (round % 100 == 0) {
            client_reattach(client);
        }
    }
    g_assert_cmpint(client_close(client), ==, 0);
    g_rand_free(rand);
    client_free(client);
    return NULL;
}

static void test_several_clients(Fixture *f, gconstpointer data)
{
    Worker workers[6];
    GThread *threads[6];

    for (int i = 0; i < 6; i++) {
        workers[i] = (Worker) { server_process_address(f->server), i + 1 };
        threads[i] = g_thread_new("client", work, &workers[i]);
    }
    for (int i = 0; i < 6; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(f->client->reply.free_pages, ==, 16384 - PAGES);
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/lanes/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("all-operations", test_all_operations);
    ADD("wrong-lane", test_wrong_lane);
    ADD("wrong-secret-or-no-space", test_wrong_secret_or_no_space);
    ADD("exists", test_exists);
    ADD("size-must-agree", test_size_must_agree);
    ADD("too-little-room", test_too_little_room);
    ADD("owned", test_owned);
    ADD("vanished-owner-is-succeeded", test_vanished_owner_is_succeeded);
    ADD("own-epoch", test_own_epoch);
    ADD("predecessor-is-gone", test_predecessor_is_gone);
    ADD("half-store", test_half_store);
    ADD("close-drops", test_close_drops);
    ADD("orphan-is-kept", test_orphan_is_kept);
    g_test_add_func("/memserver/lanes/orphan-timeout", test_orphan_timeout);
    ADD("several-clients", test_several_clients);
    return g_test_run();
}
