/*
 * Theory of operation
 *
 * A thread accepts connections and connects each to the server.  Two threads
 * per connection forward, one per direction: each message is read in full,
 * waits while its kind is held, and is written.  The first of both that sees an
 * end ends both, so that each side sees what the other did.  Tests set what
 * is to happen under the lock; threads that wait for it wait on the condition.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include "qemu/bswap.h"
#include "memx-proxy.h"

#define DEADLINE (60 * G_TIME_SPAN_SECOND)
#define MESSAGE_MAX (64 + 1024 + 262144)
#define OPCODES 64

/* Where a message says how long it is: docs/protocol.md. */
static const struct {
    unsigned header_bytes, lengths_at;
} formats[] = {
    [MEMX_REQUESTS] = { 40, 32 },
    [MEMX_REPLIES] = { 64, 52 },
};

typedef struct Hold {
    bool on;
    unsigned opcode;
    unsigned held;          /* threads that wait */
    unsigned drops;         /* how often what was held was dropped */
} Hold;

struct MemxProxy {
    /* Constant. */
    char *address;
    struct sockaddr_in server;
    bool protocol;
    int listener;
    GThread *accepting;

    GMutex lock;            /* protects all below; held for moments */
    GCond changed;
    bool ending, cut;
    Hold holds[2];
    unsigned fail_opcode, fail_error;
    unsigned done[OPCODES]; /* requests answered without an error */
    GSList *connections;    /* of Connection, that have not ended */
    unsigned n_threads;     /* that forward */
};

typedef struct Connection {
    MemxProxy *proxy;
    int fds[2];             /* to who sends [way] */
    unsigned users;         /* threads, under the proxy's lock */
} Connection;

typedef struct Direction {
    Connection *connection;
    MemxProxyWay way;
} Direction;

/* --- messages ---------------------------------------------------------- */

static bool read_all(int fd, uint8_t *buf, size_t bytes)
{
    while (bytes) {
        ssize_t n = recv(fd, buf, bytes, 0);

        if (n <= 0) {
            return false;
        }
        buf += n;
        bytes -= n;
    }
    return true;
}

static bool write_all(int fd, const uint8_t *buf, size_t bytes)
{
    while (bytes) {
        ssize_t n = send(fd, buf, bytes, MSG_NOSIGNAL);

        if (n <= 0) {
            return false;
        }
        buf += n;
        bytes -= n;
    }
    return true;
}

static size_t read_message(const MemxProxy *p, MemxProxyWay way, int fd,
                           uint8_t *buf)
{
    size_t header = formats[way].header_bytes, rest;

    if (!p->protocol) {
        return MAX(recv(fd, buf, MESSAGE_MAX, 0), 0);
    }
    if (!read_all(fd, buf, header)) {
        return 0;
    }
    rest = (size_t)ldl_le_p(buf + formats[way].lengths_at) +
           ldl_le_p(buf + formats[way].lengths_at + 4);
    g_assert_cmpuint(header + rest, <=, MESSAGE_MAX);
    return read_all(fd, buf + header, rest) ? header + rest : 0;
}

/* --- forwarding -------------------------------------------------------- */

/* False: it goes no further, nor does its connection. */
static bool pass_locked(MemxProxy *p, MemxProxyWay way, uint8_t *message)
{
    unsigned opcode = p->protocol ? lduw_le_p(message + 4) : MEMX_OP_ANY;
    Hold *hold = &p->holds[way];
    unsigned drops = hold->drops;

    while (hold->on && hold->opcode == opcode && !p->cut && !p->ending) {
        hold->held++;
        g_cond_broadcast(&p->changed);
        g_cond_wait(&p->changed, &p->lock);
        hold->held--;
    }
    if (way == MEMX_REPLIES && p->protocol) {
        if (p->fail_opcode == opcode && p->fail_error) {
            stw_le_p(message + 6, p->fail_error);
        } else if (!lduw_le_p(message + 6)) {
            p->done[opcode % OPCODES]++;
            g_cond_broadcast(&p->changed);
        }
    }
    return drops == hold->drops && !p->cut && !p->ending;
}

static void shut_locked(Connection *c)
{
    shutdown(c->fds[0], SHUT_RDWR);
    shutdown(c->fds[1], SHUT_RDWR);
}

static void connection_unref_locked(Connection *c)
{
    MemxProxy *p = c->proxy;

    if (--c->users == 0) {
        p->connections = g_slist_remove(p->connections, c);
        close(c->fds[0]);
        close(c->fds[1]);
        g_free(c);
    }
}

static gpointer forward(gpointer opaque)
{
    g_autofree Direction *d = opaque;
    g_autofree uint8_t *buf = g_malloc(MESSAGE_MAX);
    Connection *c = d->connection;
    MemxProxy *p = c->proxy;
    size_t bytes;
    bool pass = true;

    while (pass &&
           (bytes = read_message(p, d->way, c->fds[d->way], buf))) {
        g_mutex_lock(&p->lock);
        pass = pass_locked(p, d->way, buf);
        g_mutex_unlock(&p->lock);
        pass = pass && write_all(c->fds[!d->way], buf, bytes);
    }
    g_mutex_lock(&p->lock);
    shut_locked(c);
    connection_unref_locked(c);
    p->n_threads--;
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
    return NULL;
}

static void start_forwarding_locked(Connection *c, MemxProxyWay way)
{
    Direction *d = g_new(Direction, 1);

    *d = (Direction) { c, way };
    c->users++;
    c->proxy->n_threads++;
    g_thread_unref(g_thread_new("proxy", forward, d));
}

/* --- connections ------------------------------------------------------- */

static int connect_server(const MemxProxy *p)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    if (connect(fd, (const struct sockaddr *)&p->server,
                sizeof(p->server)) < 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void accepted(MemxProxy *p, int fd)
{
    int one = 1, server = -1;
    Connection *c;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    g_mutex_lock(&p->lock);
    if (p->cut || p->ending || (server = connect_server(p)) < 0) {
        close(fd);
    } else {
        c = g_new0(Connection, 1);
        c->proxy = p;
        c->fds[MEMX_REQUESTS] = fd;
        c->fds[MEMX_REPLIES] = server;
        p->connections = g_slist_prepend(p->connections, c);
        start_forwarding_locked(c, MEMX_REQUESTS);
        start_forwarding_locked(c, MEMX_REPLIES);
    }
    g_mutex_unlock(&p->lock);
}

static gpointer accepting(gpointer opaque)
{
    MemxProxy *p = opaque;
    int fd;

    while ((fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        accepted(p, fd);
    }
    return NULL;
}

MemxProxy *memx_proxy_new(const char *server, bool protocol)
{
    MemxProxy *p = g_new0(MemxProxy, 1);
    struct sockaddr_in sin = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t bytes = sizeof(sin);

    g_mutex_init(&p->lock);
    g_cond_init(&p->changed);
    p->protocol = protocol;
    p->server = sin;
    p->server.sin_port = htons(atoi(strrchr(server, ':') + 1));
    p->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(p->listener, (struct sockaddr *)&sin, bytes), ==, 0);
    g_assert_cmpint(listen(p->listener, 64), ==, 0);
    g_assert_cmpint(getsockname(p->listener, (struct sockaddr *)&sin, &bytes),
                    ==, 0);
    p->address = g_strdup_printf("127.0.0.1:%u", ntohs(sin.sin_port));
    p->accepting = g_thread_new("proxy", accepting, p);
    return p;
}

const char *memx_proxy_address(const MemxProxy *p)
{
    return p->address;
}

static void shut_all_locked(MemxProxy *p)
{
    GSList *l;

    for (l = p->connections; l; l = l->next) {
        shut_locked(l->data);
    }
    g_cond_broadcast(&p->changed);
}

void memx_proxy_free(MemxProxy *p)
{
    shutdown(p->listener, SHUT_RDWR);
    g_thread_join(p->accepting);
    close(p->listener);
    g_mutex_lock(&p->lock);
    p->ending = true;
    shut_all_locked(p);
    while (p->n_threads) {
        g_cond_wait(&p->changed, &p->lock);
    }
    g_mutex_unlock(&p->lock);
    g_mutex_clear(&p->lock);
    g_cond_clear(&p->changed);
    g_free(p->address);
    g_free(p);
}

/* --- what tests want --------------------------------------------------- */

void memx_proxy_cut(MemxProxy *p)
{
    g_mutex_lock(&p->lock);
    p->cut = true;
    shut_all_locked(p);
    g_mutex_unlock(&p->lock);
}

void memx_proxy_mend(MemxProxy *p)
{
    gint64 end = g_get_monotonic_time() + DEADLINE;

    g_mutex_lock(&p->lock);
    while (p->n_threads) {      /* they end because it was cut */
        g_assert_true(g_cond_wait_until(&p->changed, &p->lock, end));
    }
    memset(p->holds, 0, sizeof(p->holds));
    p->cut = false;
    g_mutex_unlock(&p->lock);
}

void memx_proxy_hold(MemxProxy *p, MemxProxyWay way, unsigned opcode)
{
    g_mutex_lock(&p->lock);
    p->holds[way].on = true;
    p->holds[way].opcode = opcode;
    g_mutex_unlock(&p->lock);
}

void memx_proxy_wait_held(MemxProxy *p, MemxProxyWay way)
{
    gint64 end = g_get_monotonic_time() + DEADLINE;

    g_mutex_lock(&p->lock);
    while (!p->holds[way].held) {
        g_assert_true(g_cond_wait_until(&p->changed, &p->lock, end));
    }
    g_mutex_unlock(&p->lock);
}

void memx_proxy_wait_any_held(MemxProxy *p)
{
    gint64 end = g_get_monotonic_time() + DEADLINE;

    g_mutex_lock(&p->lock);
    while (!p->holds[MEMX_REQUESTS].held && !p->holds[MEMX_REPLIES].held) {
        g_assert_true(g_cond_wait_until(&p->changed, &p->lock, end));
    }
    g_mutex_unlock(&p->lock);
}

void memx_proxy_let_go(MemxProxy *p, MemxProxyWay way)
{
    g_mutex_lock(&p->lock);
    p->holds[way].on = false;
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
}

void memx_proxy_drop(MemxProxy *p, MemxProxyWay way)
{
    g_mutex_lock(&p->lock);
    p->holds[way].on = false;
    p->holds[way].drops++;
    g_cond_broadcast(&p->changed);
    g_mutex_unlock(&p->lock);
}

void memx_proxy_fail(MemxProxy *p, unsigned opcode, unsigned error)
{
    g_mutex_lock(&p->lock);
    p->fail_opcode = opcode;
    p->fail_error = error;
    g_mutex_unlock(&p->lock);
}

void memx_proxy_wait_done(MemxProxy *p, unsigned opcode)
{
    gint64 end = g_get_monotonic_time() + DEADLINE;

    g_mutex_lock(&p->lock);
    while (!p->done[opcode]) {
        g_assert_true(g_cond_wait_until(&p->changed, &p->lock, end));
    }
    g_mutex_unlock(&p->lock);
}
