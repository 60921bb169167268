/*
 * The keyed 128-bit hash of a page.
 *
 * GMAC (GHASH of AES-128-GCM, NIST SP 800-38D) under a random key that never
 * leaves the process: for someone who sees neither key nor hashes, as a guest,
 * two different pages of his choice collide with a probability of 2^-119.
 * (A fixed nonce gives the key's hash function away to whoever knows pages
 * and hashes; that is the memory server, which has the pages anyway.)
 * docs/benchmarks.md says what it costs.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PAGE_HASH_H
#define MEMX_PAGE_HASH_H

#include <glib.h>
#include <stdbool.h>
#include "memx-protocol.h"

#define MEMX_HASH_KEY_BYTES 16

typedef struct MemxPageHash MemxPageHash;

/* @key: random, secret. */
MemxPageHash *memx_page_hash_new(const uint8_t key[MEMX_HASH_KEY_BYTES],
                                 GError **error);
void memx_page_hash_free(MemxPageHash *hash);

/* One thread at a time.  False if the library fails: treat as changed. */
bool memx_page_hash(MemxPageHash *hash, const void *page,
                    uint8_t out[MEMX_HASH_BYTES]);

/* Is the page all zeros?  Stops at the first byte that isn't. */
bool memx_page_is_zero(const void *page);

#endif
