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
    h->queue_of = h->value + n_chunks;
    for (uint32_t c = 0; c < n_chunks; c++) {
        h->prev[c] = c;
    }
    for (unsigned q = 0; q < MEMX_QUEUES; q++) {
        memset(h->queue[q].head, 0xff, sizeof(h->queue[q].head));
        memset(h->queue[q].tail, 0xff, sizeof(h->queue[q].tail));
    }
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
    return (uint64_t)h->n_chunks * (2 * sizeof(uint32_t) + 2 * sizeof(uint8_t));
}

static void mark(MemxQueue *q, unsigned value)
{
    uint64_t bit = 1ull << (value % 64);

    if (q->head[value] == MEMX_CHUNK_NONE) {
        q->nonempty[value / 64] &= ~bit;
    } else {
        q->nonempty[value / 64] |= bit;
    }
}

static MemxQueue *queue_of(MemxHistory *h, uint32_t c)
{
    return &h->queue[h->queue_of[c]];
}

static void append(MemxHistory *h, uint32_t c)
{
    MemxQueue *q = queue_of(h, c);
    unsigned value = h->value[c];

    h->next[c] = MEMX_CHUNK_NONE;
    h->prev[c] = q->tail[value];
    if (q->tail[value] == MEMX_CHUNK_NONE) {
        q->head[value] = c;
    } else {
        h->next[q->tail[value]] = c;
    }
    q->tail[value] = c;
    mark(q, value);
    h->n_listed++;
}

static void unlink_chunk(MemxHistory *h, uint32_t c)
{
    MemxQueue *q = queue_of(h, c);
    unsigned value = h->value[c];

    if (h->prev[c] == MEMX_CHUNK_NONE) {
        q->head[value] = h->next[c];
    } else {
        h->next[h->prev[c]] = h->next[c];
    }
    if (h->next[c] == MEMX_CHUNK_NONE) {
        q->tail[value] = h->prev[c];
    } else {
        h->prev[h->next[c]] = h->prev[c];
    }
    h->prev[c] = c;
    mark(q, value);
    h->n_listed--;
}

void memx_history_set(MemxHistory *h, uint32_t c, uint8_t value)
{
    if (h->value[c] == value) {
        return;
    }
    if (memx_history_listed(h, c)) {
        unlink_chunk(h, c);
        h->value[c] = value;
        append(h, c);
    } else {
        h->value[c] = value;
    }
}

/* A listed chunk goes to the end of another list of its queue. */
static void relink(MemxHistory *h, MemxQueue *q, uint32_t c, unsigned from,
                   unsigned to)
{
    uint32_t next = h->next[c], prev = h->prev[c], tail = q->tail[to];

    if (prev == MEMX_CHUNK_NONE) {
        q->head[from] = next;
        mark(q, from);
    } else {
        h->next[prev] = next;
    }
    if (next == MEMX_CHUNK_NONE) {
        q->tail[from] = prev;
    } else {
        h->prev[next] = prev;
    }
    h->next[c] = MEMX_CHUNK_NONE;
    h->prev[c] = tail;
    q->tail[to] = c;
    if (tail == MEMX_CHUNK_NONE) {
        q->head[to] = c;
        mark(q, to);
    } else {
        h->next[tail] = c;
    }
}

void memx_history_fold(MemxHistory *h, uint32_t first, uint32_t n,
                       const uint64_t *touched, const uint64_t *left)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = first + i;
        unsigned hit = touched ? touched[i / 64] >> i % 64 & 1 : 0;
        unsigned old = h->value[c], value = old >> 1 | hit << 7;

        if (value == old || (left && left[i / 64] >> i % 64 & 1)) {
            continue;
        }
        h->value[c] = value;
        if (memx_history_listed(h, c)) {
            relink(h, queue_of(h, c), c, old, value);
        }
    }
}

void memx_history_list(MemxHistory *h, uint32_t c)
{
    if (!memx_history_listed(h, c)) {
        append(h, c);
    }
}

void memx_history_unlist(MemxHistory *h, uint32_t c)
{
    if (memx_history_listed(h, c)) {
        unlink_chunk(h, c);
    }
}

void memx_history_requeue(MemxHistory *h, uint32_t c)
{
    if (memx_history_listed(h, c)) {
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

void memx_history_enter(MemxHistory *h, uint32_t c)
{
    if (h->value[c] >= MEMX_HISTORY_NEW) {
        memx_history_requeue(h, c);
    } else {
        memx_history_set(h, c, MEMX_HISTORY_NEW);
    }
}

void memx_history_move(MemxHistory *h, uint32_t c, unsigned queue)
{
    bool was_listed = memx_history_listed(h, c);

    if (was_listed) {
        unlink_chunk(h, c);
    }
    h->queue_of[c] = queue;
    if (was_listed) {
        append(h, c);
    }
}

static uint32_t first_from(const MemxQueue *q, unsigned value)
{
    for (unsigned i = value / 64; i < MEMX_HISTORY_VALUES / 64; i++) {
        uint64_t word = q->nonempty[i];

        if (i == value / 64) {
            word &= UINT64_MAX << value % 64;
        }
        if (word) {
            return q->head[i * 64 + __builtin_ctzll(word)];
        }
    }
    return MEMX_CHUNK_NONE;
}

uint32_t memx_history_victim(const MemxHistory *h, unsigned queue)
{
    return first_from(&h->queue[queue], 0);
}

uint32_t memx_history_after(const MemxHistory *h, uint32_t c)
{
    if (h->next[c] != MEMX_CHUNK_NONE) {
        return h->next[c];
    }
    return h->value[c] + 1u < MEMX_HISTORY_VALUES
           ? first_from(&h->queue[h->queue_of[c]], h->value[c] + 1u)
           : MEMX_CHUNK_NONE;
}
