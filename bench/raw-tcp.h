/*
 * Raw TCP: what any remote memory pays for the network at least.
 *
 * A server process (this program, started as "memx-bench raw-tcp-server")
 * answers a request of 40 bytes with as many bytes of memory as it asks for,
 * or takes as many and answers with 64 bytes: the sizes of our protocol's
 * headers, with nothing done about them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_RAW_TCP_H
#define BENCH_RAW_TCP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "samples.h"

#define RAW_TCP_CHUNK (1u << 20)

/* @address: "host:port".  -1 and @error. */
int raw_tcp_connect(const char *address, GError **error);

/* Asks for @bytes and waits for them.  Returns 0 or -errno. */
int raw_tcp_round_trip(int fd, void *buf, uint32_t bytes);

/* @samples->max round trips of 4 KiB. */
bool raw_tcp_ping_pong(int fd, Samples *samples);

/* Asks for chunks of 1 MiB, some ahead of what has come; bytes per second,
 * or NAN when the connection broke. */
double raw_tcp_stream_in(int fd, uint64_t bytes);
/* Sends such chunks. */
double raw_tcp_stream_out(int fd, uint64_t bytes);

/* Sends pieces of 64 KiB at @pace bytes per second until *@stop is set. */
void raw_tcp_stream_out_paced(int fd, double pace, const int *stop);

/* The server's main(); returns only on failure. */
int raw_tcp_server_main(const char *host);

#endif
