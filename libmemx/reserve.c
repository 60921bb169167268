/*
 * What is reserved on a server, as both sides know it.
 *
 * Theory of operation
 *
 * RESERVE says how many pages a space has reserved, in place of what it had.
 * Its answer may be lost, or be late, so there are three figures:
 *
 *   shall_pages      what was asked for last
 *   granted_pages    what the server had at its last word
 *   reserved_pages   what is counted on: the least of those two and of all
 *                    that is still in flight
 *
 * So never more is counted on than the server has.  It tells what it has when
 * an ordered lane is opened, after all of the old lane: if that isn't what it
 * shall have, it is asked again, once a lane.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include "region.h"

#define RESERVE_MS 2000

void memx_reserve_set_locked(MemxServer *s, uint64_t pages)
{
    s->shall_pages = s->granted_pages = s->reserved_pages = pages;
    s->reserve_again = false;
}

void memx_reserve_opened_locked(MemxServer *s, uint64_t pages)
{
    s->granted_pages = pages;
    s->reserved_pages = MIN(pages, s->shall_pages);
    s->reserve_again = pages != s->shall_pages;
}

void memx_reserve_sent_locked(MemxServer *s, uint64_t pages)
{
    s->n_reserving++;
    s->reserved_pages = MIN(s->reserved_pages, pages);
}

void memx_reserve_answered(MemxRegion *r, MemxServer *s, const MemxCall *call)
{
    g_mutex_lock(&r->lock);
    s->n_reserving--;
    if (!call->status && !call->reply.error) {
        s->granted_pages = call->request.group;
    }
    if (!call->status && !s->n_reserving) {
        s->reserved_pages = MIN(s->granted_pages, s->shall_pages);
    } /* else the next lane's opening tells, or the next answer */
    g_mutex_unlock(&r->lock);
}

void memx_reserve_again(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        uint64_t pages;
        bool now;

        g_mutex_lock(&r->lock);
        now = s->reserve_again && s->lane[MEMX_LANE_ORDERED].up && s->told &&
              r->side == MEMX_SIDE_OWNER && !s->closing;
        pages = s->shall_pages;
        g_mutex_unlock(&r->lock);
        if (!now) {
            continue;
        }
        s->reserve = (MemxCall) {
            .request = { .opcode = MEMX_OP_RESERVE, .group = pages },
        };
        if (!memx_lane_submit(r, s, MEMX_LANE_ORDERED, &s->reserve)) {
            g_mutex_lock(&r->lock);
            s->reserve_again = false;
            memx_reserve_sent_locked(s, pages);
            g_mutex_unlock(&r->lock);
        }
    }
}

bool memx_reserve_pages(MemxRegion *r, MemxServer *s, uint64_t pages,
                        GError **error)
{
    MemxControl *control = memx_control_new(s, MEMX_OP_RESERVE);
    unsigned refused;
    int status;

    control->reserve_pages = pages;
    g_mutex_lock(&r->lock);
    s->shall_pages = pages;
    s->reserved_pages = MIN(s->reserved_pages, pages);
    g_mutex_unlock(&r->lock);
    status = memx_control_call(r, control, RESERVE_MS, &refused);
    if (status || refused) {
        g_set_error(error, MEMX_ERROR, refused == MEMX_ERR_FULL
                    ? MEMX_ERROR_FULL : MEMX_ERROR_CONNECT,
                    "server %s did not reserve %" G_GUINT64_FORMAT " MiB: %s",
                    s->peer->address, pages / 256,
                    status ? g_strerror(-status) : memx_error_name(refused));
        return false;
    }
    return true;
}
