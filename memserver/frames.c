/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A frame is in use, or warm (given back, its memory kept for the next one
 * who asks), or cold (its memory went back to the system), or beyond `bump`
 * (never used since the store was last empty; cold, too).  Warm and cold are
 * stacks.  Taking prefers warm, then cold, then bump, always as slices of
 * what was given back together, so that neighbours stay neighbours and a
 * group of pages travels as one piece.
 *
 * At most WARM_MIN frames and 1/128 of those in use stay warm: as many as a
 * client that reads and evicts gives back before it stores again.  What exceeds
 * that is punched out in batches, sorted, so that neighbours take one system
 * call.  While a batch is being punched it is on neither stack, and the lock
 * is free.
 *
 * When the last frame in use is given back everything starts afresh: one
 * punch, and a new mapping, since the page tables of the old one (0.2 % of
 * what it once held) would stay for ever.
 *
 * What a frame in use costs: hash 0.4 %, entry of the sub-table 0.1 %, this
 * process' page table 0.2 %, the kernel's index of the memfd 0.22 %; warm
 * frames 0.8 %: some 1.7 %.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <gio/gio.h>
#include "frames.h"
#include "urgent.h"

/* Pages that the kernel gives or takes before others may run. */
#define STEP 32u
#define WARM_MIN 1024u
#define WARM_SHIFT 7
#define PUNCH_BATCH 2048u
#define HASHES_PER_PAGE (MEMX_PAGE_BYTES / MEMX_HASH_BYTES)
/* Below this starting afresh is not worth its system calls. */
#define AFRESH_MIN 4096u

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct MsFrames {
    /* Constant. */
    int fd;
    int hash_fd;
    uint8_t *pages;
    uint8_t *hashes;
    uint64_t n_frames;

    GMutex lock; /* protects all below; a leaf, held for a memcpy (and, when
                    memory is given back, for a punch now and then) */
    uint64_t used;
    uint64_t bump;
    MsFrame *warm;
    uint64_t n_warm;
    MsFrame *cold;
    uint64_t n_cold;
    unsigned punching; /* batches on neither stack */
    uint16_t *lively;  /* for each page of hashes: how many of its frames are
                          neither cold nor beyond bump */
};

static uint64_t warm_bytes(const MsFrames *frames)
{
    return (WARM_MIN + (frames->n_frames >> WARM_SHIFT) +
            MEMX_GROUP_PAGES) * sizeof(MsFrame);
}

static uint64_t warm_limit_locked(const MsFrames *frames)
{
    return WARM_MIN + (frames->used >> WARM_SHIFT);
}

static int compare_frames(const void *a, const void *b)
{
    MsFrame x = *(const MsFrame *)a, y = *(const MsFrame *)b;

    return x < y ? -1 : x > y;
}

static void punch_pages(MsFrames *frames, uint64_t first, uint64_t n)
{
    ms_punch(frames->fd, first * MEMX_PAGE_BYTES, n * MEMX_PAGE_BYTES);
}

static void punch_hashes(MsFrames *frames, uint64_t first, uint64_t n)
{
    uint64_t from = (first + HASHES_PER_PAGE - 1) / HASHES_PER_PAGE;
    uint64_t to = (first + n) / HASHES_PER_PAGE;

    if (from < to) {
        ms_punch(frames->hash_fd, from * MEMX_PAGE_BYTES,
                 (to - from) * MEMX_PAGE_BYTES);
    }
}

static void punch_sorted(MsFrames *frames, const MsFrame *list, unsigned n)
{
    unsigned first = 0;

    for (unsigned i = 1; i <= n; i++) {
        if (i == n || list[i] != list[i - 1] + 1 || i - first == STEP) {
            punch_pages(frames, list[first], i - first);
            memx_thread_yield();
            first = i;
        }
    }
}

static uint64_t lively_bytes(const MsFrames *frames)
{
    return (frames->n_frames / HASHES_PER_PAGE + 1) *
           sizeof(*frames->lively);
}

static bool map_pages(MsFrames *frames)
{
    uint64_t bytes = frames->n_frames * MEMX_PAGE_BYTES;

    frames->pages = ms_map_file(frames->fd, 0, bytes);
    return frames->pages;
}

/* If nothing is in use: back to the beginning. */
static bool start_afresh_locked(MsFrames *frames)
{
    uint64_t bytes = frames->n_frames * MEMX_PAGE_BYTES;

    if (frames->used || frames->punching || frames->bump <= AFRESH_MIN) {
        return false;
    }
    punch_pages(frames, 0, frames->bump);
    punch_hashes(frames, 0, frames->bump + HASHES_PER_PAGE);
    frames->bump = 0;
    frames->n_warm = 0;
    frames->n_cold = 0;
    madvise(frames->warm, warm_bytes(frames), MADV_DONTNEED);
    madvise(frames->cold, frames->n_frames * sizeof(MsFrame), MADV_DONTNEED);
    madvise(frames->lively, lively_bytes(frames), MADV_DONTNEED);
    /* In place: the address must not change.  Should it fail (no memory for
     * a mapping) the old one is still there. */
    if (mmap(frames->pages, bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_NORESERVE | MAP_FIXED, frames->fd, 0) !=
        MAP_FAILED) {
        madvise(frames->pages, bytes, MADV_NOHUGEPAGE);
        madvise(frames->pages, bytes, MADV_DONTDUMP);
    }
    return true;
}

/* Free frames below the highest one in use become cold. */
static void adopt(MsFrames *frames, const MsUsed *used)
{
    for (uint64_t f = 0; f < used->limit; f++) {
        if (!(used->bits[f / 64] >> f % 64 & 1)) {
            continue;
        }
        if (f > frames->bump) {
            punch_pages(frames, frames->bump, f - frames->bump);
            punch_hashes(frames, frames->bump, f - frames->bump);
        }
        while (frames->bump < f) {
            frames->cold[frames->n_cold++] = frames->bump++;
        }
        frames->used++;
        frames->lively[f / HASHES_PER_PAGE]++;
        frames->bump++;
    }
    punch_pages(frames, frames->bump, MS_FRAMES_MAX - frames->bump);
    punch_hashes(frames, frames->bump, MS_FRAMES_MAX - frames->bump);
}

MsFrames *ms_frames_new(const MsBacking *backing, uint64_t n_frames,
                        const MsUsed *used, GError **error)
{
    MsFrames *frames = g_new0(MsFrames, 1);

    g_mutex_init(&frames->lock);
    frames->fd = backing->fds[MS_FILE_FRAMES];
    frames->hash_fd = backing->fds[MS_FILE_HASHES];
    frames->n_frames = n_frames;
    frames->hashes = ms_map_file(frames->hash_fd, 0,
                                 n_frames * MEMX_HASH_BYTES);
    frames->warm = ms_map_anonymous(warm_bytes(frames));
    frames->cold = ms_map_anonymous(n_frames * sizeof(MsFrame));
    frames->lively = ms_map_anonymous(lively_bytes(frames));
    if (!map_pages(frames) || !frames->hashes || !frames->warm ||
        !frames->cold || !frames->lively) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "cannot map %" G_GUINT64_FORMAT " pages: %s; lower "
                    "--capacity or raise the limit on address space "
                    "(ulimit -v)", n_frames, g_strerror(errno));
        ms_frames_free(frames);
        return NULL;
    }
    if (used) {
        adopt(frames, used);
    }
    return frames;
}

void ms_frames_free(MsFrames *frames)
{
    if (!frames) {
        return;
    }
    if (frames->pages) {
        munmap(frames->pages, frames->n_frames * MEMX_PAGE_BYTES);
    }
    if (frames->hashes) {
        munmap(frames->hashes, frames->n_frames * MEMX_HASH_BYTES);
    }
    if (frames->warm) {
        munmap(frames->warm, warm_bytes(frames));
    }
    if (frames->cold) {
        munmap(frames->cold, frames->n_frames * sizeof(MsFrame));
    }
    if (frames->lively) {
        munmap(frames->lively, lively_bytes(frames));
    }
    g_mutex_clear(&frames->lock);
    g_free(frames);
}

static unsigned take_slice(MsFrame *list, unsigned n, const MsFrame *stack,
                           uint64_t *depth)
{
    unsigned got = MIN(n, *depth);

    *depth -= got;
    memcpy(list, stack + *depth, got * sizeof(*list));
    return got;
}

/* Has the kernel fill in the memory of cold frames: some at once cost a
 * quarter less than fault by fault while a payload is received.  (fallocate()
 * before that would be a sixth less, but it takes the file's lock, which all
 * lanes share, and knows nothing of MADV_NOHUGEPAGE.) */
static void populate(MsFrames *frames, const MsFrame *list, unsigned n)
{
    for (unsigned i = 0; i < n; i += STEP) {
        struct iovec iov[STEP];
        int n_iov = ms_frames_iov(frames, list + i, MIN(n - i, STEP), iov);

        for (int k = 0; k < n_iov; k++) {
            madvise(iov[k].iov_base, iov[k].iov_len, MADV_POPULATE_WRITE);
        }
        memx_thread_yield();
    }
}

int ms_frames_take(MsFrames *frames, MsFrame *list, unsigned n)
{
    unsigned got, warm;

    g_mutex_lock(&frames->lock);
    if (frames->n_warm + frames->n_cold +
        (frames->n_frames - MIN(frames->bump, frames->n_frames)) < n) {
        g_mutex_unlock(&frames->lock);
        return -ENOSPC;
    }
    got = take_slice(list, n, frames->warm, &frames->n_warm);
    warm = got;
    got += take_slice(list + got, n - got, frames->cold, &frames->n_cold);
    while (got < n) {
        list[got++] = frames->bump++;
    }
    for (unsigned i = warm; i < n; i++) {
        frames->lively[list[i] / HASHES_PER_PAGE]++;
    }
    frames->used += n;
    g_mutex_unlock(&frames->lock);
    populate(frames, list + warm, n - warm);
    return 0;
}

/* Takes the oldest warm frames into @batch when there are too many. */
static unsigned cool_locked(MsFrames *frames, MsFrame *batch)
{
    uint64_t limit = warm_limit_locked(frames);
    unsigned n;

    if (frames->n_warm <= limit) {
        return 0;
    }
    n = MIN(frames->n_warm - limit / 2, PUNCH_BATCH);
    memcpy(batch, frames->warm, n * sizeof(*batch));
    frames->n_warm -= n;
    memmove(frames->warm, frames->warm + n,
            frames->n_warm * sizeof(*batch));
    frames->punching++;
    return n;
}

/* A batch whose memory is gone.  A page of hashes goes with the last of its
 * frames, under the lock, lest one of them be taken and get a hash now. */
static void add_cold_locked(MsFrames *frames, const MsFrame *batch,
                            unsigned n)
{
    memcpy(frames->cold + frames->n_cold, batch, n * sizeof(*batch));
    frames->n_cold += n;
    for (unsigned i = 0; i < n; i++) {
        uint64_t page = batch[i] / HASHES_PER_PAGE;

        if (--frames->lively[page] == 0) {
            ms_punch(frames->hash_fd, page * MEMX_PAGE_BYTES,
                     MEMX_PAGE_BYTES);
        }
    }
}

static void give_some(MsFrames *frames, const MsFrame *list, unsigned n)
{
    MsFrame batch[PUNCH_BATCH];
    unsigned n_batch;

    g_mutex_lock(&frames->lock);
    frames->used -= n;
    memcpy(frames->warm + frames->n_warm, list, n * sizeof(*list));
    frames->n_warm += n;
    while (!start_afresh_locked(frames) &&
           (n_batch = cool_locked(frames, batch))) {
        g_mutex_unlock(&frames->lock);
        qsort(batch, n_batch, sizeof(*batch), compare_frames);
        punch_sorted(frames, batch, n_batch);
        g_mutex_lock(&frames->lock);
        add_cold_locked(frames, batch, n_batch);
        frames->punching--;
    }
    g_mutex_unlock(&frames->lock);
}

void ms_frames_give(MsFrames *frames, const MsFrame *list, unsigned n)
{
    while (n) {
        unsigned some = MIN(n, MEMX_GROUP_PAGES);

        give_some(frames, list, some);
        list += some;
        n -= some;
    }
}

uint64_t ms_frames_used(MsFrames *frames)
{
    uint64_t used;

    g_mutex_lock(&frames->lock);
    used = frames->used;
    g_mutex_unlock(&frames->lock);
    return used;
}

void *ms_frames_page(const MsFrames *frames, MsFrame frame)
{
    return frames->pages + (uint64_t)frame * MEMX_PAGE_BYTES;
}

uint8_t *ms_frames_hash(const MsFrames *frames, MsFrame frame)
{
    return frames->hashes + (uint64_t)frame * MEMX_HASH_BYTES;
}

int ms_frames_iov(const MsFrames *frames, const MsFrame *list, unsigned n,
                  struct iovec *iov)
{
    int n_iov = 0;

    for (unsigned i = 0; i < n; i++) {
        if (i && list[i] == list[i - 1] + 1) {
            iov[n_iov - 1].iov_len += MEMX_PAGE_BYTES;
        } else {
            iov[n_iov].iov_base = ms_frames_page(frames, list[i]);
            iov[n_iov].iov_len = MEMX_PAGE_BYTES;
            n_iov++;
        }
    }
    return n_iov;
}
