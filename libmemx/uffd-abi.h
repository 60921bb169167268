/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this project uses of <linux/userfaultfd.h> and distributions' kernel
 * headers may lack: Debian 12 ships those of Linux 6.1, which know nothing of
 * UFFDIO_MOVE. Each constant is guarded, so that newer headers (or the copy
 * inside QEMU, when it was included before) win. The numbers are kernel ABI.
 */
#ifndef MEMX_UFFD_ABI_H
#define MEMX_UFFD_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

/* Linux 6.8: move whole pages between two places of one address space. */
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

#ifndef UFFDIO_MOVE
#define _UFFDIO_MOVE (0x05)
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((__u64)1 << 1)

struct uffdio_move {
    __u64 dst;
    __u64 src;
    __u64 len;
    __u64 mode;
    __s64 move; /* written by the kernel: bytes moved, or -errno */
};

#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif

/*
 * Linux 7.3: read-write protection.  With RWP_ASYNC the kernel gives access back
 * at the first touch, without a message, and PAGEMAP_SCAN tells which pages
 * were touched (PAGE_IS_ACCESSED, in pagemap-abi.h).
 */
#ifndef UFFD_FEATURE_RWP
#define UFFD_FEATURE_RWP (1 << 17)
#endif
#ifndef UFFD_FEATURE_RWP_ASYNC
#define UFFD_FEATURE_RWP_ASYNC (1 << 18)
#endif
#ifndef UFFDIO_REGISTER_MODE_RWP
#define UFFDIO_REGISTER_MODE_RWP ((__u64)1 << 3)
#endif

#ifndef UFFDIO_RWPROTECT
#define _UFFDIO_RWPROTECT (0x09)
#define UFFDIO_RWPROTECT_MODE_RWP ((__u64)1 << 0)

struct uffdio_rwprotect {
    struct uffdio_range range;
    __u64 mode;
};

#define UFFDIO_RWPROTECT _IOWR(UFFDIO, _UFFDIO_RWPROTECT, \
                               struct uffdio_rwprotect)
#endif

/* Linux 6.1: /dev/userfaultfd, whose file permissions say who may use it. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#endif /* MEMX_UFFD_ABI_H */
