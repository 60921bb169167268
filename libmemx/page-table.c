/*
 * The network page table; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <sys/mman.h>
#include "page-table.h"

static uint64_t trim_words(const MemxPageTable *t)
{
    return ((uint64_t)t->n_chunks + 63) / 64;
}

static uint64_t table_bytes(const MemxPageTable *t, uint64_t *stored_at,
                            uint64_t *trim_at, uint64_t *chunk_at)
{
    uint64_t at = t->n_groups * sizeof(uint64_t);

    *stored_at = at;
    at += t->n_groups * sizeof(uint64_t);
    *trim_at = at;
    at += trim_words(t) * sizeof(uint64_t);
    *chunk_at = at;
    return at + (uint64_t)t->n_chunks * sizeof(MemxChunk);
}

bool memx_page_table_init(MemxPageTable *t, uint64_t n_pages,
                          uint64_t chunk_bytes)
{
    uint64_t chunk_pages = chunk_bytes / MEMX_PAGE_BYTES;
    uint64_t stored_at, trim_at, chunk_at, bytes;
    uint8_t *base;

    *t = (MemxPageTable) {
        .n_pages = n_pages,
        .n_groups = (n_pages + MEMX_GROUP_PAGES - 1) / MEMX_GROUP_PAGES,
        .n_chunks = (n_pages + chunk_pages - 1) / chunk_pages,
        .chunk_shift = __builtin_ctzll(chunk_pages),
        .groups_per_chunk = chunk_pages / MEMX_GROUP_PAGES,
    };
    bytes = table_bytes(t, &stored_at, &trim_at, &chunk_at);
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return false;
    }
    t->present = (uint64_t *)base;
    t->stored = (uint64_t *)(base + stored_at);
    t->trim = (uint64_t *)(base + trim_at);
    t->chunk = (MemxChunk *)(base + chunk_at);
    for (uint32_t c = 0; c < t->n_chunks; c++) {
        t->chunk[c].server = t->chunk[c].old = MEMX_SERVER_NONE;
    }
    return true;
}

void memx_page_table_destroy(MemxPageTable *t)
{
    if (t->present) {
        munmap(t->present, memx_page_table_bytes(t));
        t->present = NULL;
    }
}

uint64_t memx_page_table_bytes(const MemxPageTable *t)
{
    uint64_t stored_at, trim_at, chunk_at;

    return table_bytes(t, &stored_at, &trim_at, &chunk_at);
}

static unsigned chunk_pages(const MemxPageTable *t, const uint64_t *words,
                            uint32_t c)
{
    uint64_t end = memx_group_end(t, c);
    unsigned pages = 0;

    for (uint64_t g = memx_group_of_chunk(t, c); g < end; g++) {
        pages += memx_mask_pages(words[g]);
    }
    return pages;
}

unsigned memx_chunk_present_pages(const MemxPageTable *t, uint32_t c)
{
    return chunk_pages(t, t->present, c);
}

unsigned memx_chunk_stored_pages(const MemxPageTable *t, uint32_t c)
{
    return chunk_pages(t, t->stored, c);
}

void memx_trim_set(MemxPageTable *t, uint32_t c)
{
    uint64_t bit = 1ull << (c % 64);

    if (!(t->trim[c / 64] & bit)) {
        t->trim[c / 64] |= bit;
        t->n_trim++;
    }
}

uint32_t memx_trim_take(MemxPageTable *t)
{
    uint64_t words = trim_words(t);

    if (!t->n_trim) {
        return UINT32_MAX;
    }
    /* From the cursor to the end, from the start up to the cursor's word. */
    for (uint64_t i = 0; i <= words; i++) {
        uint64_t w = (t->trim_cursor / 64 + i) % words;
        uint64_t word = t->trim[w];

        if (!i) {
            word &= UINT64_MAX << t->trim_cursor % 64;
        }
        if (word) {
            uint32_t c = w * 64 + __builtin_ctzll(word);

            t->trim[w] &= ~(1ull << c % 64);
            t->n_trim--;
            t->trim_cursor = (c + 1) % t->n_chunks;
            return c;
        }
    }
    return UINT32_MAX;
}
