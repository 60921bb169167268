/*
 * Trackers: what was touched since the last look.
 *
 * A tracker is a table of functions over some ranges of this process's memory.
 * Those who use it, regions and MemxTracker objects, don't know which it is:
 * an ager (ager.h) asks it, a slice of memory after the other, what was touched
 * in each since it was asked last.  The kernel accumulates meanwhile; so asking
 * once a period is as good as S-memV's asking every second and ORing (paper 004,
 * section IV.B), and costs the guest no more than one refault a page.
 *
 * tracker-rwp.c, -idle.c, -sample.c and -damon.c are the kinds (and
 * tracker-window.c samples ordinary memory); for `off` there is none, and
 * faults alone make the history.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TRACKER_H
#define MEMX_TRACKER_H

#include "memx-protocol.h"
#include "memx.h"

#define MEMX_SLICE_GROUPS 256u      /* 64 MiB, of one range */
#define MEMX_SLICE_WORDS (MEMX_SLICE_GROUPS / 64)
#define MEMX_SLICE_GROUPS_MAX 4096u /* 1 GiB; see large_slices */
#define MEMX_SLICE_WORDS_MAX (MEMX_SLICE_GROUPS_MAX / 64)

typedef struct MemxPace MemxPace;

typedef struct MemxSlice {
    MemxPace *pace;                 /* see memx_pace() */
    unsigned range;
    uint64_t first_group;           /* of the range */
    unsigned n_groups;
    uint64_t wanted[MEMX_SLICE_WORDS_MAX]; /* a bit a group: look at these */
    unsigned arm_pages;             /* of a group; see MemxTrackerOps */
    bool out_of_turn;               /* ends no period */
    /* The answer. */
    uint64_t touched[MEMX_SLICE_GROUPS_MAX]; /* a bit a page */
    uint64_t skipped[MEMX_SLICE_WORDS_MAX]; /* groups of which nothing is known */
    uint64_t blind[MEMX_SLICE_GROUPS_MAX]; /* pages that weren't watched, of
                               groups that were: touched or not */
    uint64_t faults;                /* of the guest, that this look caused */
} MemxSlice;

/* What is watched. */
typedef struct MemxWatch {
    const MemxRange *range;         /* stay while it is watched */
    unsigned n_ranges;
    MemxRegion *region;             /* or NULL: ordinary memory */
    bool huge;                      /* some of it may be huge pages */
    int uffd;                       /* of a region: registered with RWP, or
                                       -1 */
    const MemxIdleFiles *idle;      /* or NULL */
} MemxWatch;

typedef struct MemxTrackerOps {
    MemxTrackerKind kind;
    bool regions, ordinary; /* for which memory */
    bool asked_only;    /* never by AUTO */
    bool serial;        /* one slice at a time */
    bool large_slices;  /* as large as can be */
    bool every_slice;   /* looks at all of them, also where nothing is wanted */
    bool waits;         /* harvest() may take long without using a CPU */
    bool blurred;       /* doesn't tell single pages from their neighbours */
    uint64_t fault_ns;  /* of a CPU, for each of its faults; 0: as one that the
                           kernel serves alone */
    bool moved_is_idle; /* a page that was MOVEd in counts as touched only when
                           it was */
    /* NULL and @error: the reason why it can't. */
    void *(*open)(const MemxWatch *watch, GError **error);
    /* Fills in the answer, and begins anew for what was wanted.  Pages that
     * came since count as touched.  If looking costs a fault for each page in
     * use, it is done for arm_pages of those in a group only; others are not
     * seen next time.  @wake_fd: when it is readable it should
     * come back soon.  @dwell_ns: how long it may take, if it waits. */
    void (*harvest)(void *tracker, MemxSlice *slice, int wake_fd,
                    uint64_t dwell_ns);
    /* Which pages of a group were touched since the last look, of those @known
     * to show it; as harvest(), but nothing begins anew.  Any thread.  NULL: it
     * can't tell. */
    uint64_t (*peek)(void *tracker, unsigned range, uint64_t group,
                     uint64_t *known);
    /* What it has away of [offset, offset + bytes), and what is there, goes.
     * NULL: it has nothing away, or others see to that.  Any thread. */
    void (*discard)(void *tracker, unsigned range, uint64_t offset,
                    uint64_t bytes);
    void (*close)(void *tracker);
} MemxTrackerOps;

extern const MemxTrackerOps memx_tracker_rwp;
extern const MemxTrackerOps memx_tracker_idle;
extern const MemxTrackerOps memx_tracker_sample;
extern const MemxTrackerOps memx_tracker_damon;
extern const MemxTrackerOps memx_tracker_window; /* sample, ordinary memory */

/* idle-files.c; -1 for those that can't be duplicated, with errno. */
MemxIdleFiles memx_idle_files_dup(const MemxIdleFiles *files);

/* tracker.c */

/*
 * Opens the tracker of options->kind, or for AUTO the best that can be had; @why
 * says why it is this one.  With AUTO a region always has one (NULL for `off`),
 * ordinary memory may have none: false.
 */
bool memx_tracker_choose(const MemxWatch *watch,
                         const MemxTrackerOptions *options,
                         const MemxTrackerOps **ops, void **tracker,
                         char **why, GError **error);
bool memx_tracker_check(unsigned period_ms, unsigned cpu_percent,
                        GError **error);

/*
 * ager.c: sleeps if this thread has used up its share of a CPU for now.  By
 * trackers now and then, so that they work in small portions: on the CPU where
 * this runs somebody else waits.
 */
void memx_pace(MemxPace *pace);
/* How long that would be, for one who has something to wait for meanwhile;
 * and how much of it is left.  What waiting costs is reckoned the next time:
 * else one who can't wait cheaply would never end. */
uint64_t memx_pace_ns(MemxPace *pace);
uint64_t memx_pace_left_ns(MemxPace *pace);
/* What it cost others counts as its own. */
void memx_pace_charge(MemxPace *pace, uint64_t ns);

/* The pages [first, first + n) of a slice's answer. */
void memx_slice_set(MemxSlice *slice, uint64_t first, uint64_t n);
/* The next run of wanted groups from *@at on; false: there is none. */
bool memx_slice_run(const MemxSlice *slice, unsigned *at, unsigned *first,
                    unsigned *n);

static inline bool memx_slice_wanted(const MemxSlice *slice, unsigned group)
{
    return slice->wanted[group / 64] >> group % 64 & 1;
}

/* The bytes of a slice's groups [first, first + n): its last may be short. */
static inline uint64_t memx_slice_bytes(const MemxRange *range,
                                        const MemxSlice *slice,
                                        unsigned first, unsigned n)
{
    uint64_t start = (slice->first_group + first) * MEMX_GROUP_BYTES;

    return MIN(n * (uint64_t)MEMX_GROUP_BYTES, range->bytes - start);
}

static inline uint8_t *memx_slice_hva(const MemxRange *range,
                                      const MemxSlice *slice, unsigned first)
{
    return (uint8_t *)range->base +
           (slice->first_group + first) * MEMX_GROUP_BYTES;
}

#endif
