/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * userfaultfd: thin, exact wrappers of what the pager uses.
 *
 * Two tiers. memx_uffd_open(), _register() and _unregister() are set-up: they
 * explain a failure in a GError. All others are the data path: they return a
 * count or -errno, allocate nothing, log nothing, take no lock, touch no
 * guest memory themselves, and may be called from any thread at any time.
 *
 * All addresses and sizes are multiples of the page size, 4 KiB.
 * tests/platform/ proves what is said here; docs/platform.md lists it.
 */
#ifndef MEMX_UFFD_H
#define MEMX_UFFD_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffd-abi.h"

enum {
    /* MOVE: a page missing in the source is skipped and counts as moved. */
    MEMX_MOVE_ALLOW_HOLES = 1 << 0,
    /* MOVE and COPY: leave the threads that wait for the pages asleep. */
    MEMX_MOVE_DONTWAKE = 1 << 1,
};

/*
 * Open a userfaultfd that also handles faults taken inside the kernel (KVM,
 * system calls), with UFFD_FEATURE_MOVE and those of @features_wanted
 * (UFFD_FEATURE_*) that the kernel has. UFFD_FEATURE_EVENT_* should not be
 * asked for: with them MOVE and COPY fail with EAGAIN while mappings change.
 *
 * /dev/userfaultfd is tried first, the system call second. The descriptor is
 * close-on-exec and non-blocking (with a blocking one poll() reports POLLERR).
 * It belongs to the address space of the process that opened it.
 *
 * Returns the descriptor and in *@features_got (may be NULL) what is enabled;
 * or -1 with @error set: not permitted, or the kernel cannot do it.
 */
int memx_uffd_open(uint64_t features_wanted, uint64_t *features_got,
                   GError **error);

/*
 * Register [@hva, @hva + @bytes), anonymous private memory, in MISSING mode:
 * from now on whoever touches a page that is not there waits for us. Pages
 * that are there stay. The range must be mapped throughout; it may hold
 * several mappings (NUMA policies split them), but a MOVE or COPY may not
 * cross the border of two.
 *
 * EBUSY: some of it is registered with another userfaultfd. EINVAL: not
 * mapped, or not anonymous. Registering the same range again is harmless.
 */
bool memx_uffd_register(int fd, void *hva, size_t bytes, GError **error);

/*
 * The same for RWP mode (with @missing for MISSING mode, too): see
 * memx_uffd_rwprotect(). @fd must have been opened with UFFD_FEATURE_RWP_ASYNC.
 */
bool memx_uffd_register_rwp(int fd, void *hva, size_t bytes, bool missing,
                            GError **error);

/*
 * Protect what is present in [@hva, @hva + @bytes) of a range registered for
 * RWP: the next access, read or write, of each page has the kernel lift the
 * protection of this page again, which PAGEMAP_SCAN shows as PAGE_IS_ACCESSED.
 * Nobody waits and no message is sent. A missing page keeps no mark: COPY leaves
 * it accessed, MOVE not accessed. Returns 0 or -errno.
 */
int memx_uffd_rwprotect(int fd, void *hva, size_t bytes);

/*
 * The reverse. Threads waiting for a page of the range are woken and find a
 * zero page where one is missing: bring everything home first.
 */
bool memx_uffd_unregister(int fd, void *hva, size_t bytes, GError **error);

/*
 * Move whole pages: unmap them at @src and map them at @dst, content and
 * frame unchanged, each page atomically with respect to any access: a store
 * lands either before the move (and moves along) or faults after it. @src is
 * missing afterwards if it is registered, and reads as zero if it is not.
 * Threads waiting on the moved part of @dst are woken.
 *
 * @dst must be registered with @fd; @src need not be registered. Each range
 * must lie in one mapping, both anonymous, private, writable, with equal
 * protection and equal mlock state.
 *
 * Returns the bytes dealt with before the first obstacle, > 0, holes skipped
 * under MEMX_MOVE_ALLOW_HOLES included. The obstacle is not named: call again
 * from there to learn it. If there was none before it, -errno:
 *   -EEXIST  the page at @dst is there already. Nobody was woken: whoever
 *            waits for it has missed its wake-up, so memx_uffd_wake() it.
 *            Checked before the source is: also for a hole.
 *   -ENOENT  the page at @src is missing (without MEMX_MOVE_ALLOW_HOLES), or
 *            (from 6.9 on) one of the two ranges is not mapped.
 *   -EBUSY   the page at @src is pinned for DMA (io_uring fixed buffers,
 *            O_DIRECT in flight, VFIO, RDMA), or shared with a forked child,
 *            or on 6.8 the zero page. It stays where it is, untouched: choose
 *            another victim. A FOLL_GET reference (vmsplice, MSG_ZEROCOPY) is
 *            not seen and does not prevent the move.
 *   -EAGAIN  the kernel was busy with it (a bounded number of retries is made
 *            in here): as EBUSY.
 *   -EINVAL  @dst not registered with @fd, ranges crossing mappings, mlock or
 *            protection differ, not anonymous: a bug of the caller.
 *   -EINTR   the process is being killed.  -ENOMEM  no page table.
 *   -ESRCH   the address space is gone.
 *
 * 6.8 holds mmap_lock for reading, 6.9 and later a lock per mapping. Up to
 * 6.17 each page costs a TLB flush on every CPU that runs the process; 6.18
 * flushes once per run of pages that lie in one page table.
 */
ssize_t memx_uffd_move(int fd, void *dst, const void *src, size_t bytes,
                       unsigned flags);

/*
 * The same for pages that are known to be at @src, and not at @dst. Where the
 * kernel migrates pages at that moment (compaction, NUMA balancing), Linux
 * 6.18 moves a run, tries it again, and then says only that the pages are at
 * @dst already (-EEXIST), or counts too few: so what moved is looked up in
 * @pagemap_fd, /proc/self/pagemap, before an error is believed. Of what is
 * counted too little, the next call tells.
 */
ssize_t memx_uffd_move_sure(int fd, int pagemap_fd, void *dst,
                            const void *src, size_t bytes, unsigned flags);

/*
 * Copy @bytes at @src into new pages at @dst, all of which must be missing;
 * each appears whole. Threads waiting on the part done are woken, unless
 * MEMX_MOVE_DONTWAKE.
 *
 * @src may be any readable memory; if pages of it are missing in a registered
 * range the caller itself waits for them: never from the thread that serves.
 *
 * Returns the bytes copied before the first obstacle, > 0, or -errno:
 *   -EEXIST  a page is there already; nothing of it changed and nobody was
 *            woken, see memx_uffd_move().
 *   -ENOENT  @dst is not registered, not mapped, or crosses mappings.
 *   -EFAULT  @src is not readable.   -ENOMEM  no memory (memory cgroup).
 *   -EAGAIN  as above.               -ESRCH   the address space is gone.
 */
ssize_t memx_uffd_copy(int fd, void *dst, const void *src, size_t bytes,
                       unsigned flags);

/*
 * Wake all threads that wait for a page of [@hva, @hva + @bytes). One whose
 * page is still missing faults again and causes a new message, so a message
 * may be dropped as long as the page is woken later. Costs by the number of
 * waiting threads, not by the size of the range; a range without waiters is
 * fine. Returns 0 or -errno.
 */
int memx_uffd_wake(int fd, void *hva, size_t bytes);

/*
 * Read up to @n fault messages without waiting. Several threads may wait for
 * one page: each has its message. Returns how many, 0 when there is none, or
 * -errno.
 */
int memx_uffd_read(int fd, struct uffd_msg *msgs, int n);

/*
 * Is the page at @hva there (mapped, the zero page, swapped out or just being
 * migrated by the kernel), asked without touching it? @pagemap_fd is
 * /proc/self/pagemap, opened read-only by the process itself; it needs no
 * privilege. A racing MOVE may make the answer stale at once.
 * Returns 1, 0 (missing, or nothing mapped there), or -errno.
 */
int memx_page_mapped(int pagemap_fd, const void *hva);

/* How many of the @n pages (512 at most) from @hva on are there; or -errno. */
int memx_pages_mapped(int pagemap_fd, const void *hva, unsigned n);

#endif /* MEMX_UFFD_H */
