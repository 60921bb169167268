/*
 * Streams: who reads ahead, and how far.
 *
 * Each fault is matched against the last few places at which faults were
 * seen.  One that continues a place makes it a stream, whose window doubles
 * with every further match; one that continues none replaces the place that
 * was not matched for longest, with no window.  So a sequential reader soon
 * has megabytes on their way, in either direction, and a random reader pays
 * for single pages only.
 *
 * A page that was prefetched causes no fault, so a stream would be silent
 * until its end.  Prefetch therefore leaves out one page in
 * MEMX_STREAM_MARKER_PAGES, the *marker*: the fault on it says how far the
 * reader is, while the pages behind it are on their way already.
 *
 * What was asked for may get lost: evicted before the reader came, or not asked
 * for in the end.  Then it is asked for anew from there on.
 *
 * Where a tracker tells afterwards which prefetched pages were touched, the
 * windows of that direction shrink when few were, and grow again when most
 * were.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_STREAMS_H
#define MEMX_STREAMS_H

#include <stdint.h>

#define MEMX_STREAMS 16
#define MEMX_STREAM_SLACK_PAGES 8
#define MEMX_STREAM_MARKER_PAGES 256

typedef struct MemxStream {
    uint64_t at;        /* the page of its last fault */
    uint64_t ahead;     /* first page, in its direction, not yet asked for */
    uint32_t window;    /* pages; 0: a place, not yet a stream */
    int32_t direction;  /* 1 or -1 */
    uint64_t used;      /* when it was matched last, in faults */
} MemxStream;

typedef struct MemxStreams {
    MemxStream stream[MEMX_STREAMS];
    uint64_t faults;
    uint32_t window_most;   /* of any */
    uint32_t window_max[2]; /* as it is now, forward and backward */
    uint32_t judged[2], used[2]; /* pages, since that was decided */
} MemxStreams;

void memx_streams_init(MemxStreams *streams, uint32_t window_max);

/*
 * A fault at @page.  Returns the window of its stream in pages (0: none), and
 * in [*first, *end) the pages that should now be asked for, besides @page;
 * empty when enough is on its way.  The range is not cut to the region: *end
 * may be past it, a backward range stops at page 0.  Fault path.
 */
uint32_t memx_streams_fault(MemxStreams *streams, uint64_t page,
                            uint64_t *first, uint64_t *end, int *direction);

/* Before that: @page was neither there nor on its way.  If it should have been,
 * the pages behind it are asked for again.  Fault path. */
void memx_streams_lost(MemxStreams *streams, uint64_t page);

/* Of @pages that were prefetched in a direction, a tracker found @used
 * touched. */
void memx_streams_judge(MemxStreams *streams, int direction, unsigned pages,
                        unsigned used);

#endif
