/*
 * Controls: what other threads ask of the store thread, since it goes over a
 * server's ordered lane: to reserve, and what changes the owner of a space.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include "region.h"

MemxControl *memx_control_new(const MemxServer *s, uint16_t opcode)
{
    MemxControl *control = g_new0(MemxControl, 1);

    control->server = s->index;
    control->opcode = opcode;
    return control;
}

void memx_control_start(MemxRegion *r, MemxControl *control)
{
    MemxControl **last = &r->control;

    g_mutex_lock(&r->lock);
    while (*last) { /* in order: a later one may take an earlier one back */
        last = &(*last)->next;
    }
    *last = control;
    memx_worker_ring(&r->store);
    g_mutex_unlock(&r->lock);
}

int memx_control_end(MemxRegion *r, MemxControl *control, int64_t deadline_us,
                     unsigned *error)
{
    int status = -ETIMEDOUT;

    *error = 0;
    g_mutex_lock(&r->lock);
    r->n_waiting++;
    while (!control->done && !memx_stopping(r) &&
           g_cond_wait_until(&r->changed, &r->lock, deadline_us)) {
        ;
    }
    r->n_waiting--;
    if (!control->done) {
        control->abandoned = true;
    } else {
        status = control->status;
        *error = control->error;
        g_free(control);
    }
    g_mutex_unlock(&r->lock);
    return status;
}

int memx_control_call(MemxRegion *r, MemxControl *control,
                      unsigned timeout_ms, unsigned *error)
{
    int64_t deadline_us = g_get_monotonic_time() + timeout_ms * 1000ll;

    memx_control_start(r, control);
    return memx_control_end(r, control, deadline_us, error);
}
