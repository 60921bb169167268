/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A restart keeps every page: the daemon is killed, or succeeded by another
 * one, while clients store and fetch; they reconnect, repeat what was not
 * answered, and find everything.
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "control.h"
#include "handover.h"
#include "memserver-client.h"
#include "server-process.h"
#include "tcp-socket.h"

#define PAGES 2048u
#define N_GROUPS (PAGES / MEMX_GROUP_PAGES)
#define N_CLIENTS 3

/* A client that works until it is told to stop. */
typedef struct Worker {
    GThread *thread;
    Client *client;
    GRand *rand;
    uint64_t stored[N_GROUPS];  /* acknowledged; 0: dropped */
    uint64_t generation;
    uint8_t instance[MEMX_ID_BYTES];
    unsigned reconnects;
    _Atomic unsigned operations;
    _Atomic bool stop;
} Worker;

static void reconnect(Worker *w)
{
    client_reattach(w->client);
    g_assert_cmpmem(w->client->info.instance, MEMX_ID_BYTES, w->instance,
                    MEMX_ID_BYTES);
    w->reconnects++;
}

/* What isn't answered is sent again, as the protocol wants it. */
static void change(Worker *w, unsigned group)
{
    uint64_t next = g_rand_int_range(w->rand, 0, 5) ? ++w->generation : 0;
    int ret;

    do {
        ret = next ? client_store(w->client, group, ALL_PAGES, next) :
                     client_drop(w->client, group, ALL_PAGES);
        if (ret != 0) {
            g_assert_true(ret < 0 || ret == MEMX_ERR_SHUTDOWN);
            reconnect(w);
        }
    } while (ret != 0);
    w->stored[group] = next;
}

static void look(Worker *w, unsigned group)
{
    MemxLane lane = g_rand_int_range(w->rand, MEMX_LANE_ORDERED,
                                     MEMX_LANE_FETCH + 1);
    uint64_t generation = 0;
    int ret;

    for (;;) {
        ret = client_fetch(w->client, lane, group,
                           w->stored[group] ? ALL_PAGES : 1, &generation);
        if (ret >= 0 && ret != MEMX_ERR_SHUTDOWN) {
            break;
        }
        reconnect(w);
    }
    if (w->stored[group]) {
        g_assert_cmpint(ret, ==, 0);
        g_assert_cmpuint(generation, ==, w->stored[group]);
    } else {
        g_assert_cmpint(ret, ==, MEMX_ERR_NOT_HELD);
    }
}

static void *work(void *opaque)
{
    Worker *w = opaque;

    while (!atomic_load(&w->stop)) {
        unsigned group = g_rand_int_range(w->rand, 0, N_GROUPS);

        if (g_rand_boolean(w->rand)) {
            change(w, group);
        } else {
            look(w, group);
        }
        atomic_fetch_add(&w->operations, 1);
    }
    for (unsigned group = 0; group < N_GROUPS; group++) {
        look(w, group);
    }
    return NULL;
}

static Worker *worker_start(ServerProcess *server)
{
    Worker *w = g_new0(Worker, 1);

    w->rand = g_rand_new_with_seed(g_test_rand_int());
    w->client = client_new(server_process_address(server), NULL);
    g_assert_cmpint(client_create(w->client, PAGES, PAGES), ==, 0);
    memcpy(w->instance, w->client->info.instance, MEMX_ID_BYTES);
    client_reattach(w->client);
    w->thread = g_thread_new("worker", work, w);
    return w;
}

static unsigned worker_end(Worker *w)
{
    unsigned reconnects;

    atomic_store(&w->stop, true);
    g_thread_join(w->thread);
    g_assert_cmpint(client_close(w->client), ==, 0);
    reconnects = w->reconnects;
    client_free(w->client);
    g_rand_free(w->rand);
    g_free(w);
    return reconnects;
}

/* Until each has got something done. */
static void await_progress(Worker **workers)
{
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;

    for (int i = 0; i < N_CLIENTS; i++) {
        unsigned target = atomic_load(&workers[i]->operations) + 20 +
                          g_test_rand_int_range(0, 20);

        while (atomic_load(&workers[i]->operations) < target) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(100);
        }
    }
}

static void crash(ServerProcess *server)
{
    server_process_kill(server);
    server_process_restart(server, true);
}

/* Something that must not lose a page, again and again, under load. */
static void under_load(void (*disturb)(ServerProcess *server), int rounds)
{
    ServerProcess *server = server_process_new("64M");
    Worker *workers[N_CLIENTS];
    unsigned reconnects = 0;
    Client *client;

    for (int i = 0; i < N_CLIENTS; i++) {
        workers[i] = worker_start(server);
    }
    for (int round = 0; round < rounds; round++) {
        await_progress(workers);
        disturb(server);
    }
    await_progress(workers);
    for (int i = 0; i < N_CLIENTS; i++) {
        reconnects += worker_end(workers[i]);
    }
    g_assert_cmpuint(reconnects, >=, rounds);
    /* All was closed: all is free. */
    client = client_new(server_process_address(server), NULL);
    g_assert_cmpint(client_create(client, 64, 0), ==, 0);
    g_assert_cmpint(client_ping(client, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(client->reply.free_pages, ==, 16384);
    client_free(client);
    server_process_free(server);
}

static void test_crash(void)
{
    under_load(crash, 12);
}

static void test_take_over(void)
{
    under_load(server_process_take_over, 8);
}

static void test_both(void)
{
    ServerProcess *server = server_process_new("64M");
    Client *client = client_new(server_process_address(server), NULL);
    uint64_t generation;

    g_assert_cmpint(client_create(client, PAGES, PAGES), ==, 0);
    g_assert_cmpint(client_store(client, 0, ALL_PAGES, 1), ==, 0);
    /* The successor gave the descriptors to the service manager as well. */
    server_process_take_over(server);
    client_reattach(client);
    g_assert_cmpint(client_store(client, 1, ALL_PAGES, 2), ==, 0);
    crash(server);
    client_reattach(client);
    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmpint(client_fetch(client, MEMX_LANE_FAULT, i, ALL_PAGES,
                                     &generation), ==, 0);
        g_assert_cmpuint(generation, ==, i + 1);
    }
    client_free(client);
    server_process_free(server);
}

static void test_empty_is_told(void)
{
    ServerProcess *server = server_process_new("64M");
    Client *client = client_new(server_process_address(server), NULL);
    uint8_t instance[MEMX_ID_BYTES];

    g_assert_cmpint(client_create(client, PAGES, PAGES), ==, 0);
    memcpy(instance, client->info.instance, MEMX_ID_BYTES);
    server_process_kill(server);
    server_process_restart(server, false);
    g_assert_cmpint(client_attach(client, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    g_assert_cmpint(memcmp(client->info.instance, instance, MEMX_ID_BYTES),
                    !=, 0);
    client_free(client);
    server_process_free(server);
}

/* Owner, epoch, names, reservation and secret survive, too. */
static void test_records_survive(void)
{
    ServerProcess *server = server_process_new("64M");
    Client *client = client_new(server_process_address(server), NULL);
    Client *rival = client_new_rival(client);

    client->open.epoch = 7;
    g_assert_cmpint(client_create(client, PAGES, 100), ==, 0);
    g_assert_cmpint(client_reserve(client, 200), ==, 0);
    crash(server);
    rival->open.epoch = 7;
    g_assert_cmpint(client_attach(rival, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_EPOCH);
    rival->open.epoch = 8;
    rival->open.secret[0] ^= 1;
    g_assert_cmpint(client_attach(rival, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    g_assert_cmpint(client_attach(client, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(client->info.opened.epoch, ==, 7);
    g_assert_cmpuint(client->info.opened.size_pages, ==, PAGES);
    g_assert_cmpuint(client->info.opened.reserved_pages, ==, 200);
    g_assert_cmpuint(client->info.free_pages, ==, 16384 - 200);
    client_free(rival);
    client_free(client);
    server_process_free(server);
}

/* Successors that fail: the old one goes on serving. */
static void test_successor_fails(void)
{
    ServerProcess *server = server_process_new("64M");
    Client *client = client_new(server_process_address(server), NULL);
    const char *path = server_process_control_path(server);
    g_autoptr(GError) error = NULL;
    uint64_t generation;
    int ret;

    g_assert_cmpint(client_create(client, PAGES, PAGES), ==, 0);
    for (unsigned step = 0; step < 4; step++) {
        MsHandover handover;

        /* The last round's hand-over may only begin now. */
        while (client_store(client, 0, ALL_PAGES, step + 1) != 0) {
            client_reattach(client);
        }
        if (step == 0) {
            /* Asks and does not even wait. */
            handover.fd = ms_control_connect(path, &error);
            g_assert_no_error(error);
            ms_control_send(handover.fd, "{\"command\":\"hand-over\"}", NULL,
                            0, &error);
        } else {
            ms_handover_take(&handover, path, &error);
            g_assert_no_error(error);
            if (step >= 2) {
                ms_handover_ready(&handover, &error);
                g_assert_no_error(error);
            }
            close(handover.listener_fd);
            if (step == 3) {
                /* Has even begun to serve, and died within a change. */
                MsBacking backing;
                MsStore *store;
                MsSpace *space;

                ms_backing_adopt(&backing, handover.fds, &error);
                g_assert_no_error(error);
                store = ms_store_new(&backing, 16384, &error);
                g_assert_no_error(error);
                space = ms_store_find(store, client->open.space);
                ms_space_drop(space, 0, 0xff);
                ms_store_free(store, NULL);
            } else {
                for (int i = 0; i < MS_N_FILES; i++) {
                    close(handover.fds[i]);
                }
            }
        }
        close(handover.fd);
        for (;;) {
            client_reattach(client);
            ret = client_fetch(client, MEMX_LANE_FAULT, 0,
                               step == 3 ? ~0xffull : ALL_PAGES, &generation);
            if (ret >= 0) {
                break;
            }
        }
        g_assert_cmpint(ret, ==, 0);
        g_assert_cmpuint(generation, ==, step + 1);
        if (step == 3) {
            g_assert_cmpint(client_fetch(client, MEMX_LANE_FAULT, 0, 1,
                                         &generation), ==, MEMX_ERR_NOT_HELD);
        }
    }
    /* And a good one is still welcome. */
    server_process_take_over(server);
    client_reattach(client);
    g_assert_cmpint(client_store(client, 0, ALL_PAGES, 9), ==, 0);
    client_free(client);
    server_process_free(server);
}

/* A successor takes connections that the old one has seen coming: that one
 * does not wait for others instead of doing all else. */
static void test_listener_is_shared(void)
{
    ServerProcess *server = server_process_new("64M");
    const char *port = strrchr(server_process_address(server), ':') + 1;
    g_autoptr(GError) error = NULL;
    g_autofree char *status = NULL;
    unsigned taken = 0;
    MsHandover handover;
    int fd;

    ms_handover_take(&handover, server_process_control_path(server), &error);
    g_assert_no_error(error);
    for (int i = 0; i < MS_N_FILES; i++) {
        close(handover.fds[i]);
    }
    close(handover.fd);
    for (int i = 0; i < 1000; i++) {
        int client = memx_tcp_connect("127.0.0.1", port, CLIENT_TIMEOUT_MS, -1,
                                      &error);

        g_assert_no_error(error);
        fd = accept(handover.listener_fd, NULL, NULL);
        if (fd >= 0) {
            close(fd);
            taken++;
        }
        close(client);
    }
    g_test_message("%u of 1000 connections were taken", taken);
    fd = ms_control_connect(server_process_control_path(server), &error);
    g_assert_no_error(error);
    ms_control_send(fd, "{\"command\":\"status\"}", NULL, 0, &error);
    g_assert_no_error(error);
    status = ms_control_receive(fd, MS_ANSWER_MAX_BYTES,
                                CLIENT_TIMEOUT_MS / 1000, NULL, NULL, &error);
    g_assert_no_error(error);
    close(fd);
    close(handover.listener_fd);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memserver/restart/crash-under-load", test_crash);
    g_test_add_func("/memserver/restart/take-over-under-load",
                    test_take_over);
    g_test_add_func("/memserver/restart/take-over-then-crash", test_both);
    g_test_add_func("/memserver/restart/empty-is-told", test_empty_is_told);
    g_test_add_func("/memserver/restart/records-survive",
                    test_records_survive);
    g_test_add_func("/memserver/restart/successor-fails",
                    test_successor_fails);
    g_test_add_func("/memserver/restart/listener-is-shared",
                    test_listener_is_shared);
    return g_test_run();
}
