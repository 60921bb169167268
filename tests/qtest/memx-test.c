/*
 * memory-backend-memx: the object, its options, and what it refuses.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "block/qdict.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qemu/module.h"
#include "memx-helpers.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)

/* --- creation ---------------------------------------------------------- */

/* On the command line, with dotted keys, as the machine's only RAM. */
static void test_command_line(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "32M", "", "");
    QDict *info = memx_query(vm, "pc.ram");
    QDict *first;

    g_assert_cmpuint(qdict_get_int(info, "size"), ==, 128 * MIB);
    g_assert_cmpuint(qdict_get_int(info, "local-size"), ==, 32 * MIB);
    g_assert_cmpuint(qdict_get_int(info, "chunk-size"), ==, MIB);
    g_assert_cmpuint(qdict_get_int(info, "local"), <=, 33 * MIB);
    g_assert_false(qdict_get_bool(info, "stalled"));
    g_assert_cmpuint(qlist_size(qdict_get_qlist(info, "servers")), ==, 1);
    first = qobject_to(QDict, qlist_peek(qdict_get_qlist(info, "servers")));
    g_assert_cmpstr(qdict_get_str(first, "address"), ==, server->address);
    g_assert_cmpstr(qdict_get_str(first, "state"), ==, "up");
    g_assert_cmpuint(qdict_get_int(first, "capacity"), ==, 256 * MIB);
    g_assert_cmpuint(qdict_get_int(first, "reserved"), >=, 96 * MIB);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(
        qdict_get_qdict(info, "fetch-latency"), "histogram")), ==, 24);
    qobject_unref(info);
    memx_quit(vm);
    memx_server_free(server);
}

/* -object's own way to write a list, and every option of ours. */
static void test_command_line_all_options(void)
{
    MemxServer *a = memx_server_new("128M", "");
    MemxServer *b = memx_server_new("128M", "");
    g_autofree char *args = g_strdup_printf(
        "-object memory-backend-memx,id=m0,size=128M,local-size=32M,"
        "servers=%s,servers=%s,chunk-size=256K,keep-copies=off,"
        "huge-pages=off,"
        "server-timeout=60,host-nodes=0,policy=bind "
        "-machine memory-backend=m0", a->address, b->address);
    QTestState *vm = memx_plain_vm(args);
    QDict *info = memx_query(vm, "m0");

    g_assert_cmpuint(qlist_size(qdict_get_qlist(info, "servers")), ==, 2);
    g_assert_cmpuint(qdict_get_int(info, "chunk-size"), ==, 256 * 1024);
    qobject_unref(info);
    memx_quit(vm);
    memx_server_free(a);
    memx_server_free(b);
}

static void test_numa_node(void)
{
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *args = g_strdup_printf(
        "-m 96M -smp 2 -object memory-backend-ram,id=m0,size=32M "
        "-object memory-backend-memx,id=m1,size=64M,local-size=16M,"
        "servers.0=%s -numa node,memdev=m0 -numa node,memdev=m1",
        server->address);
    QTestState *vm = memx_plain_vm(args);

    memx_fill(vm, 32 * MIB, 96 * MIB, 1);
    memx_verify(vm, 32 * MIB, 96 * MIB, 1);
    g_assert_cmpuint(memx_query_number(vm, "m1", "paging.evicted"), >, 0);
    memx_quit(vm);
    memx_server_free(server);
}

/* All that is reserved on a server is free again when the object is gone. */
static void test_delete(void)
{
    MemxServer *server = memx_server_new("128M", "");
    QTestState *vm = memx_plain_vm("");
    int i;

    for (i = 0; i < 2; i++) {
        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-add', 'arguments': { 'id': 'm0',"
            "  'qom-type': 'memory-backend-memx', 'size': %u,"
            "  'local-size': %u, 'servers': [ %s ] } }",
            (unsigned)(128 * MIB), (unsigned)(32 * MIB), server->address);
        memx_assert_error(vm, "m1",
            "{ 'execute': 'object-add', 'arguments': { 'id': 'm1',"
            "  'qom-type': 'memory-backend-memx', 'size': %u,"
            "  'local-size': %u, 'servers': [ %s ] } }",
            (unsigned)(128 * MIB), (unsigned)(32 * MIB), server->address);
        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-del', 'arguments': { 'id': 'm0' } }");
    }
    memx_quit(vm);
    memx_server_free(server);
}

/* The end of QEMU drops what the machine's RAM had on servers. */
static void test_quit_drops(const void *how)
{
    MemxServer *server = memx_server_new("128M", "");
    int i;

    for (i = 0; i < 2; i++) {
        QTestState *vm = memx_vm(server, "128M", "32M", "", "");

        g_assert_cmpuint(memx_query_number(vm, "pc.ram", "server.free"), <,
                         64 * MIB);
        if (g_str_equal(how, "quit")) {
            qtest_qmp_assert_success(vm, "{ 'execute': 'quit' }");
            qtest_wait_qemu(vm);
        }
        memx_quit(vm);     /* SIGTERM where it still runs */
    }
    memx_server_free(server);
}

/* --- bad input --------------------------------------------------------- */

typedef struct BadOption {
    const char *name;
    const char *json;       /* replaces or adds to the good ones */
    const char *expected;   /* in the message */
} BadOption;

static const BadOption bad_options[] = {
    { "share", "'share': true", "share=on" },
    { "prealloc", "'prealloc': true", "prealloc=on" },
    { "merge", "'merge': true", "merge=on" },
    { "size/zero", "'size': 0", "'size'" },
    { "size/unaligned", "'size': 134217729", "size must be" },
    { "local-size/above-size", "'local-size': 268435456", "at most the size" },
    { "local-size/zero", "'local-size': 0", "local" },
    { "local-size/too-small", "'local-size': 1048576", "local" },
    { "chunk-size/no-power-of-two", "'chunk-size': 1000000", "chunk" },
    { "chunk-size/too-small", "'chunk-size': 4096", "chunk" },
    { "chunk-size/too-large", "'chunk-size': 1073741824", "chunk" },
    { "server-timeout/zero", "'server-timeout': 0", "server-timeout" },
    { "server-timeout/too-long", "'server-timeout': 1000000",
      "server-timeout" },
    { "servers/none", "'servers': []", "server" },
    { "servers/no-port", "'servers': [ 'localhost' ]", "localhost" },
    { "servers/bad-port", "'servers': [ 'localhost:port' ]", "port" },
    { "servers/bad-host", "'servers': [ 'no-such-host.invalid:7701' ]",
      "no-such-host.invalid" },
    { "servers/not-a-memserver", "'servers': [ '127.0.0.1:1' ]",
      "127.0.0.1:1" },
    { "key-secret/no-such-object", "'key-secret': 'sec0'", "sec0" },
    { "huge-pages/unknown", "'huge-pages': 'maybe'", "huge-pages" },
    { "keep-copies/unknown", "'keep-copies': 'maybe'", "keep-copies" },
};

static QDict *options_with(const MemxServer *server, const char *json)
{
    g_autofree char *text = g_strdup_printf("{ %s }", json);
    QDict *options = qdict_from_jsonf_nofail(
        "{ 'id': 'm0', 'qom-type': 'memory-backend-memx',"
        "  'size': 134217728, 'local-size': 33554432,"
        "  'servers': [ %s ] }", server->address);
    QDict *more = qobject_to(QDict, qobject_from_json(text, &error_abort));

    qdict_join(options, more, true);
    qobject_unref(more);
    return options;
}

static void test_bad_option(const void *opaque)
{
    const BadOption *bad = opaque;
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_plain_vm("");

    memx_assert_error(vm, bad->expected,
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, bad->json));
    /* Nothing is left: neither the id nor space on the server. */
    qtest_qmp_assert_success(vm, "{ 'execute': 'object-add',"
                             "  'arguments': %p }",
                             options_with(server, "'size': 268435456"));
    memx_quit(vm);
    memx_server_free(server);
}

static void test_duplicate_server(void)
{
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *twice = g_strdup_printf("'servers': [ '%s', '%s' ]",
                                             server->address, server->address);
    QTestState *vm = memx_plain_vm("");

    memx_assert_error(vm, server->address,
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, twice));
    memx_quit(vm);
    memx_server_free(server);
}

static void test_too_little_capacity(void)
{
    MemxServer *server = memx_server_new("64M", "");
    QTestState *vm = memx_plain_vm("");

    memx_assert_error(vm, "reserved",
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, "'size': 268435456"));
    memx_quit(vm);
    memx_server_free(server);
}

/* Wrong and right key of a server that wants one. */
static void test_key(void)
{
    g_autofree char *file = memx_tmp_path("key");
    g_autofree char *option = g_strdup_printf("--key-file %s", file);
    MemxServer *server;
    QTestState *vm;

    g_assert_true(g_file_set_contents_full(file,
        "0123456789abcdef0123456789abcdef", -1, 0, 0600, NULL));
    server = memx_server_new("256M", option);
    vm = memx_plain_vm("-object secret,id=right,file=/dev/null "
                       "-object secret,id=wrong,data=wrong-and-long-enough");
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'object-del', 'arguments': { 'id': 'right' } }");
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'object-add', 'arguments': { 'qom-type': 'secret',"
        "  'id': 'right', 'file': %s } }", file);
    memx_assert_error(vm, server->address,
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, ""));
    memx_assert_error(vm, server->address,
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, "'key-secret': 'wrong'"));
    qtest_qmp_assert_success(vm,
                             "{ 'execute': 'object-add', 'arguments': %p }",
                             options_with(server, "'key-secret': 'right'"));
    memx_quit(vm);
    memx_server_free(server);
}

/* QEMU pinned all of its memory. */
static void test_mem_lock(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_plain_vm("-m 32M -overcommit mem-lock=on");

    memx_assert_error(vm, "mem-lock",
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, ""));
    memx_quit(vm);
    memx_server_free(server);
}

/* What can't be changed later. */
static void test_fixed_properties(void)
{
    static const char *const settings[][2] = {
        { "chunk-size", "2097152" }, { "keep-copies", "'on'" },
        { "huge-pages", "'off'" },
        { "server-timeout", "5" }, { "key-secret", "'s'" },
        { "share", "true" },
    };
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "32M", "", "");
    unsigned i;

    for (i = 0; i < G_N_ELEMENTS(settings); i++) {
        memx_assert_error(vm, "change",
                          "{ 'execute': 'qom-set', 'arguments': {"
                          "  'path': '/objects/pc.ram', 'property': %s,"
                          "  'value': %p } }", settings[i][0],
                          qobject_from_json(settings[i][1], &error_abort));
    }
    memx_quit(vm);
    memx_server_free(server);
}

/* --- what does not go together with memx RAM --------------------------- */

static void test_migration_capabilities(void)
{
    static const char *const refused[] = {
        "background-snapshot", "zero-copy-send",
    };
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "32M", "", "");
    unsigned i;

    for (i = 0; i < G_N_ELEMENTS(refused); i++) {
        memx_assert_error(vm, "memory-backend-memx",
            "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
            "  'capabilities': [ { 'capability': %s, 'state': true } ] } }",
            refused[i]);
    }
    memx_quit(vm);
    memx_server_free(server);
}

/* The other order: the capability comes first, the memory later. */
static void test_capability_first(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_plain_vm("-m 32M");

    qtest_qmp_assert_success(vm,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'background-snapshot',"
        "                      'state': true } ] } }");
    memx_assert_error(vm, "background-snapshot",
                      "{ 'execute': 'object-add', 'arguments': %p }",
                      options_with(server, ""));
    memx_quit(vm);
    memx_server_free(server);
}

static void test_postcopy_incoming(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "32M", "", "-incoming defer");

    memx_assert_error(vm, "memory-backend-memx",
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'postcopy-ram',"
        "                      'state': true } ] } }");
    memx_quit(vm);
    memx_server_free(server);
}

static void test_snapshot(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "32M", "", "");
    g_autofree char *save = qtest_hmp(vm, "savevm s0");
    g_autofree char *load = qtest_hmp(vm, "loadvm s0");

    g_assert_nonnull(strstr(save, "memory-backend-memx"));
    g_assert_nonnull(strstr(load, "memory-backend-memx"));
    memx_quit(vm);
    memx_server_free(server);
}

static void test_virtio_mem(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm;

    if (!qtest_has_device("virtio-mem-pci")) {
        g_test_skip("this QEMU has no virtio-mem");
        memx_server_free(server);
        return;
    }
    vm = memx_plain_vm("-m 32M,maxmem=1G");
    qtest_qmp_assert_success(vm,
                             "{ 'execute': 'object-add', 'arguments': %p }",
                             options_with(server, ""));
    memx_assert_error(vm, "virtio-mem",
        "{ 'execute': 'device_add', 'arguments': {"
        "  'driver': 'virtio-mem-pci', 'memdev': 'm0' } }");
    memx_quit(vm);
    memx_server_free(server);
}

/* A vhost-user backend that accepts the connection and never answers. */
static void test_vhost_user(void)
{
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *path = memx_tmp_path("vhost-user");
    g_autofree char *args = g_strdup_printf(
        "-chardev socket,id=c0,path=%s", path);
    int listener = qtest_socket_server(path);
    QTestState *vm;

    if (!qtest_has_device("vhost-user-fs-pci")) {
        g_test_skip("this QEMU has no vhost-user-fs");
    } else {
        vm = memx_vm(server, "128M", "32M", "", args);
        memx_assert_error(vm, "vhost-user",
            "{ 'execute': 'device_add', 'arguments': {"
            "  'driver': 'vhost-user-fs-pci', 'chardev': 'c0',"
            "  'tag': 't' } }");
        memx_quit(vm);
    }
    close(listener);
    memx_server_free(server);
}

/* --- */

int main(int argc, char **argv)
{
    MigrationTestEnv *env;
    unsigned i;
    int ret;

    g_test_init(&argc, &argv, NULL);
    if (!memx_have_memserver()) {
        printf("1..0 # SKIP no memserver: set MEMX_MEMSERVER to its path\n");
        return 0;
    }
    env = migration_get_env();
    module_call_init(MODULE_INIT_QOM);
    qtest_add_func("/memx/object/command-line/list", test_command_line);
    qtest_add_func("/memx/object/command-line/all-options",
                   test_command_line_all_options);
    qtest_add_func("/memx/object/numa-node", test_numa_node);
    qtest_add_func("/memx/object/delete", test_delete);
    qtest_add_data_func("/memx/object/quit", "quit", test_quit_drops);
    qtest_add_data_func("/memx/object/sigterm", "sigterm", test_quit_drops);
    for (i = 0; i < G_N_ELEMENTS(bad_options); i++) {
        g_autofree char *path = g_strdup_printf("/memx/bad/%s",
                                                bad_options[i].name);

        qtest_add_data_func(path, &bad_options[i], test_bad_option);
    }
    qtest_add_func("/memx/bad/servers/duplicate", test_duplicate_server);
    qtest_add_func("/memx/bad/servers/too-small", test_too_little_capacity);
    qtest_add_func("/memx/bad/key", test_key);
    qtest_add_func("/memx/bad/fixed-properties", test_fixed_properties);
    qtest_add_func("/memx/refuse/mem-lock", test_mem_lock);
    qtest_add_func("/memx/refuse/capabilities", test_migration_capabilities);
    qtest_add_func("/memx/refuse/capability-first", test_capability_first);
    qtest_add_func("/memx/refuse/postcopy-incoming", test_postcopy_incoming);
    qtest_add_func("/memx/refuse/snapshot", test_snapshot);
    qtest_add_func("/memx/refuse/virtio-mem", test_virtio_mem);
    qtest_add_func("/memx/refuse/vhost-user", test_vhost_user);
    memx_add_memory_tests();
    memx_add_servers_tests();
    memx_add_failure_tests();
    memx_add_tracking_tests();
    memx_add_split_tests();
    memx_add_split_failure_tests();
    memx_add_split_refusal_tests();
    memx_add_split_hosts_tests();
    memx_add_split_memory_tests();
    memx_add_split_stream_tests();
    memx_add_split_figures_tests();
    ret = g_test_run();
    migration_env_clean(env);
    return ret;
}
