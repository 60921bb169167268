/*
 * Farewells: what a server must hear about a space that nobody here needs any
 * more.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_FAREWELL_H
#define MEMX_FAREWELL_H

#include "peer.h"

typedef struct MemxFarewell {
    MemxOpen open;              /* of the ordered lane, with the secret */
    uint16_t tell;              /* first: RECLAIM, COMMIT or RESIGN; or 0 */
    uint8_t session[MEMX_ID_BYTES]; /* of that */
    bool close;                 /* and then the space goes */
} MemxFarewell;

/* Once, on a connection of its own.  True: the server has heard it, or does
 * not want to; false: it could not be reached. */
bool memx_farewell_say(const MemxPeer *peer, const MemxFarewell *farewell,
                       int timeout_ms);

/* To one that could not be reached: again and again, as long as this process
 * lives.  Doesn't wait. */
void memx_farewell_later(const MemxPeer *peer, const MemxFarewell *farewell);

/* Room is needed: tries each of them again within a second. */
void memx_farewell_hurry(void);

#endif
