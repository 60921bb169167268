/*
 * memory-backend-memx: what QMP says and the VM does when a server fails.
 *
 * The thread that waits for a page is the migration thread where the main
 * loop must go on, and the main loop itself (pmemsave) where the test is
 * about that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "memx-helpers.h"

#define MIB (1024ull * 1024)

/* A VM with pages on its server. */
static QTestState *vm_with_remote_pages(const MemxServer *server,
                                        const char *args)
{
    QTestState *vm = memx_vm(server, "64M", "16M", ",server-timeout=1", args);

    memx_fill(vm, MIB, 64 * MIB, 1);
    memx_wait_number(vm, "pc.ram", "server.remote", 16 * MIB, 64 * MIB);
    return vm;
}

/* Waits for the event, and checks what it says. */
static void wait_event(QTestState *vm, const char *name,
                       const char *server_address)
{
    QDict *event = qtest_qmp_eventwait_ref(vm, name);
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "pc.ram");
    g_assert_cmpstr(qdict_get_str(data, "message"), !=, "");
    if (server_address) {
        g_assert_cmpstr(qdict_get_str(data, "server"), ==, server_address);
    }
    qobject_unref(event);
}

static void assert_state(QTestState *vm, const char *expected)
{
    QDict *info = memx_query(vm, "pc.ram");
    const QListEntry *first = qlist_first(qdict_get_qlist(info, "servers"));

    g_assert_cmpstr(qdict_get_str(qobject_to(QDict, qlist_entry_obj(first)),
                                  "state"), ==, expected);
    qobject_unref(info);
}

/* Nobody needs a page; people learn of it all the same. */
static void test_server_killed(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = vm_with_remote_pages(server, "");

    memx_server_kill(server);
    wait_event(vm, "MEMX_SERVER_LOST", server->address);
    assert_state(vm, "down");
    memx_server_start(server, "");
    wait_event(vm, "MEMX_SERVER_EMPTY", server->address);
    assert_state(vm, "empty");
    memx_quit(vm);
    memx_server_free(server);
}

static void migrate_into_a_wait(QTestState *vm)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'migrate', 'arguments': {"
        "  'uri': 'exec:cat > /dev/null' } }");
}

static QTestState *stalled_vm(MemxServer *server)
{
    QTestState *vm = vm_with_remote_pages(server, "");

    memx_server_pause(server);
    migrate_into_a_wait(vm);
    wait_event(vm, "MEMX_STALLED", NULL);
    qtest_qmp_eventwait(vm, "STOP");
    memx_wait_status(vm, "io-error");
    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate_cancel' }");
    return vm;
}

static void test_stall_and_resume(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = stalled_vm(server);
    QDict *info = memx_query(vm, "pc.ram");

    g_assert_true(qdict_get_bool(info, "stalled"));
    qobject_unref(info);
    memx_server_go_on(server);
    wait_event(vm, "MEMX_RESUMED", NULL);
    qtest_qmp_eventwait(vm, "RESUME");
    memx_wait_status(vm, "running");
    memx_verify(vm, MIB, 64 * MIB, 1);
    memx_quit(vm);
    memx_server_free(server);
}

/* Whoever starts it meanwhile finds it stopped again. */
static void test_stall_and_cont(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = stalled_vm(server);

    qtest_qmp_assert_success(vm, "{ 'execute': 'cont' }");
    qtest_qmp_eventwait(vm, "RESUME");
    qtest_qmp_eventwait(vm, "STOP");
    memx_wait_status(vm, "io-error");
    memx_server_go_on(server);
    wait_event(vm, "MEMX_RESUMED", NULL);
    qtest_qmp_eventwait(vm, "RESUME");
    memx_wait_status(vm, "running");
    memx_verify(vm, MIB, 64 * MIB, 1);
    memx_quit(vm);
    memx_server_free(server);
}

/* Whoever stopped it as well finds it stopped. */
static void test_stall_and_user_stop(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = stalled_vm(server);
    int i;

    qtest_qmp_assert_success(vm, "{ 'execute': 'stop' }");
    memx_server_go_on(server);
    wait_event(vm, "MEMX_RESUMED", NULL);
    /* Enough rounds of the main loop for whatever is on its way. */
    for (i = 0; i < 50; i++) {
        QDict *r = qtest_qmp_assert_success_ref(
            vm, "{ 'execute': 'query-status' }");

        g_assert_false(qdict_get_bool(r, "running"));
        qobject_unref(r);
    }
    qtest_qmp_assert_success(vm, "{ 'execute': 'cont' }");
    memx_wait_status(vm, "running");
    memx_verify(vm, MIB, 64 * MIB, 1);
    memx_quit(vm);
    memx_server_free(server);
}

/* The main loop waits for a page: in-band commands wait with it. */
static void block_main_loop(QTestState *vm)
{
    g_autofree char *path = memx_tmp_path("dump");

    qtest_qmp_send(vm, "{ 'execute': 'pmemsave', 'id': 'dump',"
                   "  'arguments': { 'val': 1048576, 'size': 66060288,"
                   "  'filename': %s } }", path);
    memx_wait_number(vm, "pc.ram", "faults.waiting", 1, 1000);
}

static void test_out_of_band(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = vm_with_remote_pages(server, "");
    QDict *response;

    memx_server_pause(server);
    block_main_loop(vm);
    wait_event(vm, "MEMX_STALLED", NULL);
    memx_server_go_on(server);
    response = qtest_qmp_receive(vm);
    g_assert_cmpstr(qdict_get_str(response, "id"), ==, "dump");
    g_assert_true(qdict_haskey(response, "return"));
    qobject_unref(response);
    memx_verify(vm, MIB, 64 * MIB, 1);
    memx_quit(vm);
    memx_server_free(server);
}

/* memx-abandon ends QEMU, says what was lost, and leaves nothing running. */
static void test_abandon(const void *how)
{
    bool out_of_band = g_str_equal(how, "out-of-band");
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *log = memx_tmp_path("stderr");
    g_autofree char *redirect = g_strdup_printf("2> %s", log);
    g_autofree char *said = NULL;
    QTestState *vm = vm_with_remote_pages(server, redirect);

    memx_assert_error(vm, "no-such-backend",
        "{ 'execute': 'memx-abandon',"
        "  'arguments': { 'id': 'no-such-backend' } }");
    memx_server_kill(server);
    if (out_of_band) {
        block_main_loop(vm);
        qtest_qmp_send(vm, "{ 'exec-oob': 'memx-abandon',"
                       "  'arguments': { 'id': 'pc.ram' } }");
    } else {
        qtest_qmp_send(vm, "{ 'execute': 'memx-abandon' }");
    }
    qtest_set_expected_status(vm, EXIT_FAILURE);
    qtest_wait_qemu(vm);
    memx_quit(vm);
    g_assert_true(g_file_get_contents(log, &said, NULL, NULL));
    g_assert_nonnull(strstr(said, "'pc.ram' is given up"));
    g_assert_nonnull(strstr(said, server->address));
    memx_server_free(server);
}

static void test_info(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = vm_with_remote_pages(server, "");
    g_autofree char *text = NULL;

    memx_verify(vm, MIB, 64 * MIB, 1);
    text = qtest_hmp(vm, "info memx");
    g_assert_nonnull(strstr(text, "pc.ram"));
    g_assert_nonnull(strstr(text, server->address));
    g_assert_nonnull(strstr(text, "fetch latency"));
    if (g_test_verbose()) {
        g_test_message("%s", text);
    }
    memx_quit(vm);
    memx_server_free(server);
}

/* No memx RAM at all: an empty list, and nothing to abandon. */
static void test_none(void)
{
    QTestState *vm = memx_plain_vm("");

    memx_assert_none(vm);
    memx_assert_error(vm, "no memory-backend-memx",
                      "{ 'execute': 'memx-abandon' }");
    memx_quit(vm);
}

void memx_add_failure_tests(void)
{
    qtest_add_func("/memx/monitor/info", test_info);
    qtest_add_func("/memx/monitor/none", test_none);
    qtest_add_func("/memx/monitor/out-of-band", test_out_of_band);
    qtest_add_data_func("/memx/monitor/abandon/in-band", "in-band", test_abandon);
    qtest_add_data_func("/memx/monitor/abandon/out-of-band", "out-of-band",
                        test_abandon);
    qtest_add_func("/memx/failure/server-killed", test_server_killed);
    qtest_add_func("/memx/failure/stall/resume", test_stall_and_resume);
    qtest_add_func("/memx/failure/stall/cont", test_stall_and_cont);
    qtest_add_func("/memx/failure/stall/user-stop", test_stall_and_user_stop);
}
