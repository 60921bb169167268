/*
 * A transport within one process, for tests only: see transport-inproc.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_TRANSPORT_INPROC_H
#define MEMX_TRANSPORT_INPROC_H

#include "transport.h"

/* A listener's host and port are any two strings; a port of "0" gets a
 * number that is free.  What `in` and `out` point to must be registered. */
extern const MemxTransport memx_transport_inproc;

#endif
