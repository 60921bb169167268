/*
 * The tracker `idle`: page_idle (CONFIG_IDLE_PAGE_TRACKING).
 *
 * Theory of operation
 *
 * /sys/kernel/mm/page_idle/bitmap has a bit for each frame of the host.  Writing
 * a 1 makes the frame idle; when it is read back, the kernel looks at all page
 * tables that map the frame, KVM's second-level ones included, and the bit is
 * still there if none of them has its accessed bit set.  No fault is caused, and
 * reclaim isn't disturbed.
 *
 * Which frame a page has is in /proc/self/pagemap, for who was privileged when it
 * was opened.  A huge page has one bit, its head frame's: /proc/kpageflags tells
 * which that is.  Touched anywhere, all of the huge page counts as touched: no
 * more is known.
 *
 * A frame may change its owner between two looks.  Then a stranger's page is
 * marked idle once, which is a hint that it loses at its next access; and ours
 * counts as touched, since its new frame isn't idle.  Words of the bitmap are
 * shared with strangers: only our bits are written.
 *
 * Not for hugetlbfs, of which the kernel keeps no idle bits.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tracker.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_PFN ((1ull << 55) - 1)
#define KPF_COMPOUND_TAIL (1ull << 16)
#define KPF_HUGE (1ull << 17)
#define HUGE_FRAMES 512u        /* a huge page's, at most */
#define SLICE_PAGES (MEMX_SLICE_GROUPS * (unsigned)MEMX_GROUP_PAGES)
#define WORDS_AT_ONCE 512u

#define BITMAP "/sys/kernel/mm/page_idle/bitmap"

typedef struct Frame {
    uint64_t pfn;               /* of its head */
    uint32_t page;              /* in the slice */
} Frame;

/* What one thread needs for a slice. */
typedef struct Room {
    struct Room *next;
    uint64_t entry[SLICE_PAGES];
    Frame frame[SLICE_PAGES], sorted[SLICE_PAGES];
    uint64_t word[WORDS_AT_ONCE];
    uint64_t flags[HUGE_FRAMES];
} Room;

typedef struct Idle {
    const MemxRange *range;
    MemxIdleFiles file;
    bool huge;                  /* there may be huge pages */
    GMutex lock;                /* of rooms */
    Room *rooms;
} Idle;

static void idle_close(void *opaque)
{
    Idle *t = opaque;

    memx_idle_files_close(&t->file);
    while (t->rooms) {
        Room *room = t->rooms;

        t->rooms = room->next;
        g_free(room);
    }
    g_mutex_clear(&t->lock);
    g_free(t);
}

static bool open_one(int *fd, const char *path, int flags, GError **error)
{
    *fd = open(path, flags | O_CLOEXEC);
    if (*fd >= 0) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL, "%s: %s%s", path,
                g_strerror(errno), errno == ENOENT
                ? "; the kernel has no CONFIG_IDLE_PAGE_TRACKING"
                : "; only root may: run memx-idle-helper, and name its socket");
    return false;
}

static bool open_files(Idle *t, const MemxWatch *watch, GError **error)
{
    const MemxIdleFiles *given = watch->idle;

    if (!given) {
        return open_one(&t->file.bitmap_fd, BITMAP, O_RDWR, error) &&
               open_one(&t->file.kpageflags_fd, "/proc/kpageflags", O_RDONLY,
                        error) &&
               open_one(&t->file.pagemap_fd, "/proc/self/pagemap", O_RDONLY,
                        error);
    }
    t->file = memx_idle_files_dup(given);
    if (t->file.pagemap_fd < 0 || t->file.bitmap_fd < 0 ||
        t->file.kpageflags_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "page_idle: the files that were given: %s",
                    g_strerror(errno));
        return false;
    }
    return true;
}

/* The pagemap is this process's, and tells frames. */
static bool check_pagemap(Idle *t, GError **error)
{
    volatile uint64_t here = 1;
    uint64_t entry = 0;
    off_t at = (uintptr_t)&here / MEMX_PAGE_BYTES * sizeof(entry);

    if (pread(t->file.pagemap_fd, &entry, sizeof(entry), at) ==
        sizeof(entry) && entry & PAGEMAP_PRESENT && entry & PAGEMAP_PFN) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "page_idle: the pagemap tells no frames: it must be opened "
                "with CAP_SYS_ADMIN, and be this process's; run "
                "memx-idle-helper, and name its socket");
    return false;
}

/* The first page that is there tells of what kind a range is. */
static bool check_range(Idle *t, const MemxRange *range, GError **error)
{
    uint64_t pages = range->bytes / MEMX_PAGE_BYTES;
    uint64_t first = (uintptr_t)range->base / MEMX_PAGE_BYTES;
    uint64_t entry[512];

    for (uint64_t at = 0; at < pages; at += G_N_ELEMENTS(entry)) {
        uint64_t n = MIN(pages - at, G_N_ELEMENTS(entry)), flags = 0;

        if (pread(t->file.pagemap_fd, entry, n * sizeof(entry[0]),
                  (first + at) * sizeof(entry[0])) < 0) {
            break;
        }
        for (uint64_t i = 0; i < n; i++) {
            if (!(entry[i] & PAGEMAP_PRESENT)) {
                continue;
            }
            if (pread(t->file.kpageflags_fd, &flags, sizeof(flags),
                      (entry[i] & PAGEMAP_PFN) * sizeof(flags)) ==
                sizeof(flags) && flags & KPF_HUGE) {
                g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                            "page_idle: the memory at %p is of hugetlbfs, of "
                            "which the kernel keeps no idle bits",
                            range->base);
                return false;
            }
            return true;
        }
    }
    return true;
}

static void *idle_open(const MemxWatch *watch, GError **error)
{
    Idle *t = g_new0(Idle, 1);

    g_mutex_init(&t->lock);
    t->file = (MemxIdleFiles) { -1, -1, -1 };
    t->range = watch->range;
    t->huge = watch->huge;
    if (!open_files(t, watch, error) || !check_pagemap(t, error)) {
        idle_close(t);
        return NULL;
    }
    for (unsigned i = 0; i < watch->n_ranges; i++) {
        if (!check_range(t, &watch->range[i], error)) {
            idle_close(t);
            return NULL;
        }
    }
    return t;
}

static Room *room_take(Idle *t)
{
    Room *room;

    g_mutex_lock(&t->lock);
    room = t->rooms;
    if (room) {
        t->rooms = room->next;
    }
    g_mutex_unlock(&t->lock);
    return room ? room : g_new(Room, 1);
}

static void room_put(Idle *t, Room *room)
{
    g_mutex_lock(&t->lock);
    room->next = t->rooms;
    t->rooms = room;
    g_mutex_unlock(&t->lock);
}

/* Replaces the frames of huge pages' tails by their heads. */
static void find_heads(Idle *t, Room *room, unsigned n)
{
    uint64_t block = UINT64_MAX, head = 0, last = UINT64_MAX;

    for (unsigned i = 0; i < n; i++) {
        uint64_t pfn = room->frame[i].pfn;
        unsigned at = pfn % HUGE_FRAMES;

        if (pfn / HUGE_FRAMES != block) {
            ssize_t got = pread(t->file.kpageflags_fd, room->flags,
                                sizeof(room->flags),
                                (pfn - at) * sizeof(uint64_t));

            got = MAX(got, 0);
            memset((char *)room->flags + got, 0, sizeof(room->flags) - got);
            block = pfn / HUGE_FRAMES;
        }
        if (!(room->flags[at] & KPF_COMPOUND_TAIL)) {
            head = pfn;
        } else if (pfn != last + 1) {
            while (at && room->flags[at] & KPF_COMPOUND_TAIL) {
                at--;
            }
            head = pfn / HUGE_FRAMES * HUGE_FRAMES + at;
        } /* else it is the same as of the one before */
        last = pfn;
        room->frame[i].pfn = head;
    }
}

/* The frames of some groups' pages.  Returns how many. */
static unsigned frames_of(Idle *t, Room *room, MemxSlice *slice,
                          unsigned first, unsigned n)
{
    const MemxRange *range = &t->range[slice->range];
    uint64_t pages = memx_slice_bytes(range, slice, first, n) /
                     MEMX_PAGE_BYTES;
    off_t at = (uintptr_t)memx_slice_hva(range, slice, first) /
               MEMX_PAGE_BYTES * sizeof(uint64_t);
    ssize_t got = pread(t->file.pagemap_fd, room->entry,
                        pages * sizeof(uint64_t), at);
    unsigned found = 0;

    if (got < (ssize_t)(pages * sizeof(uint64_t))) {
        got = 0;
        for (unsigned g = first; g < first + n; g++) {
            slice->skipped[g / 64] |= 1ull << g % 64;
        }
    }
    for (unsigned i = 0; got > 0 && i < got / sizeof(uint64_t); i++) {
        uint64_t pfn = room->entry[i] & PAGEMAP_PFN;

        if (room->entry[i] & PAGEMAP_PRESENT && pfn) {
            room->frame[found++] = (Frame) {
                pfn, first * MEMX_GROUP_PAGES + i
            };
        }
    }
    return found;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = ((const Frame *)a)->pfn, y = ((const Frame *)b)->pfn;

    return x < y ? -1 : x > y;
}

/* Frames [from, to) lie in up to WORDS_AT_ONCE consecutive words: marks those
 * of them that are not idle as touched, and makes them idle. */
static void look_at(Idle *t, Room *room, MemxSlice *slice, unsigned from,
                    unsigned to)
{
    uint64_t first = room->frame[from].pfn / 64;
    unsigned n = room->frame[to - 1].pfn / 64 - first + 1;
    off_t at = first * sizeof(uint64_t);
    uint64_t *set = room->entry; /* of no use any more */
    ssize_t got = pread(t->file.bitmap_fd, room->word, n * sizeof(uint64_t),
                        at);

    memset(set, 0, n * sizeof(uint64_t));
    for (unsigned i = from; i < to; i++) {
        unsigned word = room->frame[i].pfn / 64 - first;
        uint64_t bit = 1ull << room->frame[i].pfn % 64;

        if (got < (ssize_t)((word + 1) * sizeof(uint64_t))) {
            slice->skipped[room->frame[i].page / 64 / 64] |=
                1ull << room->frame[i].page / 64 % 64;
        } else if (!(room->word[word] & bit)) {
            memx_slice_set(slice, room->frame[i].page, 1);
            set[word] |= bit;
        }
    }
    if (pwrite(t->file.bitmap_fd, set, n * sizeof(uint64_t), at) < 0) {
        return; /* they count as touched again */
    }
}

static void idle_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                         uint64_t dwell_ns)
{
    Idle *t = opaque;
    Room *room = room_take(t);
    unsigned at = 0, first, n, total = 0, from = 0;

    /* All runs' frames are looked at together: they are near each other. */
    while (memx_slice_run(slice, &at, &first, &n)) {
        unsigned found = frames_of(t, room, slice, first, n);

        if (t->huge) {
            find_heads(t, room, found);
        }
        memcpy(room->sorted + total, room->frame, found * sizeof(Frame));
        total += found;
    }
    memcpy(room->frame, room->sorted, total * sizeof(Frame));
    qsort(room->frame, total, sizeof(Frame), compare);
    for (unsigned i = 1; i <= total; i++) {
        uint64_t word = room->frame[i - 1].pfn / 64;

        if (i == total || room->frame[i].pfn / 64 > word + 1 ||
            room->frame[i].pfn / 64 - room->frame[from].pfn / 64 >=
            WORDS_AT_ONCE) {
            look_at(t, room, slice, from, i);
            memx_pace(slice->pace);
            from = i;
        }
    }
    room_put(t, room);
}

const MemxTrackerOps memx_tracker_idle = {
    .kind = MEMX_TRACKER_IDLE,
    .regions = true,
    .ordinary = true,
    .open = idle_open,
    .harvest = idle_harvest,
    .close = idle_close,
};
