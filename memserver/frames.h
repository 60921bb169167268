/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames: the memory that pages are kept in, 4 KiB each, and who gets them.
 */
#ifndef MS_FRAMES_H
#define MS_FRAMES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include "backing.h"

typedef uint32_t MsFrame;

typedef struct MsFrames MsFrames;

/* Which frames are in use, as found when a store is taken over. */
typedef struct MsUsed {
    uint64_t *bits;     /* MS_FRAMES_MAX of them */
    uint64_t limit;     /* none is in use from here on */
} MsUsed;

/*
 * Manages the first @n_frames frames of @backing, which must outlive it.
 * @used, of which limit <= @n_frames, may be NULL when none is in use;
 * whatever the other frames hold is given back to the system.
 */
MsFrames *ms_frames_new(const MsBacking *backing, uint64_t n_frames,
                        const MsUsed *used, GError **error);
void ms_frames_free(MsFrames *frames);

/*
 * Takes @n frames; what they contain is anything.  0, or -ENOSPC and nothing
 * is taken.  Any thread; the lock is held for a memcpy.
 */
int ms_frames_take(MsFrames *frames, MsFrame *list, unsigned n);

/*
 * Gives frames back.  Nobody may be looking at them any more.  Any thread but
 * those of the fault path: now and then it punches holes, some 100 us.
 */
void ms_frames_give(MsFrames *frames, const MsFrame *list, unsigned n);

/* Taken and not given back. */
uint64_t ms_frames_used(MsFrames *frames);

void *ms_frames_page(const MsFrames *frames, MsFrame frame);
uint8_t *ms_frames_hash(const MsFrames *frames, MsFrame frame);

/* Describes the pages of @list in its order, neighbours joined; returns how
 * many of @iov's @n elements that took.  Fault path. */
int ms_frames_iov(const MsFrames *frames, const MsFrame *list, unsigned n,
                  struct iovec *iov);

#endif
