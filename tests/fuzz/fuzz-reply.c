/*
 * A server's reply header: what is accepted is what an encoder writes, and
 * announces no more than the limits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxReply decoded;
    uint8_t wire[MEMX_REPLY_BYTES];

    if (bytes < sizeof(wire) || memx_reply_decode(&decoded, data) < 0) {
        return 0;
    }
    memx_reply_encode(wire, &decoded);
    FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
    FUZZ_CHECK(decoded.body_bytes <= MEMX_WELCOME_BYTES);
    FUZZ_CHECK(decoded.payload_bytes <= MEMX_PAYLOAD_MAX);
    FUZZ_CHECK(!decoded.body_bytes || !decoded.payload_bytes);
    FUZZ_CHECK(memx_error_name(decoded.error) != NULL);
    return 0;
}
