/*
 * What a byte stream can do to the TCP transport: pieces of any size, a peer
 * that sends what it should not, and ends in the middle of anything.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tcp-socket.h"
#include "transport-tcp.h"

#define DEADLINE_MS 20000

/* A channel, and the raw other end of its stream. */
static MemxChannel *pair_new(MemxChannel *(*new)(int fd), int *raw)
{
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    *raw = fds[1];
    return new(fds[0]);
}

static void write_all(int fd, const void *data, size_t bytes)
{
    while (bytes) {
        ssize_t r = send(fd, data, bytes, MSG_NOSIGNAL);

        g_assert_cmpint(r, >, 0);
        data = (const char *)data + r;
        bytes -= r;
    }
}

/* --- The client's end --- */

#define N_CALLS 6

typedef struct Plan {
    unsigned opcode;
    unsigned error;
    unsigned pages;
    unsigned body_bytes;
} Plan;

static const Plan pages_first[N_CALLS] = {
    { MEMX_OP_FETCH, MEMX_ERR_NONE, 1, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NOT_HELD, 4, 0 },
    { MEMX_OP_HELLO, MEMX_ERR_NONE, 0, MEMX_WELCOME_BYTES },
    { MEMX_OP_FETCH, MEMX_ERR_NOT_HELD, 1, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NONE, 4, 0 },
    { MEMX_OP_PING, MEMX_ERR_NONE, 0, 0 },
};

/* What was received in place of the first one's page is the others'. */
static const Plan error_first[N_CALLS] = {
    { MEMX_OP_FETCH, MEMX_ERR_NOT_HELD, 1, 0 },
    { MEMX_OP_PING, MEMX_ERR_NONE, 0, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NONE, 4, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NOT_HELD, 4, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NONE, 1, 0 },
    { MEMX_OP_FETCH, MEMX_ERR_NONE, 2, 0 },
};

/* Calls, and the stream of replies that answers them. */
typedef struct Talk {
    MemxCall calls[N_CALLS];
    struct iovec in[N_CALLS];
    uint8_t memory[N_CALLS][4 * MEMX_PAGE_BYTES];
    uint8_t hello[MEMX_HELLO_BYTES];
    const Plan *plan;
    GByteArray *stream;
} Talk;

static uint8_t talk_byte(unsigned call, unsigned i)
{
    return call * 101 + i * 7 + i / 4096;
}

static void plan_reply(Talk *talk, unsigned i)
{
    bool ok = talk->plan[i].error == MEMX_ERR_NONE;
    MemxReply reply = {
        .opcode = talk->plan[i].opcode,
        .error = talk->plan[i].error,
        .id = i + 1,
        .body_bytes = talk->plan[i].body_bytes,
        .payload_bytes = ok ? talk->plan[i].pages * MEMX_PAGE_BYTES : 0,
    };
    uint8_t header[MEMX_REPLY_BYTES];

    memx_reply_encode(header, &reply);
    g_byte_array_append(talk->stream, header, sizeof(header));
    for (unsigned j = 0; j < reply.body_bytes + reply.payload_bytes; j++) {
        uint8_t byte = talk_byte(i, j);

        g_byte_array_append(talk->stream, &byte, 1);
    }
}

static Talk *talk_new(MemxChannel *client, const Plan *plan)
{
    Talk *talk = g_new0(Talk, 1);

    talk->plan = plan;
    talk->stream = g_byte_array_new();
    for (unsigned i = 0; i < N_CALLS; i++) {
        MemxCall *call = &talk->calls[i];
        unsigned bytes = talk->plan[i].pages * MEMX_PAGE_BYTES;

        talk->in[i] = (struct iovec) { talk->memory[i], bytes };
        call->request.opcode = talk->plan[i].opcode;
        call->request.mask = (1ull << talk->plan[i].pages) - 1;
        call->in = &talk->in[i];
        call->n_in = bytes > 0;
        if (talk->plan[i].opcode == MEMX_OP_HELLO) {
            call->body = talk->hello;
            call->request.body_bytes = MEMX_HELLO_BYTES;
        }
        g_assert_cmpint(memx_channel_submit(client, call), ==, 0);
        plan_reply(talk, i);
    }
    return talk;
}

static void talk_free(Talk *talk)
{
    g_byte_array_unref(talk->stream);
    g_free(talk);
}

static void assert_answered(Talk *talk, unsigned i)
{
    MemxCall *call = &talk->calls[i];

    g_assert_cmpint(call->status, ==, 0);
    g_assert_cmpuint(call->reply.error, ==, talk->plan[i].error);
    for (unsigned j = 0; j < call->reply.body_bytes; j++) {
        g_assert_cmpuint(call->reply_body[j], ==, talk_byte(i, j));
    }
    for (unsigned j = 0; j < call->reply.payload_bytes; j++) {
        g_assert_cmpuint(talk->memory[i][j], ==, talk_byte(i, j));
    }
}

/* Replies that come @step bytes at a time are the same as whole ones. */
static void replies_in_pieces(const Plan *plan, size_t step)
{
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);
    Talk *talk = talk_new(client, plan);
    unsigned done = 0;

    for (size_t at = 0; at < talk->stream->len; at += step) {
        MemxCall *call;

        write_all(raw, talk->stream->data + at,
                  MIN(step, talk->stream->len - at));
        while ((call = memx_channel_progress(client))) {
            g_assert_true(call == &talk->calls[done]);
            assert_answered(talk, done++);
        }
        g_assert_false(memx_channel_is_dead(client));
    }
    g_assert_cmpuint(done, ==, N_CALLS);
    talk_free(talk);
    close(raw);
    memx_channel_close(client);
}

static void test_replies_in_pieces(void)
{
    static const size_t steps[] = {
        1, 2, 7, 63, 64, 65, 71, 127, 128, 1000, 4095, 4096, 4159, 4160, 4161,
        4224, 5000, 8192, 20000, 1000000,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        g_test_message("%zu bytes at a time", steps[i]);
        replies_in_pieces(pages_first, steps[i]);
        replies_in_pieces(error_first, steps[i]);
    }
}

/* A stream that ends anywhere: what was answered in full is good, the rest
 * comes back failed, each once. */
static void test_server_ends_anywhere(void)
{
    for (size_t end = 0; end < 64 + 4096 + 64 + 64 + 72 + 64; end += 5) {
        int raw;
        MemxChannel *client = pair_new(memx_tcp_client_new, &raw);
        Talk *talk = talk_new(client, pages_first);
        unsigned done = 0;

        write_all(raw, talk->stream->data, end);
        shutdown(raw, SHUT_WR);
        while (done < N_CALLS) {
            MemxCall *call = memx_channel_progress(client);

            /* NULL once is "drained": there may be more. */
            if (!call) {
                call = memx_channel_progress(client);
            }
            g_assert_true(call == &talk->calls[done]);
            if (call->status == 0) {
                g_assert_false(memx_channel_is_dead(client));
                assert_answered(talk, done);
            } else {
                g_assert_cmpint(call->status, ==, -EPIPE);
                g_assert_true(memx_channel_is_dead(client));
            }
            done++;
        }
        g_assert_null(memx_channel_progress(client));
        talk_free(talk);
        close(raw);
        memx_channel_close(client);
    }
}

/* The first reply of a talk, with one field changed. */
static void wrong_reply(const char *what, size_t offset, uint8_t byte)
{
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);
    Talk *talk = talk_new(client, pages_first);

    g_test_message("%s", what);
    talk->stream->data[offset] = byte;
    write_all(raw, talk->stream->data, talk->stream->len);
    for (unsigned i = 0; i < N_CALLS; i++) {
        g_assert_true(memx_channel_progress(client) == &talk->calls[i]);
        g_assert_cmpint(talk->calls[i].status, ==, -EPROTO);
    }
    g_assert_null(memx_channel_progress(client));
    talk_free(talk);
    close(raw);
    memx_channel_close(client);
}

static void test_wrong_replies(void)
{
    wrong_reply("magic", 0, 'X');
    wrong_reply("opcode of another call", 4, MEMX_OP_PING);
    wrong_reply("unknown opcode", 4, 99);
    wrong_reply("an error with a payload", 6, MEMX_ERR_FULL);
    wrong_reply("id of the next call", 8, 2);
    wrong_reply("id, high", 15, 1);
    wrong_reply("mask", 16, 2);
    wrong_reply("payload of no page", 57, 0);
    wrong_reply("payload of two pages", 57, 0x20);
    wrong_reply("payload of half a page more", 57, 0x18);
    wrong_reply("payload of 16 MiB", 59, 1);
    wrong_reply("a body", 52, 32);
    wrong_reply("an unknown flag", 60, 2);
    wrong_reply("reserved", 63, 1);
}

/* A good reply, to something else. */
static void test_reply_to_another_request(void)
{
    MemxCall call = { .request.opcode = MEMX_OP_PING };
    MemxReply reply = { .opcode = MEMX_OP_DROP, .id = 1 };
    uint8_t header[MEMX_REPLY_BYTES];
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);

    g_assert_cmpint(memx_channel_submit(client, &call), ==, 0);
    memx_reply_encode(header, &reply);
    write_all(raw, header, sizeof(header));
    g_assert_true(memx_channel_progress(client) == &call);
    g_assert_cmpint(call.status, ==, -EPROTO);
    close(raw);
    memx_channel_close(client);
}

static void test_bytes_nobody_asked_for(void)
{
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);

    write_all(raw, "x", 1);
    g_assert_null(memx_channel_progress(client));
    g_assert_true(memx_channel_is_dead(client));
    close(raw);
    memx_channel_close(client);
}

static void test_idle_end_is_noticed(void)
{
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);

    g_assert_null(memx_channel_progress(client));
    g_assert_false(memx_channel_is_dead(client));
    close(raw);
    g_assert_null(memx_channel_progress(client));
    g_assert_true(memx_channel_is_dead(client));
    memx_channel_close(client);
}

/* After a reply that left nothing behind progress() does not ask the kernel
 * again, which is what a fault's latency hangs on: bytes that came since are
 * not seen until the call after. */
static void test_no_superfluous_receive(void)
{
    int raw;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);
    Talk *talk = talk_new(client, pages_first);

    write_all(raw, talk->stream->data, MEMX_REPLY_BYTES + MEMX_PAGE_BYTES);
    g_assert_true(memx_channel_progress(client) == &talk->calls[0]);
    write_all(raw, "garbage garbage garbage garbage garbage garbage garbage "
              "garbage!", 64);
    g_assert_null(memx_channel_progress(client));
    g_assert_false(memx_channel_is_dead(client));
    g_assert_nonnull(memx_channel_progress(client));
    g_assert_true(memx_channel_is_dead(client));
    talk_free(talk);
    close(raw);
    memx_channel_close(client);
}

/* A STORE that does not go out at once. */
static void store_through_small_buffer(bool answered_early)
{
    int raw, small = 4096;
    MemxChannel *client = pair_new(memx_tcp_client_new, &raw);
    g_autofree uint8_t *data = g_malloc(MEMX_GROUP_BYTES);
    g_autofree uint8_t *wire = g_malloc(MEMX_GROUP_BYTES * 2);
    uint8_t hashes[MEMX_BODY_MAX];
    struct iovec out = { data, MEMX_GROUP_BYTES };
    MemxCall call = {
        .request = {
            .opcode = MEMX_OP_STORE,
            .mask = UINT64_MAX,
            .body_bytes = sizeof(hashes),
            .payload_bytes = MEMX_GROUP_BYTES,
        },
        .body = hashes, .out = &out, .n_out = 1,
    };
    MemxReply reply = { .opcode = MEMX_OP_STORE, .id = 1 };
    size_t got = 0, all = MEMX_REQUEST_BYTES + MEMX_BODY_MAX +
                          MEMX_GROUP_BYTES;
    int pieces = 0;

    setsockopt(memx_channel_poll_fd(client), SOL_SOCKET, SO_SNDBUF, &small,
               sizeof(small));
    for (size_t i = 0; i < MEMX_GROUP_BYTES; i++) {
        data[i] = i * 13 + i / 251;
    }
    memset(hashes, 0x77, sizeof(hashes));
    g_assert_cmpint(memx_channel_submit(client, &call), ==, 0);
    g_assert_cmpint(memx_channel_poll_events(client), ==, POLLIN | POLLOUT);

    if (answered_early) {
        memx_reply_encode(wire, &reply);
        write_all(raw, wire, MEMX_REPLY_BYTES);
        g_assert_true(memx_channel_progress(client) == &call);
        g_assert_cmpint(call.status, ==, -EPROTO);
    } else {
        while (got < all) {
            ssize_t r = recv(raw, wire + got, all - got, 0);

            g_assert_cmpint(r, >, 0);
            got += r;
            pieces++;
            g_assert_null(memx_channel_progress(client));
        }
        g_assert_cmpint(pieces, >, 1);
        g_assert_cmpint(memx_channel_poll_events(client), ==, POLLIN);
        g_assert_cmpmem(wire + 40, 1024, hashes, 1024);
        g_assert_cmpmem(wire + 1064, MEMX_GROUP_BYTES, data,
                        MEMX_GROUP_BYTES);
        memx_reply_encode(wire, &reply);
        write_all(raw, wire, MEMX_REPLY_BYTES);
        g_assert_true(memx_channel_progress(client) == &call);
        g_assert_cmpint(call.status, ==, 0);
    }
    close(raw);
    memx_channel_close(client);
}

static void test_small_send_buffer(void)
{
    store_through_small_buffer(false);
}

static void test_answered_before_sent(void)
{
    store_through_small_buffer(true);
}

/* --- The server's end --- */

static void append_request(GByteArray *stream, unsigned opcode, uint64_t mask)
{
    bool hashes = opcode == MEMX_OP_STORE || opcode == MEMX_OP_COMPARE;
    MemxRequest request = {
        .opcode = opcode,
        .id = stream->len,
        .mask = mask,
        .body_bytes = hashes ? memx_mask_pages(mask) * MEMX_HASH_BYTES : 0,
        .payload_bytes = opcode == MEMX_OP_STORE
                             ? memx_mask_pages(mask) * MEMX_PAGE_BYTES : 0,
    };
    uint8_t header[MEMX_REQUEST_BYTES];

    memx_request_encode(header, &request);
    g_byte_array_append(stream, header, sizeof(header));
    for (uint32_t i = 0; i < request.body_bytes + request.payload_bytes;
         i++) {
        uint8_t byte = i * 3 + i / 1024;

        g_byte_array_append(stream, &byte, 1);
    }
}

static GByteArray *requests(void)
{
    GByteArray *stream = g_byte_array_new();

    append_request(stream, MEMX_OP_PING, 0);
    append_request(stream, MEMX_OP_FETCH, 1);
    append_request(stream, MEMX_OP_STORE, 1);
    append_request(stream, MEMX_OP_STORE, 0xffff);
    append_request(stream, MEMX_OP_COMPARE, UINT64_MAX);
    append_request(stream, MEMX_OP_DROP, 1);
    /* A body that does not fit behind what is in the buffer. */
    append_request(stream, MEMX_OP_COMPARE, UINT64_MAX);
    append_request(stream, MEMX_OP_CLOSE, 0);
    return stream;
}

typedef struct Feed {
    int raw;
    GByteArray *stream;
    size_t step;
} Feed;

static void *feed_thread(void *opaque)
{
    Feed *feed = opaque;

    for (size_t at = 0; at < feed->stream->len; at += feed->step) {
        write_all(feed->raw, feed->stream->data + at,
                  MIN(feed->step, feed->stream->len - at));
    }
    shutdown(feed->raw, SHUT_WR);
    return NULL;
}

/* Takes all requests and checks what comes with them; returns how many. */
static unsigned take_all(MemxChannel *server, int *status)
{
    g_autofree uint8_t *memory = g_malloc(MEMX_GROUP_BYTES);
    uint8_t body[MEMX_BODY_MAX];
    MemxRequest request;
    unsigned n = 0;
    int r;

    while ((r = memx_channel_next(server, &request, body)) == 0) {
        uint32_t body_bytes = request.body_bytes;
        /* In two steps, the first not a whole page. */
        struct iovec parts[2] = {
            { memory, MIN(request.payload_bytes, 1000) },
            { memory + 1000, request.payload_bytes -
                             MIN(request.payload_bytes, 1000) },
        };

        for (uint32_t i = 0; i < body_bytes; i++) {
            g_assert_cmpuint(body[i], ==, (uint8_t)(i * 3 + i / 1024));
        }
        for (int i = 0; r == 0 && i < 2; i++) {
            r = memx_channel_pull(server, parts + i, 1);
        }
        if (r < 0) {
            break;
        }
        for (uint32_t i = 0; i < request.payload_bytes; i++) {
            uint32_t j = body_bytes + i;

            g_assert_cmpuint(memory[i], ==, (uint8_t)(j * 3 + j / 1024));
        }
        n++;
    }
    *status = r;
    return n;
}

static void test_requests_in_pieces(void)
{
    static const size_t steps[] = {
        1, 3, 39, 40, 41, 55, 56, 57, 1000, 1063, 1064, 1065, 4096, 1000000,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        Feed feed = { .stream = requests(), .step = steps[i] };
        MemxChannel *server = pair_new(memx_tcp_server_new, &feed.raw);
        GThread *thread = g_thread_new("feed", feed_thread, &feed);
        int status;

        g_test_message("%zu bytes at a time", steps[i]);
        g_assert_cmpuint(take_all(server, &status), ==, 8);
        g_assert_cmpint(status, ==, -EPIPE);
        g_thread_join(thread);
        g_byte_array_unref(feed.stream);
        close(feed.raw);
        memx_channel_close(server);
    }
}

/* A client that ends anywhere is -EPIPE, never a request cut short. */
static void test_client_ends_anywhere(void)
{
    g_autoptr(GByteArray) stream = requests();

    for (size_t end = 0; end < 6000; end += 7) {
        int raw, status;
        MemxChannel *server = pair_new(memx_tcp_server_new, &raw);
        unsigned whole = (end >= 40) + (end >= 80) +
                         (end >= 80 + 40 + 16 + 4096);

        write_all(raw, stream->data, end);
        close(raw);
        g_assert_cmpuint(take_all(server, &status), ==, whole);
        g_assert_cmpint(status, ==, -EPIPE);
        memx_channel_close(server);
    }
}

static void test_wrong_requests(void)
{
    static const struct {
        const char *what;
        size_t offset;
        uint8_t byte;
    } damages[] = {
        { "magic", 1, 'x' }, { "opcode", 4, 200 }, { "flags", 6, 1 },
        { "group", 23, 1 }, { "mask", 24, 0 }, { "body", 32, 1 },
        { "payload of a FETCH", 37, 0x10 }, { "body, high", 35, 0xff },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        uint8_t body[MEMX_BODY_MAX];
        MemxRequest request;
        int raw;
        MemxChannel *server = pair_new(memx_tcp_server_new, &raw);

        g_test_message("%s", damages[i].what);
        append_request(stream, MEMX_OP_FETCH, 1);
        stream->data[damages[i].offset] = damages[i].byte;
        write_all(raw, stream->data, stream->len);
        g_assert_cmpint(memx_channel_next(server, &request, body), ==,
                        -EPROTO);
        g_assert_true(memx_channel_is_dead(server));
        close(raw);
        memx_channel_close(server);
    }
}

/* --- Sockets --- */

/* A port whose backlog is full: connecting neither works nor fails. */
static int full_listener(char **port, GPtrArray *fillers)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, bytes), ==, 0);
    g_assert_cmpint(listen(fd, 0), ==, 0);
    getsockname(fd, (struct sockaddr *)&address, &bytes);
    *port = g_strdup_printf("%u", ntohs(address.sin_port));
    for (int i = 0; i < 4; i++) {
        int filler = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

        connect(filler, (struct sockaddr *)&address, bytes);
        g_ptr_array_add(fillers, GINT_TO_POINTER(filler));
    }
    return fd;
}

static void connect_to_full(int timeout_ms, int cancel_fd, int code)
{
    g_autoptr(GPtrArray) fillers = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *port = NULL;
    int fd = full_listener(&port, fillers);

    g_assert_null(memx_channel_connect(&memx_transport_tcp, "127.0.0.1",
                                       port, timeout_ms, cancel_fd, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, port));
    g_assert_nonnull(strstr(error->message, g_strerror(code)));
    for (guint i = 0; i < fillers->len; i++) {
        close(GPOINTER_TO_INT(fillers->pdata[i]));
    }
    close(fd);
}

static void test_connect_times_out(void)
{
    connect_to_full(50, -1, ETIMEDOUT);
}

static void test_connect_is_cancelled(void)
{
    int fd = eventfd(1, EFD_CLOEXEC);

    connect_to_full(1000 * DEADLINE_MS, fd, ECANCELED);
    close(fd);
}

/* A name that no resolver asks the network for: its label is too long. */
static void test_unknown_host(void)
{
    g_autofree char *host = g_strnfill(64, 'x');
    g_autoptr(GError) error = NULL;

    g_assert_null(memx_channel_connect(&memx_transport_tcp, host, "1",
                                       DEADLINE_MS, -1, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, host));
    g_assert_nonnull(strstr(error->message, "can't look up"));
}

static void test_listen_errors(void)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(memx_tcp_listen("192.0.2.1", "0", &error), ==, -1);
    g_assert_nonnull(strstr(error->message, "192.0.2.1:0"));
    g_clear_error(&error);
    g_assert_null(memx_transport_tcp.listener_from_fd(0, &error));
    g_assert_nonnull(strstr(error->message, "descriptor 0"));
}

static MemxChannel *accept_one(MemxListener *listener)
{
    g_autoptr(GError) error = NULL;
    MemxChannel *channel;

    g_assert_cmpint(memx_wait_fd(memx_transport_tcp.listener_fd(listener),
                                 POLLIN, -1, g_get_monotonic_time() +
                                 DEADLINE_MS * 1000LL), ==, 0);
    channel = memx_transport_tcp.accept(listener, &error);
    g_assert_no_error(error);
    g_assert_nonnull(channel);
    return channel;
}

static void test_every_address(void)
{
    g_autoptr(GError) error = NULL;
    MemxListener *listener = memx_transport_tcp.listen("*", "0", &error);

    g_assert_no_error(error);
    g_autofree char *address =
        memx_transport_tcp.listener_address(listener);
    MemxChannel *client = memx_channel_connect(&memx_transport_tcp,
                                               "127.0.0.1",
                                               strrchr(address, ':') + 1,
                                               DEADLINE_MS, -1, &error);
    g_assert_no_error(error);
    MemxChannel *server = accept_one(listener);
    g_autofree char *peer = memx_channel_peer_address(server);

    /* Not as ::ffff:127.0.0.1. */
    g_assert_true(g_str_has_prefix(peer, "127.0.0.1:"));
    memx_channel_close(client);
    memx_channel_close(server);
    memx_transport_tcp.listener_close(listener);
}

/* Two processes have one socket while a server succeeds another: what both
 * see coming one gets, and the other does not wait for the next. */
static void test_accept_does_not_wait(void)
{
    g_autoptr(GError) error = NULL;
    MemxListener *first = memx_transport_tcp.listen("127.0.0.1", "0", &error);
    MemxListener *second;
    MemxChannel *client, *server;
    int fd, flags;

    g_assert_no_error(error);
    g_autofree char *address = memx_transport_tcp.listener_address(first);
    /* Whoever made it may have made it so. */
    fd = memx_transport_tcp.listener_fd(first);
    flags = fcntl(fd, F_GETFL);
    g_assert_no_errno(fcntl(fd, F_SETFL, flags & ~O_NONBLOCK));
    second = memx_transport_tcp.listener_from_fd(dup(fd), &error);
    g_assert_no_error(error);
    g_assert_null(memx_transport_tcp.accept(first, &error));
    g_assert_no_error(error);
    client = memx_channel_connect(&memx_transport_tcp, "127.0.0.1",
                                  strrchr(address, ':') + 1, DEADLINE_MS, -1,
                                  &error);
    g_assert_no_error(error);
    server = accept_one(first);
    g_assert_null(memx_transport_tcp.accept(second, &error));
    g_assert_no_error(error);
    memx_channel_close(client);
    memx_channel_close(server);
    memx_transport_tcp.listener_close(first);
    memx_transport_tcp.listener_close(second);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    alarm(100); /* whatever hangs */
    g_test_add_func("/memx/tcp/client/replies-in-pieces",
                    test_replies_in_pieces);
    g_test_add_func("/memx/tcp/client/server-ends-anywhere",
                    test_server_ends_anywhere);
    g_test_add_func("/memx/tcp/client/wrong-replies", test_wrong_replies);
    g_test_add_func("/memx/tcp/client/reply-to-another-request",
                    test_reply_to_another_request);
    g_test_add_func("/memx/tcp/client/bytes-nobody-asked-for",
                    test_bytes_nobody_asked_for);
    g_test_add_func("/memx/tcp/client/idle-end", test_idle_end_is_noticed);
    g_test_add_func("/memx/tcp/client/no-superfluous-receive",
                    test_no_superfluous_receive);
    g_test_add_func("/memx/tcp/client/small-send-buffer",
                    test_small_send_buffer);
    g_test_add_func("/memx/tcp/client/answered-before-sent",
                    test_answered_before_sent);
    g_test_add_func("/memx/tcp/server/requests-in-pieces",
                    test_requests_in_pieces);
    g_test_add_func("/memx/tcp/server/client-ends-anywhere",
                    test_client_ends_anywhere);
    g_test_add_func("/memx/tcp/server/wrong-requests", test_wrong_requests);
    g_test_add_func("/memx/tcp/socket/connect-times-out",
                    test_connect_times_out);
    g_test_add_func("/memx/tcp/socket/connect-is-cancelled",
                    test_connect_is_cancelled);
    g_test_add_func("/memx/tcp/socket/unknown-host", test_unknown_host);
    g_test_add_func("/memx/tcp/socket/listen-errors", test_listen_errors);
    g_test_add_func("/memx/tcp/socket/every-address", test_every_address);
    g_test_add_func("/memx/tcp/socket/accept-does-not-wait",
                    test_accept_does_not_wait);
    return g_test_run();
}
