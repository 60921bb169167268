/*
 * The transport's promises, over TCP and in-process alike.  What a byte
 * stream alone can do wrong is in test-tcp.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "transport-inproc.h"

#define DEADLINE_MS 20000
#define GROUPS 4
#define SLOTS (GROUPS * MEMX_GROUP_PAGES)

/* Both ends of a connection, and a thread that serves. */
typedef struct Rig {
    const MemxTransport *transport;
    MemxChannel *client;
    MemxChannel *server;
    GThread *thread;
    uint8_t *memory;        /* SLOTS pages, registered */
    /* The server's. */
    uint8_t (*pages)[MEMX_PAGE_BYTES];
    bool held[SLOTS];
    unsigned requests;
    int status;             /* that ended it */
} Rig;

static Rig *rig_new(const MemxTransport *transport)
{
    g_autoptr(GError) error = NULL;
    Rig *rig = g_new0(Rig, 1);
    MemxListener *listener = transport->listen("127.0.0.1", "0", &error);

    g_assert_no_error(error);
    g_autofree char *address = transport->listener_address(listener);
    rig->transport = transport;
    rig->client = memx_channel_connect(transport, "127.0.0.1",
                                       strrchr(address, ':') + 1,
                                       DEADLINE_MS, -1, &error);
    g_assert_no_error(error);
    g_assert_cmpint(memx_wait_fd(transport->listener_fd(listener), POLLIN, -1,
                                 g_get_monotonic_time() +
                                 DEADLINE_MS * 1000LL), ==, 0);
    rig->server = transport->accept(listener, &error);
    g_assert_no_error(error);
    transport->listener_close(listener);

    rig->memory = g_malloc(SLOTS * MEMX_PAGE_BYTES);
    rig->pages = g_malloc0(SLOTS * MEMX_PAGE_BYTES);
    memx_transport_register(transport, rig->memory,
                            SLOTS * MEMX_PAGE_BYTES);
    return rig;
}

/* The client's end goes first, so the server's thread ends. */
static void rig_free(Rig *rig)
{
    memx_channel_close(rig->client);
    if (rig->thread) {
        g_thread_join(rig->thread);
    }
    memx_channel_close(rig->server);
    memx_transport_unregister(rig->transport, rig->memory,
                              SLOTS * MEMX_PAGE_BYTES);
    g_free(rig->memory);
    g_free(rig->pages);
    g_free(rig);
}

/* --- A server of pages --- */

static int mask_iov(uint8_t (*pages)[MEMX_PAGE_BYTES], uint64_t mask,
                    struct iovec *iov)
{
    int n = 0;

    for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
        if (mask & (1ull << i)) {
            iov[n++] = (struct iovec) { pages[i], MEMX_PAGE_BYTES };
        }
    }
    return n;
}

static int serve(Rig *rig, const MemxRequest *request, const uint8_t *body)
{
    uint8_t (*pages)[MEMX_PAGE_BYTES] =
        rig->pages + request->group * MEMX_GROUP_PAGES;
    bool *held = rig->held + request->group * MEMX_GROUP_PAGES;
    struct iovec iov[MEMX_GROUP_PAGES];
    uint8_t welcome[MEMX_WELCOME_BYTES];
    MemxReply reply = { 0 };
    int n = mask_iov(pages, request->mask, iov);

    switch (request->opcode) {
    case MEMX_OP_HELLO:
        reply.body_bytes = MEMX_WELCOME_BYTES;
        memset(welcome, body[16], sizeof(welcome));
        return memx_channel_reply(rig->server, &reply, welcome, NULL, 0);
    case MEMX_OP_FETCH:
        for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
            if ((request->mask & (1ull << i)) && !held[i]) {
                reply.error = MEMX_ERR_NOT_HELD;
                reply.mask |= 1ull << i;
            }
        }
        if (reply.error) {
            n = 0;
        }
        reply.payload_bytes = n * MEMX_PAGE_BYTES;
        return memx_channel_reply(rig->server, &reply, NULL, iov, n);
    case MEMX_OP_STORE:
        for (int i = 0; i < n; i++) {
            /* Page by page: a pull may come in steps. */
            g_assert_cmpint(memx_channel_pull(rig->server, iov + i, 1), ==,
                            0);
            g_assert_cmpmem(iov[i].iov_base, MEMX_HASH_BYTES,
                            body + i * MEMX_HASH_BYTES, MEMX_HASH_BYTES);
        }
        for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
            held[i] |= request->mask >> i & 1;
        }
        break;
    default:
        break;
    }
    return memx_channel_reply(rig->server, &reply, NULL, NULL, 0);
}

static void *serve_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    int r;

    do {
        r = memx_channel_next(rig->server, &request, body);
        if (r == 0) {
            rig->requests++;
            r = serve(rig, &request, body);
        }
    } while (r == 0);
    rig->status = r;
    return NULL;
}

static Rig *rig_serving(const void *transport)
{
    Rig *rig = rig_new(transport);

    rig->thread = g_thread_new("server", serve_thread, rig);
    return rig;
}

/* --- The client's side --- */

/* A call with room for all it may need. */
typedef struct Job {
    MemxCall call;
    struct iovec iov[MEMX_GROUP_PAGES];
    uint8_t body[MEMX_BODY_MAX];
} Job;

/* Page @slot of the rig's memory, which is where its payload is. */
static uint8_t *page(Rig *rig, unsigned slot)
{
    return rig->memory + (size_t)slot * MEMX_PAGE_BYTES;
}

static uint8_t pattern(unsigned slot, unsigned i)
{
    return slot * 37 + i * 11 + i / 256;
}

static void fill(Rig *rig, unsigned slot)
{
    for (unsigned i = 0; i < MEMX_PAGE_BYTES; i++) {
        page(rig, slot)[i] = pattern(slot, i);
    }
}

static void assert_filled(Rig *rig, unsigned slot)
{
    for (unsigned i = 0; i < MEMX_PAGE_BYTES; i++) {
        g_assert_cmpuint(page(rig, slot)[i], ==, pattern(slot, i));
    }
}

/* The pages of @mask, last one first in memory, so that none lies behind
 * its predecessor. */
static Job *job_new(Rig *rig, unsigned opcode, unsigned group, uint64_t mask)
{
    Job *job = g_new0(Job, 1);
    unsigned n = 0;

    job->call.request = (MemxRequest) {
        .opcode = opcode, .group = group, .mask = mask,
    };
    job->call.owner = job;
    job->call.body = job->body;
    for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
        unsigned slot = group * MEMX_GROUP_PAGES + i;

        if (!(mask & (1ull << i))) {
            continue;
        }
        job->iov[n] = (struct iovec) { page(rig, slot), MEMX_PAGE_BYTES };
        if (opcode == MEMX_OP_STORE) {
            fill(rig, slot);
            memcpy(job->body + n * MEMX_HASH_BYTES, page(rig, slot),
                   MEMX_HASH_BYTES);
        }
        n++;
    }
    if (opcode == MEMX_OP_STORE) {
        job->call.request.body_bytes = n * MEMX_HASH_BYTES;
        job->call.request.payload_bytes = n * MEMX_PAGE_BYTES;
        job->call.out = job->iov;
        job->call.n_out = n;
    } else if (opcode == MEMX_OP_FETCH) {
        job->call.in = job->iov;
        job->call.n_in = n;
    }
    return job;
}

static int job_run(Rig *rig, Job *job)
{
    return memx_channel_call(rig->client, &job->call, DEADLINE_MS, -1);
}

/* The next call that completes. */
static MemxCall *await(MemxChannel *channel)
{
    int64_t deadline_us = g_get_monotonic_time() + DEADLINE_MS * 1000;
    MemxCall *call;

    while (!(call = memx_channel_progress(channel))) {
        g_assert_cmpint(memx_wait_fd(memx_channel_poll_fd(channel),
                                     memx_channel_poll_events(channel), -1,
                                     deadline_us), ==, 0);
    }
    return call;
}

/* --- Tests --- */

static void test_ping(const void *transport)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_PING, 0, 0);

    g_assert_cmpint(job_run(rig, job), ==, 0);
    g_assert_cmpint(job_run(rig, job), ==, 0);
    g_assert_cmpuint(job->call.reply.opcode, ==, MEMX_OP_PING);
    g_assert_cmpuint(job->call.reply.id, ==, 2);
    g_assert_false(memx_channel_is_dead(rig->client));
    rig_free(rig);
}

static void test_reply_body(const void *transport)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_HELLO, 0, 0);

    job->call.request.body_bytes = MEMX_HELLO_BYTES;
    memset(job->body, 0x5a, MEMX_HELLO_BYTES);
    g_assert_cmpint(job_run(rig, job), ==, 0);
    g_assert_cmpuint(job->call.reply.body_bytes, ==, MEMX_WELCOME_BYTES);
    for (unsigned i = 0; i < MEMX_WELCOME_BYTES; i++) {
        g_assert_cmpuint(job->call.reply_body[i], ==, 0x5a);
    }
    rig_free(rig);
}

static void store_and_fetch(const void *transport, uint64_t mask)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *store = job_new(rig, MEMX_OP_STORE, 1, mask);
    g_autofree Job *fetch = job_new(rig, MEMX_OP_FETCH, 1, mask);

    g_assert_cmpint(job_run(rig, store), ==, 0);
    memset(rig->memory, 0, SLOTS * MEMX_PAGE_BYTES);
    g_assert_cmpint(job_run(rig, fetch), ==, 0);
    g_assert_cmpuint(fetch->call.reply.error, ==, MEMX_ERR_NONE);
    for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
        unsigned slot = MEMX_GROUP_PAGES + i;

        if (mask & (1ull << i)) {
            assert_filled(rig, slot);
        } else {
            /* Nothing beside what was asked for is touched. */
            g_assert_cmpuint(page(rig, slot)[0] | page(rig, slot)[4095], ==,
                             0);
        }
    }
    rig_free(rig);
}

static void test_one_page(const void *transport)
{
    store_and_fetch(transport, 1ull << 63);
}

static void test_some_pages(const void *transport)
{
    store_and_fetch(transport, 0x8421000180000005);
}

static void test_all_pages(const void *transport)
{
    store_and_fetch(transport, UINT64_MAX);
}

static void test_not_held(const void *transport)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_FETCH, 0, 6);

    g_assert_cmpint(job_run(rig, job), ==, 0);
    g_assert_cmpuint(job->call.reply.error, ==, MEMX_ERR_NOT_HELD);
    g_assert_cmpuint(job->call.reply.mask, ==, 6);
    g_assert_cmpuint(job->call.reply.payload_bytes, ==, 0);
    rig_free(rig);
}

/* Many in flight, pages, refusals and bare replies mixed: each gets its own,
 * in order. */
static void test_pipelining(const void *transport)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *store = job_new(rig, MEMX_OP_STORE, 0, UINT64_MAX);
    GQueue jobs = G_QUEUE_INIT;
    Job *job;

    g_assert_cmpint(job_run(rig, store), ==, 0);
    for (unsigned round = 0; round < 20; round++) {
        /* Group 0 is held, group 1 is not. */
        static const struct {
            unsigned opcode;
            unsigned group;
            uint64_t mask;
        } mix[] = {
            { MEMX_OP_FETCH, 0, 1 },
            { MEMX_OP_FETCH, 1, 0xff },
            { MEMX_OP_FETCH, 0, UINT64_MAX },
            { MEMX_OP_PING, 0, 0 },
            { MEMX_OP_FETCH, 1, UINT64_MAX },
            { MEMX_OP_FETCH, 1, 1 },
            { MEMX_OP_FETCH, 0, 0xf0 },
            { MEMX_OP_STORE, 2, UINT64_MAX },
            { MEMX_OP_DROP, 3, 1 },
            { MEMX_OP_FETCH, 0, 2 },
        };

        memset(page(rig, 0), 0, MEMX_GROUP_BYTES);
        for (size_t i = 0; i < G_N_ELEMENTS(mix); i++) {
            job = job_new(rig, mix[i].opcode, mix[i].group, mix[i].mask);
            g_assert_cmpint(memx_channel_submit(rig->client, &job->call), ==,
                            0);
            g_queue_push_tail(&jobs, job);
        }
        while ((job = g_queue_pop_head(&jobs))) {
            bool refused = job->call.request.opcode == MEMX_OP_FETCH &&
                           job->call.request.group == 1;

            g_assert_true(await(rig->client) == &job->call);
            g_assert_cmpint(job->call.status, ==, 0);
            g_assert_cmpuint(job->call.reply.error, ==,
                             refused ? MEMX_ERR_NOT_HELD : MEMX_ERR_NONE);
            g_free(job);
        }
        g_assert_null(memx_channel_progress(rig->client));
        for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
            assert_filled(rig, i);
        }
    }
    rig_free(rig);
}

static void *waste_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    MemxReply full = { .error = MEMX_ERR_FULL };
    struct iovec first = { rig->pages, 100 };

    g_assert_cmpint(memx_channel_next(rig->server, &request, body), ==, 0);
    g_assert_cmpint(memx_channel_pull(rig->server, &first, 1), ==, 0);
    g_assert_cmpint(memx_channel_pull(rig->server, NULL, -1), ==, 0);
    g_assert_cmpint(memx_channel_reply(rig->server, &full, NULL, NULL, 0),
                    ==, 0);
    return serve_thread(rig);
}

static void test_payload_thrown_away(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *store = job_new(rig, MEMX_OP_STORE, 0, UINT64_MAX);
    g_autofree Job *ping = job_new(rig, MEMX_OP_PING, 0, 0);

    rig->thread = g_thread_new("server", waste_thread, rig);
    g_assert_cmpint(job_run(rig, store), ==, 0);
    g_assert_cmpuint(store->call.reply.error, ==, MEMX_ERR_FULL);
    g_assert_cmpmem(rig->pages, 100, rig->memory, 100);
    g_assert_cmpuint(rig->pages[0][100], ==, 0);
    g_assert_cmpint(job_run(rig, ping), ==, 0);
    rig_free(rig);
}

/* --- Replies that are none --- */

static void *misfit_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    struct iovec two = { rig->pages, 2 * MEMX_PAGE_BYTES };
    MemxReply reply = { .payload_bytes = 2 * MEMX_PAGE_BYTES };

    g_assert_cmpint(memx_channel_next(rig->server, &request, body), ==, 0);
    memx_channel_reply(rig->server, &reply, NULL, &two, 1);
    return serve_thread(rig);
}

/* All calls in flight fail, not only the one whose reply is wrong. */
static void fail_all(Rig *rig, uint64_t first_mask)
{
    Job *jobs[3];

    jobs[0] = job_new(rig, MEMX_OP_FETCH, 0, first_mask);
    jobs[1] = job_new(rig, MEMX_OP_PING, 0, 0);
    jobs[2] = job_new(rig, MEMX_OP_FETCH, 0, 1);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(memx_channel_submit(rig->client, &jobs[i]->call), ==,
                        0);
    }
    rig->thread = g_thread_new("server", misfit_thread, rig);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_true(await(rig->client) == &jobs[i]->call);
        g_assert_cmpint(jobs[i]->call.status, ==, -EPROTO);
    }
    g_assert_true(memx_channel_is_dead(rig->client));
    g_assert_null(memx_channel_progress(rig->client));
    g_assert_cmpint(memx_channel_submit(rig->client, &jobs[0]->call), ==,
                    -EPROTO);
    for (unsigned i = 0; i < 3; i++) {
        g_free(jobs[i]);
    }
    rig_free(rig);
}

static void test_payload_too_long(const void *transport)
{
    fail_all(rig_new(transport), 1);
}

static void test_payload_too_short(const void *transport)
{
    fail_all(rig_new(transport), 7);
}

static void *wrong_mask_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    MemxReply reply = { .mask = 2 };

    g_assert_cmpint(memx_channel_next(rig->server, &request, body), ==, 0);
    memx_channel_reply(rig->server, &reply, NULL, NULL, 0);
    return NULL;
}

static void test_mask_not_asked_for(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_COMPARE, 0, 1);

    job->call.request.body_bytes = MEMX_HASH_BYTES;
    rig->thread = g_thread_new("server", wrong_mask_thread, rig);
    g_assert_cmpint(job_run(rig, job), ==, -EPROTO);
    rig_free(rig);
}

/* The server is told of a malformed request, and can say so. */
static void *malformed_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    MemxReply reply = { .error = MEMX_ERR_MALFORMED };

    g_assert_cmpint(memx_channel_next(rig->server, &request, body), ==,
                    -EPROTO);
    g_assert_cmpint(memx_channel_reply(rig->server, &reply, NULL, NULL, 0),
                    ==, 0);
    g_assert_cmpint(memx_channel_next(rig->server, &request, body), ==,
                    -EPROTO);
    return NULL;
}

static void test_malformed_request(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_FETCH, 0, 0);

    rig->thread = g_thread_new("server", malformed_thread, rig);
    g_assert_cmpint(job_run(rig, job), ==, 0);
    g_assert_cmpuint(job->call.reply.error, ==, MEMX_ERR_MALFORMED);
    rig_free(rig);
}

/* --- Ends --- */

typedef enum Phase {
    BEFORE_NEXT, AFTER_NEXT, AFTER_PULL, AFTER_REPLY
} Phase;

static Phase death_phase;

static void *dying_thread(void *opaque)
{
    Rig *rig = opaque;
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    MemxReply reply = { 0 };
    struct iovec some = { rig->pages, 10 * MEMX_PAGE_BYTES };

    if (death_phase > BEFORE_NEXT) {
        memx_channel_next(rig->server, &request, body);
    }
    if (death_phase > AFTER_NEXT) {
        memx_channel_pull(rig->server, &some, 1);
    }
    if (death_phase > AFTER_PULL) {
        memx_channel_pull(rig->server, NULL, -1);
        memx_channel_reply(rig->server, &reply, NULL, NULL, 0);
    }
    memx_channel_close(rig->server);
    rig->server = NULL;
    return NULL;
}

/* Wherever the server dies, each call comes back once, and then none. */
static void test_server_dies(const void *transport)
{
    for (death_phase = BEFORE_NEXT; death_phase <= AFTER_REPLY;
         death_phase++) {
        Rig *rig = rig_new(transport);
        g_autofree Job *a = job_new(rig, MEMX_OP_STORE, 0, UINT64_MAX);
        g_autofree Job *b = job_new(rig, MEMX_OP_STORE, 1, UINT64_MAX);
        int r;

        g_assert_cmpint(memx_channel_submit(rig->client, &a->call), ==, 0);
        rig->thread = g_thread_new("server", dying_thread, rig);
        r = memx_channel_submit(rig->client, &b->call);
        g_assert_true(await(rig->client) == &a->call);
        if (death_phase < AFTER_REPLY) {
            g_assert_cmpint(a->call.status, <, 0);
        }
        if (r == 0) {
            g_assert_true(await(rig->client) == &b->call);
            g_assert_cmpint(b->call.status, <, 0);
            g_assert_true(memx_channel_is_dead(rig->client));
        }
        g_assert_null(memx_channel_progress(rig->client));
        rig_free(rig);
    }
}

static void test_client_dies(const void *transport)
{
    Rig *rig = rig_serving(transport);

    memx_channel_close(rig->client);
    g_thread_join(g_steal_pointer(&rig->thread));
    g_assert_cmpint(rig->status, ==, -EPIPE);
    /* Closed already. */
    rig->client = NULL;
    rig_free(rig);
}

static void *shutdown_thread(void *opaque)
{
    memx_channel_shutdown(opaque);
    return NULL;
}

/* A client that waits for a reply is woken by a shutdown elsewhere. */
static void test_shutdown_client(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_PING, 0, 0);

    g_assert_cmpint(memx_channel_submit(rig->client, &job->call), ==, 0);
    rig->thread = g_thread_new("shutdown", shutdown_thread, rig->client);
    g_assert_true(await(rig->client) == &job->call);
    g_assert_cmpint(job->call.status, <, 0);
    g_assert_true(memx_channel_is_dead(rig->client));
    g_assert_cmpint(memx_channel_submit(rig->client, &job->call), <, 0);
    g_thread_join(g_steal_pointer(&rig->thread));
    rig_free(rig);
}

/* A server's thread in next() is, too. */
static void test_shutdown_server(const void *transport)
{
    Rig *rig = rig_serving(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_PING, 0, 0);

    g_assert_cmpint(job_run(rig, job), ==, 0);
    memx_channel_shutdown(rig->server);
    g_thread_join(g_steal_pointer(&rig->thread));
    g_assert_cmpint(rig->status, ==, -EPIPE);
    rig_free(rig);
}

static void test_call_times_out(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_PING, 0, 0);

    g_assert_cmpint(memx_channel_call(rig->client, &job->call, 10, -1), ==,
                    -ETIMEDOUT);
    g_assert_true(memx_channel_is_dead(rig->client));
    rig_free(rig);
}

static void test_call_is_cancelled(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree Job *job = job_new(rig, MEMX_OP_PING, 0, 0);
    int fd = eventfd(1, EFD_CLOEXEC);

    g_assert_cmpint(memx_channel_call(rig->client, &job->call, DEADLINE_MS,
                                      fd), ==, -ECANCELED);
    g_assert_true(memx_channel_is_dead(rig->client));
    close(fd);
    rig_free(rig);
}

static void test_nobody_listens(const void *opaque)
{
    const MemxTransport *transport = opaque;
    g_autoptr(GError) error = NULL;
    MemxListener *listener = transport->listen("127.0.0.1", "0", &error);
    g_autofree char *address = transport->listener_address(listener);
    const char *port = strrchr(address, ':') + 1;

    transport->listener_close(listener);
    g_assert_null(memx_channel_connect(transport, "127.0.0.1", port,
                                       DEADLINE_MS, -1, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, address));
}

static void test_address_in_use(const void *opaque)
{
    const MemxTransport *transport = opaque;
    g_autoptr(GError) error = NULL;
    MemxListener *listener = transport->listen("127.0.0.1", "0", &error);
    g_autofree char *address = transport->listener_address(listener);

    g_assert_null(transport->listen("127.0.0.1", strrchr(address, ':') + 1,
                                    &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, address));
    transport->listener_close(listener);
}

static void test_peer_address(const void *transport)
{
    Rig *rig = rig_new(transport);
    g_autofree char *server = memx_channel_peer_address(rig->client);
    g_autofree char *client = memx_channel_peer_address(rig->server);

    g_assert_true(g_str_has_prefix(server, "127.0.0.1:"));
    g_assert_cmpuint(strlen(client), >, 0);
    rig_free(rig);
}

static void add_tests(const MemxTransport *transport)
{
    static const struct {
        const char *name;
        void (*test)(const void *transport);
    } tests[] = {
        { "ping", test_ping },
        { "reply-body", test_reply_body },
        { "one-page", test_one_page },
        { "some-pages", test_some_pages },
        { "all-pages", test_all_pages },
        { "not-held", test_not_held },
        { "pipelining", test_pipelining },
        { "payload-thrown-away", test_payload_thrown_away },
        { "payload-too-long", test_payload_too_long },
        { "payload-too-short", test_payload_too_short },
        { "mask-not-asked-for", test_mask_not_asked_for },
        { "malformed-request", test_malformed_request },
        { "server-dies", test_server_dies },
        { "client-dies", test_client_dies },
        { "shutdown/client", test_shutdown_client },
        { "shutdown/server", test_shutdown_server },
        { "call-times-out", test_call_times_out },
        { "call-is-cancelled", test_call_is_cancelled },
        { "nobody-listens", test_nobody_listens },
        { "address-in-use", test_address_in_use },
        { "peer-address", test_peer_address },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_autofree char *path = g_strdup_printf("/memx/transport/%s/%s",
                                                transport->name,
                                                tests[i].name);

        g_test_add_data_func(path, transport, tests[i].test);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    alarm(100); /* whatever hangs */
    add_tests(&memx_transport_tcp);
    add_tests(&memx_transport_inproc);
    return g_test_run();
}
