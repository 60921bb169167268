/*
 * Arithmetic on vectors of memory.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_IOV_H
#define MEMX_IOV_H

#include <stddef.h>
#include <sys/uio.h>

size_t memx_iov_bytes(const struct iovec *iov, int n);

/* Makes @to (room for @n) of @from without its first @skip bytes, and of no
 * more than @most; returns how many elements @to has. */
int memx_iov_slice(struct iovec *to, const struct iovec *from, int n,
                   size_t skip, size_t most);

/* Copies @bytes from @data into @iov, from byte @offset of it on; what does
 * not fit is an error of the caller's. */
void memx_iov_write(const struct iovec *iov, int n, size_t offset,
                    const void *data, size_t bytes);

/* The other way. */
void memx_iov_read(const struct iovec *iov, int n, size_t offset,
                   void *data, size_t bytes);

#endif
