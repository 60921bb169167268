/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Capacity is a promise: the sum over all spaces of what each is charged
 * (space.c) never exceeds it.  A space's charge changes only on its ordered
 * lane's thread; the sum is one atomic, changed by compare-and-swap, so a
 * STORE within a reservation touches nothing that is shared, and nothing is
 * ever granted twice.
 *
 * Frames outnumber the capacity by SLACK: a STORE fills fresh frames before
 * the old ones are given back.
 *
 * Taking over.  Only records and tables count.  Spaces whose record is in use
 * are mapped and their tables walked; the rest of the tables, whatever an
 * interrupted drop left, is punched out; frames that no table names are free.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <gio/gio.h>
#include "store.h"

/* What 1024 connections can have in flight and in limbo. */
#define SLACK_FRAMES (1024u * MEMX_GROUP_PAGES * (MS_READ_LANES + 1))

/* How long owners of copies are asked to give them up. */
#define SHORT_US (3 * G_USEC_PER_SEC)

static guint id_hash(gconstpointer key)
{
    guint hash;

    /* An id is random. */
    memcpy(&hash, key, sizeof(hash));
    return hash;
}

static gboolean id_equal(gconstpointer a, gconstpointer b)
{
    return !memcmp(a, b, MEMX_ID_BYTES);
}

static bool find_space(MsStore *store, uint32_t slot, MsUsed *used,
                       GError **error)
{
    MsRecord *record = ms_backing_record(&store->backing, slot);
    MsSpace *space;

    if (!atomic_load_explicit(&record->in_use, memory_order_acquire)) {
        return true;
    }
    if (!record->size_pages || record->size_pages > MS_SPACE_PAGES_MAX ||
        record->current_owner >= G_N_ELEMENTS(record->owner) ||
        record->owner[record->current_owner].offer_state >=
        MS_N_OFFER_STATES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "the record of space %u is damaged", slot);
        return false;
    }
    space = ms_space_new(store, slot, used, error);
    if (!space) {
        return false;
    }
    store->slots_in_use[slot] = 1;
    g_hash_table_insert(store->spaces, record->id, space);
    atomic_fetch_add(&store->charged_pages, space->charged_pages);
    return true;
}

/* The index is sparse: looking at a hole would fill it. */
static bool find_spaces(MsStore *store, MsUsed *used, GError **error)
{
    int fd = store->backing.fds[MS_FILE_INDEX];
    off_t at = 0;

    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        off_t end = at + MEMX_PAGE_BYTES;

        for (at = MAX(at, MS_RECORD_BYTES); at < end; at += MS_RECORD_BYTES) {
            uint32_t slot = at / MS_RECORD_BYTES - 1;

            if (slot < MS_MAX_SPACES &&
                !find_space(store, slot, used, error)) {
                return false;
            }
        }
    }
    return true;
}

/* An interrupted drop leaves a table whose record isn't in use any more. */
static void punch_unused_tables(MsStore *store)
{
    int fd = store->backing.fds[MS_FILE_TABLES];
    off_t at = 0;

    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        uint64_t slot = at / MS_TABLE_STRIDE;

        if (!store->slots_in_use[slot]) {
            ms_punch(fd, slot * MS_TABLE_STRIDE, MS_TABLE_STRIDE);
        }
        at = (slot + 1) * MS_TABLE_STRIDE;
    }
}

/* All but the backing. */
static void forget(MsStore *store)
{
    GHashTableIter iter;
    gpointer space;

    g_hash_table_iter_init(&iter, store->spaces);
    while (g_hash_table_iter_next(&iter, NULL, &space)) {
        g_hash_table_iter_steal(&iter);
        ms_space_free(space);
    }
    g_hash_table_destroy(store->spaces);
    g_free(store->slots_in_use);
    g_mutex_clear(&store->slots_lock);
    ms_frames_free(store->frames);
    g_free(store);
}

MsStore *ms_store_new(const MsBacking *backing, uint64_t capacity_pages,
                      GError **error)
{
    MsStore *store = g_new0(MsStore, 1);
    uint64_t used_bytes = MS_FRAMES_MAX / 8 + 8;
    MsUsed used = { ms_map_anonymous(used_bytes), 0 };
    bool ok = false;

    store->backing = *backing;
    store->capacity_pages = capacity_pages;
    store->spaces = g_hash_table_new(id_hash, id_equal);
    store->slots_in_use = g_malloc0(MS_MAX_SPACES);
    g_mutex_init(&store->slots_lock);
    if (!used.bits) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "cannot map 512 MiB of address space: %s",
                    g_strerror(errno));
    } else if (find_spaces(store, &used, error)) {
        punch_unused_tables(store);
        store->frames = ms_frames_new(
            &store->backing,
            MIN(MAX(capacity_pages, used.limit) + SLACK_FRAMES,
                MS_FRAMES_MAX), &used, error);
        ok = store->frames;
    }
    if (used.bits) {
        munmap(used.bits, used_bytes);
    }
    if (!ok) {
        forget(store);
        return NULL;
    }
    return store;
}

void ms_store_free(MsStore *store, int keep[MS_N_FILES])
{
    MsBacking backing = store->backing;

    forget(store);
    if (keep) {
        memcpy(keep, backing.fds, sizeof(backing.fds));
        munmap(backing.super, MS_INDEX_BYTES);
    } else {
        ms_backing_close(&backing);
    }
}

void ms_store_want(MsStore *store, uint64_t pages)
{
    if (pages > ms_store_free_pages(store)) {
        atomic_store_explicit(&store->short_until_us,
                              g_get_monotonic_time() + SHORT_US,
                              memory_order_relaxed);
    }
}

bool ms_store_recharge(MsStore *store, uint64_t from, uint64_t to)
{
    uint64_t charged = atomic_load_explicit(&store->charged_pages,
                                            memory_order_relaxed);

    if (from == to) {
        return true;
    }
    do {
        if (to > from && charged + (to - from) > store->capacity_pages) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(&store->charged_pages, &charged,
                                           charged - from + to));
    return true;
}

MsSpace *ms_store_find(MsStore *store, const uint8_t *id)
{
    return g_hash_table_lookup(store->spaces, id);
}

static void fill_record(MsRecord *record, const MemxOpen *open,
                        const uint8_t *secret)
{
    memset(record, 0, sizeof(*record));
    memcpy(record->owner[0].client, open->client, MEMX_ID_BYTES);
    record->owner[0].epoch = open->epoch;
    memcpy(record->id, open->space, MEMX_ID_BYTES);
    memcpy(record->secret, secret, MEMX_ID_BYTES);
    memcpy(record->vm_uuid, open->vm_uuid, MEMX_ID_BYTES);
    record->size_pages = open->size_pages;
    atomic_init(&record->reserved_pages, open->reserve_pages);
    atomic_init(&record->created_s, g_get_real_time() / G_USEC_PER_SEC);
    memcpy(record->vm_name, open->vm_name, MEMX_NAME_BYTES);
    memcpy(record->region_name, open->region_name, MEMX_NAME_BYTES);
}

/* MS_MAX_SPACES if there is none. */
static uint32_t take_slot(MsStore *store)
{
    uint8_t *free_slot;

    g_mutex_lock(&store->slots_lock);
    free_slot = memchr(store->slots_in_use, 0, MS_MAX_SPACES);
    if (free_slot) {
        *free_slot = 1;
    }
    g_mutex_unlock(&store->slots_lock);
    return free_slot ? free_slot - store->slots_in_use : MS_MAX_SPACES;
}

static void give_slot(MsStore *store, uint32_t slot)
{
    g_mutex_lock(&store->slots_lock);
    store->slots_in_use[slot] = 0;
    g_mutex_unlock(&store->slots_lock);
}

int ms_store_create(MsStore *store, const MemxOpen *open,
                    const uint8_t *secret, MsSpace **space)
{
    MsRecord *record;
    uint32_t slot;

    if (ms_store_find(store, open->space)) {
        return -EEXIST;
    }
    if (!open->size_pages || open->size_pages > MS_SPACE_PAGES_MAX ||
        open->reserve_pages > open->size_pages) {
        return -ERANGE;
    }
    if (!ms_store_recharge(store, 0, open->reserve_pages)) {
        return -ENOSPC;
    }
    slot = take_slot(store);
    if (slot == MS_MAX_SPACES) {
        ms_store_recharge(store, open->reserve_pages, 0);
        return -ENOSPC;
    }
    record = ms_backing_record(&store->backing, slot);
    fill_record(record, open, secret);
    *space = ms_space_new(store, slot, NULL, NULL);
    if (!*space) {
        ms_store_recharge(store, open->reserve_pages, 0);
        give_slot(store, slot);
        return -ENOSPC;
    }
    atomic_store_explicit(&record->in_use, 1, memory_order_release);
    g_hash_table_insert(store->spaces, (*space)->record->id, *space);
    return 0;
}

void ms_store_unlink(MsStore *store, MsSpace *space)
{
    g_hash_table_remove(store->spaces, space->record->id);
    atomic_store_explicit(&space->record->in_use, 0, memory_order_release);
    /* Its slot stays in use until its table is gone. */
}

void ms_store_destroy(MsStore *store, MsSpace *space)
{
    uint32_t slot = space->slot;

    ms_space_clear(space);
    memset(space->record, 0, sizeof(*space->record));
    ms_store_recharge(store, space->charged_pages, 0);
    ms_space_free(space);
    give_slot(store, slot);
}

uint64_t ms_store_held_pages(MsStore *store)
{
    GHashTableIter iter;
    gpointer space;
    uint64_t pages = 0;

    g_hash_table_iter_init(&iter, store->spaces);
    while (g_hash_table_iter_next(&iter, NULL, &space)) {
        pages += atomic_load(&((MsSpace *)space)->held_pages);
    }
    return pages;
}
