/*
 * Servers come and go while a VM runs: the property "servers", and memxctl
 * drain.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "memx-helpers.h"
#include "memx-proxy.h"

#define MIB (1024ull * 1024)

/* A VM with 48 MiB, 44 of them written, and 16 local. */
static QTestState *vm_on(const MemxServer *server)
{
    QTestState *vm = memx_vm(server, "48M", "16M", "", "");

    memx_fill(vm, 0, 44 * MIB, 1);
    return vm;
}

static QList *list_of(const char *a, const char *b)
{
    QList *list = qlist_new();

    if (a) {
        qlist_append_str(list, a);
    }
    if (b) {
        qlist_append_str(list, b);
    }
    return list;
}

static void set_servers(QTestState *vm, const char *a, const char *b)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/pc.ram',"
        "  'property': 'servers', 'value': %p } }", list_of(a, b));
}

static void assert_refused(QTestState *vm, const char *a, const char *b,
                           const char *expected)
{
    memx_assert_error(vm, expected,
        "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/pc.ram',"
        "  'property': 'servers', 'value': %p } }", list_of(a, b));
}

static void assert_servers(QTestState *vm, const char *a, const char *b)
{
    g_autofree char *now = memx_servers(vm);
    g_autofree char *expected = b ? g_strdup_printf("%s,%s", a, b)
                                  : g_strdup(a);

    g_assert_cmpstr(now, ==, expected);
}

/* query-memx's entry of a server; NULL: there is none. */
static QDict *query_server(QTestState *vm, const char *address)
{
    QDict *info = memx_query(vm, "pc.ram"), *found = NULL;
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "servers"), e) {
        QDict *server = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_equal(qdict_get_str(server, "address"), address)) {
            found = qobject_ref(server);
        }
    }
    qobject_unref(info);
    return found;
}

static uint64_t number(QTestState *vm, const char *address, const char *name)
{
    QDict *server = query_server(vm, address);
    uint64_t value = qdict_get_int(server, name);

    qobject_unref(server);
    return value;
}

static bool is_used(QTestState *vm, const char *address, const char *usage)
{
    QDict *server = query_server(vm, address);
    bool is = server && g_str_equal(qdict_get_str(server, "usage"), usage);

    qobject_unref(server);
    return is;
}

static void wait_event(QTestState *vm, const char *name, const char *address)
{
    const char *server = "";
    QDict *event = NULL;

    while (!g_str_equal(server, address)) {
        qobject_unref(event);
        event = qtest_qmp_eventwait_ref(vm, name);
        server = qdict_get_str(qdict_get_qdict(event, "data"), "server");
    }
    qobject_unref(event);
}

/* Nothing of the VM is there, and it is not listed any more. */
static void wait_released(QTestState *vm, const MemxServer *server)
{
    g_autofree char *status = NULL;

    wait_event(vm, "MEMX_SERVER_RELEASED", server->address);
    g_assert_null(query_server(vm, server->address));
    status = memx_server_status(server);
    g_assert_nonnull(strstr(status, "\"spaces\" : []"));
}

static void end(QTestState *vm, MemxServer *a, MemxServer *b)
{
    memx_verify(vm, 0, 44 * MIB, 1);
    memx_quit(vm);
    memx_server_free(a);
    memx_server_free(b);
}

/* --- what works -------------------------------------------------------- */

static void test_added(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);

    assert_servers(vm, a->address, NULL);
    set_servers(vm, a->address, b->address);
    assert_servers(vm, a->address, b->address);
    memx_wait_until(number(vm, b->address, "chunks") > 0 &&
                    number(vm, a->address, "to-move") == 0);
    g_assert_cmpuint(number(vm, b->address, "moved"), >, 0);
    g_assert_cmpuint(number(vm, a->address, "chunks"), >, 0);
    end(vm, a, b);
}

static void test_removed(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);

    set_servers(vm, b->address, NULL);
    assert_servers(vm, b->address, NULL);
    wait_released(vm, a);
    memx_server_kill(a);
    end(vm, a, b);
}

static void test_drained(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);

    set_servers(vm, a->address, b->address);
    memx_server_drain(a, false);
    wait_released(vm, a);
    assert_servers(vm, b->address, NULL);
    /* Neither now nor later is it used again by itself. */
    assert_refused(vm, a->address, b->address, "drain");
    memx_server_drain(a, true);
    set_servers(vm, a->address, b->address);
    memx_wait_until(number(vm, a->address, "chunks") > 0);
    end(vm, a, b);
}

/* HMP knows no lists of strings. */
static void test_hmp(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);
    g_autofree char *refused = NULL, *said = NULL, *info = NULL;

    refused = qtest_hmp(vm, "qom-set /objects/pc.ram servers nonsense");
    g_assert_nonnull(strstr(refused, "nonsense"));
    said = qtest_hmp(vm, "qom-set /objects/pc.ram servers %s,%s", a->address,
                     b->address);
    g_assert_cmpstr(said, ==, "");
    memx_wait_until(number(vm, b->address, "moved") > 0);
    info = qtest_hmp(vm, "info memx");
    g_assert_nonnull(strstr(info, "in-use"));
    g_assert_nonnull(strstr(info, "came from other servers"));
    end(vm, a, b);
}

/* --- refused, and nothing has changed ---------------------------------- */

static void test_refused(void)
{
    g_autofree char *file = memx_tmp_path("key");
    g_autofree char *option = g_strdup_printf("--key-file %s", file);
    g_autofree char *status = NULL;
    MemxServer *a = memx_server_new("256M", ""), *keyed;
    MemxServer *small = memx_server_new("16M", "");
    QTestState *vm = vm_on(a);

    g_assert_true(g_file_set_contents_full(file,
        "0123456789abcdef0123456789abcdef", -1, 0, 0600, NULL));
    keyed = memx_server_new("256M", option);
    assert_refused(vm, NULL, NULL, "name 1 to 16");
    assert_refused(vm, a->address, a->address, "named twice");
    assert_refused(vm, a->address, "nonsense", "nonsense");
    assert_refused(vm, a->address, "127.0.0.1:1", "127.0.0.1:1");
    assert_refused(vm, a->address, keyed->address, "key");
    assert_refused(vm, small->address, NULL, "must be reserved");
    assert_servers(vm, a->address, NULL);
    g_assert_true(is_used(vm, a->address, "in-use"));
    status = memx_server_status(small);
    g_assert_nonnull(strstr(status, "\"spaces\" : []"));
    memx_server_free(keyed);
    end(vm, a, small);
}

/* Servers come with a split migration. */
static void test_arriving(void)
{
    QTestState *vm = memx_plain_vm(
        "-incoming defer -machine memory-backend=pc.ram "
        "-object memory-backend-memx,id=pc.ram,size=128M,local-size=32M");

    assert_refused(vm, "127.0.0.1:7701", NULL, "split migration");
    memx_quit(vm);
}

/* --- failures ---------------------------------------------------------- */

/* A chunk is on its way from @a to the link of @b, and does not arrive. */
static MemxProxy *in_the_middle(QTestState *vm, const MemxServer *a,
                                const MemxServer *b)
{
    MemxProxy *link = memx_proxy_new(b->address, true);

    memx_proxy_hold(link, MEMX_REPLIES, MEMX_OP_COPY);
    set_servers(vm, a->address, memx_proxy_address(link));
    memx_proxy_wait_held(link, MEMX_REPLIES);
    return link;
}

/* It comes back without what was copied there: that is copied again. */
static void test_added_killed(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);
    MemxProxy *link = in_the_middle(vm, a, b);

    memx_server_kill(b);
    memx_proxy_drop(link, MEMX_REPLIES);
    wait_event(vm, "MEMX_SERVER_LOST", memx_proxy_address(link));
    memx_server_start(b, "");
    wait_event(vm, "MEMX_SERVER_BACK", memx_proxy_address(link));
    memx_wait_until(number(vm, memx_proxy_address(link), "chunks") > 0);
    memx_verify(vm, 0, 44 * MIB, 1);
    memx_quit(vm);
    memx_proxy_free(link);
    memx_server_free(a);
    memx_server_free(b);
}

/* What it alone had is lost with it, and told; nobody gets zeros. */
static void test_drained_killed(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);
    MemxProxy *link = in_the_middle(vm, a, b);

    memx_server_drain(a, false);
    memx_wait_until(is_used(vm, a->address, "draining"));
    memx_server_kill(a);
    wait_event(vm, "MEMX_SERVER_LOST", a->address);
    memx_server_start(a, "");
    wait_event(vm, "MEMX_SERVER_EMPTY", a->address);
    memx_proxy_let_go(link, MEMX_REPLIES);
    g_assert_cmpuint(number(vm, a->address, "remote"), >, 0);
    qtest_qmp_send(vm, "{ 'exec-oob': 'memx-abandon' }");
    qtest_set_expected_status(vm, EXIT_FAILURE);
    qtest_wait_qemu(vm);
    memx_quit(vm);
    memx_proxy_free(link);
    memx_server_free(a);
    memx_server_free(b);
}

/* It does not answer for a while. */
static void test_drained_stopped(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);
    MemxProxy *link = in_the_middle(vm, a, b);

    memx_server_drain(a, false);
    memx_server_pause(a);
    memx_proxy_let_go(link, MEMX_REPLIES);
    wait_event(vm, "MEMX_SERVER_LOST", a->address);
    memx_server_go_on(a);
    wait_released(vm, a);
    memx_verify(vm, 0, 44 * MIB, 1);
    memx_quit(vm);
    memx_proxy_free(link);
    memx_server_free(a);
    memx_server_free(b);
}

/* Chunks stay where they were until there is room. */
static void test_target_full(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("256M", "");
    QTestState *vm = vm_on(a);
    MemxProxy *link = memx_proxy_new(b->address, true);

    memx_proxy_fail(link, MEMX_OP_COPY, MEMX_ERR_FULL);
    set_servers(vm, memx_proxy_address(link), NULL);
    wait_event(vm, "MEMX_POOL_FULL", memx_proxy_address(link));
    g_assert_true(is_used(vm, a->address, "leaving"));
    g_assert_cmpuint(number(vm, a->address, "to-move"), >, 0);
    memx_verify(vm, 0, 44 * MIB, 1);
    memx_proxy_fail(link, MEMX_OP_COPY, 0);
    wait_released(vm, a);
    memx_verify(vm, 0, 44 * MIB, 1);
    memx_quit(vm);
    memx_proxy_free(link);
    memx_server_free(a);
    memx_server_free(b);
}

/* It stays in use, and says so. */
static void test_no_room(void)
{
    MemxServer *a = memx_server_new("256M", "");
    MemxServer *b = memx_server_new("16M", "");
    QTestState *vm = vm_on(a);

    set_servers(vm, a->address, b->address);
    memx_server_drain(a, false);
    wait_event(vm, "MEMX_POOL_FULL", a->address);
    g_assert_true(is_used(vm, a->address, "draining"));
    memx_server_drain(a, true);
    memx_wait_until(is_used(vm, a->address, "in-use"));
    end(vm, a, b);
}

void memx_add_servers_tests(void)
{
    qtest_add_func("/memx/servers/added", test_added);
    qtest_add_func("/memx/servers/removed", test_removed);
    qtest_add_func("/memx/servers/drained", test_drained);
    qtest_add_func("/memx/servers/hmp", test_hmp);
    qtest_add_func("/memx/servers/refused", test_refused);
    qtest_add_func("/memx/servers/arriving", test_arriving);
    qtest_add_func("/memx/servers/added-killed", test_added_killed);
    qtest_add_func("/memx/servers/drained-killed", test_drained_killed);
    qtest_add_func("/memx/servers/drained-stopped", test_drained_stopped);
    qtest_add_func("/memx/servers/target-full", test_target_full);
    qtest_add_func("/memx/servers/no-room", test_no_room);
}
