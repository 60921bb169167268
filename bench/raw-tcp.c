/*
 * Raw TCP: see raw-tcp.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "pattern.h"
#include "raw-tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* As much as the regions that are measured: what is sent comes from memory,
 * not from a cache, as whatever a memory server sends. */
#define MEMORY_BYTES (512u << 20)
#define DEPTH 4             /* requests in flight while streaming */
#define PACED_BYTES 65536u  /* 52 us of a 10 Gbit/s link: little to wait for */

typedef enum Operation { OPERATION_GET = 1, OPERATION_PUT } Operation;

typedef struct Request {
    uint32_t operation;
    uint32_t bytes;
    uint64_t offset;
    uint8_t rest[24];
} Request;
G_STATIC_ASSERT(sizeof(Request) == 40);

typedef struct Answer {
    uint8_t rest[64];
} Answer;

static int read_all(int fd, void *buf, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = read(fd, buf, bytes);

        if (n <= 0) {
            if (n < 0 && errno == EINTR) {
                continue;
            }
            return n == 0 ? -EPIPE : -errno;
        }
        buf = (char *)buf + n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_all(int fd, const void *buf, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, buf, bytes);

        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        buf = (const char *)buf + n;
        bytes -= (size_t)n;
    }
    return 0;
}

static void no_delay(int fd)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int raw_tcp_connect(const char *address, GError **error)
{
    g_auto(GStrv) part = g_strsplit(address, ":", 2);
    struct sockaddr_in to = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    to.sin_port = htons((uint16_t)atoi(part[1]));
    inet_pton(AF_INET, part[0], &to.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "cannot connect to the raw TCP server at %s: %s", address,
                    g_strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    no_delay(fd);
    return fd;
}

static int request(int fd, Operation operation, uint32_t bytes,
                   uint64_t number)
{
    Request r = { operation, bytes, 0, { 0 } };

    /* Another page each time, in no order that hardware could foresee. */
    r.offset = pattern_mix(number) % (MEMORY_BYTES - bytes) & ~4095ull;
    return write_all(fd, &r, sizeof r);
}

int raw_tcp_round_trip(int fd, void *buf, uint32_t bytes)
{
    static __thread uint64_t number;
    int ret = request(fd, OPERATION_GET, bytes, number++);

    return ret ? ret : read_all(fd, buf, bytes);
}

bool raw_tcp_ping_pong(int fd, Samples *samples)
{
    static char page[PAGE_BYTES];

    while (samples->n < samples->max) {
        uint64_t start = bench_now_ns();

        if (raw_tcp_round_trip(fd, page, sizeof page) != 0) {
            return false;
        }
        samples_add(samples, bench_now_ns() - start);
    }
    return true;
}

static char *touched_memory(size_t bytes)
{
    char *memory = g_malloc(bytes);

    memset(memory, 5, bytes);
    return memory;
}

double raw_tcp_stream_in(int fd, uint64_t bytes)
{
    g_autofree char *buf = touched_memory(DEPTH * RAW_TCP_CHUNK);
    uint64_t chunks = bytes / RAW_TCP_CHUNK, asked = 0;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < chunks; i++) {
        for (; asked < chunks && asked < i + DEPTH; asked++) {
            if (request(fd, OPERATION_GET, RAW_TCP_CHUNK, asked) != 0) {
                return NAN;
            }
        }
        if (read_all(fd, buf + i % DEPTH * RAW_TCP_CHUNK,
                     RAW_TCP_CHUNK) != 0) {
            return NAN;
        }
    }
    return (double)bytes / bench_seconds_since(start);
}

double raw_tcp_stream_out(int fd, uint64_t bytes)
{
    g_autofree char *buf = touched_memory(DEPTH * RAW_TCP_CHUNK);
    uint64_t chunks = bytes / RAW_TCP_CHUNK, answered = 0;
    uint64_t start = bench_now_ns();
    Answer answer;

    for (uint64_t i = 0; i < chunks; i++) {
        if (request(fd, OPERATION_PUT, RAW_TCP_CHUNK, i) != 0 ||
            write_all(fd, buf + i % DEPTH * RAW_TCP_CHUNK,
                      RAW_TCP_CHUNK) != 0) {
            return NAN;
        }
        if (i - answered == DEPTH - 1) {
            if (read_all(fd, &answer, sizeof answer) != 0) {
                return NAN;
            }
            answered++;
        }
    }
    for (; answered < chunks; answered++) {
        if (read_all(fd, &answer, sizeof answer) != 0) {
            return NAN;
        }
    }
    return (double)bytes / bench_seconds_since(start);
}

void raw_tcp_stream_out_paced(int fd, double pace, const int *stop)
{
    g_autofree char *buf = touched_memory(PACED_BYTES);
    uint64_t start = bench_now_ns();
    Answer answer;

    for (uint64_t i = 0; !g_atomic_int_get(stop); i++) {
        bench_sleep_until(start + (uint64_t)((double)(i * PACED_BYTES) /
                                             pace * 1e9));
        if (request(fd, OPERATION_PUT, PACED_BYTES, i) != 0 ||
            write_all(fd, buf, PACED_BYTES) != 0 ||
            read_all(fd, &answer, sizeof answer) != 0) {
            return;
        }
    }
}

/* Server. */

static char *server_memory;

static gpointer serve(gpointer opaque)
{
    int fd = GPOINTER_TO_INT(opaque);
    static const Answer answer;
    Request r;

    while (read_all(fd, &r, sizeof r) == 0 &&
           r.offset + r.bytes <= MEMORY_BYTES) {
        int ret;

        if (r.operation == OPERATION_GET) {
            ret = write_all(fd, server_memory + r.offset, r.bytes);
        } else {
            ret = read_all(fd, server_memory + r.offset, r.bytes);
            ret = ret ? ret : write_all(fd, &answer, sizeof answer);
        }
        if (ret != 0) {
            break;
        }
    }
    close(fd);
    return NULL;
}

int raw_tcp_server_main(const char *host)
{
    struct sockaddr_in at = { .sin_family = AF_INET };
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    server_memory = touched_memory(MEMORY_BYTES);
    inet_pton(AF_INET, host, &at.sin_addr);
    if (listener < 0 ||
        bind(listener, (struct sockaddr *)&at, sizeof at) < 0 ||
        listen(listener, 16) < 0 ||
        getsockname(listener, (struct sockaddr *)&at, &size) < 0) {
        fprintf(stderr, "cannot listen on %s: %s\n", host, strerror(errno));
        return 1;
    }
    fprintf(stderr, "listening on %s:%d\n", host, ntohs(at.sin_port));
    for (;;) {
        int fd = accept(listener, NULL, NULL);

        if (fd < 0) {
            fprintf(stderr, "accept: %s\n", strerror(errno));
            return 1;
        }
        no_delay(fd);
        g_thread_unref(g_thread_new("raw-tcp", serve, GINT_TO_POINTER(fd)));
    }
}
