/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)

static void set_parameters(Split *s)
{
    migrate_set_capability(s->from, "split-migration", true);
    migrate_set_parameter_str(s->from, "split-hosts", s->hosts);
    migrate_set_parameter_int(s->from, "split-local-size",
                              SPLIT_LOCAL_MIB * MIB);
    migrate_set_parameter_int(s->from, "split-warm-up", 1);
}

/* Without a network card, whose firmware would take longer to boot than all
 * the rest. */
static void start_target(Split *s, bool only_target)
{
    g_autofree char *source = g_strdup_printf("-nic none %s",
                                              s->source_args ?: "");
    g_autofree char *target = g_strdup_printf("-nic none %s", s->target_args);
    MigrateStart start = {
        .only_target = only_target,
        .oob = true,
        .hide_stderr = true,
        .opts_source = source,
        .opts_target = target,
    };

    g_assert_cmpint(migrate_start(&s->from, &s->to, "defer", &start), ==, 0);
    migrate_set_capability(s->to, "split-migration", true);
}

static void start_servers(Split *s, const char *options, bool linked,
                          const char **addresses)
{
    unsigned i;

    for (i = 0; i < SPLIT_SERVERS; i++) {
        s->servers[i] = memx_server_new("256M", options);
        addresses[i] = s->servers[i]->address;
        if (linked) {
            s->links[i] = memx_proxy_new(addresses[i], true);
            addresses[i] = memx_proxy_address(s->links[i]);
        }
    }
    s->hosts = g_strdup_printf("%s,%s", addresses[0], addresses[1]);
}

static void start_sides(Split *s)
{
    start_target(s, false);
    set_parameters(s);
    wait_for_serial("src_serial");
}

static void begin(Split *s, const char *source, const char *server_options,
                  bool linked)
{
    const char *addresses[SPLIT_SERVERS];

    *s = (Split) { 0 };
    start_servers(s, server_options, linked, addresses);
    if (g_str_equal(source, "memx")) {
        s->source_args = g_strdup_printf(
            "-object memory-backend-memx,id=pc.ram,size=%uM,local-size=96M,"
            "servers.0=%s,servers.1=%s -machine memory-backend=pc.ram",
            SPLIT_MIB, addresses[0], addresses[1]);
    }
    s->target_args = g_strdup_printf(
        "-object memory-backend-memx,id=pc.ram,size=%uM,local-size=%uM "
        "-machine memory-backend=pc.ram", SPLIT_MIB, SPLIT_LOCAL_MIB);
    start_sides(s);
}

void split_begin_args(Split *s, const char *source_args,
                      const char *target_args)
{
    const char *addresses[SPLIT_SERVERS];

    *s = (Split) { 0 };
    start_servers(s, "", false, addresses);
    s->source_args = g_strdup(source_args);
    s->target_args = g_strdup(target_args);
    start_sides(s);
}

void split_begin(Split *s, const char *source, const char *server_options)
{
    begin(s, source, server_options, false);
}

void split_begin_linked(Split *s, const char *source)
{
    begin(s, source, "", true);
}

void split_new_target(Split *s)
{
    start_target(s, true);
}

void split_go_on(Split *s)
{
    memx_quit(s->from);
    s->from = s->to;
    start_target(s, true);
    set_parameters(s);
}

void split_listen(Split *s)
{
    migrate_incoming_qmp(s->to, "tcp:127.0.0.1:0", NULL,
                         "{ 'exit-on-error': false }");
}

void split_migrate(Split *s)
{
    g_autofree char *listens = NULL, *uri = NULL;

    split_listen(s);
    if (!s->links[0]) {
        migrate_qmp(s->from, s->to, NULL, NULL, "{}");
        return;
    }
    g_clear_pointer(&s->main, memx_proxy_free);
    listens = migrate_get_connect_uri(s->to);
    s->main = memx_proxy_new(listens, false);
    uri = g_strdup_printf("tcp:%s", memx_proxy_address(s->main));
    migrate_qmp(s->from, s->to, uri, NULL, "{}");
}

/* QEMU decides about the switch-over by this bandwidth, not by what it finds
 * out: so fast, and yet without an end while the guest writes a page. */
void split_to_later_round(Split *s)
{
    migrate_ensure_non_converge(s->from);
    migrate_set_parameter_int(s->from, "max-bandwidth", 100 * 1000 * 1000);
    migrate_set_parameter_int(s->from, "avail-switchover-bandwidth", 1000);
    split_migrate(s);
    memx_wait_until(get_migration_pass(s->from) >= 3);
}

void split_converge(Split *s)
{
    migrate_set_parameter_int(s->from, "avail-switchover-bandwidth", 0);
    migrate_ensure_converge(s->from);
}

void split_kill(QTestState **vm)
{
    kill(qtest_pid(*vm), SIGKILL);
    memx_wait_until(!qtest_probe_child(*vm));
    /* qtest_quit() would take this for a crash. */
    *vm = NULL;
}

static void remove_file(const char *name)
{
    g_autofree char *path = g_build_filename(migration_get_env()->tmpfs, name,
                                             NULL);

    g_unlink(path);
}

void split_end(Split *s)
{
    unsigned i;

    if (s->from) {
        memx_quit(s->from);
    }
    if (s->to) {
        memx_quit(s->to);
    }
    g_clear_pointer(&s->main, memx_proxy_free);
    for (i = 0; i < SPLIT_SERVERS; i++) {
        g_clear_pointer(&s->links[i], memx_proxy_free);
        memx_server_free(s->servers[i]);
    }
    remove_file("src_serial");
    remove_file("dest_serial");
    g_free(s->hosts);
    g_free(s->source_args);
    g_free(s->target_args);
}

/* One byte of each page, the same for all but for where the guest is now.  By
 * way of a file: a request for each byte would take a hundred times as long. */
static void assert_memory(QTestState *vm)
{
    g_autofree char *path = memx_tmp_path("guest-memory");
    g_autoptr(GMappedFile) file = NULL;
    g_autoptr(GError) error = NULL;
    unsigned bytes = end_address - start_address, at, edges = 0;
    const uint8_t *memory;
    uint8_t last;

    qtest_qmp_assert_success(vm,
        "{ 'execute': 'pmemsave', 'arguments': { 'val': %u, 'size': %u,"
        "  'filename': %s } }", start_address, bytes, path);
    file = g_mapped_file_new(path, false, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(g_mapped_file_get_length(file), ==, bytes);
    memory = (const uint8_t *)g_mapped_file_get_contents(file);
    last = memory[0];
    for (at = 0; at < bytes; at += 4096) {
        if (memory[at] != last) {
            g_assert_cmpint((uint8_t)(memory[at] + 1), ==, last);
            g_assert_cmpint(++edges, ==, 1);
            last = memory[at];
        }
    }
    g_unlink(path);
}

void split_assert_runs(QTestState *vm)
{
    uint8_t first;

    memx_wait_status(vm, "running");
    first = qtest_readb(vm, start_address);
    memx_wait_until(qtest_readb(vm, start_address) != first);
    qtest_qmp_assert_success(vm, "{ 'execute': 'stop' }");
    assert_memory(vm);
    qtest_qmp_assert_success(vm, "{ 'execute': 'cont' }");
    memx_wait_status(vm, "running");
}

static QDict *query_split(QTestState *vm)
{
    QDict *all = qtest_qmp_assert_success_ref(
        vm, "{ 'execute': 'query-migrate' }");
    QDict *split = qdict_get_qdict(all, "split");

    qobject_ref(split);
    qobject_unref(all);
    return split;
}

uint64_t split_number(QTestState *vm, const char *name)
{
    QDict *split = query_split(vm);
    uint64_t value = split ? qdict_get_int(split, name) : 0;

    qobject_unref(split);
    return value;
}

bool split_is_up(QTestState *vm, unsigned server)
{
    QDict *split = query_split(vm);
    const QListEntry *e = qlist_first(qdict_get_qlist(split, "servers"));
    bool up;

    for (; server; server--) {
        e = qlist_next(e);
    }
    up = g_str_equal(qdict_get_str(qobject_to(QDict, qlist_entry_obj(e)),
                                   "state"), "up");
    qobject_unref(split);
    return up;
}

char *split_session(QTestState *vm)
{
    QDict *split = query_split(vm);
    char *session = g_strdup(qdict_get_str(split, "session"));

    qobject_unref(split);
    return session;
}

bool split_is_in_phase(QTestState *vm, const char *phase)
{
    QDict *split = query_split(vm);
    bool is = split && g_str_equal(qdict_get_str(split, "phase"), phase);

    qobject_unref(split);
    return is;
}

void split_wait_phase(QTestState *vm, const char *phase)
{
    memx_wait_until(split_is_in_phase(vm, phase));
}

static bool is_ended(const char *status)
{
    return g_str_equal(status, "completed") ||
           g_str_equal(status, "failed") || g_str_equal(status, "cancelled");
}

/* Free the result. */
static QDict *query_ended(QTestState *vm)
{
    QDict *r = qtest_qmp_assert_success_ref(vm,
                                            "{ 'execute': 'query-migrate' }");

    if (!is_ended(qdict_get_try_str(r, "status") ?: "")) {
        qobject_unref(r);
        r = NULL;
    }
    return r;
}

static QDict *wait_ended(QTestState *vm)
{
    QDict *r;

    memx_wait_until((r = query_ended(vm)));
    return r;
}

void split_wait_ended(QTestState *vm)
{
    qobject_unref(wait_ended(vm));
}

char *split_wait_error(QTestState *vm, const char *status)
{
    QDict *r = wait_ended(vm);
    char *error = g_strdup(qdict_get_try_str(r, "error-desc") ?: "");

    g_test_message("%s: %s", qdict_get_str(r, "status"), error);
    g_assert_cmpstr(qdict_get_str(r, "status"), ==, status);
    qobject_unref(r);
    return error;
}

void split_wait_status(QTestState *vm, const char *status,
                       const char *expected)
{
    g_autofree char *error = split_wait_error(vm, status);

    if (!strstr(error, expected)) {
        g_error("'%s' is not in the error: %s", expected, error);
    }
}

void split_wait_completed(QTestState *vm)
{
    gint64 end = g_get_monotonic_time() + 2 * G_TIME_SPAN_MINUTE;
    QDict *r;

    while (!(r = query_ended(vm))) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(10 * 1000);
    }
    if (!g_str_equal(qdict_get_str(r, "status"), "completed")) {
        g_error("%s: %s", qdict_get_str(r, "status"),
                qdict_get_try_str(r, "error-desc") ?: "");
    }
    qobject_unref(r);
}

void split_wait_failed(QTestState *vm, const char *expected)
{
    split_wait_status(vm, "failed", expected);
}

bool split_is_running(QTestState *vm)
{
    QDict *r = qtest_qmp_assert_success_ref(vm,
                                            "{ 'execute': 'query-status' }");
    bool running = qdict_get_bool(r, "running");

    qobject_unref(r);
    return running;
}

/* --- who has the VM ---------------------------------------------------- */

/* Looks at all events that came until now. */
static bool has_entered(QTestState *vm, const char *phase)
{
    bool entered = false;
    QDict *event;

    split_is_running(vm);       /* its answer comes behind them */
    while (!entered && (event = qtest_qmp_event_ref(vm, "MEMX_SPLIT_PHASE"))) {
        entered = g_str_equal(qdict_get_str(qdict_get_qdict(event, "data"),
                                            "phase"), phase);
        qobject_unref(event);
    }
    return entered;
}

void split_wait_entered(QTestState *vm, const char *phase)
{
    memx_wait_until(has_entered(vm, phase));
}

/* Asks by "cont", which sends an event: what that says (an earlier one first,
 * if it has not been looked at). */
static bool cont_is_refused(QTestState *vm, const char *verdict,
                            const char *who, const char *arbiter)
{
    QDict *event, *data;
    const char *message;
    bool is;

    memx_assert_error(vm, who, "{ 'execute': 'cont' }");
    event = qtest_qmp_eventwait_ref(vm, "MEMX_SPLIT_REFUSED");
    data = qdict_get_qdict(event, "data");
    message = qdict_get_str(data, "message");
    is = g_str_equal(qdict_get_str(data, "verdict"), verdict);
    if (!is) {
        g_test_message("asked again: %s", message);
    } else if (!strstr(message, who) || !strstr(message, arbiter)) {
        g_error("'%s' or '%s' is not in the event: %s", who, arbiter, message);
    }
    qobject_unref(event);
    return is;
}

/* An arbiter that is busy, or being connected to, is asked again. */
void split_wait_refused(Split *s, QTestState *vm, const char *verdict)
{
    g_autofree char *who = g_strdup_printf("the %s of its split migration "
                                           "has it", vm == s->from ?
                                           "destination" : "source");

    memx_wait_until(cont_is_refused(vm, verdict, who,
                                    memx_proxy_address(s->links[0])));
    g_assert_false(split_is_running(vm));
    if (vm == s->from && g_str_equal(verdict, "theirs")) {
        split_wait_phase(vm, "lost");
    }
}

/* --- servers ----------------------------------------------------------- */

/* How many spaces there are, and how many of these are orphaned. */
static unsigned count_spaces(const MemxServer *server, unsigned *orphaned)
{
    g_autofree char *status = memx_server_status(server);
    QDict *all = qobject_to(QDict, qobject_from_json(status, &error_abort));
    QList *spaces = qdict_get_qlist(all, "spaces");
    unsigned n = qlist_size(spaces);
    QListEntry *e;

    *orphaned = 0;
    QLIST_FOREACH_ENTRY(spaces, e) {
        QDict *space = qobject_to(QDict, qlist_entry_obj(e));

        *orphaned += g_str_equal(qdict_get_str(space, "state"), "orphaned");
    }
    qobject_unref(all);
    return n;
}

void split_wait_dropped(const MemxServer *server)
{
    unsigned orphaned;

    memx_wait_until(!count_spaces(server, &orphaned));
}

unsigned split_wait_orphaned(const MemxServer *server)
{
    unsigned n, orphaned;

    memx_wait_until((n = count_spaces(server, &orphaned)) == orphaned);
    return n;
}
