/*
 * Chunk history and the choice of a victim; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <sys/mman.h>
#include <string.h>
#include "history.h"

/* What a period is worth, the last one first: seven tenths of the one after;
 * in units of a 4096th of which a list has one. */
static const uint32_t worth[8] = {
    65536, 45875, 32113, 22479, 15735, 11015, 7710, 5397,
};

#define OFTEN_TIMES 10u     /* of a period: one that is touched in each */
#define RANK_SHIFT 12
#define PART 32             /* a period is of how often */
#define FRESH 1             /* marks: came in, */
#define KEPT 2              /* or is behind all others, in this period */
_Static_assert((205860 + 65535 * OFTEN_TIMES + 45875) >> RANK_SHIFT <
               MEMX_HISTORY_RANKS, "no more ranks than lists");

/* What one can still believe after so many periods in a row that were alike:
 * if more of all periods were unlike these, such a run would be a chance of
 * less than one in twenty.  1 - 0.05^(1/n), of UINT16_MAX. */
static const uint16_t unlike_max[9] = {
    65535, 62258, 50881, 41392, 34545, 29538, 25758, 22817, 20469,
};

static void set_tables(MemxHistory *h)
{
    for (unsigned v = 0; v < MEMX_HISTORY_VALUES; v++) {
        unsigned unlike = v & MEMX_HISTORY_TOP ? ~v & 0xff : v;

        h->unlike_max[v] = unlike_max[unlike ? __builtin_clz(unlike) - 24 : 8];
        for (unsigned age = 0; age < 8; age++) {
            h->worth[v] += v >> (7 - age) & 1 ? worth[age] : 0;
        }
    }
}

static unsigned rank_now(const MemxHistory *h, uint32_t c)
{
    if (h->mark[c] & KEPT) {
        return MEMX_HISTORY_RANKS - 1;
    }
    return (h->worth[h->value[c]] + h->often[c] * OFTEN_TIMES +
            (h->mark[c] ? worth[1] : 0)) >> RANK_SHIFT;
}

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
    h->often = (uint16_t *)(h->prev + n_chunks);
    h->value = (uint8_t *)(h->often + n_chunks);
    h->queue_of = h->value + n_chunks;
    h->rank = h->queue_of + n_chunks;
    h->mark = h->rank + n_chunks;
    for (uint32_t c = 0; c < n_chunks; c++) {
        h->prev[c] = c;
    }
    set_tables(h);
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
    return (uint64_t)h->n_chunks * (2 * sizeof(uint32_t) + sizeof(uint16_t) +
                                    4 * sizeof(uint8_t));
}

static void mark(MemxQueue *q, unsigned rank)
{
    uint64_t bit = 1ull << (rank % 64);

    if (q->head[rank] == MEMX_CHUNK_NONE) {
        q->nonempty[rank / 64] &= ~bit;
    } else {
        q->nonempty[rank / 64] |= bit;
    }
}

static MemxQueue *queue_of(MemxHistory *h, uint32_t c)
{
    return &h->queue[h->queue_of[c]];
}

static void append(MemxHistory *h, uint32_t c)
{
    MemxQueue *q = queue_of(h, c);
    unsigned rank = memx_history_rank(h, c);

    h->next[c] = MEMX_CHUNK_NONE;
    h->prev[c] = q->tail[rank];
    if (q->tail[rank] == MEMX_CHUNK_NONE) {
        q->head[rank] = c;
    } else {
        h->next[q->tail[rank]] = c;
    }
    q->tail[rank] = c;
    mark(q, rank);
    h->n_listed++;
    q->n_listed++;
}

static void unlink_chunk(MemxHistory *h, uint32_t c)
{
    MemxQueue *q = queue_of(h, c);
    unsigned rank = memx_history_rank(h, c);

    if (h->prev[c] == MEMX_CHUNK_NONE) {
        q->head[rank] = h->next[c];
    } else {
        h->next[h->prev[c]] = h->next[c];
    }
    if (h->next[c] == MEMX_CHUNK_NONE) {
        q->tail[rank] = h->prev[c];
    } else {
        h->prev[h->next[c]] = h->prev[c];
    }
    h->prev[c] = c;
    mark(q, rank);
    h->n_listed--;
    q->n_listed--;
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

/* It may have become colder or hotter. */
static void rerank(MemxHistory *h, uint32_t c)
{
    unsigned from = h->rank[c], to = rank_now(h, c);

    h->rank[c] = to;
    if (from != to && memx_history_listed(h, c)) {
        relink(h, queue_of(h, c), c, from, to);
    }
}

void memx_history_set(MemxHistory *h, uint32_t c, uint8_t value)
{
    h->value[c] = value;
    rerank(h, c);
}

/* How often, after a period; @value knows of it.  Without branches, which no
 * CPU could predict here. */
static uint16_t often_after(const MemxHistory *h, uint16_t often,
                            uint8_t value)
{
    unsigned flip = value & MEMX_HISTORY_TOP ? UINT16_MAX : 0;
    unsigned unlike = often ^ flip;
    int beyond;

    unlike -= unlike / PART;
    beyond = (int)unlike - h->unlike_max[value];
    return (unlike - (beyond > 0 ? beyond : 0) / 2) ^ flip;
}

void memx_history_fold(MemxHistory *h, uint32_t first, uint32_t n,
                       const uint64_t *touched, const uint64_t *left)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = first + i;
        unsigned hit = touched ? touched[i / 64] >> i % 64 & 1 : 0;
        unsigned old = h->value[c], value = old >> 1 | hit << 7;
        uint16_t often = often_after(h, h->often[c], value);

        if ((value == old && often == h->often[c] && !h->mark[c]) ||
            (left && left[i / 64] >> i % 64 & 1)) {
            continue;
        }
        h->value[c] = value;
        h->often[c] = often;
        h->mark[c] = 0;
        rerank(h, c);
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

void memx_history_evicted(MemxHistory *h, uint32_t c)
{
    h->mark[c] = 0;
    rerank(h, c);
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
    h->value[c] |= MEMX_HISTORY_TOP;
    h->mark[c] |= KEPT;
    rerank(h, c);
    memx_history_requeue(h, c);
}

bool memx_history_enter(MemxHistory *h, uint32_t c)
{
    bool comes = !h->mark[c] && !memx_history_listed(h, c);

    h->mark[c] |= FRESH;
    rerank(h, c);
    memx_history_requeue(h, c);
    return comes;
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

static uint32_t first_from(const MemxQueue *q, unsigned rank)
{
    for (unsigned i = rank / 64; i < MEMX_HISTORY_RANKS / 64; i++) {
        uint64_t word = q->nonempty[i];

        if (i == rank / 64) {
            word &= UINT64_MAX << rank % 64;
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
    return memx_history_rank(h, c) + 1 < MEMX_HISTORY_RANKS
           ? first_from(&h->queue[h->queue_of[c]],
                        memx_history_rank(h, c) + 1)
           : MEMX_CHUNK_NONE;
}
