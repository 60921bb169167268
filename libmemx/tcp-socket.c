/*
 * TCP sockets: from an address to a connected or listening descriptor.
 *
 * Names are looked up by a thread of their own: getaddrinfo() has no
 * deadline, and a resolver that hangs must not hold up whoever connects.  A
 * lookup that is given up ends by itself, and the last of the two frees it.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "memx.h"
#include "tcp-socket.h"
#include "transport.h"

#define DEAD_PEER_MS 10000
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_INTERVAL_S 1
#define KEEPALIVE_COUNT 5
#define BACKLOG 128

char *memx_tcp_join(const char *host, const char *port)
{
    return g_strdup_printf(strchr(host, ':') ? "[%s]:%s" : "%s:%s", host,
                           port);
}

static char *address_text(const struct sockaddr_storage *address,
                          socklen_t bytes)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (address->ss_family == AF_UNIX ||
        getnameinfo((const struct sockaddr *)address, bytes, host,
                    sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV)) {
        return g_strdup("unknown");
    }
    /* An IPv4 peer of a socket for both families. */
    const char *plain = g_str_has_prefix(host, "::ffff:") &&
                        strchr(host, '.') ? host + 7 : host;
    return memx_tcp_join(plain, port);
}

char *memx_tcp_local_address(int fd)
{
    struct sockaddr_storage address = { 0 };
    socklen_t bytes = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) < 0) {
        return g_strdup("unknown");
    }
    return address_text(&address, bytes);
}

char *memx_tcp_peer_address(int fd)
{
    struct sockaddr_storage address = { 0 };
    socklen_t bytes = sizeof(address);

    if (getpeername(fd, (struct sockaddr *)&address, &bytes) < 0) {
        return g_strdup("unknown");
    }
    return address_text(&address, bytes);
}

static void set_option(int fd, int level, int option, int value)
{
    /* Fails on a socket of another family; nothing depends on it there. */
    setsockopt(fd, level, option, &value, sizeof(value));
}

void memx_tcp_tune(int fd)
{
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS);
}

/* --- Looking up --- */

typedef struct Lookup {
    /* Constant after creation. */
    char *host;
    char *port;
    int done_fd;
    /* Written by the thread before done_fd is, read after. */
    int error;
    struct addrinfo *result;
    /* Atomic. */
    int references;
} Lookup;

static void lookup_unref(Lookup *lookup)
{
    if (!g_atomic_int_dec_and_test(&lookup->references)) {
        return;
    }
    if (lookup->result) {
        freeaddrinfo(lookup->result);
    }
    close(lookup->done_fd);
    g_free(lookup->host);
    g_free(lookup->port);
    g_free(lookup);
}

static void *lookup_thread(void *opaque)
{
    Lookup *lookup = opaque;
    struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG,
    };

    lookup->error = getaddrinfo(lookup->host, lookup->port, &hints,
                                &lookup->result);
    eventfd_write(lookup->done_fd, 1);
    lookup_unref(lookup);
    return NULL;
}

static void set_lookup_error(GError **error, const char *host, int code)
{
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                "can't look up host '%s': %s; check its spelling, or give "
                "the address in numbers", host,
                code == EAI_SYSTEM ? g_strerror(errno) : gai_strerror(code));
}

/* In numbers, which asks nobody; else by a thread. */
static struct addrinfo *look_up(const char *host, const char *port,
                                int cancel_fd, int64_t deadline_us,
                                GError **error)
{
    struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST,
    };
    struct addrinfo *result = NULL;

    if (getaddrinfo(host, port, &hints, &result) == 0) {
        return result;
    }

    Lookup *lookup = g_new0(Lookup, 1);
    lookup->host = g_strdup(host);
    lookup->port = g_strdup(port);
    lookup->done_fd = eventfd(0, EFD_CLOEXEC);
    lookup->references = 2;
    GThread *thread = g_thread_try_new("memx-lookup", lookup_thread, lookup,
                                       error);
    if (!thread) {
        lookup->references = 1;
        lookup_unref(lookup);
        return NULL;
    }
    g_thread_unref(thread);

    int r = memx_wait_fd(lookup->done_fd, POLLIN, cancel_fd, deadline_us);
    if (r == 0) {
        eventfd_t count;

        eventfd_read(lookup->done_fd, &count); /* what TSan synchronizes by */
    }
    if (r < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "looking up host '%s': %s", host, g_strerror(-r));
    } else if (lookup->error) {
        set_lookup_error(error, host, lookup->error);
    } else {
        result = g_steal_pointer(&lookup->result);
    }
    lookup_unref(lookup);
    return result;
}

/* --- Connecting --- */

/* A connected socket or -errno. */
static int connect_one(const struct addrinfo *address, int cancel_fd,
                       int64_t deadline_us)
{
    int fd = socket(address->ai_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r = 0;

    if (fd < 0) {
        return -errno;
    }
    memx_tcp_tune(fd);
    if (connect(fd, address->ai_addr, address->ai_addrlen) < 0) {
        r = -errno;
    }
    if (r == -EINPROGRESS) {
        r = memx_wait_fd(fd, POLLOUT, cancel_fd, deadline_us);
        if (r == 0) {
            int code = 0;
            socklen_t bytes = sizeof(code);

            getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &bytes);
            r = -code;
        }
    }
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static const char *connect_advice(int code)
{
    switch (code) {
    case ECONNREFUSED:
        return "; is a memserver running there, and on this port?";
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return "; check the address, the network and the firewall";
    default:
        return "";
    }
}

int memx_tcp_connect(const char *host, const char *port, int timeout_ms,
                     int cancel_fd, GError **error)
{
    int64_t deadline_us = g_get_monotonic_time() + timeout_ms * 1000LL;
    struct addrinfo *addresses = look_up(host, port, cancel_fd, deadline_us,
                                         error);
    int left = 0;
    int fd = -EADDRNOTAVAIL;

    if (!addresses) {
        return -1;
    }
    for (struct addrinfo *a = addresses; a; a = a->ai_next) {
        left++;
    }
    /* Each gets its share, lest one that never answers takes it all. */
    for (struct addrinfo *a = addresses; a && fd < 0 && fd != -ECANCELED;
         a = a->ai_next) {
        int64_t now_us = g_get_monotonic_time();

        fd = connect_one(a, cancel_fd,
                         now_us + (deadline_us - now_us) / left--);
    }
    freeaddrinfo(addresses);
    if (fd < 0) {
        g_autofree char *address = memx_tcp_join(host, port);

        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "can't connect to %s: %s%s", address, g_strerror(-fd),
                    connect_advice(-fd));
        return -1;
    }
    return fd;
}

/* --- Listening --- */

static int listen_one(const struct addrinfo *address)
{
    int fd = socket(address->ai_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -errno;
    }
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (address->ai_family == AF_INET6) {
        set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    }
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 ||
        listen(fd, BACKLOG) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

static const char *listen_advice(int code)
{
    switch (code) {
    case EADDRINUSE:
        return "; does another memserver run on this port?";
    case EADDRNOTAVAIL:
        return "; the address must be one of this host's";
    case EACCES:
        return "; ports below 1024 need CAP_NET_BIND_SERVICE";
    default:
        return "";
    }
}

/* A listening socket or -errno; *lookup_error tells of an unknown host. */
static int listen_host(const char *host, const char *port, int *lookup_error)
{
    struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | AI_PASSIVE,
    };
    struct addrinfo *addresses = NULL;
    int fd = -EADDRNOTAVAIL;

    *lookup_error = getaddrinfo(host, port, &hints, &addresses);
    if (*lookup_error) {
        return fd;
    }
    for (struct addrinfo *a = addresses; a && fd < 0; a = a->ai_next) {
        fd = listen_one(a);
    }
    freeaddrinfo(addresses);
    return fd;
}

int memx_tcp_listen(const char *host, const char *port, GError **error)
{
    bool any = strcmp(host, "*") == 0;
    int lookup_error;
    int fd = listen_host(any ? "::" : host, port, &lookup_error);

    if (fd == -EAFNOSUPPORT && any) {
        fd = listen_host("0.0.0.0", port, &lookup_error);
    }
    if (lookup_error) {
        set_lookup_error(error, host, lookup_error);
        return -1;
    }
    if (fd < 0) {
        g_autofree char *address = memx_tcp_join(host, port);

        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "can't listen on %s: %s%s", address, g_strerror(-fd),
                    listen_advice(-fd));
        return -1;
    }
    return fd;
}
