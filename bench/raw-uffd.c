/*
 * Raw userfaultfd: see raw-uffd.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "pinning.h"
#include "raw-tcp.h"
#include "raw-uffd.h"
#include "uffd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MESSAGES 16
#define STOP_POLL_MS 100    /* one descriptor less to poll is faster */

struct RawUffd {
    char *base;
    uint64_t bytes;
    int fd;
    int tcp_fd;
    gint stop;
    GThread *handler;
};

char *plain_memory_new(uint64_t bytes)
{
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED) {
        g_error("cannot map %" G_GUINT64_FORMAT " bytes: %s", bytes,
                g_strerror(errno));
    }
    madvise(base, bytes, MADV_NOHUGEPAGE);
    return base;
}

static void answer(RawUffd *raw, uint64_t address, char *page)
{
    struct uffdio_copy copy = {
        .dst = address & ~(PAGE_BYTES - 1),
        .src = (uint64_t)(uintptr_t)page,
        .len = PAGE_BYTES,
    };

    if (raw->tcp_fd >= 0 &&
        raw_tcp_round_trip(raw->tcp_fd, page, PAGE_BYTES) != 0) {
        g_error("the raw TCP server is gone");
    }
    while (ioctl(raw->fd, UFFDIO_COPY, &copy) < 0) {
        if (errno == EEXIST) {
            /* Two threads waited for it. */
            struct uffdio_range range = { copy.dst, PAGE_BYTES };

            ioctl(raw->fd, UFFDIO_WAKE, &range);
            return;
        }
        if (errno != EAGAIN) {
            g_error("UFFDIO_COPY: %s", g_strerror(errno));
        }
    }
}

static gpointer handler_run(gpointer opaque)
{
    RawUffd *raw = opaque;
    struct pollfd pollfd = { raw->fd, POLLIN, 0 };
    struct uffd_msg message[MESSAGES];
    g_autofree char *page = g_malloc(PAGE_BYTES);

    memset(page, 7, PAGE_BYTES);
    while (!g_atomic_int_get(&raw->stop)) {
        ssize_t n;

        if (poll(&pollfd, 1, STOP_POLL_MS) <= 0) {
            continue;
        }
        n = read(raw->fd, message, sizeof message);
        for (ssize_t i = 0; i < n / (ssize_t)sizeof message[0]; i++) {
            answer(raw, message[i].arg.pagefault.address, page);
        }
    }
    return NULL;
}

RawUffd *raw_uffd_new(uint64_t bytes, int cpu, int tcp_fd, GError **error)
{
    RawUffd *raw;
    int fd = memx_uffd_open(0, NULL, error);

    if (fd < 0) {
        return NULL;
    }
    raw = g_new0(RawUffd, 1);
    raw->base = plain_memory_new(bytes);
    raw->bytes = bytes;
    raw->fd = fd;
    raw->tcp_fd = tcp_fd;
    if (!memx_uffd_register(fd, raw->base, bytes, error)) {
        munmap(raw->base, bytes);
        close(fd);
        g_free(raw);
        return NULL;
    }
    raw->handler = start_on(cpu, handler_run, raw);
    return raw;
}

void raw_uffd_free(RawUffd *raw)
{
    if (!raw) {
        return;
    }
    g_atomic_int_set(&raw->stop, 1);
    g_thread_join(raw->handler);
    munmap(raw->base, raw->bytes);
    close(raw->fd);
    g_free(raw);
}

char *raw_uffd_base(RawUffd *raw)
{
    return raw->base;
}

void raw_uffd_empty(RawUffd *raw)
{
    if (madvise(raw->base, raw->bytes, MADV_DONTNEED) < 0) {
        g_error("MADV_DONTNEED: %s", g_strerror(errno));
    }
}
