/*
 * A client's OPEN: what is accepted is what an encoder writes, names included.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>
#include "fuzz.h"
#include "memx-protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxOpen decoded;
    uint8_t wire[MEMX_OPEN_BYTES];

    if (memx_open_decode(&decoded, data, bytes) < 0) {
        return 0;
    }
    FUZZ_CHECK(bytes == sizeof(wire));
    memx_open_encode(wire, &decoded);
    FUZZ_CHECK(memcmp(wire, data, sizeof(wire)) == 0);
    FUZZ_CHECK(memchr(decoded.vm_name, 0, sizeof(decoded.vm_name)));
    FUZZ_CHECK(memchr(decoded.region_name, 0, sizeof(decoded.region_name)));
    return 0;
}
