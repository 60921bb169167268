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

static uint8_t *map_area(uint64_t bytes)
{
    uint8_t *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED) {
        return NULL;
    }
    madvise(base, bytes, MADV_NOHUGEPAGE);
    /* A page that was merged (systemd's MemoryKSM=) can't be moved. */
    madvise(base, bytes, MADV_UNMERGEABLE);
    madvise(base, bytes, MADV_DONTFORK);
    madvise(base, bytes, MADV_DONTDUMP);
    return base;
}

bool memx_staging_init(MemxStaging *st, unsigned n_slots)
{
    *st = (MemxStaging) {
        .n_slots = n_slots,
        .bytes = (uint64_t)n_slots * MEMX_GROUP_BYTES,
        .n_free = n_slots,
        .out_max = n_slots - n_slots / 3,
        .in_max = n_slots - n_slots / 3,
        .free_sample = -1,
    };
    memset(st->hash, 0xff, sizeof(st->hash));
    if (!n_slots) {
        return true;
    }
    st->base = map_area(st->bytes);
    if (!st->base) {
        return false;
    }
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
    if (st->sample_base) {
        munmap(st->sample_base, st->n_samples * (uint64_t)MEMX_GROUP_BYTES);
    }
    g_free(st->slot);
    *st = (MemxStaging) { 0 };
}

bool memx_staging_add_samples(MemxStaging *st, unsigned n)
{
    st->sample_base = map_area(n * (uint64_t)MEMX_GROUP_BYTES);
    if (!st->sample_base) {
        return false;
    }
    st->n_samples = n;
    st->free_sample = st->n_slots;
    st->slot = g_renew(MemxSlot, st->slot, st->n_slots + n);
    for (unsigned i = 0; i < n; i++) {
        st->slot[st->n_slots + i] = (MemxSlot) {
            .server = MEMX_STAGING_NO_SERVER,
            .base = st->sample_base + (uint64_t)i * MEMX_GROUP_BYTES,
            .next = i + 1 < n ? (int)(st->n_slots + i + 1) : -1,
        };
    }
    return true;
}

/* A slot that is in no list begins with a group. */
static void begin(MemxStaging *st, MemxSlot *slot, uint64_t group,
                  MemxSlotState state)
{
    unsigned h = bucket(group);

    slot->state = state;
    slot->group = group;
    slot->staged = slot->mask = 0;
    slot->asked = slot->sending = slot->spared = 0;
    slot->users = 0;
    slot->prepared = false;
    slot->next = st->hash[h];
    st->hash[h] = slot - st->slot;
}

MemxSlot *memx_staging_take_sample(MemxStaging *st, uint64_t group)
{
    MemxSlot *slot;

    if (st->free_sample < 0) {
        return NULL;
    }
    slot = &st->slot[st->free_sample];
    st->free_sample = slot->next;
    st->n_sampled++;
    begin(st, slot, group, MEMX_SLOT_TAKING);
    return slot;
}

MemxSlot *memx_staging_take(MemxStaging *st, uint64_t group, bool out)
{
    int *best = NULL;
    MemxSlot *slot;
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
    st->free_frames -= memx_mask_pages(slot->frames);
    if (out) {
        st->n_out++;
    } else {
        st->n_in++;
    }
    begin(st, slot, group, out ? MEMX_SLOT_TAKING : MEMX_SLOT_FETCHING);
    return slot;
}

void memx_staging_put_slot(MemxStaging *st, MemxSlot *slot)
{
    slot->state = MEMX_SLOT_FREE;
    slot->next = st->free;
    st->free = slot - st->slot;
    st->n_free++;
    st->free_frames += memx_mask_pages(slot->frames);
}

void memx_staging_put(MemxStaging *st, MemxSlot *slot)
{
    int index = slot - st->slot;
    int *p = &st->hash[bucket(slot->group)];

    while (*p != index) {
        p = &st->slot[*p].next;
    }
    *p = slot->next;
    if (index >= (int)st->n_slots) {
        st->n_sampled--;
        slot->state = MEMX_SLOT_FREE;
        slot->next = st->free_sample;
        st->free_sample = index;
        return;
    }
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
    st->free_frames -= memx_mask_pages(slot->frames);
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
