/*
 * Streams; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <stdbool.h>
#include <string.h>
#include "streams.h"

#define WINDOW_FIRST 8
#define WINDOW_LEAST 32u    /* however little of it was used */
#define JUDGED_PAGES 512

void memx_streams_init(MemxStreams *s, uint32_t window_max)
{
    memset(s, 0, sizeof(*s));
    s->window_most = s->window_max[0] = s->window_max[1] = window_max;
    for (unsigned i = 0; i < MEMX_STREAMS; i++) {
        s->stream[i].at = UINT64_MAX / 2;
        s->stream[i].ahead = UINT64_MAX / 2;
    }
}

static int continues(const MemxStream *st, uint64_t page)
{
    uint64_t slack = MEMX_STREAM_SLACK_PAGES;
    uint64_t low = st->at < st->ahead ? st->at : st->ahead;
    uint64_t high = st->at < st->ahead ? st->ahead : st->at;

    if (!st->window) {
        if (page > st->at && page - st->at <= slack) {
            return 1;
        }
        return page < st->at && st->at - page <= slack ? -1 : 0;
    }
    if (st->direction > 0) {
        return page > low && page < high + slack ? 1 : 0;
    }
    return page < high && page + slack > low ? -1 : 0;
}

static void set_range(MemxStream *st, uint64_t page, uint64_t *first,
                      uint64_t *end)
{
    uint64_t from, to;

    if (st->direction > 0) {
        from = st->ahead > page + 1 ? st->ahead : page + 1;
        to = page + 1 + st->window;
        /* Ask for half a window at a time at least. */
        if (from < to && to - from >= st->window / 2) {
            *first = from;
            *end = st->ahead = to;
        } else if (st->ahead <= page) {
            st->ahead = page + 1;
        }
        return;
    }
    to = st->ahead < page ? st->ahead : page;
    from = page > st->window ? page - st->window : 0;
    if (from < to && (to - from >= st->window / 2 || !from)) {
        *first = st->ahead = from;
        *end = to;
    } else if (st->ahead > page) {
        st->ahead = page;
    }
}

uint32_t memx_streams_fault(MemxStreams *s, uint64_t page, uint64_t *first,
                            uint64_t *end, int *direction)
{
    MemxStream *oldest = &s->stream[0];
    uint32_t most;

    *first = *end = page;
    *direction = 1;
    s->faults++;
    for (unsigned i = 0; i < MEMX_STREAMS; i++) {
        MemxStream *st = &s->stream[i];
        int d = continues(st, page);

        if (d) {
            if (!st->window) {
                st->direction = d;
                st->ahead = page;
                st->window = WINDOW_FIRST / 2;
            }
            most = s->window_max[st->direction < 0];
            st->window = st->window * 2 < most ? st->window * 2 : most;
            st->used = s->faults;
            set_range(st, page, first, end);
            st->at = page;
            *direction = st->direction;
            return st->window;
        }
        if (st->used < oldest->used) {
            oldest = st;
        }
    }
    *oldest = (MemxStream) { .at = page, .ahead = page, .direction = 1,
                             .used = s->faults };
    return 0;
}

static bool is_marker(const MemxStream *st, uint64_t page)
{
    return st->window >= MEMX_STREAM_MARKER_PAGES &&
           page % MEMX_STREAM_MARKER_PAGES ==
           (st->direction > 0 ? 0 : MEMX_STREAM_MARKER_PAGES - 1);
}

void memx_streams_lost(MemxStreams *s, uint64_t page)
{
    for (unsigned i = 0; i < MEMX_STREAMS; i++) {
        MemxStream *st = &s->stream[i];
        bool asked = st->direction > 0 ? page > st->at && page < st->ahead
                                       : page < st->at && page >= st->ahead;

        if (st->window && asked && !is_marker(st, page)) {
            st->ahead = page;
            return;
        }
    }
}

void memx_streams_judge(MemxStreams *s, int direction, unsigned pages,
                        unsigned used)
{
    unsigned d = direction < 0;
    uint32_t most = s->window_max[d];

    s->judged[d] += pages;
    s->used[d] += used;
    if (s->judged[d] < JUDGED_PAGES) {
        return;
    }
    if (s->used[d] < s->judged[d] / 2) {
        most = most / 2 > WINDOW_LEAST ? most / 2 : WINDOW_LEAST;
        s->window_max[d] = most < s->window_max[d] ? most : s->window_max[d];
    } else if (s->used[d] > s->judged[d] / 4 * 3) {
        s->window_max[d] = most * 2 < s->window_most ? most * 2
                                                     : s->window_most;
    }
    s->judged[d] = s->used[d] = 0;
}
