/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A TCP proxy that does to connections what networks do.
 *
 * Theory of operation
 *
 * One thread polls the listener and all connections.  A connection is two
 * pipes, one for each direction, with a buffer each.  A pipe has a budget of
 * bytes: when it is used up, the connection is cut, or the pipe closed, right
 * there, be it in the middle of a header.  Budgets are drawn when the mode is
 * set, or when a connection comes.
 */
#include <errno.h>
#include <glib.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "proxy.h"

#define BUFFER_BYTES 65536
#define CONNECTIONS_MAX 64
#define BUDGET_MAX 300000
#define DELAY_MAX_US 30000
#define SLOW_ONE_IN 4
#define SLOW_FACTOR 10

typedef struct Pipe {
    int from, to;
    char buffer[BUFFER_BYTES];
    size_t pos, fill;
    int64_t budget;         /* bytes; negative: no end */
    int64_t hold_until_us;
    bool slow;
    bool closed;            /* its bytes are thrown away */
} Pipe;

typedef struct Connection {
    Pipe pipe[2];
    bool used;
} Connection;

struct Proxy {
    struct sockaddr_in target;
    char *address;
    int listen_fd;
    int wake_fd;
    pthread_t thread;
    atomic_int mode;        /* as set */
    atomic_bool stop;

    /* The thread's. */
    ProxyMode current;
    GRand *rand;
    Connection connection[CONNECTIONS_MAX];
};

static int64_t draw_budget(Proxy *proxy)
{
    if (proxy->current != PROXY_CUT && proxy->current != PROXY_HALF_CLOSE) {
        return -1;
    }
    /* Often within the first headers. */
    return g_rand_boolean(proxy->rand)
           ? g_rand_int_range(proxy->rand, 0, BUDGET_MAX)
           : g_rand_int_range(proxy->rand, 0, 600);
}

static bool draw_slow(Proxy *proxy)
{
    return !g_rand_int_range(proxy->rand, 0, SLOW_ONE_IN);
}

static void connection_end(Connection *c, bool reset)
{
    struct linger linger = { .l_onoff = 1 };

    for (int i = 0; i < 2; i++) {
        if (reset) {
            setsockopt(c->pipe[i].from, SOL_SOCKET, SO_LINGER, &linger,
                       sizeof(linger));
        }
        close(c->pipe[i].from);
    }
    c->used = false;
}

static void budget_used_up(Proxy *proxy, Connection *c, Pipe *pipe)
{
    if (proxy->current == PROXY_HALF_CLOSE) {
        shutdown(pipe->to, SHUT_WR);
        pipe->closed = true;
        pipe->budget = -1;
    } else {
        connection_end(c, g_rand_boolean(proxy->rand));
    }
}

/* False: the connection has ended. */
static bool pipe_read(Proxy *proxy, Connection *c, Pipe *pipe)
{
    ssize_t n = recv(pipe->from, pipe->buffer, BUFFER_BYTES, MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN) {
        return true;
    }
    if (n <= 0) {
        connection_end(c, false);
        return false;
    }
    if (pipe->closed) {
        return true;
    }
    pipe->pos = 0;
    pipe->fill = n;
    if (proxy->current == PROXY_DELAY) {
        pipe->hold_until_us = g_get_monotonic_time() +
                              g_rand_int_range(proxy->rand, 0, DELAY_MAX_US) *
                              (pipe->slow ? SLOW_FACTOR : 1);
    }
    return true;
}

static bool pipe_write(Proxy *proxy, Connection *c, Pipe *pipe)
{
    size_t bytes = pipe->fill - pipe->pos;
    ssize_t n;

    if (pipe->budget >= 0 && (uint64_t)pipe->budget <= bytes) {
        bytes = pipe->budget;
    }
    n = bytes ? send(pipe->to, pipe->buffer + pipe->pos, bytes,
                     MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (n < 0 && errno == EAGAIN) {
        return true;
    }
    if (n < 0) {
        connection_end(c, false);
        return false;
    }
    pipe->pos += n;
    if (pipe->budget >= 0) {
        pipe->budget -= n;
        if (!pipe->budget) {
            budget_used_up(proxy, c, pipe);
            return c->used;
        }
    }
    return true;
}

static void accept_one(Proxy *proxy)
{
    int one = 1, fd = accept4(proxy->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    int to;

    if (fd < 0) {
        return;
    }
    to = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (to < 0 || (connect(to, (struct sockaddr *)&proxy->target,
                           sizeof(proxy->target)) && errno != EINPROGRESS)) {
        close(fd);
        close(to);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        Connection *c = &proxy->connection[i];

        if (!c->used) {
            c->used = true;
            for (int k = 0; k < 2; k++) {
                Pipe *pipe = &c->pipe[k];

                pipe->from = k ? to : fd;
                pipe->to = k ? fd : to;
                pipe->pos = pipe->fill = 0;
                pipe->budget = draw_budget(proxy);
                pipe->hold_until_us = 0;
                pipe->slow = draw_slow(proxy);
                pipe->closed = false;
            }
            return;
        }
    }
    close(fd);
    close(to);
}

static void adopt_mode(Proxy *proxy)
{
    ProxyMode mode = atomic_load(&proxy->mode);

    if (mode == proxy->current) {
        return;
    }
    proxy->current = mode;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        Connection *c = &proxy->connection[i];

        for (int k = 0; c->used && k < 2; k++) {
            c->pipe[k].budget = draw_budget(proxy);
            c->pipe[k].hold_until_us = 0;
            c->pipe[k].slow = draw_slow(proxy);
        }
    }
}

/* What to poll for; returns how long at most, in ms. */
static int prepare(Proxy *proxy, struct pollfd *pfd)
{
    int64_t now = g_get_monotonic_time();
    int timeout = -1;

    pfd[0] = (struct pollfd) { .fd = proxy->wake_fd, .events = POLLIN };
    pfd[1] = (struct pollfd) { .fd = proxy->listen_fd, .events = POLLIN };
    for (int i = 0; i < CONNECTIONS_MAX * 2; i++) {
        Connection *c = &proxy->connection[i / 2];
        Pipe *pipe = &c->pipe[i % 2];
        struct pollfd *p = &pfd[2 + i];

        *p = (struct pollfd) { .fd = -1 };
        if (!c->used || proxy->current == PROXY_STALL) {
            continue;
        }
        if (pipe->fill == pipe->pos) {
            *p = (struct pollfd) { .fd = pipe->from, .events = POLLIN };
        } else if (pipe->hold_until_us > now) {
            timeout = 1;
        } else {
            *p = (struct pollfd) { .fd = pipe->to, .events = POLLOUT };
        }
    }
    return timeout;
}

static void *run(void *opaque)
{
    Proxy *proxy = opaque;
    struct pollfd pfd[2 + CONNECTIONS_MAX * 2];

    while (!atomic_load(&proxy->stop)) {
        int timeout = prepare(proxy, pfd);

        poll(pfd, G_N_ELEMENTS(pfd), timeout);
        if (pfd[0].revents) {
            eventfd_t count;

            eventfd_read(proxy->wake_fd, &count);
            adopt_mode(proxy);
            continue;
        }
        for (int i = 0; i < CONNECTIONS_MAX * 2; i++) {
            Connection *c = &proxy->connection[i / 2];
            Pipe *pipe = &c->pipe[i % 2];

            if (!c->used || !pfd[2 + i].revents) {
                continue;
            }
            if (pfd[2 + i].events & POLLIN
                ? !pipe_read(proxy, c, pipe) : !pipe_write(proxy, c, pipe)) {
                i |= 1; /* not its other half */
            }
        }
        if (pfd[1].revents) {
            accept_one(proxy);
        }
    }
    return NULL;
}

Proxy *proxy_new(const char *target, uint32_t seed)
{
    Proxy *proxy = g_new0(Proxy, 1);
    struct sockaddr_in here = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t bytes = sizeof(here);
    const char *colon = strrchr(target, ':');

    proxy->target = here;
    proxy->target.sin_port = htons(atoi(colon + 1));
    proxy->rand = g_rand_new_with_seed(seed);
    proxy->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    proxy->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC |
                              SOCK_NONBLOCK, 0);
    g_assert_no_errno(bind(proxy->listen_fd, (struct sockaddr *)&here,
                           sizeof(here)));
    g_assert_no_errno(listen(proxy->listen_fd, 64));
    g_assert_no_errno(getsockname(proxy->listen_fd, (struct sockaddr *)&here,
                                  &bytes));
    proxy->address = g_strdup_printf("127.0.0.1:%u", ntohs(here.sin_port));
    g_assert_cmpint(pthread_create(&proxy->thread, NULL, run, proxy), ==, 0);
    return proxy;
}

void proxy_free(Proxy *proxy)
{
    if (!proxy) {
        return;
    }
    atomic_store(&proxy->stop, true);
    eventfd_write(proxy->wake_fd, 1);
    pthread_join(proxy->thread, NULL);
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (proxy->connection[i].used) {
            connection_end(&proxy->connection[i], false);
        }
    }
    close(proxy->listen_fd);
    close(proxy->wake_fd);
    g_rand_free(proxy->rand);
    g_free(proxy->address);
    g_free(proxy);
}

const char *proxy_address(const Proxy *proxy)
{
    return proxy->address;
}

void proxy_set(Proxy *proxy, ProxyMode mode)
{
    atomic_store(&proxy->mode, mode);
    eventfd_write(proxy->wake_fd, 1);
}
