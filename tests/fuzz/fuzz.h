/*
 * What the fuzz targets share.  A target is one file with
 * LLVMFuzzerTestOneInput(): linked with libFuzzer, or with fuzz-main.c,
 * which runs a corpus and then mutations of it that are the same each time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Not assert(): it must hold with NDEBUG too. */
#define FUZZ_CHECK(condition)                                              \
    do {                                                                   \
        if (!(condition)) {                                                \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__,         \
                    __LINE__, #condition);                                 \
            abort();                                                       \
        }                                                                  \
    } while (0)

#endif
