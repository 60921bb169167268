/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel reading into and writing from the region: read(2), write(2),
 * O_DIRECT, and pinned buffers of io_uring.
 */
#ifndef KERNEL_IO_H
#define KERNEL_IO_H

#include <glib.h>
#include "shadow-array.h"

typedef struct KernelIo KernelIo;

/* Says what this machine can't do. */
KernelIo *kernel_io_new(Shadow *shadow, uint32_t seed);
void kernel_io_free(KernelIo *io);
/* Does one thing to some claimed pages; by one thread. */
void kernel_io_step(KernelIo *io);
/* Prints how much of each was done. */
void kernel_io_print(const KernelIo *io);

#endif
