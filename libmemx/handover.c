/*
 * Hand-over: whose the spaces are.
 *
 * Theory of operation
 *
 * A space has one owner, which alone may change it.  The source of a split
 * migration OFFERs all its spaces to the destination, the heir, which may
 * read from then on.  Either the heir COMMITs or the owner RECLAIMs: that is
 * one decision for all spaces of a session, and it is made by one server, the
 * arbiter (the first one of one region).  Who won there tells the others; and
 * changes nothing on a server that has not been told:
 *
 *   side     OWNER    the spaces are ours; `told` says which servers know
 *            OFFERED  the destination may take them: nothing is changed
 *            HEIR     we may take them: nothing is changed
 *            FENCED   the other side took them; for good
 *
 * The telling is the store thread's, on the ordered lane, again after each
 * reconnect until it is answered.  A server's EPOCH, to a request or when a
 * lane is opened, is its word that the other side won.  To the heir so is that
 * it no longer has the space, unless it came back empty (link.c): the owner
 * closes what it took back.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <string.h>
#include "region.h"

#define RETRY_MS 50

void memx_handover_open_locked(MemxRegion *r, MemxServer *s, MemxOpen *open)
{
    bool heir = r->side == MEMX_SIDE_HEIR ||
                (!s->told && r->tell_opcode == MEMX_OP_COMMIT);

    open->flags = heir ? MEMX_OPEN_HEIR : 0;
    memset(open->session, 0, sizeof(open->session));
    if (heir) {
        memcpy(open->session, r->session_id, sizeof(open->session));
    }
}

void memx_handover_fenced_locked(MemxRegion *r)
{
    if (r->side != MEMX_SIDE_FENCED) {
        r->side = MEMX_SIDE_FENCED;
        memx_changed_locked(r);
    }
}

void memx_handover_tell(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        bool now;

        g_mutex_lock(&r->lock);
        now = r->side == MEMX_SIDE_OWNER && !s->told && r->tell_opcode &&
              !s->telling && s->lane[MEMX_LANE_ORDERED].up;
        g_mutex_unlock(&r->lock);
        if (!now) {
            continue;
        }
        s->tell = (MemxCall) {
            .request = { .opcode = r->tell_opcode,
                         .body_bytes = MEMX_ID_BYTES },
            .body = r->session_id,
        };
        s->telling = !memx_lane_submit(r, s, MEMX_LANE_ORDERED, &s->tell);
    }
}

void memx_handover_told(MemxRegion *r, MemxServer *s)
{
    unsigned error = s->tell.reply.error;

    s->telling = false;
    if (s->tell.status) {
        return; /* again on the next connection */
    }
    g_mutex_lock(&r->lock);
    if (!error) {
        s->told = true;
    } else if (error == MEMX_ERR_EPOCH) {
        memx_handover_fenced_locked(r);
    }
    memx_changed_locked(r);
    g_mutex_unlock(&r->lock);
    if (error && error != MEMX_ERR_EPOCH) {
        memx_channel_shutdown(s->lane[MEMX_LANE_ORDERED].channel);
    }
}

static MemxSide side(MemxRegion *r)
{
    MemxSide now;

    g_mutex_lock(&r->lock);
    now = r->side;
    g_mutex_unlock(&r->lock);
    return now;
}

/* Why the arbiter said neither yes nor no. */
static void set_no_verdict(MemxRegion *r, MemxServer *s, int status,
                           unsigned refused, GError **error)
{
    const char *why = refused ? memx_error_name(refused)
                              : g_strerror(-status);
    char why_down[MEMX_WHY_BYTES];

    g_mutex_lock(&r->lock);
    memcpy(why_down, s->why_down, sizeof(why_down));
    g_mutex_unlock(&r->lock);
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                "memory server %s, which decides which side runs the VM, did "
                "not answer: %s; bring it back and try again",
                s->peer->address,
                !refused && *why_down ? why_down : why);
}

/* Asks the arbiter, again and again until the time is up. */
static MemxVerdict ask(MemxRegion *r, uint16_t opcode, unsigned timeout_ms,
                       GError **error)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000ll;
    unsigned refused = 0;
    int status = -ETIMEDOUT;
    unsigned arbiter;

    g_mutex_lock(&r->lock);
    arbiter = memx_arbiter(r);
    g_mutex_unlock(&r->lock);
    while (side(r) != MEMX_SIDE_FENCED) {
        int64_t left_ms = (end - g_get_monotonic_time()) / 1000;
        MemxControl *control;

        if (left_ms <= 0) {
            set_no_verdict(r, &r->server[arbiter], status, refused, error);
            return MEMX_VERDICT_UNKNOWN;
        }
        control = memx_control_new(&r->server[arbiter], opcode);
        memcpy(control->body, r->session_id, MEMX_ID_BYTES);
        control->body_bytes = MEMX_ID_BYTES;
        status = memx_control_call(r, control, left_ms, &refused);
        if (!status && !refused) {
            return MEMX_VERDICT_MINE;
        }
        if (!status && refused == MEMX_ERR_EPOCH) {
            break;
        }
        if (status != -ETIMEDOUT) {
            g_usleep(RETRY_MS * 1000);
        }
    }
    g_mutex_lock(&r->lock);
    memx_handover_fenced_locked(r);
    g_mutex_unlock(&r->lock);
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                "the %s of the migration has the VM, as memory server %s says",
                opcode == MEMX_OP_COMMIT ? "source" : "destination",
                r->server[arbiter].peer->address);
    return MEMX_VERDICT_THEIRS;
}

static MemxVerdict settle(MemxRegion *r, uint16_t opcode, bool ask_first,
                          unsigned timeout_ms, GError **error)
{
    MemxVerdict verdict = MEMX_VERDICT_MINE;

    if (side(r) == MEMX_SIDE_OWNER) {
        return MEMX_VERDICT_MINE;
    }
    if (ask_first) {
        verdict = ask(r, opcode, timeout_ms, error);
    }
    if (verdict == MEMX_VERDICT_MINE) {
        g_mutex_lock(&r->lock);
        r->side = MEMX_SIDE_OWNER;
        r->tell_opcode = opcode;
        for (unsigned i = 0; i < r->n_servers; i++) {
            r->server[i].told = r->server[i].released ||
                                (ask_first && i == memx_arbiter(r));
        }
        r->quiet = false;
        memx_worker_ring(&r->store);
        memx_worker_ring(&r->fetch);
        g_mutex_unlock(&r->lock);
    }
    return verdict;
}

MemxVerdict memx_region_commit(MemxRegion *r, bool ask_first,
                               unsigned timeout_ms, GError **error)
{
    MemxVerdict verdict;
    bool first;

    first = side(r) == MEMX_SIDE_HEIR;
    verdict = settle(r, MEMX_OP_COMMIT, ask_first, timeout_ms, error);
    if (first && verdict == MEMX_VERDICT_MINE) {
        g_mutex_lock(&r->lock);
        r->fetched_at_commit = r->count.remote + r->count.prefetched;
        r->warm_at = 0;
        memx_worker_ring(&r->fetch);
        g_mutex_unlock(&r->lock);
        memx_wake_all(r);
    }
    return verdict;
}

MemxVerdict memx_split_reclaim(MemxRegion *r, bool ask_first,
                               unsigned timeout_ms, GError **error)
{
    MemxVerdict verdict = settle(r, MEMX_OP_RECLAIM, ask_first, timeout_ms,
                                 error);

    if (verdict == MEMX_VERDICT_MINE) {
        memx_split_cancel(r);
    }
    return verdict;
}

void memx_split_leave(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    r->leave = true;
    g_mutex_unlock(&r->lock);
}
