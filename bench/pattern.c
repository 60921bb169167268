/*
 * Pattern: see pattern.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"

#define WORDS (4096 / sizeof(uint64_t))

void pattern_fill(void *memory, uint64_t page, uint32_t generation)
{
    uint64_t *word = memory;
    Random random = { pattern_stamp(page, generation) | 1 };

    for (size_t i = 0; i < WORDS / 2; i++) {
        word[i] = random_next(&random);
    }
    for (size_t i = WORDS / 2; i < WORDS; i++) {
        word[i] = page;
    }
    pattern_write(memory, page, generation);
}

void pattern_fill_pages(void *base, uint64_t first, uint64_t pages,
                        uint32_t generation)
{
    for (uint64_t page = first; page < first + pages; page++) {
        pattern_fill((char *)base + page * 4096, page, generation);
    }
}

void random_order(Random *random, uint32_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t j = random_below(random, i + 1);

        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
}
