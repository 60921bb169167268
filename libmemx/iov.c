/*
 * Arithmetic on vectors of memory.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <glib.h>
#include <string.h>
#include "iov.h"

size_t memx_iov_bytes(const struct iovec *iov, int n)
{
    size_t bytes = 0;

    for (int i = 0; i < n; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

int memx_iov_slice(struct iovec *to, const struct iovec *from, int n,
                   size_t skip, size_t most)
{
    int n_to = 0;

    for (int i = 0; i < n && most; i++) {
        if (skip >= from[i].iov_len) {
            skip -= from[i].iov_len;
            continue;
        }
        to[n_to].iov_base = (char *)from[i].iov_base + skip;
        to[n_to].iov_len = MIN(from[i].iov_len - skip, most);
        most -= to[n_to].iov_len;
        n_to++;
        skip = 0;
    }
    return n_to;
}

void memx_iov_write(const struct iovec *iov, int n, size_t offset,
                    const void *data, size_t bytes)
{
    const char *from = data;

    for (int i = 0; i < n && bytes; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t step = MIN(bytes, iov[i].iov_len - offset);
        memcpy((char *)iov[i].iov_base + offset, from, step);
        from += step;
        bytes -= step;
        offset = 0;
    }
    g_assert(bytes == 0);
}

void memx_iov_read(const struct iovec *iov, int n, size_t offset,
                   void *data, size_t bytes)
{
    char *to = data;

    for (int i = 0; i < n && bytes; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t step = MIN(bytes, iov[i].iov_len - offset);
        memcpy(to, (char *)iov[i].iov_base + offset, step);
        to += step;
        bytes -= step;
        offset = 0;
    }
    g_assert(bytes == 0);
}
