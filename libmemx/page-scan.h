/*
 * Which pages of this process's memory are there.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PAGE_SCAN_H
#define MEMX_PAGE_SCAN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* Sets a bit in @there for each page of [@memory, @memory + @bytes) that has a
 * frame of its own or is swapped out; not for those that are missing, nor for
 * those that are only read so far and show the kernel's page of zeros.
 * @pagemap_fd: /proc/self/pagemap. */
bool memx_page_scan(int pagemap_fd, const void *memory, uint64_t bytes,
                    uint64_t *there, GError **error);

#endif
