/*
 * Prefetched pages; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include "prefetched.h"

static MemxPrefetchedGroup *find(MemxPrefetched *t, uint64_t group)
{
    MemxPrefetchedGroup *p = &t->entry[group % MEMX_PREFETCHED];

    return p->mask && p->group == group ? p : NULL;
}

void memx_prefetched_came(MemxPrefetched *t, uint64_t group, uint64_t mask,
                          int direction, bool idle)
{
    MemxPrefetchedGroup *p = find(t, group);

    if (p && p->direction == direction) {
        p->mask |= mask;
        p->idle &= idle;
        p->looked = false;
        return;
    }
    t->entry[group % MEMX_PREFETCHED] = (MemxPrefetchedGroup) {
        .group = group, .mask = mask, .direction = direction, .idle = idle,
    };
}

void memx_prefetched_look(MemxPrefetched *t, uint64_t group)
{
    MemxPrefetchedGroup *p = find(t, group);

    if (p) {
        p->looking = true;
    }
}

void memx_prefetched_skipped(MemxPrefetched *t, uint64_t group)
{
    MemxPrefetchedGroup *p = find(t, group);

    if (p) {
        p->looking = false;
    }
}

/* Tells of @mask. */
static MemxJudged judge(MemxPrefetchedGroup *p, uint64_t mask)
{
    mask &= p->mask;
    p->mask &= ~mask;
    return (MemxJudged) { p->direction, mask & p->used, mask & ~p->used };
}

MemxJudged memx_prefetched_looked(MemxPrefetched *t, uint64_t group,
                                  uint64_t present, uint64_t touched,
                                  uint64_t blind, bool whole)
{
    MemxPrefetchedGroup *p = find(t, group);
    bool ends;

    if (!p) {
        return (MemxJudged) { 0 };
    }
    ends = whole && p->looked;
    p->mask &= present;
    if (p->idle) {
        p->used |= touched & p->mask;
        p->mask &= ~blind | p->used;
    }
    p->looking = false;
    p->idle = true; /* from now on */
    p->looked |= whole;
    return judge(p, ends ? UINT64_MAX : 0);
}

bool memx_prefetched_asks(MemxPrefetched *t, uint64_t group)
{
    MemxPrefetchedGroup *p = find(t, group);

    return p && p->idle && !p->looking;
}

MemxJudged memx_prefetched_left(MemxPrefetched *t, uint64_t group,
                                uint64_t left, uint64_t touched,
                                uint64_t known)
{
    MemxPrefetchedGroup *p = find(t, group);
    MemxJudged judged = { 0 };

    if (p) {
        if (p->idle && !p->looking) { /* still so? */
            p->used |= touched & known & p->mask;
            judged = judge(p, left & (known | p->used));
        }
        p->mask &= ~left;
    }
    return judged;
}
