/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The page sub-table maps a page to the frame that holds it; the frame's hash
 * lies beside the frame.  A frame is written before a table entry names it
 * and never while one does.  So a page changes by one store of 32 bits, its
 * hash with it, and is whole at every moment.
 *
 * Who writes.  All changes come from the thread of the owner's ordered lane.
 * There is at most one, and a successor starts when it is gone (lanes.c).  A
 * space that is being handed over has two ordered lanes, but then nobody
 * writes, and whoever does so next starts when the other is gone (offer.c).
 *
 * Commits.  A STORE is atomic for all of its pages: the new entries are
 * written to the record's redo area, `valid` is set, the entries are copied
 * into the table, `valid` is cleared, and only then the old frames are given
 * back.  The process may be killed at any instruction, for memory of a memfd
 * keeps what was written to it: with `valid` set the copying is repeated by
 * whoever takes over, without it the STORE never was.  Nothing else needs
 * redoing: an entry cleared by DROP is one store, and which frames are free
 * follows from the tables.
 *
 * Who reads.  The other lanes send pages straight from their frames while
 * the ordered lane replaces them.  A reader announces in its MsPins which
 * entries it is going to send, then looks at the table again: if they are
 * still there, a writer that replaces them later sees the announcement and
 * leaves the frames in limbo (hazard pointers).  This needs no lock, so a
 * fault is never behind a thread that was preempted inside one; it needs that
 * either reader or writer sees the other, hence the sequentially consistent
 * order of [announce, read entry] and [write entry, read announcements].  At
 * most 64 frames per read lane or reader can be pinned, so limbo is bounded; it is
 * looked through at the ordered lane's next change.
 *
 * What a space is charged: max(reserved, held), and the pages of its table
 * beyond 1/64 of the reservation, so that one page stored per 4 MiB of a huge
 * space cannot take twice the memory that the store reckons with.  Spaces
 * whose reservation is at least 1/16 of their size never see that.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <gio/gio.h>
#include "space.h"
#include "store.h"

#define ENTRIES_PER_TABLE_PAGE (MEMX_PAGE_BYTES / MS_TABLE_ENTRY_BYTES)
#define TABLE_ALLOWANCE_SHIFT 6
#define TABLE_ALLOWANCE_MIN 16u

#define for_each_bit(bit, mask)                                         \
    for (uint64_t rest_ = (mask), bit;                                  \
         rest_ && (bit = __builtin_ctzll(rest_), true);                 \
         rest_ &= rest_ - 1)

static MsFrame entry_frame(uint32_t entry)
{
    return entry - 1;
}

static uint32_t frame_entry(MsFrame frame)
{
    return frame + 1;
}

/* Table pages. */

static uint64_t table_bytes(const MsSpace *space)
{
    return (space->size_pages + ENTRIES_PER_TABLE_PAGE - 1) /
           ENTRIES_PER_TABLE_PAGE * MEMX_PAGE_BYTES;
}

static uint64_t present_bytes(const MsSpace *space)
{
    return (table_bytes(space) / MEMX_PAGE_BYTES + 63) / 64 * 8;
}

/* A group's entries are all in one page of the table. */
static bool group_present(const MsSpace *space, uint64_t group)
{
    uint64_t page = group / (ENTRIES_PER_TABLE_PAGE / MEMX_GROUP_PAGES);

    return atomic_load_explicit(&space->present[page / 64],
                                memory_order_acquire) >> (page % 64) & 1;
}

static void set_present(MsSpace *space, uint64_t table_page)
{
    atomic_fetch_or_explicit(&space->present[table_page / 64],
                             1ull << (table_page % 64),
                             memory_order_release);
    atomic_fetch_add_explicit(&space->table_pages, 1, memory_order_relaxed);
}

/* Ranges and charges. */

static int check_range(const MsSpace *space, uint64_t group, uint64_t mask)
{
    uint64_t first = group * MEMX_GROUP_PAGES;

    if (group >= MS_SPACE_PAGES_MAX / MEMX_GROUP_PAGES ||
        first >= space->size_pages ||
        (mask && first + 63 - __builtin_clzll(mask) >= space->size_pages)) {
        return -ERANGE;
    }
    return 0;
}

uint64_t ms_space_charge(const MsSpace *space, uint64_t held_pages,
                         uint64_t reserved_pages, uint64_t table_pages)
{
    uint64_t allowance = (reserved_pages >> TABLE_ALLOWANCE_SHIFT) +
                         TABLE_ALLOWANCE_MIN;

    return MAX(held_pages, reserved_pages) +
           (table_pages > allowance ? table_pages - allowance : 0);
}

static bool recharge(MsSpace *space, uint64_t held_pages,
                     uint64_t reserved_pages, uint64_t table_pages)
{
    uint64_t charge = ms_space_charge(space, held_pages, reserved_pages,
                                      table_pages);

    if (!ms_store_recharge(space->store, space->charged_pages, charge)) {
        return false;
    }
    space->charged_pages = charge;
    return true;
}

/* Reading. */

static bool read_entries(const MsSpace *space, uint64_t group, uint64_t mask,
                         MsFrame *frames)
{
    unsigned i = 0;

    if (!group_present(space, group)) {
        return false;
    }
    for_each_bit(bit, mask) {
        uint32_t entry = atomic_load(&space->table[group * MEMX_GROUP_PAGES +
                                                   bit]);

        if (!entry) {
            return false;
        }
        frames[i++] = entry_frame(entry);
    }
    return true;
}

int ms_space_pin(MsSpace *space, MsPins *pins, uint64_t group, uint64_t mask,
                 MsFrame *frames)
{
    unsigned n = memx_mask_pages(mask);
    MsFrame again[MEMX_GROUP_PAGES];

    if (check_range(space, group, mask) < 0) {
        return -ERANGE;
    }
    if (!read_entries(space, group, mask, frames)) {
        return -ENOENT;
    }
    while (pins) {
        for (unsigned i = 0; i < n; i++) {
            atomic_store_explicit(&pins->entries[i], frame_entry(frames[i]),
                                  memory_order_relaxed);
        }
        atomic_exchange(&pins->n, n);
        if (!read_entries(space, group, mask, again)) {
            ms_space_unpin(pins);
            return -ENOENT;
        }
        if (!memcmp(frames, again, n * sizeof(*frames))) {
            break;
        }
        memcpy(frames, again, n * sizeof(*frames));
    }
    return 0;
}

void ms_space_unpin(MsPins *pins)
{
    if (pins) {
        atomic_store_explicit(&pins->n, 0, memory_order_release);
    }
}

static bool has_pin(MsPins *pins, MsFrame frame)
{
    uint32_t n = atomic_load(&pins->n);

    for (uint32_t i = 0; i < n; i++) {
        if (atomic_load_explicit(&pins->entries[i], memory_order_relaxed) ==
            frame_entry(frame)) {
            return true;
        }
    }
    return false;
}

static bool is_pinned(MsSpace *space, MsFrame frame)
{
    for (int i = 0; i < MS_SIDES * MS_READ_LANES; i++) {
        if (has_pin(&space->sides[i / MS_READ_LANES].pins[i % MS_READ_LANES],
                    frame)) {
            return true;
        }
    }
    for (int i = 0; i < MS_READERS; i++) {
        if (has_pin(&space->reader_pins[i], frame)) {
            return true;
        }
    }
    return false;
}

const uint8_t *ms_space_hash(const MsSpace *space, MsFrame frame)
{
    return ms_frames_hash(space->store->frames, frame);
}

/* Writing. */

/* Gives back @n frames that no entry names any more, and those in limbo,
 * except what is still being sent. */
static void give_frames(MsSpace *space, const MsFrame *frames, unsigned n)
{
    MsFrame give[G_N_ELEMENTS(space->limbo)];
    unsigned n_give = 0, n_keep = 0;

    g_assert(space->n_limbo + n <= G_N_ELEMENTS(space->limbo));
    memcpy(space->limbo + space->n_limbo, frames, n * sizeof(*frames));
    space->n_limbo += n;
    for (unsigned i = 0; i < space->n_limbo; i++) {
        if (is_pinned(space, space->limbo[i])) {
            space->limbo[n_keep++] = space->limbo[i];
        } else {
            give[n_give++] = space->limbo[i];
        }
    }
    space->n_limbo = n_keep;
    ms_frames_give(space->store->frames, give, n_give);
}

static uint64_t missing_pages(const MsSpace *space, uint64_t group,
                              uint64_t mask)
{
    uint64_t missing = 0;

    for_each_bit(bit, mask) {
        missing += !atomic_load_explicit(
            &space->table[group * MEMX_GROUP_PAGES + bit],
            memory_order_relaxed);
    }
    return missing;
}

int ms_space_store_begin(MsSpace *space, uint64_t group, uint64_t mask,
                         MsFrame *frames)
{
    uint64_t reserved = atomic_load(&space->record->reserved_pages);
    uint64_t held = atomic_load(&space->held_pages);
    uint64_t tables = atomic_load(&space->table_pages);
    bool present;
    int ret;

    if (check_range(space, group, mask) < 0) {
        return -ERANGE;
    }
    present = group_present(space, group);
    held += present ? missing_pages(space, group, mask) :
                      memx_mask_pages(mask);
    if (!recharge(space, held, reserved, tables + !present)) {
        return -ENOSPC;
    }
    ret = ms_frames_take(space->store->frames, frames, memx_mask_pages(mask));
    if (ret < 0) {
        ms_space_store_abort(space, NULL, 0);
    }
    return ret;
}

void ms_space_store_abort(MsSpace *space, const MsFrame *frames,
                          uint64_t mask)
{
    ms_frames_give(space->store->frames, frames, memx_mask_pages(mask));
    recharge(space, atomic_load(&space->held_pages),
             atomic_load(&space->record->reserved_pages),
             atomic_load(&space->table_pages));
}

/* Copies the redo area's entries into the table; returns how many pages were
 * replaced, their frames in @old. */
static unsigned apply_redo(MsSpace *space, const MsRedo *redo, MsFrame *old)
{
    unsigned i = 0, n_old = 0;

    for_each_bit(bit, redo->mask) {
        uint32_t entry = atomic_exchange(
            &space->table[redo->group * MEMX_GROUP_PAGES + bit],
            redo->entries[i++]);

        if (entry) {
            old[n_old++] = entry_frame(entry);
        }
    }
    return n_old;
}

void ms_space_store_commit(MsSpace *space, uint64_t group, uint64_t mask,
                           const MsFrame *frames, const uint8_t *hashes)
{
    MsRedo *redo = &space->record->redo;
    unsigned n = memx_mask_pages(mask), n_old;
    MsFrame old[MEMX_GROUP_PAGES];

    for (unsigned i = 0; i < n; i++) {
        memcpy(ms_frames_hash(space->store->frames, frames[i]),
               hashes + i * MEMX_HASH_BYTES, MEMX_HASH_BYTES);
        redo->entries[i] = frame_entry(frames[i]);
    }
    redo->group = group;
    redo->mask = mask;
    atomic_store_explicit(&redo->valid, 1, memory_order_release);
    n_old = apply_redo(space, redo, old);
    atomic_store_explicit(&redo->valid, 0, memory_order_release);

    if (!group_present(space, group)) {
        set_present(space, group /
                    (ENTRIES_PER_TABLE_PAGE / MEMX_GROUP_PAGES));
    }
    atomic_fetch_add(&space->held_pages, n - n_old);
    give_frames(space, old, n_old);
}

int ms_space_compare(MsSpace *space, uint64_t group, uint64_t mask,
                     const uint8_t *hashes, uint64_t *differ)
{
    *differ = 0;
    if (check_range(space, group, mask) < 0) {
        return -ERANGE;
    }
    if (!group_present(space, group)) {
        *differ = mask;
        return 0;
    }
    for_each_bit(bit, mask) {
        uint32_t entry = atomic_load_explicit(
            &space->table[group * MEMX_GROUP_PAGES + bit],
            memory_order_relaxed);

        if (!entry || memcmp(ms_frames_hash(space->store->frames,
                                            entry_frame(entry)),
                             hashes, MEMX_HASH_BYTES)) {
            *differ |= 1ull << bit;
        }
        hashes += MEMX_HASH_BYTES;
    }
    return 0;
}

int ms_space_drop(MsSpace *space, uint64_t group, uint64_t mask)
{
    MsFrame old[MEMX_GROUP_PAGES];
    unsigned n_old = 0;

    if (check_range(space, group, mask) < 0) {
        return -ERANGE;
    }
    if (!group_present(space, group)) {
        return 0;
    }
    for_each_bit(bit, mask) {
        uint32_t entry = atomic_exchange(
            &space->table[group * MEMX_GROUP_PAGES + bit], 0);

        if (entry) {
            old[n_old++] = entry_frame(entry);
        }
    }
    atomic_fetch_sub(&space->held_pages, n_old);
    give_frames(space, old, n_old);
    recharge(space, atomic_load(&space->held_pages),
             atomic_load(&space->record->reserved_pages),
             atomic_load(&space->table_pages));
    return 0;
}

int ms_space_reserve(MsSpace *space, uint64_t pages)
{
    if (pages > space->size_pages) {
        return -ERANGE;
    }
    if (!recharge(space, atomic_load(&space->held_pages), pages,
                  atomic_load(&space->table_pages))) {
        return -ENOSPC;
    }
    atomic_store(&space->record->reserved_pages, pages);
    return 0;
}

void ms_space_set_owner(MsSpace *space, const MsOwner *owner)
{
    uint32_t next = !atomic_load(&space->record->current_owner);

    space->record->owner[next] = *owner;
    atomic_store(&space->record->current_owner, next);
}

/* Beginning and end. */

/*
 * Calls @visit for each page of the table that is not a hole; stops when it
 * returns false.
 */
static bool walk_table(MsSpace *space,
                       bool (*visit)(MsSpace *space, uint64_t table_page,
                                     void *opaque), void *opaque)
{
    int fd = space->store->backing.fds[MS_FILE_TABLES];
    off_t base = space->slot * MS_TABLE_STRIDE;
    off_t end = base + table_bytes(space), at = base, hole;

    while (at < end && (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
        hole = lseek(fd, at, SEEK_HOLE);
        for (; at < MIN(hole, end); at += MEMX_PAGE_BYTES) {
            if (!visit(space, (at - base) / MEMX_PAGE_BYTES, opaque)) {
                return false;
            }
        }
    }
    return true;
}

static bool recover_page(MsSpace *space, uint64_t table_page, void *opaque)
{
    MsUsed *used = opaque;
    uint64_t first = table_page * ENTRIES_PER_TABLE_PAGE;
    uint64_t n = MIN(ENTRIES_PER_TABLE_PAGE, space->size_pages - first);

    set_present(space, table_page);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t entry = atomic_load_explicit(&space->table[first + i],
                                              memory_order_relaxed);
        MsFrame frame = entry_frame(entry);

        if (!entry) {
            continue;
        }
        if (frame >= MS_FRAMES_MAX ||
            used->bits[frame / 64] >> frame % 64 & 1) {
            return false;
        }
        used->bits[frame / 64] |= 1ull << frame % 64;
        used->limit = MAX(used->limit, frame + 1ull);
        atomic_fetch_add_explicit(&space->held_pages, 1,
                                  memory_order_relaxed);
    }
    return true;
}

static bool recover(MsSpace *space, MsUsed *used, GError **error)
{
    MsRedo *redo = &space->record->redo;
    MsFrame old[MEMX_GROUP_PAGES];

    if (atomic_load_explicit(&redo->valid, memory_order_acquire)) {
        if (check_range(space, redo->group, redo->mask) < 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                        "the record of space %u is damaged", space->slot);
            return false;
        }
        apply_redo(space, redo, old);
        atomic_store_explicit(&redo->valid, 0, memory_order_release);
    }
    if (!walk_table(space, recover_page, used)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "the page table of space %u (VM '%s') is damaged",
                    space->slot, space->record->vm_name);
        return false;
    }
    /* Its clients went when the server did, without a word if it was killed.
     */
    if (!atomic_load(&space->record->orphaned_s)) {
        atomic_store(&space->record->orphaned_s,
                     g_get_real_time() / G_USEC_PER_SEC);
    }
    return true;
}

MsSpace *ms_space_new(MsStore *store, uint32_t slot, MsUsed *used,
                      GError **error)
{
    MsSpace *space = g_new0(MsSpace, 1);

    space->store = store;
    space->slot = slot;
    space->record = ms_backing_record(&store->backing, slot);
    space->size_pages = space->record->size_pages;
    space->table = ms_map_file(store->backing.fds[MS_FILE_TABLES],
                               slot * MS_TABLE_STRIDE, table_bytes(space));
    space->present = ms_map_anonymous(present_bytes(space));
    if (!space->table || !space->present) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "cannot map the page table of a space of %"
                    G_GUINT64_FORMAT " pages: %s", space->size_pages,
                    g_strerror(errno));
        ms_space_free(space);
        return NULL;
    }
    if (used && !recover(space, used, error)) {
        ms_space_free(space);
        return NULL;
    }
    space->charged_pages = ms_space_charge(
        space, atomic_load(&space->held_pages),
        atomic_load(&space->record->reserved_pages),
        atomic_load(&space->table_pages));
    return space;
}

void ms_space_free(MsSpace *space)
{
    if (space->table) {
        munmap((void *)space->table, table_bytes(space));
    }
    if (space->present) {
        munmap((void *)space->present, present_bytes(space));
    }
    g_free(space);
}

static bool clear_page(MsSpace *space, uint64_t table_page, void *opaque)
{
    uint64_t first = table_page * ENTRIES_PER_TABLE_PAGE;
    uint64_t n = MIN(ENTRIES_PER_TABLE_PAGE, space->size_pages - first);
    MsFrame frames[ENTRIES_PER_TABLE_PAGE];
    unsigned n_frames = 0;

    for (uint64_t i = 0; i < n; i++) {
        uint32_t entry = atomic_exchange_explicit(
            &space->table[first + i], 0, memory_order_relaxed);

        if (entry) {
            frames[n_frames++] = entry_frame(entry);
        }
    }
    atomic_fetch_sub(&space->held_pages, n_frames);
    ms_frames_give(space->store->frames, frames, n_frames);
    return true;
}

void ms_space_clear(MsSpace *space)
{
    ms_frames_give(space->store->frames, space->limbo, space->n_limbo);
    space->n_limbo = 0;
    walk_table(space, clear_page, NULL);
    ms_punch(space->store->backing.fds[MS_FILE_TABLES],
             space->slot * MS_TABLE_STRIDE, table_bytes(space));
}
