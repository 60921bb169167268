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
 * and we leave them alone.  On close ours are removed, and damon_stat (since
 * Linux 6.17 it runs by itself, and excludes others) is switched on again if
 * it was.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "tracker.h"

#define ADMIN "/sys/kernel/mm/damon/admin/kdamonds/"
#define CONTEXT "0/contexts/0/"
#define SCHEME CONTEXT "schemes/0/"
#define STAT "/sys/module/damon_stat/parameters/enabled"
#define SAMPLE_US 5000
#define AGGREGATION_US 100000
#define UPDATE_US 1000000000ull /* nothing changes */
#define REGIONS_MIN 10u
#define REGIONS_MAX 2000u

typedef struct Region {
    uint64_t start, end;
    bool touched;
} Region;

typedef struct Damon {
    const MemxRange *range;
    bool made;              /* the kdamond is ours */
    bool stat;              /* damon_stat was on */
    uint64_t looked_ns;     /* when the last pass began */
    unsigned n;
    Region region[REGIONS_MAX * 2]; /* its maximum is not exact */
} Damon;

static int write_path(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

    if (fd < 0) {
        return -errno;
    }
    if (write(fd, value, strlen(value)) < 0) {
        err = -errno;
    }
    close(fd);
    return err;
}

static bool read_path(const char *path, char *text, size_t size)
{
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

static void damon_close(void *opaque)
{
    Damon *t = opaque;

    if (t->made) {
        set(NULL, "0/state", "off");
        set(NULL, "nr_kdamonds", "0");
    }
    if (t->stat) {
        write_path(STAT, "Y");
    }
    g_free(t);
}

/* Ours is the only one. */
static bool claim(Damon *t, GError **error)
{
    uint64_t others = 0, pid = 0;
    char text[8];

    if (get("nr_kdamonds", &others) && others) {
        get(CONTEXT "targets/0/pid_target", &pid);
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "DAMON is in use on this host: %snr_kdamonds is %" PRIu64
                    "%s", ADMIN, others, pid == (uint64_t)getpid()
                    ? "; it watches another memory backend of this VM" : "");
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
        strstr(text, "fvaddr")) {
        return true;
    }
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "DAMON: the kernel has no CONFIG_DAMON_VADDR");
    return false;
}

static bool set_regions(const MemxWatch *watch, GError **error)
{
    if (!set(error, CONTEXT "targets/nr_targets", "1") ||
        !set(error, CONTEXT "targets/0/pid_target", "%d", (int)getpid()) ||
        !set(error, CONTEXT "targets/0/regions/nr_regions", "%u",
             watch->n_ranges)) {
        return false;
    }
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
        !set(error, SCHEME "action", "stat")) {
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
        set(error, CONTEXT "operations", "fvaddr") &&
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
        set_regions(watch, error) && set_scheme(error) &&
        set(error, "0/state", "on")) {
        return t;
    }
    damon_close(t);
    return NULL;
}

/* What DAMON knows, at the beginning of a pass. */
static bool read_regions(Damon *t)
{
    struct timespec now;
    uint64_t ns, aggregations;

    clock_gettime(CLOCK_MONOTONIC, &now);
    ns = now.tv_sec * 1000000000ull + now.tv_nsec;
    aggregations = (ns - t->looked_ns) / (AGGREGATION_US * 1000);
    t->looked_ns = ns;
    t->n = 0;
    /* Waits for the end of an aggregation. */
    if (!set(NULL, "0/state", "update_schemes_tried_regions")) {
        return false;
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
                return t->n;
            }
        }
        *region = (Region) {
            value[0], value[1], value[2] || value[3] < aggregations,
        };
        t->n++;
    }
    return true;
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
        read_regions(t);
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
