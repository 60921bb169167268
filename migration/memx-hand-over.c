/*
 * Who runs the VM after a split migration: docs/split-migration.md,
 * "Hand-over".
 *
 * Theory of operation
 *
 * QEMU asks memx_may_run() wherever it takes the disks back or over
 * (migration_block_activate()) and starts the VM: at the end of an incoming
 * migration, at the end of an outgoing one that failed, and in "cont"; and in
 * "blockdev-set-active".
 *
 *   destination   attached: COMMIT decides
 *   source        before the last byte of the stream: it has the VM, and says
 *                 so to whom it offered it
 *                 after it: RECLAIM decides, whatever the return path said:
 *                 a destination that failed to commit may try again
 *
 * COMMIT and RECLAIM are one compare-and-set on the first server of the first
 * block, the arbiter: it answers both sides, always the same.  All else learns
 * it from whoever won.  No answer within 2 s is a no: the VM stays stopped
 * and "cont" asks again.  Nothing but memx-force-owner goes around that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "migration/qemu-file.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memx.h"
#include "qapi/qapi-events-memx.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "hooks.h"
#include "memx-split.h"
#include "trace.h"

void memx_session_text(const uint8_t *session, char *text)
{
    unsigned i;

    for (i = 0; i < MEMX_SESSION_BYTES; i++) {
        sprintf(text + 2 * i, "%02x", session[i]);
    }
}

void memx_split_send_phase(MemxSplitPhase phase, const uint8_t *session)
{
    char text[2 * MEMX_SESSION_BYTES + 1];

    memx_session_text(session, text);
    trace_memx_split_phase(MemxSplitPhase_str(phase), text);
    qapi_event_send_memx_split_phase(phase, text);
}

static bool refuse(MemxVerdict verdict, const uint8_t *session,
                   const char *side, const GError *gerr, Error **errp)
{
    bool theirs = verdict == MEMX_VERDICT_THEIRS;
    char text[2 * MEMX_SESSION_BYTES + 1];
    g_autofree char *message = g_strdup_printf(theirs ?
        "the VM stays stopped here: the %s of its split migration has it "
        "(%s)" :
        "the VM stays stopped: the memory server that decides whether the %s "
        "of its split migration has it does not answer (%s); 'cont' asks "
        "again", side, gerr ? gerr->message : "no details");

    memx_session_text(session, text);
    trace_memx_split_refused(text, message);
    qapi_event_send_memx_split_refused(theirs ? MEMX_SPLIT_VERDICT_THEIRS :
                                       MEMX_SPLIT_VERDICT_UNKNOWN, text,
                                       message);
    error_setg(errp, "%s", message);
    return false;
}

/* --- destination ------------------------------------------------------- */

static bool arrival_may_run(Error **errp)
{
    g_autoptr(GError) gerr = NULL;
    MemxVerdict verdict;

    if (!memx_arrival_waits()) {
        return true;
    }
    verdict = memx_arrival_commit(true, &gerr);
    if (verdict != MEMX_VERDICT_MINE) {
        return refuse(verdict, memx_arrival_session(), "source", gerr, errp);
    }
    memx_arrival_committed();
    return true;
}

bool memx_arrival_stopped(QEMUFile *from_source)
{
    if (memx_arrival_waits()) {
        qemu_file_set_error(from_source, -EPERM);
    }
    return memx_arrival_came();
}

/* --- source ------------------------------------------------------------ */

static MemxVerdict reclaim(bool ask, GError **error)
{
    MemxVerdict verdict = memx_split_reclaim(memx_split.blocks[0].region, ask,
                                             MEMX_VERDICT_MS, error);
    unsigned i;

    if (verdict == MEMX_VERDICT_MINE) {
        for (i = 1; i < memx_split.n_blocks; i++) {
            memx_split_reclaim(memx_split.blocks[i].region, false, 0, NULL);
        }
    }
    return verdict;
}

static void cancel(void)
{
    unsigned i;

    memx_split_figures_refresh(NULL);
    for (i = 0; i < memx_split.n_blocks; i++) {
        if (memx_split.blocks[i].begun) {
            memx_split_cancel(memx_split.blocks[i].region);
        }
    }
}

static bool source_asks(Error **errp)
{
    g_autoptr(GError) gerr = NULL;
    MemxVerdict verdict = reclaim(true, &gerr);

    if (verdict == MEMX_VERDICT_MINE) {
        memx_split_end(MEMX_SPLIT_PHASE_RECLAIMED);
        return true;
    }
    if (verdict == MEMX_VERDICT_THEIRS) {
        memx_split_set_phase(MEMX_SPLIT_PHASE_LOST);
    }
    return refuse(verdict, memx_split.session, "destination", gerr, errp);
}

static bool source_may_run(Error **errp)
{
    MigrationState *s = migrate_get_current();

    if (memx_split.state != MEMX_SPLIT_NONE && s->migration_thread_running &&
        !migration_thread_is_self()) {
        /* "cont" of a VM that was stopped while it migrates. */
        if (memx_split.state < MEMX_SPLIT_OFFERED) {
            return true;
        }
        error_setg(errp, "Migration is not finalized yet");
        return false;
    }
    switch (memx_split.state) {
    case MEMX_SPLIT_NONE:
        return true;
    case MEMX_SPLIT_PLANNED:
    case MEMX_SPLIT_SETUP:
    case MEMX_SPLIT_RUNNING:
        cancel();
        memx_split_end(MEMX_SPLIT_PHASE_CANCELLED);
        return true;
    case MEMX_SPLIT_OFFERED:
        reclaim(false, NULL);
        memx_split_end(MEMX_SPLIT_PHASE_RECLAIMED);
        return true;
    case MEMX_SPLIT_SENT:
        return source_asks(errp);
    }
    g_assert_not_reached();
}

/* --- both -------------------------------------------------------------- */

bool memx_may_run(Error **errp)
{
    assert(bql_locked());
    return arrival_may_run(errp) && source_may_run(errp);
}

bool memx_must_wait(void)
{
    return memx_arrival_waits() || memx_split.state >= MEMX_SPLIT_OFFERED;
}

static bool is_session(const uint8_t *session, const char *text)
{
    char own[2 * MEMX_SESSION_BYTES + 1];

    memx_session_text(session, own);
    return g_ascii_strcasecmp(own, text) == 0;
}

void qmp_memx_force_owner(const char *session, Error **errp)
{
    MigrationState *s = migrate_get_current();

    if (memx_arrival_waits() && is_session(memx_arrival_session(), session)) {
        memx_arrival_commit(false, NULL);
        memx_arrival_committed();
    } else if (memx_split.state == MEMX_SPLIT_SENT &&
               !s->migration_thread_running &&
               is_session(memx_split.session, session)) {
        reclaim(false, NULL);
        memx_split_end(MEMX_SPLIT_PHASE_RECLAIMED);
    } else {
        error_setg(errp, "no split migration '%s' waits for a decision here",
                   session);
        return;
    }
    warn_report("memx-force-owner: this side has the VM now, whatever the "
                "other one does");
}
