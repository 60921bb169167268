/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Read-write protection, asynchronous (Linux 7.3), together with MISSING: an
 * access to a protected page, in a system call too, goes on at once and shows in
 * PAGEMAP_SCAN; a missing page is a message as ever.
 */
#include <fcntl.h>
#include <poll.h>
#include "libmemx/pagemap-abi.h"
#include "platform.h"

#define PAGES 8

static int pagemap;

/* Those of the pages that were accessed: a bit each. */
static unsigned accessed(char *base)
{
    struct page_region vec[PAGES];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = (uintptr_t)base, .end = (uintptr_t)base + PAGES * PAGE,
        .vec = (uintptr_t)vec, .vec_len = PAGES,
        .category_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
        .return_mask = PAGE_IS_PRESENT | PAGE_IS_ACCESSED,
    };
    int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);
    unsigned bits = 0;

    check(n >= 0, "%s", strerror(errno));
    for (int i = 0; i < n; i++) {
        for (uint64_t at = vec[i].start; at < vec[i].end; at += PAGE) {
            bits |= 1u << (at - (uintptr_t)base) / PAGE;
        }
    }
    return bits;
}

static bool message(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1;
}

int main(void)
{
    const uint64_t rwp = UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC;
    uint64_t got = 0;
    int fd = memx_uffd_open(rwp, &got, NULL), ends[2];
    char *guest = map_pages(PAGES), *staging, page[PAGE], byte = 0x33;
    struct thread missing = { .fd = -1 };

    if (fd < 0 || (got & rwp) != rwp) {
        skip("this kernel's userfaultfd has no read-write protection: it "
             "needs Linux 7.3");
    }
    memset(page, 0x44, PAGE);
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    check(pagemap >= 0 && !pipe(ends), "%s", strerror(errno));
    staging = map_filled(fd, PAGES, 0x11);
    check(memx_uffd_register_rwp(fd, guest, PAGES * PAGE, true, NULL),
          "it can't be registered for both");

    /* Filled by COPY it counts as accessed, until it is protected. */
    expect(memx_uffd_copy(fd, guest, staging, 6 * PAGE, 0), 6 * PAGE);
    check(accessed(guest) == 0x3f, "%x", accessed(guest));
    expect(memx_uffd_rwprotect(fd, guest, PAGES * PAGE), 0);
    check(accessed(guest) == 0, "%x", accessed(guest));

    /* A read, a write, a system call's read and write. */
    check(*(volatile char *)guest == 0x11, "wrong byte");
    *(volatile char *)(guest + PAGE) = 0x22;
    check(write(ends[1], guest + 2 * PAGE, 1) == 1, "%s", strerror(errno));
    check(read(ends[0], guest + 3 * PAGE, 1) == 1, "%s", strerror(errno));
    check(accessed(guest) == 0x0f, "%x", accessed(guest));
    check(!message(fd), "a message");
    check(guest[PAGE] == 0x22 && guest[3 * PAGE] == 0x11, "a write is lost");

    /* MOVE takes a protected page out, and leaves one not accessed. */
    expect(memx_uffd_rwprotect(fd, guest, PAGES * PAGE), 0);
    expect(madvise(staging, PAGES * PAGE, MADV_DONTNEED), 0);
    expect(memx_uffd_move(fd, staging, guest, 6 * PAGE, 0), 6 * PAGE);
    check(staging[PAGE] == 0x22 && staging[4 * PAGE] == 0x11,
          "what was moved is wrong");
    expect(memx_uffd_move(fd, guest, staging, 6 * PAGE, 0), 6 * PAGE);
    check(accessed(guest) == 0, "%x", accessed(guest));
    *(volatile char *)(guest + 5 * PAGE) = byte;
    check(accessed(guest) == 0x20, "%x", accessed(guest));
    check(guest[5 * PAGE] == byte, "a write is lost");

    /* One that is missing waits for us, as without RWP. */
    check(!message(fd), "a message");
    missing.addr = guest + 6 * PAGE;
    thread_start(&missing, touch_byte);
    wait_fault(fd);
    expect(memx_uffd_copy(fd, guest + 6 * PAGE, page, PAGE, 0), PAGE);
    thread_join(&missing);
    expect(missing.result, 0x44);
    check(accessed(guest) == 0x60, "%x", accessed(guest));
    return 0;
}
