/*
 * The ager; see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include "ager.h"
#include "urgent.h"

#define MS 1000000ull
#define SHARE_ALL 10000u                /* of a CPU: all of it */
#define PERIOD_MIN_NS (250 * MS)
#define PERIOD_MAX_NS (20000 * MS)
#define PERIOD_LAST_NS (3600000 * MS)   /* for its cost's sake */
#define CALM_PERIODS 8u                 /* until they get longer */
#define CALM_MAX (CALM_PERIODS + PERIOD_MAX_NS / (100 * MS))
#define TICK_NS (250 * MS)
#define NAP_NS (100 * MS)
#define TURNOVER_PERCENT 100
#define LOOKED_MIN 16                   /* chunks: fewer tell nothing */
#define NEARLY_ALL 97                   /* percent: how far is anybody's guess */
#define SLICES_EACH 64                  /* less isn't worth a thread */
#define THREADS_MAX 16
#define FAULT_NS 2000ull                /* of a CPU, for one in the kernel */
/* A look that somebody waits for: at most as long as so long a period's, and
 * with so much of a CPU. */
#define ASKED_PERIOD_NS (1000 * MS)
#define ASKED_PERCENT 25
#define ARM_MIN 2u                      /* pages of a group */

/* A look out of turn. */
typedef enum { NOBODY_ASKED, LOOK_ASKED, LOOK_UNDER_WAY } MemxAsked;

struct MemxAger {
    /* Constant after creation. */
    const MemxTrackerOps *ops;          /* NULL: faults only */
    void *tracker;
    char *why;
    MemxRange *range;
    uint64_t *end_slice;                /* of each range, counted over all */
    unsigned n_ranges;
    uint64_t chunk_bytes;
    const MemxAgerClient *client;
    void *opaque;
    MemxWorker worker;

    int stop;                           /* atomic */
    int paused;                         /* atomic */
    int asked;                          /* atomic; a MemxAsked */
    GMutex away;                        /* held while pages are taken away */
    int share;                          /* atomic; of each thread, of SHARE_ALL */
    atomic_uint_fast64_t next_slice;    /* to be taken, in this pass */

    GMutex lock;                        /* a leaf; protects what follows */
    bool adapts;
    uint64_t period_ns;
    unsigned calm;                      /* periods in a row, if it adapts */
    unsigned cpu_percent;
    unsigned n_threads;                 /* of the pass */
    MemxFound found;                    /* of the pass, by threads that ended */
    uint64_t pass_cpu_ns, pass_faults;
    uint64_t pass_others_ns;            /* see memx_pace_spent() */
    const char *trouble;                /* see memx_pace_trouble() */
    MemxTrackerStats last;              /* as it is told */

    /* The ager thread's; constant during a pass. */
    bool armed;                         /* the tracker's answers mean something */
    uint64_t pass_ns;                   /* all slices' dwell, at most */
    unsigned arm_pages;
    uint64_t slices_wanted;             /* in the last whole pass */
    uint64_t pass_end_ns;
    atomic_uint_fast64_t slices_now;
    int cut;                            /* atomic: not all of it was looked at */
};

/* A thread's part of a pass. */
struct MemxPace {
    MemxAger *ager;
    uint64_t cpu_ns;                    /* of the thread, at the start */
    uint64_t charged_ns;                /* of the guest, by the tracker */
    uint64_t settled_ns;                /* of both: due_ns accounts for them */
    uint64_t due_ns;                    /* when it may go on */
    uint64_t share;                     /* that due_ns is reckoned with */
    uint64_t others_ns;                 /* of the kernel's thread for it */
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static bool stopping(MemxAger *a)
{
    return g_atomic_int_get(&a->stop);
}

/* Somebody wants a look that begins now. */
static bool is_asked(MemxAger *a)
{
    return g_atomic_int_get(&a->asked) == LOOK_ASKED;
}

/* This pass was asked for. */
static bool out_of_turn(const MemxAger *a)
{
    return g_atomic_int_get(&a->asked) == LOOK_UNDER_WAY;
}

/* Whoever pauses waits for what is away: no time to sleep. */
static bool hurried(MemxAger *a)
{
    return stopping(a) || g_atomic_int_get(&a->paused) || is_asked(a);
}

/* Sleeps so long or less.  When it is to stop or to pause the bell stays
 * rung. */
static void nap(MemxAger *a, uint64_t ns)
{
    struct pollfd pfd = { .fd = a->worker.wake_fd, .events = POLLIN };

    poll(&pfd, 1, (MIN(ns, NAP_NS) + MS - 1) / MS);
    if (pfd.revents && !hurried(a)) {
        memx_worker_silence(&a->worker);
    }
}

static uint64_t used_ns(const MemxPace *pace)
{
    return now_ns(CLOCK_THREAD_CPUTIME_ID) - pace->cpu_ns;
}

/* What is still to be waited for takes as long as it would have with the new
 * share, what was waited for is done with. */
static void renew_share(MemxPace *pace, uint64_t now)
{
    uint64_t share = g_atomic_int_get(&pace->ager->share);

    if (share != pace->share && pace->due_ns > now) {
        pace->due_ns = now + (pace->due_ns - now) * pace->share / share;
    }
    pace->share = share;
}

uint64_t memx_pace_left_ns(MemxPace *pace)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC);

    renew_share(pace, now);
    return pace->due_ns > now + MS && !hurried(pace->ager)
           ? pace->due_ns - now : 0;
}

uint64_t memx_pace_ns(MemxPace *pace)
{
    uint64_t used = used_ns(pace) + pace->charged_ns;

    renew_share(pace, now_ns(CLOCK_MONOTONIC));
    pace->due_ns += (used - pace->settled_ns) * SHARE_ALL / pace->share;
    pace->settled_ns = used;
    return memx_pace_left_ns(pace);
}

void memx_pace_charge(MemxPace *pace, uint64_t ns)
{
    pace->charged_ns += ns;
}

void memx_pace_spent(MemxPace *pace, uint64_t ns)
{
    pace->others_ns += ns;
}

void memx_pace_trouble(MemxPace *pace, const char *reason)
{
    MemxAger *a = pace->ager;

    g_mutex_lock(&a->lock);
    a->trouble = reason;
    g_mutex_unlock(&a->lock);
}

void memx_pace(MemxPace *pace)
{
    uint64_t ns = memx_pace_ns(pace);

    while (ns) {
        nap(pace->ager, ns);
        ns = memx_pace_left_ns(pace);
    }
}

/* What a fault that the tracker causes is taken for. */
static uint64_t fault_ns(const MemxAger *a)
{
    return a->ops && a->ops->fault_ns ? a->ops->fault_ns : FAULT_NS;
}

static unsigned slice_groups(const MemxAger *a)
{
    return a->ops && a->ops->large_slices ? MEMX_SLICE_GROUPS_MAX
                                          : MEMX_SLICE_GROUPS;
}

static void slice_at(const MemxAger *a, uint64_t index, MemxSlice *slice)
{
    uint64_t start = 0, groups;
    unsigned i = 0, words;

    while (index >= a->end_slice[i]) {
        start = a->end_slice[i++];
    }
    groups = (a->range[i].bytes + MEMX_GROUP_BYTES - 1) / MEMX_GROUP_BYTES;
    slice->range = i;
    slice->first_group = (index - start) * slice_groups(a);
    slice->n_groups = MIN(groups - slice->first_group, slice_groups(a));
    words = (slice->n_groups + 63) / 64;
    memset(slice->wanted, 0, words * sizeof(slice->wanted[0]));
    memset(slice->skipped, 0, words * sizeof(slice->skipped[0]));
    memset(slice->touched, 0, slice->n_groups * sizeof(slice->touched[0]));
    memset(slice->blind, 0, slice->n_groups * sizeof(slice->blind[0]));
    slice->arm_pages = a->arm_pages;
    slice->faults = 0;
    slice->out_of_turn = out_of_turn(a);
}

/* False: the pass is cut. */
static bool harvest(MemxAger *a, MemxSlice *slice)
{
    uint64_t n = MAX(a->slices_wanted, atomic_load(&a->slices_now));
    bool yes;

    if (a->ops->waits) {
        g_mutex_lock(&a->away);
    }
    if (a->ops->waits && !hurried(a)) {
        memx_worker_silence(&a->worker); /* rung for something else */
    }
    yes = !hurried(a);
    if (yes) {
        a->ops->harvest(a->tracker, slice, a->worker.wake_fd,
                        a->pass_ns / MAX(n, 1));
    }
    if (a->ops->waits) {
        g_mutex_unlock(&a->away);
    }
    if (hurried(a)) {
        g_atomic_int_set(&a->cut, 1);
    }
    return yes;
}

static void look(MemxAger *a, uint64_t index, MemxPace *pace,
                 MemxFound *found, uint64_t *faults)
{
    bool wanted, looked = false;
    MemxSlice slice;

    slice_at(a, index, &slice);
    slice.pace = pace;
    wanted = a->client->want(a->opaque, &slice);
    if (a->ops && (wanted || a->ops->every_slice)) {
        atomic_fetch_add(&a->slices_now, wanted);
        if (!harvest(a, &slice)) {
            return;
        }
        looked = a->armed && wanted;
        *faults += slice.faults;
    }
    if (a->armed || !a->ops) {
        a->client->age(a->opaque, &slice, looked, found);
    }
}

/* Takes slices until there is none; as many threads as a pass has. */
static void *take_slices(void *opaque)
{
    MemxAger *a = opaque;
    MemxFound found = { 0 };
    uint64_t n = a->end_slice[a->n_ranges - 1], faults = 0, index;
    MemxPace pace = {
        .ager = a, .cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID),
        .due_ns = now_ns(CLOCK_MONOTONIC),
        .share = g_atomic_int_get(&a->share),
    };

    while (!stopping(a) && (index = atomic_fetch_add(&a->next_slice, 1)) < n) {
        look(a, index, &pace, &found, &faults);
        memx_pace(&pace);
    }
    g_mutex_lock(&a->lock);
    a->pass_cpu_ns += used_ns(&pace);
    a->pass_others_ns += pace.others_ns;
    a->pass_faults += faults;
    a->found.touched_pages += found.touched_pages;
    a->found.touched_groups += found.touched_groups;
    a->found.touched_chunks += found.touched_chunks;
    a->found.looked_chunks += found.looked_chunks;
    for (unsigned v = 0; v < MEMX_HISTORIES; v++) {
        a->found.chunks[v] += found.chunks[v];
    }
    g_mutex_unlock(&a->lock);
    return NULL;
}

/* With the lock held: of a CPU, in this pass. */
static unsigned pass_percent(const MemxAger *a)
{
    return out_of_turn(a) ? MAX(a->cpu_percent, ASKED_PERCENT)
                          : a->cpu_percent;
}

/* The same. */
static void share_out(MemxAger *a)
{
    g_atomic_int_set(&a->share, MIN(pass_percent(a) * SHARE_ALL / 100 /
                                    MAX(a->n_threads, 1), SHARE_ALL));
}

static void run_threads(MemxAger *a)
{
    uint64_t n = a->end_slice[a->n_ranges - 1], period;
    GThread *thread[THREADS_MAX];
    unsigned n_threads;

    g_mutex_lock(&a->lock);
    period = a->period_ns;
    if (out_of_turn(a)) {
        period = MIN(period, ASKED_PERIOD_NS);
    }
    a->pass_ns = period * 9 / 10;
    a->arm_pages = CLAMP(period / 100 * a->cpu_percent / fault_ns(a) /
                         MAX(a->found.touched_groups, 1), ARM_MIN,
                         MEMX_GROUP_PAGES);
    memset(&a->found, 0, sizeof(a->found));
    a->pass_cpu_ns = a->pass_others_ns = a->pass_faults = 0;
    n_threads = MIN((pass_percent(a) + 99) / 100, n / SLICES_EACH + 1);
    n_threads = a->ops && a->ops->serial ? 1 : MIN(n_threads, THREADS_MAX);
    a->n_threads = n_threads;
    share_out(a);
    g_mutex_unlock(&a->lock);
    atomic_store(&a->next_slice, 0);
    atomic_store(&a->slices_now, 0);
    g_atomic_int_set(&a->cut, 0);
    for (unsigned i = 1; i < n_threads; i++) {
        thread[i] = g_thread_try_new("memx-ager", take_slices, a, NULL);
    }
    take_slices(a);
    for (unsigned i = 1; i < n_threads; i++) {
        if (thread[i]) {
            g_thread_join(thread[i]);
        }
    }
    if (!g_atomic_int_get(&a->cut)) {
        a->slices_wanted = atomic_load(&a->slices_now);
    }
}

/* What is touched grows by less than the period does.  So the square of what
 * is missing doesn't go too far, and is near after three periods or four. */
uint64_t memx_ager_adapt(uint64_t period_ns, const MemxFound *found,
                         bool pressure)
{
    uint64_t low = pressure ? 50 : 30, high = 70;
    uint64_t percent, tenths;

    if (found->looked_chunks < LOOKED_MIN) {
        return period_ns;
    }
    percent = found->touched_chunks * 100ull / found->looked_chunks;
    if (percent > high) {
        tenths = percent > NEARLY_ALL ? 5 : 7;
    } else if (percent < low) {
        tenths = CLAMP(10 * low * low / MAX(percent * percent, 1), 13, 40);
    } else {
        tenths = 10;
    }
    return CLAMP(period_ns / 10 * tenths, PERIOD_MIN_NS, PERIOD_MAX_NS);
}

/* With the lock held: the period, as long as it is calm. */
static uint64_t calm_period_ns(const MemxAger *a)
{
    uint64_t ns = a->period_ns * (MAX(a->calm, CALM_PERIODS) -
                                  CALM_PERIODS + 1);

    return MIN(ns, MAX(a->period_ns, PERIOD_MAX_NS));
}

/* The same, for how long it has been calm. */
static void note_calm(MemxAger *a, bool pressure)
{
    bool calm = !pressure && a->client->calm && a->ops->fault_ns;

    a->calm = calm ? MIN(a->calm + 1, CALM_MAX) : 0;
}

/* What the pass found, and the next period. */
static void conclude(MemxAger *a, uint64_t start, bool pressure)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC), cost, since, told;

    g_mutex_lock(&a->lock);
    since = a->pass_end_ns ? now - a->pass_end_ns : now - start;
    a->pass_end_ns = now;
    a->last.periods += a->armed || !a->ops;
    a->last.pass_ns = now - start;
    told = a->pass_cpu_ns + a->pass_others_ns;
    a->last.cpu_ns += told;
    a->last.cpu_ppm = told * 1000000 / MAX(since, 1);
    a->last.extra_faults += a->pass_faults;
    a->last.extra_faults_period = a->pass_faults;
    a->last.touched_pages = a->found.touched_pages;
    a->last.touched_chunks = a->found.touched_chunks;
    a->last.looked_chunks = a->found.looked_chunks;
    memcpy(a->last.chunks, a->found.chunks, sizeof(a->last.chunks));
    if (a->adapts && a->ops && a->armed && !out_of_turn(a)) {
        cost = (a->pass_cpu_ns + a->pass_faults * fault_ns(a)) * 100 /
               a->cpu_percent;
        a->period_ns = memx_ager_adapt(a->period_ns, &a->found, pressure);
        a->period_ns = MIN(MAX(a->period_ns, cost), PERIOD_LAST_NS);
        note_calm(a, pressure);
    }
    g_mutex_unlock(&a->lock);
}

void memx_ager_pass(MemxAger *a)
{
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    bool pressure = false;

    if (!a->client->begin(a->opaque, &pressure)) {
        return;
    }
    run_threads(a);
    if (stopping(a) || g_atomic_int_get(&a->cut)) {
        return; /* what was found is no period's; what wasn't looked at isn't
                 * armed */
    }
    conclude(a, start, pressure);
    a->armed = true;
}

/* Until the period that began at @start ends, or early when much of what is
 * local was replaced: that is then what a period should be. */
static void await_period(MemxAger *a, uint64_t start)
{
    for (;;) {
        struct pollfd pfd = { .fd = a->worker.wake_fd, .events = POLLIN };
        uint64_t period, now = now_ns(CLOCK_MONOTONIC);
        bool adapts, calm = a->client->calm && a->client->calm(a->opaque);

        g_mutex_lock(&a->lock);
        a->calm = calm ? a->calm : 0;
        period = calm_period_ns(a);
        adapts = a->adapts && a->ops && !a->ops->waits;
        g_mutex_unlock(&a->lock);
        if (stopping(a) || now >= start + period ||
            g_atomic_int_get(&a->asked)) {
            return;
        }
        if (adapts && now - start >= PERIOD_MIN_NS &&
            a->client->turnover(a->opaque) >= TURNOVER_PERCENT) {
            g_mutex_lock(&a->lock);
            a->period_ns = MIN(a->period_ns, now - start);
            g_mutex_unlock(&a->lock);
            return;
        }
        poll(&pfd, 1, MIN(start + period - now, TICK_NS) / MS + 1);
        if (pfd.revents) {
            memx_worker_silence(&a->worker);
        }
    }
}

static void *ager_thread(void *opaque)
{
    MemxAger *a = opaque;
    uint64_t start = now_ns(CLOCK_MONOTONIC);

    if (a->ops && a->ops->waits) {
        memx_thread_urgent(); /* whose memory is away waits for it */
    }
    for (;;) {
        await_period(a, start);
        if (stopping(a)) {
            return NULL;
        }
        start = now_ns(CLOCK_MONOTONIC);
        if (g_atomic_int_compare_and_exchange(&a->asked, LOOK_ASKED,
                                              LOOK_UNDER_WAY)) {
            memx_worker_silence(&a->worker);
        }
        memx_ager_pass(a);
        /* Who asked during this look gets one that begins later. */
        g_atomic_int_compare_and_exchange(&a->asked, LOOK_UNDER_WAY,
                                          NOBODY_ASKED);
    }
}

MemxAger *memx_ager_new(const MemxWatch *watch, const MemxTrackerOps *ops,
                        void *tracker, char *why, uint64_t chunk_bytes,
                        const MemxTrackerOptions *options,
                        const MemxAgerClient *client, void *opaque,
                        GError **error)
{
    MemxAger *a = g_new0(MemxAger, 1);
    uint64_t slices = 0;

    g_mutex_init(&a->lock);
    g_mutex_init(&a->away);
    a->ops = ops;
    a->tracker = tracker;
    a->why = why;
    a->n_ranges = watch->n_ranges;
    a->range = g_new(MemxRange, a->n_ranges);
    memcpy(a->range, watch->range, a->n_ranges * sizeof(*a->range));
    a->end_slice = g_new0(uint64_t, watch->n_ranges);
    for (unsigned i = 0; i < watch->n_ranges; i++) {
        uint64_t bytes = slice_groups(a) * (uint64_t)MEMX_GROUP_BYTES;

        slices += (watch->range[i].bytes + bytes - 1) / bytes;
        a->end_slice[i] = slices;
    }
    a->chunk_bytes = chunk_bytes;
    a->client = client;
    a->opaque = opaque;
    a->armed = ops && ops->waits; /* it finds out within the look */
    memx_ager_set(a, options->period_ms, options->cpu_percent);
    if (!memx_worker_init(&a->worker, error)) {
        memx_ager_free(a);
        return NULL;
    }
    return a;
}

bool memx_ager_start(MemxAger *a, GError **error)
{
    return memx_worker_start(&a->worker, "memx-ager", ager_thread, a, error);
}

void memx_ager_stop(MemxAger *a)
{
    if (a) {
        g_atomic_int_set(&a->stop, 1);
        memx_worker_join(&a->worker);
    }
}

void memx_ager_free(MemxAger *a)
{
    if (!a) {
        return;
    }
    memx_ager_stop(a);
    if (a->ops) {
        a->ops->close(a->tracker);
    }
    memx_worker_destroy(&a->worker);
    g_mutex_clear(&a->lock);
    g_mutex_clear(&a->away);
    g_free(a->end_slice);
    g_free(a->range);
    g_free(a->why);
    g_free(a);
}

bool memx_ager_knows_no_pages(const MemxAger *a)
{
    return a->ops && (a->ops->waits || a->ops->blurred);
}

bool memx_ager_moved_is_idle(const MemxAger *a)
{
    return a->ops && a->ops->moved_is_idle;
}

uint64_t memx_ager_peek(MemxAger *a, unsigned range, uint64_t group,
                        uint64_t *known)
{
    *known = 0;
    return a->ops && a->ops->peek
           ? a->ops->peek(a->tracker, range, group, known) : 0;
}

void memx_ager_silence(MemxAger *a)
{
    memx_worker_silence(&a->worker);
}

void memx_ager_pause(MemxAger *a, bool pause)
{
    g_atomic_int_set(&a->paused, pause);
    if (pause && a->ops && a->ops->waits) {
        memx_worker_ring(&a->worker); /* ends a dwell */
    }
}

void memx_ager_ask(MemxAger *a)
{
    memx_worker_ring(&a->worker); /* first: it would end the new one, too */
    g_atomic_int_set(&a->asked, LOOK_ASKED);
}

bool memx_ager_has_looked(MemxAger *a)
{
    return !g_atomic_int_get(&a->asked);
}

void memx_ager_await_paused(MemxAger *a)
{
    if (a->ops && a->ops->waits) {
        g_mutex_lock(&a->away);
        g_mutex_unlock(&a->away);
    }
}

void memx_ager_discard(MemxAger *a, unsigned range, uint64_t offset,
                       uint64_t bytes)
{
    if (a->ops && a->ops->discard) {
        a->ops->discard(a->tracker, range, offset, bytes);
    }
}

void memx_ager_ring(MemxAger *a)
{
    memx_worker_ring(&a->worker);
}

void memx_ager_set(MemxAger *a, unsigned period_ms, unsigned cpu_percent)
{
    g_mutex_lock(&a->lock);
    a->adapts = !period_ms;
    a->calm = 0;
    if (period_ms) {
        a->period_ns = period_ms * MS;
    } else if (!a->period_ns) {
        a->period_ns = MEMX_PERIOD_DEFAULT_NS;
    } else { /* what was set may be far from what will be found */
        a->period_ns = MIN(a->period_ns, PERIOD_MAX_NS);
    }
    a->cpu_percent = cpu_percent;
    share_out(a);
    g_mutex_unlock(&a->lock);
    if (a->worker.thread) {
        memx_worker_ring(&a->worker);
    }
}

void memx_ager_stats(MemxAger *a, MemxTrackerStats *stats)
{
    const char *trouble;

    g_mutex_lock(&a->lock);
    trouble = a->trouble;
    *stats = a->last;
    stats->period_ms = calm_period_ns(a) / MS;
    stats->adapts = a->adapts && a->ops;
    stats->cpu_percent = a->cpu_percent;
    g_mutex_unlock(&a->lock);
    stats->name = memx_tracker_kind_name(a->ops ? a->ops->kind
                                         : MEMX_TRACKER_OFF);
    stats->chunk_bytes = a->chunk_bytes;
    g_strlcpy(stats->why, trouble ?: a->why, sizeof(stats->why));
}
