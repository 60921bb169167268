/*
 * Transport over TCP: listeners, and what both ends of a channel share.  The
 * ends themselves are in tcp-client.c and tcp-server.c.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "memx.h"
#include "tcp-socket.h"
#include "transport-tcp.h"

struct MemxListener {
    int fd;
};

static MemxChannel *tcp_connect(const char *host, const char *port,
                                int timeout_ms, int cancel_fd,
                                GError **error)
{
    int fd = memx_tcp_connect(host, port, timeout_ms, cancel_fd, error);

    return fd < 0 ? NULL : memx_tcp_client_new(fd);
}

/* --- Listener --- */

static MemxListener *tcp_listener_from_fd(int fd, GError **error)
{
    int listening = 0;
    socklen_t bytes = sizeof(listening);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) < 0 ||
        !listening) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "file descriptor %d is not a listening socket; a "
                    "systemd socket unit needs ListenStream= and Accept=no",
                    fd);
        return NULL;
    }

    MemxListener *listener = g_new0(MemxListener, 1);
    listener->fd = fd;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return listener;
}

static MemxListener *tcp_listen(const char *host, const char *port,
                                GError **error)
{
    int fd = memx_tcp_listen(host, port, error);

    return fd < 0 ? NULL : tcp_listener_from_fd(fd, error);
}

static MemxChannel *tcp_accept(MemxListener *listener, GError **error)
{
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd >= 0) {
            memx_tcp_tune(fd);
            return memx_tcp_server_new(fd);
        }
        if (errno == EAGAIN) {
            return NULL;
        }
        if (errno != EINTR && errno != ECONNABORTED) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                        "can't accept a connection: %s", g_strerror(errno));
            return NULL;
        }
    }
}

static int tcp_listener_fd(MemxListener *listener)
{
    return listener->fd;
}

static char *tcp_listener_address(MemxListener *listener)
{
    return memx_tcp_local_address(listener->fd);
}

static void tcp_listener_close(MemxListener *listener)
{
    close(listener->fd);
    g_free(listener);
}

/* --- Both --- */

int memx_tcp_die(TcpChannel *ch, int status)
{
    if (!ch->base.status) {
        ch->base.status = status;
    }
    return ch->base.status;
}

static int tcp_poll_fd(MemxChannel *channel)
{
    return ((TcpChannel *)channel)->fd;
}

static char *tcp_peer_address(MemxChannel *channel)
{
    return memx_tcp_peer_address(((TcpChannel *)channel)->fd);
}

/* SO_PRIORITY, 6 being the highest without privilege: the default queue of
 * Linux, pfifo_fast, and most others send it first. */
static void tcp_urgent(MemxChannel *channel)
{
    int priority = 6;

    setsockopt(((TcpChannel *)channel)->fd, SOL_SOCKET, SO_PRIORITY,
               &priority, sizeof(priority));
}

static void tcp_shutdown(MemxChannel *channel)
{
    shutdown(((TcpChannel *)channel)->fd, SHUT_RDWR);
}

static void tcp_close(MemxChannel *channel)
{
    TcpChannel *ch = (TcpChannel *)channel;

    close(ch->fd);
    g_free(ch->rx);
    g_free(ch);
}

static int tcp_register_memory(void *base, size_t bytes)
{
    return 0;
}

static void tcp_unregister_memory(void *base, size_t bytes)
{
}

const MemxTransport memx_transport_tcp = {
    .name = "tcp",
    .flags = MEMX_TRANSPORT_RECV_MOVABLE | MEMX_TRANSPORT_SEND_MOVABLE,
    .connect = tcp_connect,
    .submit = memx_tcp_submit,
    .progress = memx_tcp_progress,
    .poll_fd = tcp_poll_fd,
    .poll_events = memx_tcp_poll_events,
    .listen = tcp_listen,
    .listener_from_fd = tcp_listener_from_fd,
    .accept = tcp_accept,
    .listener_fd = tcp_listener_fd,
    .listener_address = tcp_listener_address,
    .listener_close = tcp_listener_close,
    .next = memx_tcp_next,
    .pull = memx_tcp_pull,
    .reply = memx_tcp_reply,
    .peer_address = tcp_peer_address,
    .urgent = tcp_urgent,
    .shutdown = tcp_shutdown,
    .close = tcp_close,
    .register_memory = tcp_register_memory,
    .unregister_memory = tcp_unregister_memory,
};
