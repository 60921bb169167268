/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A space is handed over while something is under way: on connections that
 * were lost, from both sides at once, to clients that don't receive.
 */
#include <glib.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "lanes.h"
#include "memserver-client.h"
#include "offer.h"
#include "server-process.h"
#include "transport-tcp.h"

#define PAGES 1024u
#define ROUNDS 100

typedef struct Fixture {
    ServerProcess *server;
    Client *owner;
    Client *heir;           /* of the round's session */
    uint8_t session[MEMX_ID_BYTES];
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    f->server = server_process_new("64M");
    f->owner = client_new(server_process_address(f->server), NULL);
    g_assert_cmpint(client_create(f->owner, PAGES, PAGES), ==, 0);
    g_assert_cmpint(client_store(f->owner, 0, ALL_PAGES, 1), ==, 0);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    if (f->heir) {
        client_free(f->heir);
    }
    client_free(f->owner);
    server_process_free(f->server);
}

/* Another migration, with another heir. */
static void begin(Fixture *f, bool offered)
{
    if (f->heir) {
        client_free(f->heir);
    }
    memx_random(f->session, MEMX_ID_BYTES);
    f->heir = client_new_heir(f->owner, f->session);
    if (offered) {
        g_assert_cmpint(client_offer(f->owner, f->session, f->heir), ==, 0);
        for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
            g_assert_cmpint(client_inherit(f->heir, lane), ==, 0);
            g_assert_cmpint(client_attach(f->owner, lane), ==, 0);
        }
    }
}

/* The heir has won. */
static void succeed(Fixture *f)
{
    Client *former = f->owner;

    f->owner = f->heir;
    f->heir = former;
}

/* One of both has; the other one is out, whatever it says. */
static void check_one_owner(Fixture *f)
{
    uint64_t generation;

    g_assert_cmpint(client_store(f->owner, 1, ALL_PAGES, 2), ==, 0);
    g_assert_cmpint(client_drop(f->owner, 1, ALL_PAGES), ==, 0);
    g_assert_cmpint(client_fetch(f->owner, MEMX_LANE_ORDERED, 0, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 1);
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_cmpint(client_open(f->heir, lane), ==, MEMX_ERR_EPOCH);
    }
}

/* --- Old connections --- */

static uint8_t reads[64][MEMX_GROUP_BYTES];

/* Requests that nobody waits for, on a connection that is left behind. */
typedef struct Queue {
    MemxChannel *channel;
    MemxCall calls[64];
    struct iovec in[64];
    unsigned n;
    uint8_t body[MEMX_OFFER_BYTES];
} Queue;

static void queue_fetches(Queue *q, MemxChannel *channel, unsigned n)
{
    *q = (Queue) { .channel = channel, .n = n };
    for (unsigned i = 0; i < n; i++) {
        q->in[i] = (struct iovec) { reads[i], MEMX_GROUP_BYTES };
        q->calls[i] = (MemxCall) {
            .request = { .opcode = MEMX_OP_FETCH, .mask = ALL_PAGES },
            .in = &q->in[i], .n_in = 1,
        };
        g_assert_cmpint(memx_channel_submit(channel, &q->calls[i]), ==, 0);
    }
}

static void queue_decision(Queue *q, MemxOpcode opcode, const Fixture *f)
{
    MemxCall *call = &q->calls[q->n++];
    bool made = opcode == MEMX_OP_OFFER;

    memcpy(q->body, f->session, MEMX_ID_BYTES);
    memcpy(q->body + MEMX_ID_BYTES, f->heir->open.client, MEMX_ID_BYTES);
    *call = (MemxCall) {
        .request = {
            .opcode = opcode,
            .body_bytes = made ? MEMX_OFFER_BYTES : MEMX_ID_BYTES,
        },
        .body = q->body,
    };
    g_assert_cmpint(memx_channel_submit(q->channel, call), ==, 0);
}

/* An offer that got lost on the way does not arrive after it was reclaimed. */
static void test_late_offer(Fixture *f, gconstpointer data)
{
    for (int round = 0; round < ROUNDS; round++) {
        Queue q;

        begin(f, false);
        queue_fetches(&q, f->owner->lanes[MEMX_LANE_ORDERED], round % 4);
        queue_decision(&q, MEMX_OP_OFFER, f);
        f->owner->lanes[MEMX_LANE_ORDERED] = NULL;
        g_assert_cmpint(client_attach(f->owner, MEMX_LANE_ORDERED), ==, 0);
        g_assert_cmpint(client_decide(f->owner, MEMX_OP_RECLAIM, f->session),
                        ==, 0);
        check_one_owner(f);
        memx_channel_close(q.channel);
    }
}

/* An heir that comes again learns whether its COMMIT was done, for good. */
static void test_late_commit(Fixture *f, gconstpointer data)
{
    unsigned committed = 0;

    for (int round = 0; round < ROUNDS; round++) {
        Queue q;

        begin(f, true);
        queue_fetches(&q, f->heir->lanes[MEMX_LANE_ORDERED], round % 4);
        queue_decision(&q, MEMX_OP_COMMIT, f);
        f->heir->lanes[MEMX_LANE_ORDERED] = NULL;
        g_assert_cmpint(client_inherit(f->heir, MEMX_LANE_ORDERED), ==, 0);
        if (f->heir->info.opened.epoch == f->heir->open.epoch) {
            committed++;
            succeed(f);
        } else {
            g_assert_cmpint(client_decide(f->owner, MEMX_OP_RECLAIM,
                                          f->session), ==, 0);
        }
        check_one_owner(f);
        memx_channel_close(q.channel);
    }
    g_test_message("%u of %d were done", committed, ROUNDS);
}

/* A reclaim that got lost, asked for again, is done once and for all; the
 * next session's offer stands. */
static void test_late_reclaim(Fixture *f, gconstpointer data)
{
    for (int round = 0; round < ROUNDS; round++) {
        Queue q;

        begin(f, true);
        queue_fetches(&q, f->owner->lanes[MEMX_LANE_ORDERED], round % 4);
        queue_decision(&q, MEMX_OP_RECLAIM, f);
        f->owner->lanes[MEMX_LANE_ORDERED] = NULL;
        g_assert_cmpint(client_attach(f->owner, MEMX_LANE_ORDERED), ==, 0);
        g_assert_cmpint(client_decide(f->owner, MEMX_OP_RECLAIM, f->session),
                        ==, 0);
        check_one_owner(f);
        begin(f, true);
        g_assert_cmpint(client_decide(f->heir, MEMX_OP_COMMIT, f->session),
                        ==, 0);
        succeed(f);
        check_one_owner(f);
        memx_channel_close(q.channel);
    }
}

/* --- Both at once --- */

static void *reclaim_thread(void *opaque)
{
    Fixture *f = opaque;

    return GINT_TO_POINTER(client_decide(f->owner, MEMX_OP_RECLAIM,
                                         f->session));
}

/* Exactly one of them has it. */
static void test_both_at_once(Fixture *f, gconstpointer data)
{
    unsigned committed = 0;

    for (int round = 0; round < 2 * ROUNDS; round++) {
        GThread *thread;
        int reclaim, commit;

        begin(f, true);
        thread = g_thread_new("reclaim", reclaim_thread, f);
        commit = client_decide(f->heir, MEMX_OP_COMMIT, f->session);
        reclaim = GPOINTER_TO_INT(g_thread_join(thread));
        g_assert_true((commit == 0) != (reclaim == 0));
        g_assert_true(commit < 0 || commit == 0 || commit == MEMX_ERR_EPOCH);
        g_assert_true(reclaim < 0 || reclaim == 0 ||
                      reclaim == MEMX_ERR_EPOCH);
        if (commit == 0) {
            committed++;
            succeed(f);
        }
        check_one_owner(f);
    }
    g_test_message("%u of %d by the heir", committed, 2 * ROUNDS);
}

/* --- Those that don't receive --- */

/* Until the server can send no more on it. */
static void choke(Queue *q, MemxChannel *channel)
{
    queue_fetches(q, channel, 63);
    while (poll(&(struct pollfd) { memx_channel_poll_fd(channel), POLLIN },
                1, 30000) == 0) {
        g_error("no answer to a FETCH");
    }
}

/* What is being sent to the side that lost does not hold up who won. */
static void test_choked(Fixture *f, gconstpointer heir_wins)
{
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        Client *loser;
        MemxChannel *old;
        Queue q;

        begin(f, true);
        loser = heir_wins ? f->owner : f->heir;
        old = loser->lanes[lane];
        loser->lanes[lane] = NULL;
        choke(&q, old);
        if (heir_wins) {
            g_assert_cmpint(client_decide(f->heir, MEMX_OP_COMMIT,
                                          f->session), ==, 0);
            succeed(f);
        } else {
            g_assert_cmpint(client_decide(f->owner, MEMX_OP_RECLAIM,
                                          f->session), ==, 0);
        }
        check_one_owner(f);
        memx_channel_close(old);
    }
}

/* --- The server's own order --- */

/* A server without a listener, and a connection that nobody serves. */
static MsConnection *connection_new(MsServer *server, int *peer)
{
    MsConnection *connection = g_new0(MsConnection, 1);
    int fds[2];

    g_assert_no_errno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
                                 fds));
    connection->server = server;
    connection->channel = memx_tcp_server_new(fds[0]);
    connection->peer = g_strdup("test");
    connection->stage = MS_STAGE_ADMITTED;
    *peer = fds[1];
    return connection;
}

static void connection_free(MsConnection *connection, int peer)
{
    memx_channel_close(connection->channel);
    close(peer);
    g_free(connection->peer);
    g_free(connection);
}

/* A loser that takes its time to leave, and those who must wait for it. */
typedef struct Fence {
    MsServer *server;
    MsConnection *loser, *heir, *reader;
    MemxOffer offer;
    MemxOpen open;          /* the heir's */
    _Atomic bool loser_left;
} Fence;

static void *commit_thread(void *opaque)
{
    Fence *fence = opaque;

    g_assert_cmpint(ms_offer_commit(fence->heir, fence->offer.session), ==,
                    MEMX_ERR_NONE);
    g_assert_true(atomic_load(&fence->loser_left));
    return NULL;
}

static void *open_thread(void *opaque)
{
    Fence *fence = opaque;
    MemxOpen open = fence->open;
    MemxOpened opened;

    open.lane = MEMX_LANE_FETCH;
    g_assert_cmpint(ms_lanes_open(fence->reader, &open,
                                  (uint8_t[MEMX_ID_BYTES]) { 0 }, &opened),
                    ==, MEMX_ERR_NONE);
    g_assert_cmpuint(opened.epoch, ==, open.epoch);
    g_assert_true(atomic_load(&fence->loser_left));
    return NULL;
}

/* Until the server has shut down what is to end. */
static void await_hang_up(int peer)
{
    struct pollfd p = { peer, POLLIN };
    char byte;

    g_assert_cmpint(poll(&p, 1, 30000), ==, 1);
    g_assert_cmpint(recv(peer, &byte, 1, 0), ==, 0);
}

static void fence_one(Fence *fence, uint8_t space)
{
    MemxOpen open = {
        .space = { space }, .client = { 1 }, .lane = MEMX_LANE_ORDERED,
        .flags = MEMX_OPEN_CREATE, .epoch = 1, .size_pages = 64,
    };
    uint8_t secret[MEMX_ID_BYTES] = { 0 };
    MemxOpened opened;
    GThread *threads[2];
    int peers[3];

    fence->loser = connection_new(fence->server, &peers[0]);
    fence->heir = connection_new(fence->server, &peers[1]);
    fence->reader = connection_new(fence->server, &peers[2]);
    fence->offer = (MemxOffer) { { 5 }, { 2 } };
    fence->open = (MemxOpen) {
        .space = { space }, .client = { 2 }, .lane = MEMX_LANE_ORDERED,
        .flags = MEMX_OPEN_HEIR, .epoch = 2, .session = { 5 },
    };
    atomic_store(&fence->loser_left, false);
    g_assert_cmpint(ms_lanes_open(fence->loser, &open, secret, &opened), ==,
                    0);
    g_assert_cmpint(ms_offer_make(fence->loser, &fence->offer), ==, 0);
    g_assert_cmpint(ms_lanes_open(fence->heir, &fence->open, secret,
                                  &opened), ==, 0);
    g_assert_cmpuint(opened.epoch, ==, 1);
    threads[0] = g_thread_new("commit", commit_thread, fence);
    await_hang_up(peers[0]);
    threads[1] = g_thread_new("open", open_thread, fence);
    g_usleep(1000); /* time to go wrong in */
    atomic_store(&fence->loser_left, true);
    ms_lanes_leave(fence->loser);
    g_thread_join(threads[0]);
    g_thread_join(threads[1]);
    g_assert_true(fence->heir->may_write && !fence->loser->may_write);
    ms_lanes_leave(fence->heir);
    ms_lanes_leave(fence->reader);
    connection_free(fence->loser, peers[0]);
    connection_free(fence->heir, peers[1]);
    connection_free(fence->reader, peers[2]);
}

/* COMMIT is answered when the old owner's threads are gone, and so is an OPEN
 * that finds the space committed. */
static void test_loser_leaves_first(void)
{
    g_autoptr(GError) error = NULL;
    MsBacking backing;
    MsStore *store;
    Fence fence;

    ms_backing_create(&backing, &error);
    g_assert_no_error(error);
    store = ms_store_new(&backing, 1024, &error);
    g_assert_no_error(error);
    fence.server = ms_server_new("test", NULL, store, NULL, 0);
    fence.server->stopping = false;
    for (unsigned space = 1; space < 20; space++) {
        fence_one(&fence, space);
    }
    ms_server_free(fence.server);
}

/* --- Malformed --- */

/* The server says so, and closes; the space stays as it was. */
static void test_malformed(Fixture *f, gconstpointer data)
{
    static const struct {
        int opcode;
        unsigned body_bytes;
        bool session, heir;
    } cases[] = {
        { MEMX_OP_OFFER, 32, false, true },
        { MEMX_OP_OFFER, 32, true, false },
        { MEMX_OP_OFFER, 16, true, true },
        { MEMX_OP_RECLAIM, 16, false, false },
        { MEMX_OP_RECLAIM, 32, true, true },
        { MEMX_OP_COMMIT, 16, false, false },
        { MEMX_OP_COMMIT, 0, true, false },
        { MEMX_OP_RESIGN, 16, false, false },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint8_t body[MEMX_OFFER_BYTES] = { cases[i].session };
        MemxCall call = {
            .request = {
                .opcode = cases[i].opcode, .body_bytes = cases[i].body_bytes,
            },
            .body = body,
        };
        int ret;

        body[MEMX_ID_BYTES] = cases[i].heir;
        ret = memx_channel_call(f->owner->lanes[MEMX_LANE_ORDERED], &call,
                                CLIENT_TIMEOUT_MS, -1);
        g_assert_true(ret < 0 || call.reply.error == MEMX_ERR_MALFORMED);
        g_assert_cmpint(client_ping(f->owner, MEMX_LANE_ORDERED), <, 0);
        g_assert_cmpint(client_attach(f->owner, MEMX_LANE_ORDERED), ==, 0);
        g_assert_cmpint(client_store(f->owner, 1, 1, 1), ==, 0);
    }
}

int main(int argc, char **argv)
{
#define ADD(path, data, function) \
    g_test_add("/memserver/handover/" path, Fixture, data, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("late-offer", NULL, test_late_offer);
    ADD("late-commit", NULL, test_late_commit);
    ADD("late-reclaim", NULL, test_late_reclaim);
    ADD("both-at-once", NULL, test_both_at_once);
    ADD("choked-heir", NULL, test_choked);
    ADD("choked-owner", "", test_choked);
    g_test_add_func("/memserver/handover/loser-leaves-first",
                    test_loser_leaves_first);
    ADD("malformed", NULL, test_malformed);
    return g_test_run();
}
