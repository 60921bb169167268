/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel reading into and writing from the region; see the header.
 *
 * A file holds pages generated from their number.  What is read from it
 * becomes a page's base; what is written goes to the file's second half, and
 * is compared there with what the page must hold.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernel-io.h"
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

#define FILE_PAGES 512
#define RUN_MAX 48          /* pages at a time */
#define KEY(page) (0x5eed000000ull + (page))

struct KernelIo {
    Shadow *shadow;
    GRand *rand;
    int fd;
    int direct_fd;          /* or -1 */
    bool have_ring;
    uint64_t *buffer;       /* RUN_MAX pages, aligned */
    unsigned reads, writes, direct_reads, direct_writes, pinned;
#ifdef HAVE_LIBURING
    struct io_uring ring;
#endif
};

static void *page_at(Shadow *s, uint64_t page)
{
    return s->region + page * PAGE_WORDS;
}

static int open_file(int flags, const char *path)
{
    return open(path, flags | O_RDWR | O_CLOEXEC, 0600);
}

static void make_file(KernelIo *io)
{
    g_autofree char *path = g_build_filename(g_get_tmp_dir(),
                                             "memx-shadow-XXXXXX", NULL);

    io->fd = g_mkstemp(path);
    g_assert_cmpint(io->fd, >=, 0);
    io->direct_fd = open_file(O_DIRECT, path);
    unlink(path);
    for (unsigned i = 0; i < FILE_PAGES; i++) {
        shadow_base_words(KEY(i), io->buffer);
        g_assert_cmpint(pwrite(io->fd, io->buffer, PAGE_BYTES,
                               i * PAGE_BYTES), ==, PAGE_BYTES);
    }
    g_assert_no_errno(ftruncate(io->fd, 2 * FILE_PAGES * PAGE_BYTES));
    g_assert_no_errno(fsync(io->fd));
    /* Some file systems let it be opened, but refuse to read. */
    if (io->direct_fd >= 0 &&
        pread(io->direct_fd, io->buffer, PAGE_BYTES, 0) != PAGE_BYTES) {
        close(io->direct_fd);
        io->direct_fd = -1;
    }
    if (io->direct_fd < 0) {
        printf("# no O_DIRECT: the file system of %s refuses it\n",
               g_get_tmp_dir());
    }
}

KernelIo *kernel_io_new(Shadow *shadow, uint32_t seed)
{
    KernelIo *io = g_new0(KernelIo, 1);

    io->shadow = shadow;
    io->rand = g_rand_new_with_seed(seed);
    io->buffer = aligned_alloc(PAGE_BYTES, RUN_MAX * PAGE_BYTES);
    make_file(io);
#ifdef HAVE_LIBURING
    int err = io_uring_queue_init(8, &io->ring, 0);

    io->have_ring = !err;
    if (err) {
        printf("# no pinned I/O: io_uring: %s\n", g_strerror(-err));
    }
#else
    printf("# no pinned I/O: built without liburing\n");
#endif
    return io;
}

void kernel_io_free(KernelIo *io)
{
#ifdef HAVE_LIBURING
    if (io->have_ring) {
        io_uring_queue_exit(&io->ring);
    }
#endif
    close(io->fd);
    if (io->direct_fd >= 0) {
        close(io->direct_fd);
    }
    free(io->buffer);
    g_rand_free(io->rand);
    g_free(io);
}

/* All of it, in as many pieces as it takes. */
static void transfer(int fd, void *at, uint64_t bytes, uint64_t offset,
                     bool write)
{
    while (bytes) {
        ssize_t n = write ? pwrite(fd, at, bytes, offset)
                          : pread(fd, at, bytes, offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            g_error("%s the region: %s", write ? "writing from"
                    : "reading into", n ? g_strerror(errno) : "end of file");
        }
        at = (char *)at + n;
        bytes -= n;
        offset += n;
    }
}

static void filled(KernelIo *io, uint64_t first, uint64_t n, uint64_t from)
{
    for (uint64_t i = 0; i < n; i++) {
        shadow_set_base(io->shadow, first + i, KEY(from + i));
        shadow_verify_page(io->shadow, first + i);
    }
}

static void read_into(KernelIo *io, int fd, uint64_t first, uint64_t n)
{
    uint64_t from = g_rand_int_range(io->rand, 0, FILE_PAGES - n + 1);

    transfer(fd, page_at(io->shadow, first), n * PAGE_BYTES,
             from * PAGE_BYTES, false);
    filled(io, first, n, from);
}

static void write_from(KernelIo *io, int fd, uint64_t first, uint64_t n)
{
    uint64_t at = FILE_PAGES * PAGE_BYTES, words[PAGE_WORDS];

    transfer(fd, page_at(io->shadow, first), n * PAGE_BYTES, at, true);
    transfer(fd, io->buffer, n * PAGE_BYTES, at, false);
    for (uint64_t i = 0; i < n; i++) {
        shadow_expect(io->shadow, first + i, words);
        if (memcmp(words, io->buffer + i * PAGE_WORDS, PAGE_BYTES)) {
            g_error("WRONG BYTES: write(2) wrote something else from page %"
                    G_GUINT64_FORMAT, first + i);
        }
    }
}

#ifdef HAVE_LIBURING
/* Pins the pages, lets others run for a while, and only then has the kernel
 * write into them: an eviction in between must leave them where they are. */
static void read_pinned(KernelIo *io, uint64_t first, uint64_t n)
{
    uint64_t from = g_rand_int_range(io->rand, 0, FILE_PAGES - n + 1);
    struct iovec iov = { page_at(io->shadow, first), n * PAGE_BYTES };
    int fd = io->direct_fd >= 0 ? io->direct_fd : io->fd;
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    int err = io_uring_register_buffers(&io->ring, &iov, 1);

    if (err) {
        printf("# no more pinned I/O: %s\n", g_strerror(-err));
        io->have_ring = false;
        return;
    }
    g_usleep(g_rand_int_range(io->rand, 0, 20000));
    sqe = io_uring_get_sqe(&io->ring);
    io_uring_prep_read_fixed(sqe, fd, iov.iov_base, iov.iov_len,
                             from * PAGE_BYTES, 0);
    g_assert_cmpint(io_uring_submit(&io->ring), ==, 1);
    do {
        err = io_uring_wait_cqe(&io->ring, &cqe);
    } while (err == -EINTR);
    g_assert_cmpint(err, ==, 0);
    g_assert_cmpint(cqe->res, ==, (int)iov.iov_len);
    io_uring_cqe_seen(&io->ring, cqe);
    filled(io, first, n, from);
    g_assert_cmpint(io_uring_unregister_buffers(&io->ring), ==, 0);
    io->pinned += n;
}
#else
static void read_pinned(KernelIo *io, uint64_t first, uint64_t n)
{
}
#endif

void kernel_io_step(KernelIo *io)
{
    Shadow *s = io->shadow;
    uint64_t first = g_rand_int(io->rand) % s->n_pages;
    uint64_t n = shadow_claim(s, first,
                              g_rand_int_range(io->rand, 1, RUN_MAX + 1));

    if (!n) {
        return;
    }
    switch (g_rand_int_range(io->rand, 0, 5)) {
    case 0:
        read_into(io, io->fd, first, n);
        io->reads += n;
        break;
    case 1:
        write_from(io, io->fd, first, n);
        io->writes += n;
        break;
    case 2:
        if (io->direct_fd >= 0) {
            read_into(io, io->direct_fd, first, n);
            io->direct_reads += n;
        }
        break;
    case 3:
        if (io->direct_fd >= 0) {
            write_from(io, io->direct_fd, first, n);
            io->direct_writes += n;
        }
        break;
    default:
        if (io->have_ring) {
            read_pinned(io, first, n);
        }
    }
    shadow_unclaim(s, first, n);
}

void kernel_io_print(const KernelIo *io)
{
    printf("# kernel I/O, pages: %u read, %u written, %u read and %u written "
           "with O_DIRECT, %u read into pinned memory\n", io->reads,
           io->writes, io->direct_reads, io->direct_writes, io->pinned);
}
