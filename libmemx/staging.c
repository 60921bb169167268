/*
 * Staging; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include <sys/mman.h>
#include "staging.h"

static unsigned bucket(uint64_t group)
{
    return (group * 0x9e3779b97f4a7c15ull) >> 54;
}

G_STATIC_ASSERT(MEMX_STAGING_HASH == 1 << (64 - 54));

bool memx_staging_init(MemxStaging *st, unsigned n_slots)
{
    *st = (MemxStaging) {
        .n_slots = n_slots,
        .bytes = (uint64_t)n_slots * MEMX_GROUP_BYTES,
        .n_free = n_slots,
        .out_max = n_slots - n_slots / 3,
        .in_max = n_slots - n_slots / 3,
    };
    memset(st->hash, 0xff, sizeof(st->hash));
    if (!n_slots) {
        return true;
    }
    st->base = mmap(NULL, st->bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (st->base == MAP_FAILED) {
        st->base = NULL;
        return false;
    }
    madvise(st->base, st->bytes, MADV_NOHUGEPAGE);
    madvise(st->base, st->bytes, MADV_DONTFORK);
    madvise(st->base, st->bytes, MADV_DONTDUMP);
    st->slot = g_new0(MemxSlot, n_slots);
    for (unsigned i = 0; i < n_slots; i++) {
        st->slot[i].server = MEMX_STAGING_NO_SERVER;
        st->slot[i].base = st->base + (uint64_t)i * MEMX_GROUP_BYTES;
        st->slot[i].next = i + 1 < n_slots ? (int)i + 1 : -1;
    }
    return true;
}

void memx_staging_destroy(MemxStaging *st)
{
    if (st->base) {
        munmap(st->base, st->bytes);
    }
    g_free(st->slot);
    *st = (MemxStaging) { 0 };
}

MemxSlot *memx_staging_take(MemxStaging *st, uint64_t group, bool out)
{
    int *best = NULL;
    MemxSlot *slot;
    unsigned h = bucket(group);
    int score = -1;

    if (out ? st->n_out >= st->out_max : st->n_in >= st->in_max) {
        return NULL;
    }
    for (int *p = &st->free; *p >= 0; p = &st->slot[*p].next) {
        int frames = memx_mask_pages(st->slot[*p].frames);
        int s = out ? (int)MEMX_GROUP_PAGES - frames : frames;

        if (s > score) {
            score = s;
            best = p;
        }
        if (s == (int)MEMX_GROUP_PAGES) {
            break;
        }
    }
    if (!best) {
        return NULL;
    }
    slot = &st->slot[*best];
    *best = slot->next;
    st->n_free--;
    if (out) {
        st->n_out++;
    } else {
        st->n_in++;
    }
    slot->state = out ? MEMX_SLOT_TAKING : MEMX_SLOT_FETCHING;
    slot->group = group;
    slot->staged = slot->mask = 0;
    slot->asked = slot->sending = slot->sent = 0;
    slot->users = 0;
    slot->prepared = false;
    slot->next = st->hash[h];
    st->hash[h] = slot - st->slot;
    return slot;
}

void memx_staging_put_slot(MemxStaging *st, MemxSlot *slot)
{
    slot->state = MEMX_SLOT_FREE;
    slot->next = st->free;
    st->free = slot - st->slot;
    st->n_free++;
}

void memx_staging_put(MemxStaging *st, MemxSlot *slot)
{
    int index = slot - st->slot;
    int *p = &st->hash[bucket(slot->group)];

    while (*p != index) {
        p = &st->slot[*p].next;
    }
    *p = slot->next;
    if (memx_slot_is_out(slot)) {
        st->n_out--;
    } else {
        st->n_in--;
    }
    memx_staging_put_slot(st, slot);
}

void memx_staging_take_slot(MemxStaging *st, MemxSlot *slot)
{
    int index = slot - st->slot;
    int *p = &st->free;

    while (*p != index) {
        p = &st->slot[*p].next;
    }
    *p = slot->next;
    slot->state = MEMX_SLOT_HELD;
    st->n_free--;
}

MemxSlot *memx_staging_find(MemxStaging *st, uint64_t group, bool out)
{
    for (int i = st->hash[bucket(group)]; i >= 0; i = st->slot[i].next) {
        if (st->slot[i].group == group &&
            memx_slot_is_out(&st->slot[i]) == out) {
            return &st->slot[i];
        }
    }
    return NULL;
}

int memx_slot_iov(MemxSlot *slot, uint64_t mask)
{
    unsigned first, n;
    int count = 0;

    while (memx_next_run(&mask, &first, &n)) {
        slot->iov[count++] = (struct iovec) {
            .iov_base = slot->base + (uint64_t)first * MEMX_PAGE_BYTES,
            .iov_len = (size_t)n * MEMX_PAGE_BYTES,
        };
    }
    return count;
}
