/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection: the thread that answers one client's requests on one lane.
 */
#ifndef MS_CONNECTION_H
#define MS_CONNECTION_H

#include "server.h"

/* The thread's function.  Ends when the peer goes, misbehaves, or the
 * channel is shut down; takes itself off the server's list and frees
 * @opaque, the MsConnection. */
void *ms_connection_thread(void *opaque);

/* Answers the current request.  Fills in what every reply carries.  0 or
 * -errno: the connection ends.  Fault path. */
int ms_connection_reply(MsConnection *connection, MemxReply *reply,
                        const void *body, const struct iovec *iov, int n);
/* The same with nothing but an error, throwing away the payload. */
int ms_connection_refuse(MsConnection *connection, MemxError error);

/* HELLO, AUTH and OPEN.  0 or -errno: the connection ends. */
int ms_handshake(MsConnection *connection, const MemxRequest *request,
                 const uint8_t *body);

#endif
