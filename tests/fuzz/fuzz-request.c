/*
 * A client's request header: what is accepted is what an encoder writes, and
 * announces no more than the limits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxRequest decoded;
    uint8_t wire[MEMX_REQUEST_BYTES];

    if (bytes < sizeof(wire) || memx_request_decode(&decoded, data) < 0) {
        return 0;
    }
    memx_request_encode(wire, &decoded);
    FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
    FUZZ_CHECK(decoded.body_bytes <= MEMX_BODY_MAX);
    FUZZ_CHECK(decoded.payload_bytes <= MEMX_PAYLOAD_MAX);
    if (decoded.mask) {
        FUZZ_CHECK(decoded.group < MEMX_PAGES_MAX / MEMX_GROUP_PAGES);
    }
    return 0;
}
