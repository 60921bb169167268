/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tracker `damon` where it has to share the host: with others who use
 * DAMON, with those who didn't clear up, with root who switches it off.  Its
 * sysfs is a folder of files here; what the kernel makes of it is tested where
 * there is DAMON (unit/tracker/object-hot/damon).
 */
#include <glib/gstdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "ager.h"
#include "tracker-damon.h"

#define MIB (1ull << 20)
#define ADMIN "/sys/kernel/mm/damon/admin/kdamonds/"
#define CONTEXT ADMIN "0/contexts/0/"
#define SCHEME CONTEXT "schemes/0/"
#define STAT "/sys/module/damon_stat/parameters/enabled"
#define KDAMOND 77
#define BASE (64ull << 30)
#define CHUNKS 64

typedef struct Host {
    char *root;
    MemxRange range;
    MemxWatch watch;
    unsigned looked, touched;
} Host;

static void put(Host *h, const char *name, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static void put(Host *h, const char *name, const char *format, ...)
{
    g_autofree char *path = g_strconcat(h->root, name, NULL);
    g_autofree char *folder = g_path_get_dirname(path);
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;
    va_list ap;

    va_start(ap, format);
    text = g_strdup_vprintf(format, ap);
    va_end(ap);
    g_assert_cmpint(g_mkdir_with_parents(folder, 0700), ==, 0);
    g_file_set_contents(path, text, -1, &error);
    g_assert_no_error(error);
}

static void check(Host *h, const char *name, const char *expected)
{
    g_autofree char *path = g_strconcat(h->root, name, NULL);
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(g_strchomp(text), ==, expected);
}

/* What the kernel would make as the numbers grow is there from the start. */
static void host_begin(Host *h)
{
    static const char *const empty[] = {
        "contexts/nr_contexts", "contexts/0/operations",
        "contexts/0/monitoring_attrs/intervals/sample_us",
        "contexts/0/monitoring_attrs/intervals/aggr_us",
        "contexts/0/monitoring_attrs/intervals/update_us",
        "contexts/0/monitoring_attrs/nr_regions/min",
        "contexts/0/monitoring_attrs/nr_regions/max",
        "contexts/0/targets/nr_targets",
        "contexts/0/targets/0/regions/nr_regions",
        "contexts/0/targets/0/regions/0/start",
        "contexts/0/targets/0/regions/0/end",
        "contexts/0/schemes/nr_schemes", "contexts/0/schemes/0/action",
        "contexts/0/schemes/0/access_pattern/sz/max",
        "contexts/0/schemes/0/access_pattern/nr_accesses/max",
        "contexts/0/schemes/0/access_pattern/age/max",
    };
    static const char *const found[] = { "start", "end", "nr_accesses", "age" };
    uint64_t value[] = { BASE, BASE + 16 * MIB, 1, 0 };

    *h = (Host) {
        .root = g_dir_make_tmp("memx-damon-XXXXXX", NULL),
        .range = { (void *)(uintptr_t)BASE, CHUNKS * MIB },
    };
    h->watch = (MemxWatch) { .range = &h->range, .n_ranges = 1, .uffd = -1 };
    memx_damon_root = h->root;
    for (unsigned i = 0; i < G_N_ELEMENTS(empty); i++) {
        g_autofree char *name = g_strconcat(ADMIN "0/", empty[i], NULL);

        put(h, name, "\n");
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(found); i++) {
        g_autofree char *name = g_strconcat(SCHEME "tried_regions/0/",
                                            found[i], NULL);

        put(h, name, "%" G_GUINT64_FORMAT "\n", value[i]);
    }
    put(h, CONTEXT "avail_operations", "vaddr\nfvaddr\npaddr\n");
    put(h, CONTEXT "targets/0/pid_target", "0\n");
    put(h, ADMIN "0/state", "off\n");
    put(h, ADMIN "0/pid", "%d\n", KDAMOND);
    put(h, ADMIN "nr_kdamonds", "0\n");
    put(h, STAT, "Y\n");
}

static void host_end(Host *h)
{
    const char *argv[] = { "rm", "-r", h->root, NULL };
    g_autoptr(GError) error = NULL;

    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                 NULL, NULL, NULL, &error);
    g_assert_no_error(error);
    g_free(h->root);
    memx_damon_root = "";
}

static void *open_damon(Host *h)
{
    g_autoptr(GError) error = NULL;
    void *tracker = memx_tracker_damon.open(&h->watch, &error);

    g_assert_no_error(error);
    g_assert_nonnull(tracker);
    return tracker;
}

static void check_refused(Host *h, const char *expected)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(memx_tracker_damon.open(&h->watch, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, expected));
}

/* A process that is no more. */
static int dead_pid(void)
{
    int pid = fork();

    if (!pid) {
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    return pid;
}

/* What one of ours leaves that is killed; the kernel's thread ends with it. */
static void leave_behind(Host *h)
{
    g_free(open_damon(h)); /* not closed */
    check(h, ADMIN "0/state", "on");
    put(h, CONTEXT "targets/0/pid_target", "%d\n", dead_pid());
    put(h, ADMIN "0/state", "off\n");
}

/* --- who may have it --------------------------------------------------- */

/* All is as before when it ends. */
static void test_restores(void)
{
    void *tracker;
    Host h;

    host_begin(&h);
    tracker = open_damon(&h);
    check(&h, ADMIN "nr_kdamonds", "1");
    check(&h, ADMIN "0/state", "on");
    check(&h, STAT, "N");
    memx_tracker_damon.close(tracker);
    check(&h, ADMIN "nr_kdamonds", "0");
    check(&h, ADMIN "0/state", "off");
    check(&h, STAT, "Y");
    host_end(&h);
}

/* It watches one memory backend of this host. */
static void test_second(void)
{
    void *tracker;
    Host h;

    host_begin(&h);
    tracker = open_damon(&h);
    check_refused(&h, "another memory backend of this VM");
    check(&h, ADMIN "0/state", "on");
    check(&h, ADMIN "nr_kdamonds", "1");
    memx_tracker_damon.close(tracker);
    memx_tracker_damon.close(open_damon(&h));
    host_end(&h);
}

/* One that was killed is no obstacle for the next. */
static void test_left_behind(void)
{
    void *tracker;
    Host h;

    host_begin(&h);
    leave_behind(&h);
    tracker = open_damon(&h);
    check(&h, ADMIN "0/state", "on");
    check(&h, ADMIN "nr_kdamonds", "1");
    memx_tracker_damon.close(tracker);
    check(&h, ADMIN "0/state", "off");
    check(&h, ADMIN "nr_kdamonds", "0");
    host_end(&h);
}

/* What isn't ours for sure is somebody's. */
static void test_others(void)
{
    Host h;

    host_begin(&h);
    leave_behind(&h);
    put(&h, ADMIN "0/state", "on\n");
    check_refused(&h, "the first is on");
    put(&h, ADMIN "0/state", "off\n");
    put(&h, ADMIN "nr_kdamonds", "2\n");
    check_refused(&h, "nr_kdamonds is 2");
    put(&h, ADMIN "nr_kdamonds", "1\n");
    put(&h, SCHEME "action", "pageout\n");
    check_refused(&h, "the first is off");
    put(&h, SCHEME "action", "stat\n");
    put(&h, CONTEXT "targets/0/pid_target", "%d\n", (int)getppid());
    check_refused(&h, "if nobody needs it");
    check(&h, ADMIN "0/state", "off");
    check(&h, ADMIN "nr_kdamonds", "1");
    host_end(&h);
}

/* --- what is told ------------------------------------------------------ */

static bool begin(void *opaque, bool *pressure)
{
    return true;
}

static bool want(void *opaque, MemxSlice *slice)
{
    memset(slice->wanted, 0xff, sizeof(slice->wanted[0]) * MEMX_SLICE_WORDS);
    return true;
}

static void age(void *opaque, const MemxSlice *slice, bool looked,
                MemxFound *found)
{
    Host *h = opaque;

    for (unsigned i = 0; i < slice->n_groups; i++) {
        h->looked += !(slice->skipped[i / 64] >> i % 64 & 1);
        h->touched += slice->touched[i] != 0;
    }
}

static unsigned turnover(void *opaque)
{
    return 0;
}

static void pass(MemxAger *ager, Host *h, uint64_t kdamond_ns,
                 MemxTrackerStats *stats)
{
    put(h, "/proc/77/schedstat", "%" G_GUINT64_FORMAT " 5 6\n", kdamond_ns);
    h->looked = h->touched = 0;
    memx_ager_pass(ager);
    memx_ager_stats(ager, stats);
}

/*
 * The CPU time of the kernel's thread counts.  When root switches it off or
 * takes it for something else, nothing is learnt, that is told, and what is
 * somebody else's is left alone.
 */
static void test_told(void)
{
    static const MemxAgerClient client = { begin, want, age, turnover };
    MemxTrackerOptions o = { .period_ms = 100, .cpu_percent = 2 };
    g_autoptr(GError) error = NULL;
    uint64_t second = 1000000000, own;
    MemxTrackerStats stats;
    MemxAger *ager;
    Host h;

    host_begin(&h);
    ager = memx_ager_new(&h.watch, &memx_tracker_damon, open_damon(&h),
                         g_strdup("asked for"), MIB, &o, &client, &h, &error);
    g_assert_no_error(error);
    pass(ager, &h, 3 * second, &stats); /* the first only begins */
    g_assert_cmpuint(stats.cpu_ns, >=, 3 * second);
    own = stats.cpu_ns - 3 * second;
    check(&h, ADMIN "0/state", "update_schemes_tried_regions");
    put(&h, ADMIN "0/state", "on\n");
    pass(ager, &h, 4 * second, &stats);
    g_assert_cmpuint(stats.cpu_ns, >=, 4 * second + own);
    g_assert_cmpuint(stats.cpu_ns, <, 5 * second);
    g_assert_cmpuint(h.looked, ==, CHUNKS * 4);
    g_assert_cmpuint(h.touched, ==, 16 * 4);
    g_assert_cmpstr(stats.why, ==, "asked for");

    put(&h, ADMIN "0/state", "off\n");
    put(&h, ADMIN "0/pid", "-1\n");
    pass(ager, &h, 4 * second, &stats);
    g_assert_cmpuint(h.looked, ==, 0);
    g_assert_nonnull(strstr(stats.why, "switched off"));
    put(&h, ADMIN "0/state", "on\n");
    put(&h, ADMIN "0/pid", "%d\n", KDAMOND);
    pass(ager, &h, 4 * second, &stats);
    g_assert_cmpuint(h.looked, ==, CHUNKS * 4);
    g_assert_cmpstr(stats.why, ==, "asked for");

    put(&h, ADMIN "0/state", "on\n");
    put(&h, CONTEXT "targets/0/pid_target", "%d\n", (int)getppid());
    pass(ager, &h, 4 * second, &stats);
    g_assert_cmpuint(h.looked, ==, 0);
    g_assert_nonnull(strstr(stats.why, "something else"));
    memx_ager_free(ager);
    check(&h, ADMIN "0/state", "on");
    check(&h, ADMIN "nr_kdamonds", "1");
    host_end(&h);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/damon/restores", test_restores);
    g_test_add_func("/damon/second", test_second);
    g_test_add_func("/damon/left-behind", test_left_behind);
    g_test_add_func("/damon/others", test_others);
    g_test_add_func("/damon/told", test_told);
    return g_test_run();
}
