/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memserver within this process, reached by one-sided reads and writes
 * (transport-inproc.h) instead of a byte stream.
 */
#ifndef INPROC_SERVER_H
#define INPROC_SERVER_H

#include <stdint.h>

typedef struct InprocServer InprocServer;

InprocServer *inproc_server_new(uint64_t capacity_bytes);
void inproc_server_free(InprocServer *server);
const char *inproc_server_address(const InprocServer *server);
uint64_t inproc_server_held_pages(InprocServer *server);
/* Ends a few of its connections. */
void inproc_server_cut(InprocServer *server);
/* Ends all of them, and accepts again: with its pages. */
void inproc_server_restart(InprocServer *server);

#endif
