/*
 * Tracking of accesses: the options of memory-backend-memx, and memx-tracker
 * for ordinary memory.  What the trackers themselves see is tested in libmemx
 * and in the lab; `sample` works on every kernel, so it stands for all here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "qobject/qnum.h"
#include "memx-helpers.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)
#define SAMPLE ",tracker=sample,tracker-period=100,tracker-cpu=50"

static void set_property(QTestState *vm, const char *path, const char *name,
                         int64_t value)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'qom-set', 'arguments': { 'path': %s, 'property': %s,"
        "  'value': %" PRId64 " } }", path, name, value);
}

/* query-memx-tracker's entry; NULL: there is none. */
static QDict *query_tracked(QTestState *vm, const char *id)
{
    QDict *response = qtest_qmp(vm, "{ 'execute': 'query-memx-tracker' }");
    QDict *found = NULL;
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(response, "return"), e) {
        QDict *memory = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_equal(qdict_get_str(memory, "id"), id)) {
            found = qobject_ref(qdict_get_qdict(memory, "tracking"));
        }
    }
    qobject_unref(response);
    return found;
}

static bool is_tracked(QTestState *vm, const char *id)
{
    QDict *tracking = query_tracked(vm, id);
    bool is = tracking;

    qobject_unref(tracking);
    return is;
}

static uint64_t tracked_number(QTestState *vm, const char *id,
                               const char *name)
{
    QDict *tracking = query_tracked(vm, id);
    uint64_t value = qdict_get_int(tracking, name);

    qobject_unref(tracking);
    return value;
}

/* The chunks that the histogram counts, of histories from @first on. */
static uint64_t chunks_from(QDict *tracking, unsigned first)
{
    uint64_t n = 0;
    const QListEntry *e;
    unsigned i = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(tracking, "histogram"), e) {
        n += i++ >= first ? qnum_get_uint(qobject_to(QNum,
                                          qlist_entry_obj(e))) : 0;
    }
    g_assert_cmpuint(i, ==, 256);
    return n;
}

/* The larger the share, the more memory; what accounts for all that was seen
 * touched is no more than there is. */
static void check_working_sets(QDict *tracking, uint64_t size)
{
    QList *sets = qdict_get_qlist(tracking, "working-sets");
    int64_t share = 0, bytes = 0;
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(sets, e) {
        QDict *set = qobject_to(QDict, qlist_entry_obj(e));

        g_assert_cmpint(qdict_get_int(set, "share"), >, share);
        g_assert_cmpint(qdict_get_int(set, "bytes"), >=, bytes);
        share = qdict_get_int(set, "share");
        bytes = qdict_get_int(set, "bytes");
        g_assert_cmpint(bytes % qdict_get_int(tracking, "chunk-size"), ==, 0);
    }
    g_assert_cmpint(share, <=, 1000);
    g_assert_cmpint(bytes, >, 0);
    g_assert_cmpint(bytes, <=, size);
}

/* What is touched is told from what is not, and periods end. */
static void test_sample(void)
{
    MemxServer *server = memx_server_new("96M", "");
    QTestState *vm = memx_vm(server, "64M", "48M", SAMPLE, "");
    QDict *info, *tracking;
    bool told = false;

    memx_fill(vm, 0, 32 * MIB, 1);
    memx_wait_until(({ /* the last period may have begun before all that */
        memx_fill(vm, 0, 1 * MIB, 1);
        info = memx_query(vm, "pc.ram");
        tracking = qdict_get_qdict(info, "tracking");
        told = chunks_from(tracking, 0) >= 32 &&
               chunks_from(tracking, 128) && chunks_from(tracking, 128) < 32;
        g_assert_cmpstr(qdict_get_str(tracking, "tracker"), ==, "sample");
        g_assert_cmpstr(qdict_get_str(info, "tracker"), ==, "sample");
        if (told) {
            check_working_sets(tracking, 64 * MIB);
        }
        qobject_unref(info);
        told;
    }));
    memx_verify(vm, 0, 32 * MIB, 1);
    memx_quit(vm);
    memx_server_free(server);
}

/* There is always one, and it says why. */
static void test_auto(void)
{
    MemxServer *server = memx_server_new("96M", "");
    QTestState *vm = memx_vm(server, "64M", "48M", "", "");
    QDict *info = memx_query(vm, "pc.ram");
    QDict *tracking = qdict_get_qdict(info, "tracking");

    g_test_message("%s: %s", qdict_get_str(tracking, "tracker"),
                   qdict_get_str(tracking, "reason"));
    g_assert_cmpstr(qdict_get_str(tracking, "reason"), !=, "");
    g_assert_true(qdict_get_bool(tracking, "adapts"));
    g_assert_cmpint(qdict_get_int(tracking, "cpu-limit"), ==, 2);
    qobject_unref(info);
    memx_quit(vm);
    memx_server_free(server);
}

static void test_off(void)
{
    MemxServer *server = memx_server_new("96M", "");
    QTestState *vm = memx_vm(server, "64M", "48M", ",tracker=off", "");
    QDict *info = memx_query(vm, "pc.ram");

    g_assert_cmpstr(qdict_get_str(info, "tracker"), ==, "off");
    qobject_unref(info);
    memx_quit(vm);
    memx_server_free(server);
}

static void test_change(void)
{
    const char *path = "/objects/pc.ram";
    MemxServer *server = memx_server_new("96M", "");
    QTestState *vm = memx_vm(server, "64M", "48M", SAMPLE, "");

    set_property(vm, path, "tracker-period", 5000);
    set_property(vm, path, "tracker-cpu", 7);
    memx_wait_number(vm, "pc.ram", "tracking.period", 5000, 5000);
    memx_wait_number(vm, "pc.ram", "tracking.cpu-limit", 7, 7);
    memx_assert_error(vm, "100 to 3600000",
        "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
        "  'property': 'tracker-period', 'value': 99 } }", path);
    memx_assert_error(vm, "1 to 1600",
        "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
        "  'property': 'tracker-cpu', 'value': 0 } }", path);
    memx_assert_error(vm, "can't be changed any more",
        "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
        "  'property': 'tracker', 'value': 'off' } }", path);
    memx_assert_error(vm, "can't be changed any more",
        "{ 'execute': 'qom-set', 'arguments': { 'path': %s,"
        "  'property': 'idle-socket', 'value': 'x' } }", path);
    memx_quit(vm);
    memx_server_free(server);
}

/* A helper that isn't there: refused, or with tracker=auto warned of. */
static void test_idle_socket(void)
{
    MemxServer *server = memx_server_new("96M", "");
    g_autofree char *path = memx_tmp_path("idle");
    g_autofree char *options = g_strdup_printf(",idle-socket=%s", path);
    QTestState *vm = memx_vm(server, "64M", "48M", options, "");

    memx_assert_error(vm, path,
        "{ 'execute': 'object-add', 'arguments': { 'id': 'm0',"
        "  'qom-type': 'memory-backend-memx', 'size': 33554432,"
        "  'local-size': 16777216, 'servers': [ %s ], 'tracker': 'idle',"
        "  'idle-socket': %s } }", server->address, path);
    memx_quit(vm);
    memx_server_free(server);
}

/* --- memx-tracker ------------------------------------------------------ */

/* A kind that this host has for ordinary memory; NULL, and the test is
 * skipped. */
static const char *ordinary_kind(void)
{
    static const char *const kinds[] = { "sample", "rwp", "idle" };
    static const char *kind;
    static bool known;
    QTestState *vm;
    unsigned i;

    if (!known) {
        vm = memx_plain_vm("-m 64M");
        for (i = 0; i < G_N_ELEMENTS(kinds) && !kind; i++) {
            QDict *answer = qtest_qmp(vm,
                "{ 'execute': 'object-add', 'arguments': { 'id': 't0',"
                "  'qom-type': 'memx-tracker', 'tracker': %s } }", kinds[i]);

            if (qdict_haskey(answer, "return")) {
                kind = kinds[i];
            }
            qobject_unref(answer);
        }
        memx_quit(vm);
        known = true;
    }
    if (!kind) {
        g_test_skip("this host has no tracker for ordinary memory: Linux 7.3, "
                    "or CONFIG_IDLE_PAGE_TRACKING and root");
    }
    return kind;
}

static void add_tracker(QTestState *vm)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'object-add', 'arguments': { 'id': 't0',"
        "  'qom-type': 'memx-tracker', 'tracker': %s,"
        "  'tracker-period': 100, 'tracker-cpu': 50 } }", ordinary_kind());
}

static void del_tracker(QTestState *vm)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'object-del', 'arguments': { 'id': 't0' } }");
}

/* Of memory on the command line, and from its start. */
static void test_object(void)
{
    const char *kind = ordinary_kind();
    g_autofree char *args = g_strdup_printf("-m 64M -object memx-tracker,id=t0"
        ",tracker=%s,tracker-period=100,tracker-cpu=50", kind);
    QTestState *vm;

    if (!kind) {
        return;
    }
    vm = memx_plain_vm(args);
    memx_fill(vm, 0, 48 * MIB, 1);
    memx_wait_until(tracked_number(vm, "pc.ram", "periods") >= 2);
    memx_assert_error(vm, "already",
        "{ 'execute': 'object-add', 'arguments': { 'id': 't1',"
        "  'qom-type': 'memx-tracker' } }");
    set_property(vm, "/objects/t0", "tracker-period", 300);
    memx_wait_until(tracked_number(vm, "pc.ram", "period") == 300);
    memx_verify(vm, 0, 48 * MIB, 1);
    memx_quit(vm);
}

/* While the VM runs: on, off, and on again; memory that comes and goes. */
static void test_object_add(void)
{
    QTestState *vm;
    unsigned round;

    if (!ordinary_kind()) {
        return;
    }
    vm = memx_plain_vm("-m 64M,slots=2,maxmem=1G");
    memx_fill(vm, 0, 48 * MIB, 1);
    for (round = 0; round < 2; round++) {
        add_tracker(vm);
        g_assert_true(is_tracked(vm, "pc.ram"));
        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-add', 'arguments': { 'id': 'm0',"
            "  'qom-type': 'memory-backend-ram', 'size': 33554432 } }");
        memx_wait_until(tracked_number(vm, "m0", "periods") >= 2);
        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-del', 'arguments': { 'id': 'm0' } }");
        memx_wait_until(!is_tracked(vm, "m0"));
        memx_wait_until(tracked_number(vm, "pc.ram", "periods") >= 2);
        memx_verify(vm, 0, 48 * MIB, 1);
        del_tracker(vm);
        g_assert_false(is_tracked(vm, "pc.ram"));
        memx_verify(vm, 0, 48 * MIB, 1);
    }
    memx_quit(vm);
}

/* Shared memory can't be sampled; then nothing is watched. */
static void test_refused(void)
{
    QTestState *vm = memx_plain_vm(
        "-m 64M -object memory-backend-memfd,id=pc.ram,size=64M,share=on "
        "-machine memory-backend=pc.ram");

    memx_assert_error(vm, "pc.ram",
        "{ 'execute': 'object-add', 'arguments': { 'id': 't0',"
        "  'qom-type': 'memx-tracker', 'tracker': 'sample' } }");
    g_assert_false(is_tracked(vm, "pc.ram"));
    memx_quit(vm);
}

/* Memory that the framework's guest doesn't write, which is lower. */
#define HOT_FROM (110 * MIB)
#define HOT_TO (134 * MIB)

/* Of a VM that stands still nothing is hot but what we touch.  Then for an hour
 * nothing cools down. */
static void make_hot(QTestState *vm)
{
    bool hot = false;

    set_property(vm, "/objects/t0", "tracker-period", 500);
    memx_wait_until(({
        QDict *tracking;

        memx_fill(vm, HOT_FROM, HOT_TO, 7);
        tracking = query_tracked(vm, "pc.ram");
        hot = chunks_from(tracking, 64) == (HOT_TO - HOT_FROM) / MIB &&
              chunks_from(tracking, 1) < SPLIT_LOCAL_MIB / 2;
        qobject_unref(tracking);
        hot;
    }));
    set_property(vm, "/objects/t0", "tracker-period", 3600 * 1000);
}

/* A split goes by the history: what was hot is at the destination.  No warm-up
 * could tell, since nothing is written any more; without a history the lowest
 * memory would go there. */
static void test_split(void)
{
    uint64_t faults;
    Split s;

    if (!ordinary_kind()) {
        return;
    }
    split_begin(&s, "plain", "");
    qtest_qmp_assert_success(s.from, "{ 'execute': 'stop' }");
    add_tracker(s.from);
    make_hot(s.from);
    split_converge(&s);
    split_migrate(&s);
    split_wait_completed(s.from);
    memx_wait_status(s.to, "paused");
    faults = memx_query_number(s.to, "pc.ram", "faults.remote");
    memx_verify(s.to, HOT_FROM, HOT_TO, 7);
    g_assert_cmpuint(memx_query_number(s.to, "pc.ram", "faults.remote"), ==,
                     faults);
    g_assert_cmpuint(memx_query_number(s.to, "pc.ram", "remote"), >, 0);
    qtest_qmp_assert_success(s.to, "{ 'execute': 'cont' }");
    split_assert_runs(s.to);
    split_end(&s);
}

/* It stands still while the VM migrates, and goes on if that fails. */
static void test_migration_fails(void)
{
    uint64_t periods;
    Split s;

    if (!ordinary_kind()) {
        return;
    }
    split_begin(&s, "plain", "");
    add_tracker(s.from);
    memx_wait_until(tracked_number(s.from, "pc.ram", "periods") >= 2);
    split_to_later_round(&s);
    migrate_cancel(s.from);
    split_wait_status(s.from, "cancelled", "");
    periods = tracked_number(s.from, "pc.ram", "periods");
    memx_wait_until(tracked_number(s.from, "pc.ram", "periods") >=
                    periods + 2);
    split_assert_runs(s.from);
    split_end(&s);
}

/* --- a VM that arrives by postcopy ------------------------------------- */

static void *add_to_target(QTestState *from, QTestState *to)
{
    add_tracker(to);
    g_assert_false(is_tracked(to, "pc.ram"));
    return NULL;
}

static void wait_tracked(QTestState *from, QTestState *to, void *unused)
{
    memx_wait_until(is_tracked(to, "pc.ram"));
    memx_wait_until(tracked_number(to, "pc.ram", "periods") >= 2);
}

/* Its memory is postcopy's while that lasts, the VM running already; then it is
 * watched. */
static void test_postcopy(void)
{
    MigrateCommon args = {
        .listen_uri = "tcp:127.0.0.1:0",
        .start_hook = add_to_target,
        .end_hook = wait_tracked,
    };

    if (!migration_get_env()->has_uffd) {
        g_test_skip("no userfaultfd for postcopy");
    } else if (ordinary_kind()) {
        test_postcopy_common(&args);
    }
}

static char *next_phase(QTestState *vm)
{
    QDict *event = qtest_qmp_eventwait_ref(vm, "MEMX_SPLIT_PHASE");
    char *phase = g_strdup(qdict_get_str(qdict_get_qdict(event, "data"),
                                         "phase"));

    qobject_unref(event);
    return phase;
}

/* Cancels when trackers look once more.  False: they were done before. */
static bool cancel_the_look(Split *s)
{
    bool cancelled = false, looked = true, ended = false;

    while (!ended) {
        g_autofree char *phase = next_phase(s->from);
        bool moves = g_str_equal(phase, "transfer");

        if (!cancelled && (moves || g_str_equal(phase, "warm-up"))) {
            migrate_cancel(s->from);
            cancelled = true;
        }
        looked &= !moves;
        ended = g_str_equal(phase, "cancelled");
    }
    split_wait_status(s->from, "cancelled", "");
    return looked;
}

/* The tracker goes on as before, and the next split works. */
static void test_cancel_look(void)
{
    uint64_t periods;
    bool looked;
    Split s;

    if (!ordinary_kind()) {
        return;
    }
    split_begin(&s, "plain", "");
    migrate_set_parameter_int(s.from, "split-warm-up", 60);
    migrate_ensure_non_converge(s.from);
    add_tracker(s.from);
    memx_wait_until(tracked_number(s.from, "pc.ram", "periods") >= 2);
    memx_wait_until(({
        split_migrate(&s);
        looked = cancel_the_look(&s);
        memx_quit(s.to);
        split_new_target(&s);
        looked;
    }));
    periods = tracked_number(s.from, "pc.ram", "periods");
    memx_wait_until(tracked_number(s.from, "pc.ram", "periods") >=
                    periods + 2);
    split_assert_runs(s.from);
    split_converge(&s);
    split_migrate(&s);
    split_wait_completed(s.from);
    split_assert_runs(s.to);
    split_end(&s);
}

void memx_add_tracking_tests(void)
{
    qtest_add_func("/memx/tracking/sample", test_sample);
    qtest_add_func("/memx/tracking/auto", test_auto);
    qtest_add_func("/memx/tracking/off", test_off);
    qtest_add_func("/memx/tracking/change", test_change);
    qtest_add_func("/memx/tracking/idle-socket", test_idle_socket);
    qtest_add_func("/memx/tracking/object", test_object);
    qtest_add_func("/memx/tracking/object-add", test_object_add);
    qtest_add_func("/memx/tracking/refused", test_refused);
    qtest_add_func("/migration/split/tracker/history", test_split);
    qtest_add_func("/memx/tracking/postcopy", test_postcopy);
    qtest_add_func("/migration/split/tracker/cancel", test_migration_fails);
    qtest_add_func("/migration/split/tracker/cancel-look", test_cancel_look);
}
