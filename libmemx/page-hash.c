/*
 * The keyed 128-bit hash of a page; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include "memx.h"
#include "page-hash.h"

struct MemxPageHash {
    gnutls_aead_cipher_hd_t cipher;
};

MemxPageHash *memx_page_hash_new(const uint8_t key[MEMX_HASH_KEY_BYTES],
                                 GError **error)
{
    g_autofree MemxPageHash *hash = g_new0(MemxPageHash, 1);
    gnutls_datum_t datum = { (uint8_t *)key, MEMX_HASH_KEY_BYTES };
    int r = gnutls_aead_cipher_init(&hash->cipher, GNUTLS_CIPHER_AES_128_GCM,
                                    &datum);

    if (r < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot set up the page hash (AES-128-GCM): %s",
                    gnutls_strerror(r));
        return NULL;
    }
    return g_steal_pointer(&hash);
}

void memx_page_hash_free(MemxPageHash *hash)
{
    if (hash) {
        gnutls_aead_cipher_deinit(hash->cipher);
        g_free(hash);
    }
}

bool memx_page_hash(MemxPageHash *hash, const void *page,
                    uint8_t out[MEMX_HASH_BYTES])
{
    static const uint8_t nonce[12];
    size_t bytes = MEMX_HASH_BYTES;

    return gnutls_aead_cipher_encrypt(hash->cipher, nonce, sizeof(nonce),
                                      page, MEMX_PAGE_BYTES, MEMX_HASH_BYTES,
                                      "", 0, out, &bytes) == 0;
}

bool memx_page_is_zero(const void *page)
{
    const uint8_t *bytes = page;

    return !bytes[0] && !memcmp(bytes, bytes + 1, MEMX_PAGE_BYTES - 1);
}
