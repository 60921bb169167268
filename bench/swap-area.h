/*
 * Swap area: a file or a zram device that the kernel swaps to.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_SWAP_AREA_H
#define BENCH_SWAP_AREA_H

#include <glib.h>
#include <stdint.h>

typedef struct SwapArea SwapArea;

/* @directory: on a file system that can hold one (not tmpfs, not btrfs
 * without care). */
SwapArea *swap_area_file_new(const char *directory, uint64_t bytes,
                             GError **error);

/* A device of our own, compressing with lz4 where there is a choice. */
SwapArea *swap_area_zram_new(uint64_t bytes, GError **error);

/* Nobody's memory should be in it any more: end them first. */
void swap_area_free(SwapArea *area);

#endif
