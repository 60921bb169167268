/*
 * Admission: keys, proofs and randomness.  docs/protocol.md, "Admission".
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "memx.h"
#include "peer.h"

#define KEY_BYTES_MIN 16
#define KEY_BYTES_MAX 1024
/* Room for white space behind the longest key. */
#define KEY_FILE_BYTES (KEY_BYTES_MAX + 64)

void memx_auth_proof(GBytes *key, const char *label,
                     const uint8_t client_nonce[MEMX_NONCE_BYTES],
                     const uint8_t server_nonce[MEMX_NONCE_BYTES],
                     const void *context, size_t context_bytes,
                     uint8_t proof[MEMX_PROOF_BYTES])
{
    gsize key_bytes;
    const void *key_data = g_bytes_get_data(key, &key_bytes);
    gnutls_hmac_hd_t hmac;

    /* The label's final zero separates it from what follows. */
    if (gnutls_hmac_init(&hmac, GNUTLS_MAC_SHA256, key_data, key_bytes) ||
        gnutls_hmac(hmac, label, strlen(label) + 1) ||
        gnutls_hmac(hmac, client_nonce, MEMX_NONCE_BYTES) ||
        gnutls_hmac(hmac, server_nonce, MEMX_NONCE_BYTES) ||
        (context_bytes && gnutls_hmac(hmac, context, context_bytes))) {
        g_error("GnuTLS offers no HMAC-SHA256 on this system");
    }
    gnutls_hmac_deinit(hmac, proof);
}

void memx_auth_space_proof(const MemxOpen *open,
                           const uint8_t secret[MEMX_ID_BYTES],
                           const uint8_t client_nonce[MEMX_NONCE_BYTES],
                           const uint8_t server_nonce[MEMX_NONCE_BYTES],
                           uint8_t proof[MEMX_PROOF_BYTES])
{
    g_autoptr(GBytes) key = g_bytes_new(secret, MEMX_ID_BYTES);
    uint8_t wire[MEMX_OPEN_BYTES];
    uint8_t context[MEMX_ID_BYTES * 2 + 4 + 8 + MEMX_ID_BYTES];
    bool heir = open->flags & MEMX_OPEN_HEIR;

    /* As on the wire: space, client and lane, then, behind the flags, the
     * epoch; and an heir's session, at the end. */
    memx_open_encode(wire, open);
    memcpy(context, wire, 36);
    memcpy(context + 36, wire + 40, 8);
    memcpy(context + 44, wire + 256, MEMX_ID_BYTES);
    memx_auth_proof(key, heir ? MEMX_LABEL_HEIR : MEMX_LABEL_SPACE,
                    client_nonce, server_nonce, context,
                    sizeof(context) - (heir ? 0 : MEMX_ID_BYTES), proof);
}

static void wrap(GBytes *key, const char *label, const uint8_t *space,
                 const uint8_t *client_nonce, const uint8_t *server_nonce,
                 uint8_t *secret)
{
    uint8_t pad[MEMX_PROOF_BYTES];

    memx_auth_proof(key, label, client_nonce, server_nonce, space,
                    MEMX_ID_BYTES, pad);
    for (size_t i = 0; i < MEMX_ID_BYTES; i++) {
        secret[i] ^= pad[i];
    }
}

void memx_auth_wrap(GBytes *key, const uint8_t space[MEMX_ID_BYTES],
                    const uint8_t client_nonce[MEMX_NONCE_BYTES],
                    const uint8_t server_nonce[MEMX_NONCE_BYTES],
                    uint8_t secret[MEMX_ID_BYTES])
{
    wrap(key, MEMX_LABEL_WRAP, space, client_nonce, server_nonce, secret);
}

void memx_auth_wrap_reader(GBytes *key, const uint8_t space[MEMX_ID_BYTES],
                           const uint8_t client_nonce[MEMX_NONCE_BYTES],
                           const uint8_t server_nonce[MEMX_NONCE_BYTES],
                           uint8_t secret[MEMX_ID_BYTES])
{
    wrap(key, MEMX_LABEL_COPY, space, client_nonce, server_nonce, secret);
}

void memx_auth_reader_secret(const uint8_t secret[MEMX_ID_BYTES],
                             const uint8_t space[MEMX_ID_BYTES],
                             uint8_t reader[MEMX_ID_BYTES])
{
    static const uint8_t zeros[MEMX_NONCE_BYTES];
    g_autoptr(GBytes) key = g_bytes_new(secret, MEMX_ID_BYTES);
    uint8_t proof[MEMX_PROOF_BYTES];

    memx_auth_proof(key, MEMX_LABEL_READER, zeros, zeros, space,
                    MEMX_ID_BYTES, proof);
    memcpy(reader, proof, MEMX_ID_BYTES);
}

bool memx_auth_equal(const uint8_t *a, const uint8_t *b, size_t bytes)
{
    return gnutls_memcmp(a, b, bytes) == 0;
}

void memx_random(void *buf, size_t bytes)
{
    if (gnutls_rnd(GNUTLS_RND_KEY, buf, bytes)) {
        g_error("GnuTLS offers no random numbers on this system");
    }
}

static bool key_error(GError **error, const char *path, const char *what)
{
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID, "key file '%s': %s",
                path, what);
    return false;
}

/* @fd's bytes, at most KEY_FILE_BYTES; one more shows that it is longer. */
static bool key_read(int fd, const char *path, char *buf, size_t *bytes,
                     GError **error)
{
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        return key_error(error, path, g_strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return key_error(error, path, "is not a regular file");
    }
    if (st.st_mode & 077) {
        return key_error(error, path, "others than its owner may read or "
                         "write it; chmod 600 it, and make a new key if "
                         "they did");
    }
    *bytes = 0;
    for (;;) {
        ssize_t r = read(fd, buf + *bytes, KEY_FILE_BYTES - *bytes);

        if (r > 0) {
            *bytes += r;
        } else if (r == 0) {
            return true;
        } else if (errno != EINTR) {
            return key_error(error, path, g_strerror(errno));
        }
        if (*bytes == KEY_FILE_BYTES) {
            return key_error(error, path, "is too long for a key: at most "
                             "1024 bytes");
        }
    }
}

GBytes *memx_key_load(const char *path, GError **error)
{
    char buf[KEY_FILE_BYTES];
    size_t bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool ok = key_read(fd, path, buf, &bytes, error);
    GBytes *key = NULL;

    if (fd >= 0) {
        close(fd);
    }
    while (bytes && g_ascii_isspace(buf[bytes - 1])) {
        bytes--;
    }
    if (ok && (bytes < KEY_BYTES_MIN || bytes > KEY_BYTES_MAX)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "key file '%s': has %zu bytes, a key has 16 to 1024; "
                    "make one with: (umask 077; openssl rand -base64 32 > "
                    "'%s')", path, bytes, path);
    } else if (ok) {
        key = g_bytes_new(buf, bytes);
    }
    explicit_bzero(buf, sizeof(buf));
    return key;
}
