/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * userfaultfd: thin, exact wrappers of what the pager uses. See uffd.h.
 */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define DEV_USERFAULTFD "/dev/userfaultfd"

/* EAGAIN of a whole call means a race that is over in microseconds. */
#define EAGAIN_RETRIES 16

/* Bits of a /proc/PID/pagemap entry (Documentation/admin-guide/mm/pagemap) */
#define PAGEMAP_AT_ONCE 512
#define PAGEMAP_SWAPPED (1ULL << 62)
#define PAGEMAP_PRESENT (1ULL << 63)

static int uffd_open_dev(void)
{
    const int flags = O_CLOEXEC | O_NONBLOCK;
    int dev_fd, fd, saved;

    dev_fd = open(DEV_USERFAULTFD, O_RDWR | O_CLOEXEC);
    if (dev_fd < 0) {
        return -1;
    }
    fd = ioctl(dev_fd, USERFAULTFD_IOC_NEW, flags);
    saved = errno;
    close(dev_fd);
    errno = saved;
    return fd;
}

/* A descriptor before its API handshake. */
static int uffd_open_raw(GError **error)
{
    int fd, dev_errno;

    fd = uffd_open_dev();
    if (fd >= 0) {
        return fd;
    }
    dev_errno = errno;

    /* Without UFFD_USER_MODE_ONLY, which would lose the kernel's faults. */
    fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) {
        return fd;
    }

    if (errno == EPERM) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_PERM,
                    "userfaultfd is not permitted to this process (%s: %s): "
                    "give its user access to %s (chown, or a udev rule), "
                    "or set the sysctl vm.unprivileged_userfaultfd=1",
                    DEV_USERFAULTFD, g_strerror(dev_errno), DEV_USERFAULTFD);
    } else if (errno == ENOSYS) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOSYS,
                    "no userfaultfd: the kernel lacks CONFIG_USERFAULTFD, or "
                    "a seccomp filter forbids it (%s: %s); run Linux 6.8 or "
                    "later with it, or allow the system call",
                    DEV_USERFAULTFD, g_strerror(dev_errno));
    } else {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "cannot open a userfaultfd: %s (%s: %s)",
                    g_strerror(errno), DEV_USERFAULTFD,
                    g_strerror(dev_errno));
    }
    return -1;
}

/* The handshake, once per descriptor: the kernel answers with all it has. */
static bool uffd_handshake(int fd, uint64_t features, uint64_t *available,
                           GError **error)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };

    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "userfaultfd: the kernel refuses features 0x%" PRIx64
                    ": %s", features, g_strerror(errno));
        return false;
    }
    *available = api.features;
    return true;
}

static bool uffd_probe(uint64_t *available, GError **error)
{
    int fd = uffd_open_raw(error);
    bool ok;

    if (fd < 0) {
        return false;
    }
    ok = uffd_handshake(fd, 0, available, error);
    close(fd);
    return ok;
}

int memx_uffd_open(uint64_t features_wanted, uint64_t *features_got,
                   GError **error)
{
    uint64_t available, features;
    int fd;

    if (sysconf(_SC_PAGESIZE) != PAGE_BYTES) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOSYS,
                    "this kernel has pages of %ld bytes: memx needs one with "
                    "pages of %d", sysconf(_SC_PAGESIZE), PAGE_BYTES);
        return -1;
    }
    if (!uffd_probe(&available, error)) {
        return -1;
    }
    if (!(available & UFFD_FEATURE_MOVE)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOSYS,
                    "this kernel's userfaultfd cannot move pages "
                    "(UFFD_FEATURE_MOVE): run Linux 6.8 or later (on Debian "
                    "12 the kernel of bookworm-backports)");
        return -1;
    }

    features = (features_wanted & available) | UFFD_FEATURE_MOVE;
    fd = uffd_open_raw(error);
    if (fd < 0) {
        return -1;
    }
    if (!uffd_handshake(fd, features, &available, error)) {
        close(fd);
        return -1;
    }
    if (features_got) {
        *features_got = features;
    }
    return fd;
}

bool memx_uffd_register(int fd, void *hva, size_t bytes, GError **error)
{
    const uint64_t needed = 1ULL << _UFFDIO_WAKE | 1ULL << _UFFDIO_COPY |
                            1ULL << _UFFDIO_MOVE;
    struct uffdio_register reg = {
        .range = { .start = (uintptr_t)hva, .len = bytes },
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };

    if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "cannot register %zu bytes at %p with userfaultfd: %s%s",
                    bytes, hva, g_strerror(errno),
                    errno == EBUSY ? " (another userfaultfd of this process "
                    "has it; postcopy or background snapshot active?)" :
                    errno == EINVAL ? " (not page-aligned, not mapped "
                    "throughout, or not anonymous private memory)" : "");
        return false;
    }
    if ((reg.ioctls & needed) != needed) {
        memx_uffd_unregister(fd, hva, bytes, NULL);
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "the memory at %p (%zu bytes) is of a kind whose pages "
                    "userfaultfd cannot move: use anonymous private memory",
                    hva, bytes);
        return false;
    }
    return true;
}

bool memx_uffd_register_rwp(int fd, void *hva, size_t bytes, bool missing,
                            GError **error)
{
    struct uffdio_register reg = {
        .range = { .start = (uintptr_t)hva, .len = bytes },
        .mode = UFFDIO_REGISTER_MODE_RWP |
                (missing ? UFFDIO_REGISTER_MODE_MISSING : 0),
    };

    if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "cannot register %zu bytes at %p with userfaultfd for "
                    "read-write protection: %s%s", bytes, hva,
                    g_strerror(errno), errno == EBUSY ? " (another "
                    "userfaultfd of this process has it; postcopy or "
                    "background snapshot active?)" : "");
        return false;
    }
    return true;
}

int memx_uffd_rwprotect(int fd, void *hva, size_t bytes)
{
    struct uffdio_rwprotect protect = {
        .range = { .start = (uintptr_t)hva, .len = bytes },
        .mode = UFFDIO_RWPROTECT_MODE_RWP,
    };

    for (int i = 0; i < EAGAIN_RETRIES; i++) {
        if (ioctl(fd, UFFDIO_RWPROTECT, &protect) == 0) {
            return 0;
        }
        if (errno != EAGAIN) {
            break;
        }
    }
    return -errno;
}

bool memx_uffd_unregister(int fd, void *hva, size_t bytes, GError **error)
{
    struct uffdio_range range = { .start = (uintptr_t)hva, .len = bytes };

    if (ioctl(fd, UFFDIO_UNREGISTER, &range) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno),
                    "cannot unregister %zu bytes at %p from userfaultfd: %s",
                    bytes, hva, g_strerror(errno));
        return false;
    }
    return true;
}

/*
 * What MOVE and COPY have in common: on failure the kernel puts the bytes
 * done into the last field if there are any (errno is EAGAIN then), else
 * -errno. Kernels before 6.15 leave that field alone for some EAGAINs, so it
 * is zeroed first.
 *
 * Fault path.
 */
ssize_t memx_uffd_move(int fd, void *dst, const void *src, size_t bytes,
                       unsigned flags)
{
    struct uffdio_move move = {
        .dst = (uintptr_t)dst,
        .src = (uintptr_t)src,
        .len = bytes,
        .mode = (flags & MEMX_MOVE_ALLOW_HOLES ?
                 UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES : 0) |
                (flags & MEMX_MOVE_DONTWAKE ?
                 UFFDIO_MOVE_MODE_DONTWAKE : 0),
    };

    for (int i = 0; i < EAGAIN_RETRIES; i++) {
        move.move = 0;
        if (ioctl(fd, UFFDIO_MOVE, &move) == 0 || move.move > 0) {
            return move.move;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
    }
    return -EAGAIN;
}

ssize_t memx_uffd_move_sure(int fd, int pagemap_fd, void *dst,
                            const void *src, size_t bytes, unsigned flags)
{
    ssize_t done = memx_uffd_move(fd, dst, src, bytes, flags);
    size_t moved = 0;

    if (done > 0) {
        return done;
    }
    while (moved < bytes &&
           memx_page_mapped(pagemap_fd, (uint8_t *)dst + moved) > 0 &&
           memx_page_mapped(pagemap_fd, (const uint8_t *)src + moved) == 0) {
        moved += PAGE_BYTES;
    }
    if (moved && !(flags & MEMX_MOVE_DONTWAKE)) {
        memx_uffd_wake(fd, dst, moved);
    }
    return moved ? (ssize_t)moved : done;
}

/* Fault path. */
ssize_t memx_uffd_copy(int fd, void *dst, const void *src, size_t bytes,
                       unsigned flags)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)dst,
        .src = (uintptr_t)src,
        .len = bytes,
        .mode = flags & MEMX_MOVE_DONTWAKE ? UFFDIO_COPY_MODE_DONTWAKE : 0,
    };

    for (int i = 0; i < EAGAIN_RETRIES; i++) {
        copy.copy = 0;
        if (ioctl(fd, UFFDIO_COPY, &copy) == 0 || copy.copy > 0) {
            return copy.copy;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
    }
    return -EAGAIN;
}

/* Fault path. */
int memx_uffd_wake(int fd, void *hva, size_t bytes)
{
    struct uffdio_range range = { .start = (uintptr_t)hva, .len = bytes };

    return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

/* Fault path. */
int memx_uffd_read(int fd, struct uffd_msg *msgs, int n)
{
    ssize_t got;

    do {
        got = read(fd, msgs, n * sizeof(msgs[0]));
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    return got / sizeof(msgs[0]);
}

/* Fault path. */
int memx_pages_mapped(int pagemap_fd, const void *hva, unsigned n)
{
    uint64_t entry[PAGEMAP_AT_ONCE];
    off_t at = (uintptr_t)hva / PAGE_BYTES * sizeof(entry[0]);
    int mapped = 0;
    ssize_t got;

    g_assert(n <= PAGEMAP_AT_ONCE);
    do {
        got = pread(pagemap_fd, entry, n * sizeof(entry[0]), at);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return -errno;
    }
    if (got != (ssize_t)(n * sizeof(entry[0]))) {
        return -EIO;
    }
    for (unsigned i = 0; i < n; i++) {
        mapped += (entry[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) != 0;
    }
    return mapped;
}

int memx_page_mapped(int pagemap_fd, const void *hva)
{
    return memx_pages_mapped(pagemap_fd, hva, 1);
}
