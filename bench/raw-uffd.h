/*
 * Raw userfaultfd: what any user-space paging pays at least.
 *
 * Anonymous memory without huge pages whose faults one handler thread
 * answers: poll, read, UFFDIO_COPY of 4 KiB; before the copy it makes, if
 * asked to, a raw TCP round trip of 4 KiB.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_RAW_UFFD_H
#define BENCH_RAW_UFFD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct RawUffd RawUffd;

/* @cpu: the handler's.  @tcp_fd: a raw TCP connection, or -1. */
RawUffd *raw_uffd_new(uint64_t bytes, int cpu, int tcp_fd, GError **error);
void raw_uffd_free(RawUffd *raw);
char *raw_uffd_base(RawUffd *raw);

/* Makes every page missing again. */
void raw_uffd_empty(RawUffd *raw);

/* Anonymous memory without huge pages; munmap() it. */
char *plain_memory_new(uint64_t bytes);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(RawUffd, raw_uffd_free)

#endif
