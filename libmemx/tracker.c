/*
 * Which tracker; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "tracker.h"

/* The best first: exact and cheap, exact and free but for privileges, and
 * what needs nothing. */
static const MemxTrackerOps *const kinds[] = {
    &memx_tracker_rwp, &memx_tracker_idle, &memx_tracker_sample,
    &memx_tracker_window, &memx_tracker_damon,
};

static bool fits(const MemxTrackerOps *ops, const MemxWatch *watch)
{
    return watch->region ? ops->regions : ops->ordinary;
}

const char *memx_tracker_kind_name(MemxTrackerKind kind)
{
    switch (kind) {
    case MEMX_TRACKER_AUTO:
        return "auto";
    case MEMX_TRACKER_RWP:
        return "rwp";
    case MEMX_TRACKER_IDLE:
        return "idle";
    case MEMX_TRACKER_SAMPLE:
        return "sample";
    case MEMX_TRACKER_DAMON:
        return "damon";
    case MEMX_TRACKER_OFF:
    default:
        return "off";
    }
}

static bool choose_best(const MemxWatch *watch, const MemxTrackerOps **ops,
                        void **tracker, char **why, GError **error)
{
    g_autoptr(GString) not = g_string_new(NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autoptr(GError) reason = NULL;

        if (!fits(kinds[i], watch) || kinds[i]->asked_only) {
            continue;
        }
        *tracker = kinds[i]->open(watch, &reason);
        if (*tracker) {
            *ops = kinds[i];
            *why = not->len ? g_strdup_printf("not %s", not->str)
                   : g_strdup("the best of all");
            return true;
        }
        g_string_append_printf(not, "%s%s (%s)", not->len ? ", nor " : "",
                               memx_tracker_kind_name(kinds[i]->kind),
                               reason->message);
    }
    *ops = NULL;
    *why = g_strdup_printf("not %s", not->str);
    if (!watch->region) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "this memory can't be tracked: not by %s", not->str);
        g_clear_pointer(why, g_free);
        return false;
    }
    return true;
}

bool memx_tracker_choose(const MemxWatch *watch,
                         const MemxTrackerOptions *options,
                         const MemxTrackerOps **ops, void **tracker,
                         char **why, GError **error)
{
    g_autoptr(GError) reason = NULL;

    *ops = NULL;
    *tracker = NULL;
    if (options->kind == MEMX_TRACKER_AUTO) {
        return choose_best(watch, ops, tracker, why, error);
    }
    if (options->kind == MEMX_TRACKER_OFF) {
        *why = g_strdup("asked for");
        return true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        if (kinds[i]->kind != options->kind || !fits(kinds[i], watch)) {
            continue;
        }
        *ops = kinds[i];
        *tracker = kinds[i]->open(watch, &reason);
        if (*tracker) {
            *why = g_strdup("asked for");
            return true;
        }
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "tracker %s can't be used: %s",
                memx_tracker_kind_name(options->kind),
                reason ? reason->message : "there is no such tracker");
    return false;
}

bool memx_tracker_check(unsigned period_ms, unsigned cpu_percent,
                        GError **error)
{
    if (period_ms && (period_ms < 100 || period_ms > 3600000)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "tracker period %u ms must be 100 to 3600000, or 0 to "
                    "adapt", period_ms);
        return false;
    }
    if (!cpu_percent || cpu_percent > 1600) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "tracker share %u %% of a CPU must be 1 to 1600",
                    cpu_percent);
        return false;
    }
    return true;
}

void memx_slice_set(MemxSlice *slice, uint64_t first, uint64_t n)
{
    while (n) {
        unsigned at = first % MEMX_GROUP_PAGES;
        unsigned k = MIN(n, MEMX_GROUP_PAGES - at);

        slice->touched[first / MEMX_GROUP_PAGES] |=
            (k == 64 ? UINT64_MAX : (1ull << k) - 1) << at;
        first += k;
        n -= k;
    }
}

bool memx_slice_run(const MemxSlice *slice, unsigned *at, unsigned *first,
                    unsigned *n)
{
    while (*at < slice->n_groups && !memx_slice_wanted(slice, *at)) {
        ++*at;
    }
    *first = *at;
    while (*at < slice->n_groups && memx_slice_wanted(slice, *at)) {
        ++*at;
    }
    *n = *at - *first;
    return *n > 0;
}

uint64_t memx_tracker_working_set(const MemxTrackerStats *stats,
                                  unsigned permille)
{
    uint64_t all = 0, sum = 0, chunks = 0, goal;

    for (unsigned v = 1; v < MEMX_HISTORIES; v++) {
        all += (uint64_t)stats->chunks[v] * __builtin_popcount(v);
    }
    goal = (all * MIN(permille, 1000) + 999) / 1000;
    for (unsigned v = MEMX_HISTORIES - 1; v && sum < goal; v--) {
        unsigned weight = __builtin_popcount(v);
        uint64_t need = (goal - sum + weight - 1) / weight;
        uint64_t n = MIN(stats->chunks[v], need);

        chunks += n;
        sum += n * weight;
    }
    return chunks * stats->chunk_bytes;
}
