/*
 * First touches: zeros where nothing was ever written.
 *
 * The page that is waited for is filled at once, alone; the pages behind it,
 * more of them the longer a thread goes on in one direction, in portions.
 * Between these the fault thread answers who waits for another page: all of a
 * group at once would keep it for more than a hundred microseconds.
 *
 * Fault path, all of it, on the fault thread; but for memx_touch_fill(), which any
 * thread may call.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"
#include "uffd.h"

#define AT_ONCE 8 /* pages of a portion: some 15 us */

/* The pages from @page on that a stream's window lets us fill now. */
static unsigned pages_locked(MemxRegion *r, uint64_t page, uint32_t window,
                             int direction)
{
    uint64_t group = page / MEMX_GROUP_PAGES;
    uint64_t taken = r->table.present[group] | r->table.stored[group] |
                     ~memx_group_mask(&r->table, group);
    MemxSlot *slot = memx_staging_find(&r->staging, group, true);
    unsigned first = page % MEMX_GROUP_PAGES;
    unsigned n = 1;
    uint64_t room = memx_free_pages(r);

    if (direction < 0 || room < r->low / 2) {
        return 1;
    }
    window = MIN(window, room - r->low / 2);
    if (slot) {
        taken |= slot->staged;
    }
    while (n < window && first + n < MEMX_GROUP_PAGES &&
           !(taken >> (first + n) & 1)) {
        n++;
    }
    return n;
}

/* Fills the first @n pages of what is left; true: there are more. */
static bool portion(MemxRegion *r, MemxTouch *touch, unsigned n)
{
    uint64_t page = touch->page, group = page / MEMX_GROUP_PAGES;
    ssize_t done = memx_uffd_copy(r->uffd, memx_page_hva(r, page), r->zeros,
                                  n * MEMX_PAGE_BYTES, 0);
    unsigned filled = done > 0 ? done / MEMX_PAGE_BYTES : 0;
    unsigned failed = filled < n ? touch->n - filled : 0;

    touch->page += filled;
    touch->n -= filled + failed;
    g_mutex_lock(&r->lock);
    if (filled) {
        uint64_t mask = memx_run_mask(page % MEMX_GROUP_PAGES, filled);

        memx_trace_pages(MEMX_NEVER_TO_LOCAL, mask);
        memx_set_group_locked(r, group, r->table.present[group] | mask,
                              r->table.stored[group]);
    }
    memx_budget_give_locked(r, failed);
    if (!touch->n) {
        memx_installing_end_locked(r, memx_chunk_of_group(&r->table, group));
    }
    g_mutex_unlock(&r->lock);
    if (failed) {
        memx_uffd_wake(r->uffd, memx_page_hva(r, touch->page),
                       failed * MEMX_PAGE_BYTES);
    }
    return touch->n > 0;
}

/* It wakes who waits for one of its pages. */
static bool coming(MemxRegion *r, uint64_t page)
{
    for (unsigned i = 0; i < r->n_touches; i++) {
        if (page >= r->touch[i].page &&
            page < r->touch[i].page + r->touch[i].n) {
            return true;
        }
    }
    return false;
}

void memx_touch_fault(MemxRegion *r, uint64_t page)
{
    uint32_t c = memx_chunk_of_group(&r->table, page / MEMX_GROUP_PAGES);
    MemxTouch touch = { .page = page };
    uint64_t first, end;
    uint32_t window;
    int direction;

    if (coming(r, page)) {
        g_mutex_unlock(&r->lock);
        return;
    }
    window = memx_streams_fault(&r->streams, page, &first, &end, &direction);
    touch.n = pages_locked(r, page, window, direction);
    if (!memx_budget_take_locked(r, touch.n)) {
        memx_starve_locked(r);
        g_mutex_unlock(&r->lock);
        return;
    }
    memx_chunk_faulted_locked(r, c);
    r->table.chunk[c].installing++;
    r->count.first_touch++;
    g_mutex_unlock(&r->lock);

    if (!portion(r, &touch, 1)) {
        return;
    }
    if (r->n_touches < MEMX_TOUCHES_MAX) {
        r->touch[r->n_touches++] = touch;
    } else {
        while (portion(r, &touch, MIN(touch.n, AT_ONCE))) {
            ;
        }
    }
}

bool memx_touch_step(MemxRegion *r)
{
    MemxTouch touch = r->touch[0];

    if (!r->n_touches) {
        return false;
    }
    r->n_touches--;
    memmove(r->touch, r->touch + 1, r->n_touches * sizeof(touch));
    if (portion(r, &touch, MIN(touch.n, AT_ONCE))) {
        r->touch[r->n_touches++] = touch; /* the others' turn */
    }
    return true;
}

/* Takes a run of @mask's pages that were never written, and room for it. */
static bool begin_fill(MemxRegion *r, uint64_t group, uint64_t mask,
                       MemxTouch *touch)
{
    MemxChunk *chunk = &r->table.chunk[memx_chunk_of_group(&r->table, group)];
    MemxSlot *slot = memx_staging_find(&r->staging, group, true);
    unsigned first, n;

    mask &= ~(r->table.present[group] | r->table.stored[group] |
              (slot ? slot->staged : 0));
    if (memx_chunk_exclusive(chunk) || !memx_next_run(&mask, &first, &n) ||
        memx_free_pages(r) < r->low + n) {
        return false;
    }
    *touch = (MemxTouch) { group * MEMX_GROUP_PAGES + first, n };
    r->held += n;
    chunk->installing++;
    return true;
}

void memx_touch_fill(MemxRegion *r, uint64_t group, uint64_t mask)
{
    MemxTouch touch;
    bool ok;

    do {
        g_mutex_lock(&r->lock);
        ok = begin_fill(r, group, mask, &touch);
        g_mutex_unlock(&r->lock);
        if (ok) {
            mask &= ~memx_run_mask(touch.page % MEMX_GROUP_PAGES, touch.n);
            while (portion(r, &touch, MIN(touch.n, AT_ONCE))) {
                ;
            }
        }
    } while (ok);
}
