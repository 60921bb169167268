/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which transition of a page's state was seen under which fault.
 */
#include <glib.h>
#include <stdatomic.h>
#include <stdio.h>
#include "coverage.h"

const char *const fault_names[N_FAULTS] = {
    "none", "cut", "half-close", "delay", "stall", "stop", "crash",
    "take-over", "full",
};

static const char *const transition_names[] = {
    [MEMX_NEVER_TO_LOCAL] = "never -> local (touched)",
    [MEMX_LOCAL_TO_STAGED] = "local -> staged (evicted)",
    [MEMX_KEPT_TO_STAGED] = "kept -> staged (evicted)",
    [MEMX_LOCAL_REFUSED] = "local, pinned: not evicted",
    [MEMX_STAGED_TO_LOCAL] = "staged -> local (touched)",
    [MEMX_STAGED_UNDONE] = "staged -> local (undone)",
    [MEMX_STAGED_TO_REMOTE] = "staged -> remote (sent)",
    [MEMX_STAGED_UNCHANGED] = "staged -> remote (unchanged)",
    [MEMX_STAGED_TO_NEVER] = "staged -> never (zeros)",
    [MEMX_STAGED_DISCARDED] = "staged -> never (discarded)",
    [MEMX_REMOTE_FAULTED] = "remote -> local (touched)",
    [MEMX_REMOTE_PREFETCHED] = "remote -> local (prefetched)",
    [MEMX_REMOTE_DISCARDED] = "remote -> never (discarded)",
    [MEMX_LOCAL_DISCARDED] = "local -> never (discarded)",
    [MEMX_KEPT_DISCARDED] = "kept -> never (discarded)",
    [MEMX_KEPT_RELEASED] = "kept -> local (released)",
    [MEMX_KEPT_VOIDED] = "kept -> local (server empty)",
    [MEMX_FETCH_USELESS] = "fetched in vain (raced)",
};
G_STATIC_ASSERT(G_N_ELEMENTS(transition_names) == MEMX_N_TRANSITIONS);

static atomic_int current;
static atomic_ullong count[MEMX_N_TRANSITIONS][N_FAULTS];

void memx_trace_pages(MemxTransition transition, uint64_t mask)
{
    if (mask) {
        atomic_fetch_add_explicit(
            &count[transition][atomic_load(&current)],
            __builtin_popcountll(mask), memory_order_relaxed);
    }
}

void coverage_set_fault(Fault fault)
{
    atomic_store(&current, fault);
}

Fault coverage_fault(void)
{
    return atomic_load(&current);
}

uint64_t coverage_moved_pages(void)
{
    static const MemxTransition move[] = {
        MEMX_LOCAL_TO_STAGED, MEMX_KEPT_TO_STAGED, MEMX_STAGED_UNDONE,
        MEMX_REMOTE_PREFETCHED,
    };
    uint64_t sum = 0;

    for (unsigned i = 0; i < G_N_ELEMENTS(move); i++) {
        for (unsigned f = 0; f < N_FAULTS; f++) {
            sum += atomic_load(&count[move[i]][f]);
        }
    }
    return sum;
}

/*
 * Must the cell be filled?  Not where it can't be, or where chance decides:
 * - without copies, whatever needs one;
 * - undone: only where a server that can't store keeps pages in staging;
 * - released: only where somebody wants the room;
 * - voided: no server comes back empty here (test-pool has that).
 */
static bool needed(MemxTransition t, Fault f, bool copies_kept)
{
    switch (t) {
    case MEMX_KEPT_TO_STAGED:
    case MEMX_KEPT_DISCARDED:
    case MEMX_STAGED_UNCHANGED:
        return copies_kept;
    case MEMX_STAGED_UNDONE:
        return f == FAULT_CUT || f == FAULT_CRASH || f == FAULT_TAKE_OVER;
    case MEMX_KEPT_RELEASED:
        return copies_kept && f == FAULT_FULL;
    case MEMX_KEPT_VOIDED:
    case MEMX_LOCAL_REFUSED: /* see the caller: it depends on io_uring */
        return false;
    default:
        return true;
    }
}

unsigned coverage_print(unsigned faults, bool copies_kept)
{
    unsigned empty = 0;

    printf("# %-30s", "pages");
    for (unsigned f = 0; f < N_FAULTS; f++) {
        if (faults >> f & 1) {
            printf("%11s", fault_names[f]);
        }
    }
    printf("\n");
    for (unsigned t = 0; t < MEMX_N_TRANSITIONS; t++) {
        printf("# %-30s", transition_names[t]);
        for (unsigned f = 0; f < N_FAULTS; f++) {
            unsigned long long n = atomic_load(&count[t][f]);
            bool must = needed(t, f, copies_kept);

            if (!(faults >> f & 1)) {
                continue;
            }
            printf("%10llu%c", n, n || !must ? ' ' : '!');
            empty += !n && must;
        }
        printf("\n");
    }
    return empty;
}
