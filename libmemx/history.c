/*
 * Chunk history and the choice of a victim; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <sys/mman.h>
#include <string.h>
#include "history.h"

bool memx_history_init(MemxHistory *h, uint32_t n_chunks)
{
    uint8_t *base;

    memset(h, 0, sizeof(*h));
    h->n_chunks = n_chunks;
    base = mmap(NULL, memx_history_bytes(h), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return false;
    }
    h->next = (uint32_t *)base;
    h->prev = h->next + n_chunks;
    h->value = (uint8_t *)(h->prev + n_chunks);
    for (uint32_t c = 0; c < n_chunks; c++) {
        h->prev[c] = c;
    }
    memset(h->head, 0xff, sizeof(h->head));
    memset(h->tail, 0xff, sizeof(h->tail));
    return true;
}

void memx_history_destroy(MemxHistory *h)
{
    if (h->next) {
        munmap(h->next, memx_history_bytes(h));
        h->next = NULL;
    }
}

uint64_t memx_history_bytes(const MemxHistory *h)
{
    return (uint64_t)h->n_chunks * (2 * sizeof(uint32_t) + sizeof(uint8_t));
}

static void mark(MemxHistory *h, unsigned value)
{
    uint64_t bit = 1ull << (value % 64);

    if (h->head[value] == MEMX_CHUNK_NONE) {
        h->nonempty[value / 64] &= ~bit;
    } else {
        h->nonempty[value / 64] |= bit;
    }
}

static bool listed(const MemxHistory *h, uint32_t c)
{
    return h->prev[c] != c;
}

static void append(MemxHistory *h, uint32_t c)
{
    unsigned value = h->value[c];

    h->next[c] = MEMX_CHUNK_NONE;
    h->prev[c] = h->tail[value];
    if (h->tail[value] == MEMX_CHUNK_NONE) {
        h->head[value] = c;
    } else {
        h->next[h->tail[value]] = c;
    }
    h->tail[value] = c;
    mark(h, value);
    h->n_listed++;
}

static void unlink_chunk(MemxHistory *h, uint32_t c)
{
    unsigned value = h->value[c];

    if (h->prev[c] == MEMX_CHUNK_NONE) {
        h->head[value] = h->next[c];
    } else {
        h->next[h->prev[c]] = h->next[c];
    }
    if (h->next[c] == MEMX_CHUNK_NONE) {
        h->tail[value] = h->prev[c];
    } else {
        h->prev[h->next[c]] = h->prev[c];
    }
    h->prev[c] = c;
    mark(h, value);
    h->n_listed--;
}

void memx_history_set(MemxHistory *h, uint32_t c, uint8_t value)
{
    if (h->value[c] == value) {
        return;
    }
    if (listed(h, c)) {
        unlink_chunk(h, c);
        h->value[c] = value;
        append(h, c);
    } else {
        h->value[c] = value;
    }
}

/* List @from goes behind list @to. */
static void splice(MemxHistory *h, unsigned to, unsigned from)
{
    if (to == from || h->head[from] == MEMX_CHUNK_NONE) {
        return;
    }
    if (h->tail[to] == MEMX_CHUNK_NONE) {
        h->head[to] = h->head[from];
    } else {
        h->next[h->tail[to]] = h->head[from];
        h->prev[h->head[from]] = h->tail[to];
    }
    h->tail[to] = h->tail[from];
    h->head[from] = MEMX_CHUNK_NONE;
    h->tail[from] = MEMX_CHUNK_NONE;
    mark(h, to);
    mark(h, from);
}

void memx_history_age(MemxHistory *h)
{
    uint8_t *restrict value = h->value;
    uint32_t n = h->n_chunks;

    for (uint32_t c = 0; c < n; c++) {
        value[c] >>= 1;
    }
    for (unsigned v = 1; v < MEMX_HISTORY_VALUES; v++) {
        splice(h, v / 2, v);
    }
    h->period++;
}

void memx_history_list(MemxHistory *h, uint32_t c)
{
    if (!listed(h, c)) {
        append(h, c);
    }
}

void memx_history_unlist(MemxHistory *h, uint32_t c)
{
    if (listed(h, c)) {
        unlink_chunk(h, c);
    }
}

void memx_history_requeue(MemxHistory *h, uint32_t c)
{
    if (listed(h, c)) {
        unlink_chunk(h, c);
        append(h, c);
    }
}

void memx_history_touch(MemxHistory *h, uint32_t c)
{
    if (h->value[c] & MEMX_HISTORY_TOP) {
        memx_history_requeue(h, c);
    } else {
        memx_history_set(h, c, h->value[c] | MEMX_HISTORY_TOP);
    }
}

static uint32_t first_from(const MemxHistory *h, unsigned value)
{
    for (unsigned i = value / 64; i < MEMX_HISTORY_VALUES / 64; i++) {
        uint64_t word = h->nonempty[i];

        if (i == value / 64) {
            word &= UINT64_MAX << value % 64;
        }
        if (word) {
            return h->head[i * 64 + __builtin_ctzll(word)];
        }
    }
    return MEMX_CHUNK_NONE;
}

uint32_t memx_history_victim(const MemxHistory *h)
{
    return first_from(h, 0);
}

uint32_t memx_history_after(const MemxHistory *h, uint32_t c)
{
    if (h->next[c] != MEMX_CHUNK_NONE) {
        return h->next[c];
    }
    return h->value[c] + 1u < MEMX_HISTORY_VALUES
           ? first_from(h, h->value[c] + 1u) : MEMX_CHUNK_NONE;
}
