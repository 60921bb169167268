/*
 * TCP sockets: from an address to a connected or listening descriptor.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TCP_SOCKET_H
#define MEMX_TCP_SOCKET_H

#include <glib.h>
#include <sys/socket.h>

/* A connected socket, or -1 and @error.  Tries each address of @host in
 * turn, within timeout_ms in all. */
int memx_tcp_connect(const char *host, const char *port, int timeout_ms,
                     int cancel_fd, GError **error);

/* A listening socket, or -1 and @error.  @host "*" or "::" is any address
 * of both families. */
int memx_tcp_listen(const char *host, const char *port, GError **error);

/* No delay, and a peer that is gone is noticed within about 10 s.  Harmless
 * on what is not TCP. */
void memx_tcp_tune(int fd);

/* "1.2.3.4:5", "[::1]:5"; of the socket's own or its peer's end. */
char *memx_tcp_local_address(int fd);
char *memx_tcp_peer_address(int fd);

/* "host:port" or "[v6]:port" */
char *memx_tcp_join(const char *host, const char *port);

#endif
