/*
 * A server's answer to OPEN: what is accepted is what an encoder writes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxOpened decoded;
    uint8_t wire[MEMX_OPENED_BYTES];

    if (memx_opened_decode(&decoded, data, bytes) < 0) {
        return 0;
    }
    FUZZ_CHECK(bytes == sizeof(wire));
    memx_opened_encode(wire, &decoded);
    FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
    return 0;
}
