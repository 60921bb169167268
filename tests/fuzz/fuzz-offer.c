/*
 * The bodies of OFFER and of RECLAIM, COMMIT and RESIGN.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const uint8_t zero[MEMX_ID_BYTES];
    uint8_t session[MEMX_ID_BYTES], wire[MEMX_OFFER_BYTES];
    MemxOffer offer;

    if (memx_session_decode(session, data, bytes) == 0) {
        FUZZ_CHECK(bytes == sizeof(session));
        FUZZ_CHECK(memcmp(session, data, sizeof(session)) == 0);
        FUZZ_CHECK(memcmp(session, zero, sizeof(zero)) != 0);
    }
    if (memx_offer_decode(&offer, data, bytes) == 0) {
        FUZZ_CHECK(bytes == sizeof(wire));
        memx_offer_encode(wire, &offer);
        FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
        FUZZ_CHECK(memcmp(offer.heir, zero, sizeof(zero)) != 0);
    }
    return 0;
}
