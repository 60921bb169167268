/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Offers: a space is handed over from its owner to an heir.
 */
#ifndef MS_OFFER_H
#define MS_OFFER_H

#include "server.h"

/*
 * What the ordered lane @connection asks for; docs/protocol.md, "Hand-over".
 * Without an error it is done, and will be after a crash.  RECLAIM and COMMIT
 * wait until the other side's threads are gone.  On its own thread.
 */
MemxError ms_offer_make(MsConnection *connection, const MemxOffer *offer);
MemxError ms_offer_reclaim(MsConnection *connection, const uint8_t *session);
MemxError ms_offer_commit(MsConnection *connection, const uint8_t *session);
MemxError ms_offer_resign(MsConnection *connection, const uint8_t *session);

/* Why @connection may not write, if it may not. */
MemxError ms_offer_write_error(MsConnection *connection);
/* Why it may not close the space, or no error. */
MemxError ms_offer_check_close_locked(const MsConnection *connection);

/* Which side @open, which proved the secret, will be of; or an error.
 * Changes nothing. */
MemxError ms_offer_find_side_locked(const MsSpace *space,
                                    const MemxOpen *open, unsigned *side);

#endif
