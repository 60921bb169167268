/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection breaks while pages are reserved on it, or the server answers
 * late: both sides agree again afterwards, and the region never counts on more
 * than the server has.
 */
#include <errno.h>
#include "region-fixture.h"
#include "region.h"

#define SIZE (32 * MIB)
#define LOCAL (16 * MIB)

/* TCP.  The connection of the next RESERVE breaks: after the server did it, or
 * before it has heard of it (it gets a PING in its place). */
typedef enum Lost {
    LOST_NOTHING,
    LOST_ANSWER,
    LOST_REQUEST,
    LOST_TIME,              /* the server is stopped meanwhile */
} Lost;

static MemxTransport losing;
static gint lost;               /* atomic; Lost */
static MemxCall *replaced;      /* the store thread's */
static gint unsent;             /* atomic; so many RESERVEs of nothing */
static ServerProcess *stop_then; /* after the last of these */

static MemxChannel *connect_losing(const char *host, const char *port,
                                   int timeout_ms, int cancel_fd,
                                   GError **error)
{
    return tcp_connect_for(&losing, host, port, timeout_ms, cancel_fd,
                           error);
}

static int submit_losing(MemxChannel *channel, MemxCall *call)
{
    if (call->request.opcode == MEMX_OP_RESERVE && !call->request.group &&
        g_atomic_int_get(&unsent)) {
        if (g_atomic_int_get(&unsent) == 1) {
            server_process_stop(stop_then);
        }
        g_atomic_int_add(&unsent, -1);
        return -EPIPE;
    }
    if (call->request.opcode == MEMX_OP_RESERVE &&
        g_atomic_int_get(&lost) == LOST_REQUEST) {
        call->request.opcode = MEMX_OP_PING;
        replaced = call;
    }
    return memx_transport_tcp.submit(channel, call);
}

static MemxCall *progress_losing(MemxChannel *channel)
{
    MemxCall *call = memx_transport_tcp.progress(channel);

    if (call && call == replaced) {
        call->request.opcode = MEMX_OP_RESERVE;
        replaced = NULL;
    }
    if (call && call->request.opcode == MEMX_OP_RESERVE &&
        g_atomic_int_get(&lost) != LOST_NOTHING &&
        g_atomic_int_get(&lost) != LOST_TIME) {
        call->status = -ECONNRESET;
        memx_channel_shutdown(channel);
        g_atomic_int_set(&lost, LOST_NOTHING);
    }
    return call;
}

typedef struct Expected {
    uint64_t reconnects, reserved, free;
} Expected;

/* Nothing is stored: what the server has free tells what it has reserved. */
static bool agree(const MemxStats *stats, uint64_t argument)
{
    const Expected *expected = (const Expected *)(uintptr_t)argument;

    return stats->servers[0].reconnects >= expected->reconnects &&
           stats->servers[0].reserved_bytes == expected->reserved &&
           stats->servers[0].free_bytes == expected->free;
}

static MemxRegion *region_losing(ServerProcess *server)
{
    const char *servers[] = { server_process_address(server), NULL };
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    losing = memx_transport_tcp;
    losing.connect = connect_losing;
    losing.submit = submit_losing;
    losing.progress = progress_losing;
    g_atomic_int_set(&lost, LOST_NOTHING);
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    o.chunk_bytes = 256 << 10;
    o.servers = servers;
    region = memx_region_new_over(&o, &losing, &error);
    g_assert_no_error(error);
    return region;
}

/* A change of the local size; what is reserved is as before then. */
static void check(uint64_t local, Lost what, bool ok)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_losing(server);
    g_autoptr(GError) error = NULL;
    Expected expected;
    bool late = what == LOST_TIME;
    MemxStats before, s;

    memx_region_stats(region, &before);
    expected = (Expected) { before.servers[0].reconnects + !late,
                            before.servers[0].reserved_bytes,
                            before.servers[0].free_bytes };
    g_assert_cmpuint(expected.reserved, >, 0);

    g_atomic_int_set(&lost, what);
    if (late) {
        server_process_stop(server);
    }
    g_assert_true(memx_region_set_local_bytes(region, local, NULL) == ok);
    if (late) {
        server_process_continue(server);
    } else {
        g_assert_cmpint(g_atomic_int_get(&lost), ==, LOST_NOTHING);
    }
    memx_region_stats(region, &s);
    g_assert_cmpuint(s.servers[0].reserved_bytes, <=, expected.reserved);
    await_stats(region, &s, agree, (uintptr_t)&expected);

    /* And it goes on from there. */
    g_assert_true(memx_region_set_local_bytes(region, LOCAL / 2, &error));
    g_assert_no_error(error);
    memx_region_stats(region, &s);
    g_assert_cmpuint(s.servers[0].reserved_bytes, ==,
                     expected.reserved + LOCAL / 2);
    g_assert_cmpuint(s.servers[0].free_bytes, ==, expected.free - LOCAL / 2);
    memx_region_free(region);
    server_process_free(server);
}

/* local-size is to be lowered: more is reserved before. */
static void test_raise_answer(void)
{
    check(LOCAL / 2, LOST_ANSWER, false);
}

static void test_raise_request(void)
{
    check(LOCAL / 2, LOST_REQUEST, false);
}

/* It is raised: less is reserved afterwards, or as much as it was. */
static void test_lower_answer(void)
{
    check(LOCAL * 3 / 2, LOST_ANSWER, true);
}

static void test_lower_request(void)
{
    check(LOCAL * 3 / 2, LOST_REQUEST, true);
}

static void test_lower_late(void)
{
    check(LOCAL * 3 / 2, LOST_TIME, true);
}

/* What was to be given back, and never was: neither the call nor the keeper
 * after it could tell the server.  It is not counted on, for the server's next
 * lane gives it back. */
static void test_unsent(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_losing(server);
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    g_autoptr(GError) error = NULL;
    MemxStats before, s;

    memx_region_stats(region, &before);
    stop_then = server;
    g_atomic_int_set(&unsent, 2);
    g_assert_true(memx_region_set_local_bytes(region, SIZE, NULL));
    while (g_atomic_int_get(&unsent)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
    g_assert_false(memx_region_set_local_bytes(region, LOCAL, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
    g_clear_error(&error);
    server_process_continue(server);
    while (!memx_region_set_local_bytes(region, LOCAL, &error)) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
        g_clear_error(&error);
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(10000);
    }
    await_stats(region, &s, agree, (uintptr_t)&(Expected) {
        0, before.servers[0].reserved_bytes, before.servers[0].free_bytes });
    memx_region_free(region);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/reserve/more/answer-lost", test_raise_answer);
    g_test_add_func("/reserve/more/request-lost", test_raise_request);
    g_test_add_func("/reserve/less/answer-lost", test_lower_answer);
    g_test_add_func("/reserve/less/request-lost", test_lower_request);
    g_test_add_func("/reserve/less/answered-late", test_lower_late);
    g_test_add_func("/reserve/less/unsent", test_unsent);
    return g_test_run();
}
