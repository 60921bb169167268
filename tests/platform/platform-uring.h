/* SPDX-License-Identifier: GPL-2.0-or-later */
/* io_uring with one registered buffer: a page that is pinned for DMA. */
#ifndef MEMX_TESTS_PLATFORM_URING_H
#define MEMX_TESTS_PLATFORM_URING_H

#include <liburing.h>

#include "platform.h"

/* Pin @bytes at @buf until io_uring_unregister_buffers(); or skip. */
static inline void ring_pin(struct io_uring *ring, void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = buf, .iov_len = bytes };
    int ret = io_uring_queue_init(8, ring, 0);

    if (ret < 0) {
        skip("no io_uring: %s (sysctl kernel.io_uring_disabled, seccomp?)",
             strerror(-ret));
    }
    ret = io_uring_register_buffers(ring, &iov, 1);
    if (ret == -ENOMEM) {
        skip("cannot pin %zu bytes: raise ulimit -l", bytes);
    }
    check(ret == 0, "%s", strerror(-ret));
}

/* DMA from the file @fd into the registered buffer. */
static inline void ring_read_fixed(struct io_uring *ring, int fd, void *buf,
                                   size_t bytes)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    struct io_uring_cqe *cqe;

    io_uring_prep_read_fixed(sqe, fd, buf, bytes, 0, 0);
    check(io_uring_submit(ring) == 1, "nothing submitted");
    check(io_uring_wait_cqe(ring, &cqe) == 0, "no completion");
    check(cqe->res == (int)bytes, "%s", strerror(-cqe->res));
    io_uring_cqe_seen(ring, cqe);
}

#endif /* MEMX_TESTS_PLATFORM_URING_H */
