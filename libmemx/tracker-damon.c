/*
 * The tracker `damon`: DAMON, through sysfs.
 *
 * Theory of operation
 *
 * DAMON divides the watched ranges into regions, looks at one page of each every
 * few milliseconds, and splits and merges regions by what it finds.  So it costs
 * little, of however much memory, and is blurred: a single hot page of a
 * megabyte is mostly missed, and its neighbours may count as hot.  That, and
 * that it needs root and all of the host's DAMON, is why `auto` never takes it.
 *
 * One kdamond with one context watches this process's ranges (fvaddr).  A
 * scheme of action `stat` lets its regions be read, once a pass.  A region
 * counts as touched if it was accessed in the last aggregation, or if that
 * changed within the last pass (`age`).
 *
 * DAMON's settings are the host's: if there are any already they are somebody's,
 * and we leave them alone, unless they are those of one of us that was killed:
 * nothing else would ever remove them.  On close ours are removed, and
 * damon_stat (since Linux 6.17 it runs by itself, and excludes others) is
 * switched on again if it was.  Nobody knows that of one that was killed.
 *
 * The kernel's thread does most of the work, and uses some CPU of its own: that
 * is told as the tracker's, but no limit is kept.  Root may switch it off, or
 * use DAMON for something else: then nothing is learnt, and that is told.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "ager.h"
#include "tracker-damon.h"

#define ADMIN "/sys/kernel/mm/damon/admin/kdamonds/"
#define CONTEXT "0/contexts/0/"
#define SCHEME CONTEXT "schemes/0/"
#define STAT "/sys/module/damon_stat/parameters/enabled"
#define SAMPLE_US 5000
#define AGGREGATION_US 100000
#define UPDATE_US 1000000000ull /* nothing changes */
#define OPERATIONS "fvaddr"
#define ACTION "stat"
#define REGIONS_MIN 10u
#define REGIONS_MAX 2000u

const char *memx_damon_root = "";

typedef struct Region {
    uint64_t start, end;
    bool touched;
} Region;

typedef struct Damon {
    const MemxRange *range;
    bool made;              /* the kdamond is ours, */
    bool is_set;            /* and has our target */
    bool stat;              /* damon_stat was on */
    uint64_t looked_ns;     /* when the last pass began */
    uint64_t kdamond;       /* its pid, */
    uint64_t kdamond_ns;    /* and the CPU time it had used then */
    unsigned n;
    Region region[REGIONS_MAX * 2]; /* its maximum is not exact */
} Damon;

static int write_path(const char *name, const char *value)
{
    g_autofree char *path = g_strconcat(memx_damon_root, name, NULL);
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC), err = 0;

    if (fd < 0) {
        return -errno;
    }
    if (write(fd, value, strlen(value)) < 0) {
        err = -errno;
    }
    close(fd);
    return err;
}

static bool read_path(const char *name, char *text, size_t size)
{
    g_autofree char *path = g_strconcat(memx_damon_root, name, NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

static bool G_GNUC_PRINTF(3, 4) set(GError **error, const char *name,
                                    const char *format, ...)
{
    g_autofree char *path = g_strconcat(ADMIN, name, NULL);
    g_autofree char *value = NULL;
    va_list ap;
    int err;

    va_start(ap, format);
    value = g_strdup_vprintf(format, ap);
    va_end(ap);
    err = write_path(path, value);
    if (!err) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "DAMON: cannot write %s to %s: %s%s", value, path,
                g_strerror(-err), err == -EACCES ? "; only root may" :
                err == -ENOENT ? "; the kernel has no CONFIG_DAMON_SYSFS" :
                "");
    return false;
}

static bool get(const char *name, uint64_t *value)
{
    g_autofree char *path = g_strconcat(ADMIN, name, NULL);
    char text[32];

    if (!read_path(path, text, sizeof(text))) {
        return false;
    }
    *value = g_ascii_strtoull(text, NULL, 10);
    return true;
}

/* A file has this line. */
static bool says(const char *name, const char *value)
{
    g_autofree char *path = g_strconcat(ADMIN, name, NULL);
    char text[32];

    return read_path(path, text, sizeof(text)) &&
           g_str_equal(g_strchomp(text), value);
}

static uint64_t target(void)
{
    uint64_t pid = 0;

    get(CONTEXT "targets/0/pid_target", &pid);
    return pid;
}

static void damon_close(void *opaque)
{
    Damon *t = opaque;

    /* Root may have given it to somebody else meanwhile. */
    if (t->made && (!t->is_set || target() == (uint64_t)getpid())) {
        set(NULL, "0/state", "off");
        set(NULL, "nr_kdamonds", "0");
    }
    if (t->stat) {
        write_path(STAT, "Y");
    }
    g_free(t);
}

/* The only kdamond looks like ours, runs no more, and its process neither. */
static bool is_left_behind(uint64_t others, uint64_t pid)
{
    return others == 1 && says("0/state", "off") &&
           says("0/contexts/nr_contexts", "1") &&
           says(CONTEXT "operations", OPERATIONS) &&
           says(CONTEXT "schemes/nr_schemes", "1") &&
           says(SCHEME "action", ACTION) &&
           says(CONTEXT "targets/nr_targets", "1") &&
           pid > 0 && pid <= INT_MAX && kill(pid, 0) && errno == ESRCH;
}

/* Ours is the only one. */
static bool claim(Damon *t, GError **error)
{
    uint64_t others = 0, pid = target();
    char text[8];

    if (get("nr_kdamonds", &others) && others &&
        !is_left_behind(others, pid)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "DAMON is in use on this host: %snr_kdamonds is %" PRIu64
                    ", the first is %s and watches process %" PRIu64 "%s",
                    ADMIN, others, says("0/state", "on") ? "on" : "off", pid,
                    pid == (uint64_t)getpid() ? ", another memory backend of "
                    "this VM: it can watch one" : "; if nobody needs it, "
                    "write off to 0/state there, and 0 to nr_kdamonds");
        return false;
    }
    if (read_path(STAT, text, sizeof(text)) && *text == 'Y') {
        t->stat = !write_path(STAT, "N");
    }
    t->made = set(error, "nr_kdamonds", "1");
    return t->made;
}

/* A context can be made where nothing can run in it. */
static bool check_operations(GError **error)
{
    char text[256];

    if (read_path(ADMIN CONTEXT "avail_operations", text, sizeof(text)) &&
        strstr(text, OPERATIONS)) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "DAMON: the kernel has no CONFIG_DAMON_VADDR");
    return false;
}

static bool set_regions(Damon *t, const MemxWatch *watch, GError **error)
{
    if (!set(error, CONTEXT "targets/nr_targets", "1") ||
        !set(error, CONTEXT "targets/0/pid_target", "%d", (int)getpid()) ||
        !set(error, CONTEXT "targets/0/regions/nr_regions", "%u",
             watch->n_ranges)) {
        return false;
    }
    t->is_set = true;
    for (unsigned i = 0; i < watch->n_ranges; i++) {
        const MemxRange *range = &watch->range[i];
        g_autofree char *start = g_strdup_printf(
            CONTEXT "targets/0/regions/%u/start", i);
        g_autofree char *end = g_strdup_printf(
            CONTEXT "targets/0/regions/%u/end", i);

        if (!set(error, start, "%" PRIu64, (uint64_t)(uintptr_t)range->base) ||
            !set(error, end, "%" PRIu64,
                 (uint64_t)(uintptr_t)range->base + range->bytes)) {
            return false;
        }
    }
    return true;
}

static bool set_scheme(GError **error)
{
    static const char *const what[] = { "sz", "nr_accesses", "age" };

    if (!set(error, CONTEXT "schemes/nr_schemes", "1") ||
        !set(error, SCHEME "action", ACTION)) {
        return false;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(what); i++) {
        g_autofree char *max = g_strdup_printf(
            SCHEME "access_pattern/%s/max", what[i]);

        if (!set(error, max, "%u", i ? UINT32_MAX : (1u << 31))) {
            return false;
        }
    }
    return true;
}

static void *damon_open(const MemxWatch *watch, GError **error)
{
    Damon *t = g_new0(Damon, 1);

    t->range = watch->range;
    if (claim(t, error) &&
        set(error, "0/contexts/nr_contexts", "1") &&
        check_operations(error) &&
        set(error, CONTEXT "operations", OPERATIONS) &&
        set(error, CONTEXT "monitoring_attrs/intervals/sample_us", "%u",
            SAMPLE_US) &&
        set(error, CONTEXT "monitoring_attrs/intervals/aggr_us", "%u",
            AGGREGATION_US) &&
        set(error, CONTEXT "monitoring_attrs/intervals/update_us", "%"
            PRIu64, (uint64_t)UPDATE_US) &&
        set(error, CONTEXT "monitoring_attrs/nr_regions/max", "%u",
            REGIONS_MAX) &&
        set(error, CONTEXT "monitoring_attrs/nr_regions/min", "%u",
            REGIONS_MIN) &&
        set_regions(t, watch, error) && set_scheme(error) &&
        set(error, "0/state", "on")) {
        return t;
    }
    damon_close(t);
    return NULL;
}

/* What DAMON knows, at the beginning of a pass. */
static void read_regions(Damon *t)
{
    struct timespec now;
    uint64_t ns, aggregations;

    clock_gettime(CLOCK_MONOTONIC, &now);
    ns = now.tv_sec * 1000000000ull + now.tv_nsec;
    aggregations = (ns - t->looked_ns) / (AGGREGATION_US * 1000);
    t->looked_ns = ns;
    /* Waits for the end of an aggregation. */
    if (!set(NULL, "0/state", "update_schemes_tried_regions")) {
        return;
    }
    while (t->n < G_N_ELEMENTS(t->region)) {
        Region *region = &t->region[t->n];
        uint64_t value[4];

        for (unsigned i = 0; i < 4; i++) {
            static const char *const what[] = {
                "start", "end", "nr_accesses", "age",
            };
            char name[80];

            snprintf(name, sizeof(name), SCHEME "tried_regions/%u/%s", t->n,
                     what[i]);
            if (!get(name, &value[i])) {
                return;
            }
        }
        *region = (Region) {
            value[0], value[1], value[2] || value[3] < aggregations,
        };
        t->n++;
    }
}

/* The CPU time of the kernel's thread since the last pass. */
static uint64_t kdamond_used(Damon *t)
{
    g_autofree char *path = NULL;
    uint64_t pid, ns, used;
    char text[64];

    if (!get("0/pid", &pid)) {
        return 0;
    }
    path = g_strdup_printf("/proc/%" PRIu64 "/schedstat", pid);
    if (!read_path(path, text, sizeof(text))) {
        return 0;
    }
    ns = g_ascii_strtoull(text, NULL, 10);
    used = pid == t->kdamond && ns >= t->kdamond_ns ? ns - t->kdamond_ns : ns;
    t->kdamond = pid;
    t->kdamond_ns = ns;
    return used;
}

static void begin_pass(Damon *t, MemxPace *pace)
{
    bool learns = target() == (uint64_t)getpid() && says("0/state", "on");

    t->n = 0;
    if (learns) {
        read_regions(t);
    }
    memx_pace_spent(pace, kdamond_used(t));
    memx_pace_trouble(pace, learns ? NULL : "nothing is learnt: DAMON was "
                      "switched off, or is used for something else");
}

static void damon_harvest(void *opaque, MemxSlice *slice, int wake_fd,
                          uint64_t dwell_ns)
{
    Damon *t = opaque;
    const MemxRange *range = &t->range[slice->range];
    uint64_t start = (uintptr_t)memx_slice_hva(range, slice, 0);
    uint64_t end = start + memx_slice_bytes(range, slice, 0,
                                            slice->n_groups);

    if (!slice->range && !slice->first_group) {
        begin_pass(t, slice->pace);
    }
    memset(slice->skipped, t->n ? 0 : 0xff, sizeof(slice->skipped));
    for (unsigned i = 0; i < t->n; i++) {
        uint64_t from = MAX(t->region[i].start, start);
        uint64_t to = MIN(t->region[i].end, end);

        if (from < to && t->region[i].touched) {
            memx_slice_set(slice, (from - start) / MEMX_PAGE_BYTES,
                           (to - from) / MEMX_PAGE_BYTES);
        }
    }
}

const MemxTrackerOps memx_tracker_damon = {
    .kind = MEMX_TRACKER_DAMON,
    .regions = true,
    .ordinary = true,
    .asked_only = true,
    .serial = true,
    .blurred = true,
    .open = damon_open,
    .harvest = damon_harvest,
    .close = damon_close,
};
