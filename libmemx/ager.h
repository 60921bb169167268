/*
 * The ager: when to look at what, and at what cost.
 *
 * Theory of operation
 *
 * A thread that goes over all watched memory once a *period*: a *pass*.  It
 * goes in slices of 64 MiB; for each the client says what to look at, the
 * tracker what was touched, and the client ages the history of these chunks.
 * Every millisecond or so it sleeps as long as its share of a CPU demands.  With more
 * than one CPU's share so many threads take slices side by side.
 *
 * The period, where it isn't set, is adapted at each pass.  A history tells
 * chunks apart only if they differ: where nearly all were touched in a period
 * it is too long, where hardly any was, too short.  Under pressure, while
 * memory is being evicted, the aim is that most of what is local was touched,
 * some of it not: these are the victims, told from the others by many periods
 * (tests/unit/test-ranking.c simulates what that is good for).  Else it is an
 * even split.
 * It ends early when as much as is local was replaced meanwhile.
 *
 * Where user space serves the tracker's faults they are dear, above all to a
 * guest that shares its CPU: another one has it then for longer than the fault
 * takes.  So when nothing was evicted for 8 periods (it goes in bursts), no
 * victim being chosen by what is found, each wait is longer than the last one by
 * the period, up to 20 s, until something is evicted.  A split that comes then
 * goes by a history that is older by so much.
 *
 * The faults that a tracker causes in the guest count as its share, too, 2 us
 * each, more where user space serves them.  So many pages of each group in use
 * may cause one as the share allows, two at least: which of its pages tell that a
 * chunk is in use makes little difference.  If that is still too much, the period
 * gets longer.
 *
 * The first pass of a tracker only begins: its answer means nothing, since
 * nobody knows since when.  But for one that waits: it looks what is touched
 * meanwhile.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_AGER_H
#define MEMX_AGER_H

#include "tracker.h"
#include "worker.h"

#define MEMX_PERIOD_DEFAULT_NS 1000000000ull

/* What a client found in a slice; summed up over a pass. */
typedef struct MemxFound {
    uint64_t touched_pages;
    uint64_t touched_groups;
    uint32_t touched_chunks;
    uint32_t looked_chunks;
    uint32_t chunks[MEMX_HISTORIES];
} MemxFound;

typedef struct MemxAgerClient {
    /* A period ends: is there anything to learn?  *@pressure: memory is being
     * evicted. */
    bool (*begin)(void *opaque, bool *pressure);
    /* What to look at of a slice: fills in `wanted`.  False: nothing. */
    bool (*want)(void *opaque, MemxSlice *slice);
    /* Ages the slice's chunks; adds to *@found.  May run in several threads, of
     * different slices.  @looked: the tracker's answer is there. */
    void (*age)(void *opaque, const MemxSlice *slice, bool looked,
                MemxFound *found);
    /* How much of what is local came since the last pass, in percent. */
    unsigned (*turnover)(void *opaque);
    /* Was nothing evicted since the last pass?  NULL: somebody always needs the
     * answers. */
    bool (*calm)(void *opaque);
} MemxAgerClient;

typedef struct MemxAger MemxAger;

/* @ops and @tracker as from memx_tracker_choose(), the ager's from then on,
 * and so is @why.  The thread runs when it was started. */
MemxAger *memx_ager_new(const MemxWatch *watch, const MemxTrackerOps *ops,
                        void *tracker, char *why, uint64_t chunk_bytes,
                        const MemxTrackerOptions *options,
                        const MemxAgerClient *client, void *opaque,
                        GError **error);
bool memx_ager_start(MemxAger *ager, GError **error);
/* Ends the thread; others may still ask the rest.  NULL is fine. */
void memx_ager_stop(MemxAger *ager);
/* Ends the thread, and closes the tracker.  NULL is fine. */
void memx_ager_free(MemxAger *ager);
/* By a tracker that was woken, before it looks. */
void memx_ager_silence(MemxAger *ager);
/* By a tracker for which another thread works, the kernel's: its CPU time, which
 * is told, but doesn't make this one sleep, since that would not lessen it. */
void memx_pace_spent(MemxPace *pace, uint64_t ns);
/* By a tracker that learns nothing (any more): the reason, a constant, is told
 * instead of why it is this one; NULL: it learns again. */
void memx_pace_trouble(MemxPace *pace, const char *reason);
/* Of its tracker. */
bool memx_ager_knows_no_pages(const MemxAger *ager);
bool memx_ager_moved_is_idle(const MemxAger *ager);
/* A look at once, with more of a CPU than usual; one that is under way is cut.
 * It ends no period: what it finds touched adds to what is known.  Doesn't
 * wait. */
void memx_ager_ask(MemxAger *ager);
/* That look is over, or there was none. */
bool memx_ager_has_looked(MemxAger *ager);
/* Doesn't wait. */
void memx_ager_pause(MemxAger *ager, bool pause);
/* When it returns nothing is away, nor will be until it goes on. */
void memx_ager_await_paused(MemxAger *ager);
/* The guest gives pages back. */
void memx_ager_discard(MemxAger *ager, unsigned range, uint64_t offset,
                       uint64_t bytes);
/* What of a group was touched since the last look, of those pages of which that
 * is known.  Changes nothing. */
uint64_t memx_ager_peek(MemxAger *ager, unsigned range, uint64_t group,
                        uint64_t *known);
/* Wakes a tracker that waits.  Fault path. */
void memx_ager_ring(MemxAger *ager);
void memx_ager_set(MemxAger *ager, unsigned period_ms, unsigned cpu_percent);
void memx_ager_stats(MemxAger *ager, MemxTrackerStats *stats);
/* The next period's length, by what was found in this one. */
uint64_t memx_ager_adapt(uint64_t period_ns, const MemxFound *found,
                         bool pressure);
/* For tests: a pass, in the caller's thread, of an ager not started. */
void memx_ager_pass(MemxAger *ager);

#endif
