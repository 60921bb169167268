/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * COPY: pages come straight from another server, at the owner's word.
 */
#ifndef MS_COPY_H
#define MS_COPY_H

#include "server.h"

/* Serves a COPY of @connection, an owner's ordered lane that may write: with
 * no error its pages are stored, else nothing was changed.  Waits for the
 * other server, for 1.5 s at most. */
MemxError ms_copy(MsConnection *connection, const MemxRequest *request,
                  const uint8_t *body);

/* The connection ends: closes what it copied from. */
void ms_copy_end(MsConnection *connection);

#endif
