/*
 * What the engine reports, on its way to people, QMP and the run state.
 *
 * Theory of operation
 *
 * The engine calls memx_backend_event() on a region's session thread, which
 * serves no fault.  QMP's events leave from there: QEMU lets any thread send
 * them, and the main loop may be the one that waits for a page.
 *
 * The VM can be stopped and started in the main loop only.  The session
 * thread notes in the backend what is the matter and schedules
 * memx_run_state(), which looks at all backends and does what is due, so
 * that it does not matter how many events came before it ran:
 *
 *   some backend is broken     stop (internal-error), for good
 *   some backend is stalled    stop (io-error), unless it is stopped already
 *   none is stalled            start, if it was us who stopped it and nobody
 *                              stopped or started it since
 *
 * Whoever starts a VM that is stalled has it wait as long again before it is
 * stopped again: a vCPU that waits for a page is not "running".
 *
 * Under TCG the VM is not stopped: vm_stop() waits for the vCPUs, and one
 * that waits for a page cannot be interrupted.  A KVM vCPU can.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/qapi-events-memx.h"
#include "qapi/qapi-types-run-state.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "system/tcg.h"
#include "hooks.h"
#include "memx-backend.h"
#include "trace.h"

/* Under the BQL: the VM is stopped, and only by us. */
static bool stopped_by_us;

static QEMUTimer *stop_again;

static void memx_stop(RunState state)
{
    vm_stop(state);
    trace_memx_vm_stopped(RunState_str(state));
}

static void memx_run_state(void *unused)
{
    MemxBackend *b;
    bool stalled = false, broken = false;

    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        QTAILQ_FOREACH(b, &memx_backends, next) {
            stalled |= b->stalled;
            broken |= b->broken;
        }
    }
    if (tcg_enabled()) {
        return;
    }
    if (broken) {
        stopped_by_us = false;
        if (runstate_is_running()) {
            memx_stop(RUN_STATE_INTERNAL_ERROR);
        }
    } else if (stalled && runstate_is_running()) {
        memx_stop(RUN_STATE_IO_ERROR);
        stopped_by_us = true;
    } else if (!stalled && stopped_by_us) {
        stopped_by_us = false;
        if (runstate_check(RUN_STATE_IO_ERROR)) {
            vm_start();
            trace_memx_vm_resumed();
        }
    }
}

/* Not the main context: that one is also polled within other things. */
static void memx_schedule_run_state(void)
{
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), memx_run_state, NULL);
}

static void memx_set_stalled(MemxBackend *b, bool stalled)
{
    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        b->stalled = stalled;
    }
}

static void memx_set_broken(MemxBackend *b)
{
    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        b->broken = true;
    }
}

static void memx_report(const char *id, const MemxEvent *e)
{
    switch (e->type) {
    case MEMX_EVENT_SERVER_BACK:
    case MEMX_EVENT_SERVER_RELEASED:
    case MEMX_EVENT_RESUMED:
        info_report("memory-backend-memx '%s': %s", id, e->message);
        break;
    case MEMX_EVENT_SERVER_EMPTY:
    case MEMX_EVENT_BUG:
        error_report("memory-backend-memx '%s': %s", id, e->message);
        break;
    default:
        warn_report("memory-backend-memx '%s': %s", id, e->message);
    }
}

static void memx_send_event(const char *id, const MemxEvent *e)
{
    const char *server = e->server ?: "";

    memx_report(id, e);
    switch (e->type) {
    case MEMX_EVENT_SERVER_LOST:
        trace_memx_server_lost(id, server, e->remote_bytes);
        qapi_event_send_memx_server_lost(id, e->server, e->remote_bytes,
                                         e->message);
        break;
    case MEMX_EVENT_SERVER_BACK:
        trace_memx_server_back(id, server);
        qapi_event_send_memx_server_back(id, e->server, e->remote_bytes,
                                         e->message);
        break;
    case MEMX_EVENT_SERVER_EMPTY:
        trace_memx_server_empty(id, server, e->remote_bytes);
        qapi_event_send_memx_server_empty(id, e->server, e->remote_bytes,
                                          e->message);
        break;
    case MEMX_EVENT_SERVER_RELEASED:
        trace_memx_server_released(id, server);
        qapi_event_send_memx_server_released(id, e->server, e->remote_bytes,
                                             e->message);
        break;
    case MEMX_EVENT_POOL_FULL:
        trace_memx_pool_full(id, e->message);
        qapi_event_send_memx_pool_full(id, e->server, e->remote_bytes,
                                       e->message);
        break;
    case MEMX_EVENT_STALLED:
        trace_memx_stalled(id, server);
        qapi_event_send_memx_stalled(id, e->server, e->remote_bytes,
                                     e->message);
        break;
    case MEMX_EVENT_RESUMED:
        trace_memx_resumed(id);
        qapi_event_send_memx_resumed(id, e->server, e->remote_bytes,
                                     e->message);
        break;
    case MEMX_EVENT_BUG:
        trace_memx_bug(id, e->message);
        qapi_event_send_memx_bug(id, e->server, e->remote_bytes, e->message);
        break;
    }
}

/* query-memx knows before the event is out; the VM's own events follow. */
void memx_backend_event(const MemxEvent *e, void *opaque)
{
    MemxBackend *b = opaque;

    if (e->type == MEMX_EVENT_STALLED || e->type == MEMX_EVENT_RESUMED) {
        memx_set_stalled(b, e->type == MEMX_EVENT_STALLED);
    } else if (e->type == MEMX_EVENT_BUG) {
        memx_set_broken(b);
    }
    memx_send_event(b->id, e);
    if (e->type == MEMX_EVENT_STALLED || e->type == MEMX_EVENT_RESUMED ||
        e->type == MEMX_EVENT_BUG) {
        memx_schedule_run_state();
    }
}

/* Ordinary RAM that is being split: nobody waits for its pages. */
void memx_passive_event(const MemxEvent *e, void *opaque)
{
    memx_send_event(opaque, e);
}

static void memx_run_state_changed(void *opaque, bool running, RunState state)
{
    int64_t wait_s = 0;
    MemxBackend *b;

    if (!running) {
        return;
    }
    stopped_by_us = false;
    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        QTAILQ_FOREACH(b, &memx_backends, next) {
            wait_s = b->stalled ? MAX(wait_s, b->server_timeout_s) : wait_s;
        }
    }
    if (wait_s) {
        timer_mod(stop_again,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + wait_s * 1000);
    }
}

void memx_user_stop(void)
{
    stopped_by_us = false;
}

void memx_events_init(void)
{
    stop_again = aio_timer_new(iohandler_get_aio_context(),
                               QEMU_CLOCK_REALTIME, SCALE_MS, memx_run_state,
                               NULL);
    qemu_add_vm_change_state_handler(memx_run_state_changed, NULL);
}
