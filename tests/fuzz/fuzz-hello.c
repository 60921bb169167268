/*
 * A client's HELLO: what is accepted is what an encoder writes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxHello decoded;
    uint8_t wire[MEMX_HELLO_BYTES];

    if (memx_hello_decode(&decoded, data, bytes) < 0) {
        return 0;
    }
    FUZZ_CHECK(bytes == sizeof(wire));
    memx_hello_encode(wire, &decoded);
    FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
    return 0;
}
