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

static MemxJudged judge(MemxPrefetchedGroup *p, uint64_t used,
                        uint64_t untouched)
{
    p->mask &= ~(used | untouched);
    return (MemxJudged) { p->direction, used, untouched };
}

MemxJudged memx_prefetched_looked(MemxPrefetched *t, uint64_t group,
                                  uint64_t present, uint64_t touched,
                                  uint64_t blind, bool whole)
{
    MemxPrefetchedGroup *p = find(t, group);
    bool told, ends;

    if (!p) {
        return (MemxJudged) { 0 };
    }
    told = p->idle;
    ends = whole && p->looked;
    p->looking = false;
    p->idle = true; /* from now on */
    p->looked |= whole;
    p->mask &= present & (told ? ~blind : UINT64_MAX);
    return judge(p, told ? p->mask & touched : 0,
                 ends ? p->mask & ~touched : 0);
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
            judged = judge(p, p->mask & left & known & touched,
                           p->mask & left & known & ~touched);
        }
        p->mask &= ~left;
    }
    return judged;
}
