/*
 * Split migration: what is refused, before anything moves, and how the user
 * learns of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/mman.h>
#include "block/qdict.h"
#include "qobject/qjson.h"
#include "qapi/error.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)

/* --- capabilities ------------------------------------------------------ */

static void test_capabilities(void)
{
    static const struct {
        const char *name;
        bool needs_more;        /* of QEMU or the host, to be switched on */
    } conflicts[] = {
        { "postcopy-ram" }, { "mapped-ram" }, { "x-ignore-shared" },
        { "x-colo" }, { "rdma-pin-all" }, { "background-snapshot", true },
        { "zero-copy-send", true },
    };
    QTestState *vm = memx_plain_vm("-m 32M");
    unsigned i;

    for (i = 0; i < G_N_ELEMENTS(conflicts); i++) {
        const char *name = conflicts[i].name;
        g_autofree char *said = g_strdup_printf("split-migration and %s "
                                                "exclude each other", name);

        migrate_set_capability(vm, "split-migration", true);
        memx_assert_error(vm, said,
            "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
            "  'capabilities': [ { 'capability': %s, 'state': true } ] } }",
            name);
        migrate_set_capability(vm, "split-migration", false);
        if (conflicts[i].needs_more) {
            continue;
        }
        migrate_set_capability(vm, name, true);
        memx_assert_error(vm, said,
            "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
            "  'capabilities': [ { 'capability': 'split-migration',"
            "                      'state': true } ] } }");
        migrate_set_capability(vm, name, false);
    }
    memx_quit(vm);
}

/* What was read can be written back. */
static void test_parameters(void)
{
    QTestState *vm = memx_plain_vm("-m 32M");
    QDict *r;

    migrate_set_parameter_str(vm, "split-hosts", "a:1,[::1]:2");
    migrate_set_parameter_int(vm, "split-local-size", 6ll << 30);
    migrate_set_parameter_int(vm, "split-warm-up", 0);
    migrate_set_parameter_str(vm, "split-key-secret", "s");
    migrate_set_parameter_bool(vm, "split-insecure", true);
    r = qtest_qmp_assert_success_ref(
        vm, "{ 'execute': 'query-migrate-parameters' }");
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'migrate-set-parameters', 'arguments': %p }", r);
    migrate_set_parameter_str(vm, "split-hosts", "");
    memx_assert_error(vm, "split-warm-up",
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'split-warm-up': 61 } }");
    memx_quit(vm);
}

/* --- "migrate" itself is refused --------------------------------------- */

typedef struct BadMigration {
    const char *name;
    const char *json;       /* replaces or adds to good parameters */
    const char *expected;   /* in the message */
    const char *args;       /* of the source; 64 MiB of RAM by default */
} BadMigration;

static const BadMigration bad_migrations[] = {
    { "hosts/none", "'split-hosts': ''", "split-hosts" },
    { "hosts/empty-one", "'split-hosts': 'a:1,,b:2'", "split-hosts: ''" },
    { "hosts/no-port", "'split-hosts': 'localhost'", "'localhost'" },
    { "hosts/bad-port", "'split-hosts': 'a:b'", "'a:b'" },
    { "hosts/port-zero", "'split-hosts': 'a:0'", "'a:0'" },
    { "hosts/port-too-high", "'split-hosts': 'a:65536'", "'a:65536'" },
    { "hosts/no-host", "'split-hosts': ':1'", "':1'" },
    { "hosts/ipv6-without-brackets", "'split-hosts': '::1:7701'",
      "'::1:7701'" },
    { "hosts/duplicate", "'split-hosts': 'a:1,b:1,a:1'", "'a:1' twice" },
    { "hosts/too-many", "'split-hosts': 'a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,"
      "a:9,a:10,a:11,a:12,a:13,a:14,a:15,a:16,a:17'", "more than 16" },
    { "local-size/none", "'split-local-size': 0", "split-local-size" },
    { "local-size/above-size", "'split-local-size': 67112960",
      "more than the VM's 64 MiB" },
    { "local-size/too-small", "'split-local-size': 8388608", "too small" },
    { "local-size/too-small-for-one", "'split-local-size': 33554432",
      "'m1' would get",
      "-m 96M -object memory-backend-ram,id=m0,size=80M "
      "-object memory-backend-ram,id=m1,size=16M "
      "-numa node,memdev=m0 -numa node,memdev=m1" },
    { "key/no-such-object", "'split-key-secret': 'sec0'", "sec0" },
    { "tls", "'tls-creds': 'tls0'", "split-insecure" },
    { "shared", "'split-warm-up': 0", "is shared",
      "-m 64M -object memory-backend-ram,id=m0,size=64M,share=on "
      "-machine memory-backend=m0" },
    { "file", "'split-warm-up': 0", "is in a file",
      "-m 64M -object memory-backend-memfd,id=m0,size=64M,share=off "
      "-machine memory-backend=m0" },
    { "huge-pages", "'split-warm-up': 0", "is in huge pages",
      "-m 64M,slots=1,maxmem=256M -device pc-dimm,memdev=m0 "
      "-object memory-backend-memfd,id=m0,size=64M,share=off,hugetlb=on,"
      "reserve=off" },
    { "mode", "'mode': 'cpr-reboot'", "mode 'normal'" },
};

static bool have_hugetlb(void)
{
    int fd = memfd_create("memx-qtest", MFD_CLOEXEC | MFD_HUGETLB);

    close(fd);
    return fd >= 0;
}

static void test_bad_migration(const void *opaque)
{
    const BadMigration *bad = opaque;
    g_autofree char *json = g_strdup_printf("{ %s }", bad->json);
    QDict *parameters, *more;
    QTestState *vm;

    if (bad->args && strstr(bad->args, "hugetlb") && !have_hugetlb()) {
        g_test_skip("this kernel has no hugetlb");
        return;
    }
    vm = memx_plain_vm(bad->args ?: "-m 64M");
    parameters = qdict_from_jsonf_nofail(
        "{ 'split-hosts': 'a:1,[::1]:2', 'split-local-size': 33554432 }");
    more = qobject_to(QDict, qobject_from_json(json, &error_abort));
    qdict_join(parameters, more, true);
    qobject_unref(more);
    migrate_set_capability(vm, "split-migration", true);
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'migrate-set-parameters', 'arguments': %p }",
        parameters);
    memx_assert_error(vm, bad->expected,
        "{ 'execute': 'migrate', 'arguments': { 'uri': 'tcp:127.0.0.1:1' } }");
    memx_wait_status(vm, "running");
    memx_quit(vm);
}

/* One that could migrate. */
static QTestState *good_source(void)
{
    QTestState *vm = memx_plain_vm("-m 64M");

    migrate_set_capability(vm, "split-migration", true);
    migrate_set_parameter_str(vm, "split-hosts", "127.0.0.1:1");
    migrate_set_parameter_int(vm, "split-local-size", 32 * MIB);
    return vm;
}

/* A file can't take a VM over. */
static void test_no_answer(const void *opaque)
{
    const char *transport = opaque;
    g_autofree char *said = g_strdup_printf(
        "split-migration needs a destination that answers: use tcp: or unix:, "
        "not %s:", transport);
    QTestState *vm = good_source();

    if (g_str_equal(transport, "file")) {
        g_autofree char *uri = memx_tmp_path("stream");

        memx_assert_error(vm, said,
            "{ 'execute': 'migrate', 'arguments': { 'channels': [ {"
            "  'channel-type': 'main', 'addr': { 'transport': 'file',"
            "    'filename': %s, 'offset': 0 } } ] } }", uri);
    } else if (g_str_equal(transport, "exec")) {
        memx_assert_error(vm, said, "{ 'execute': 'migrate',"
                          "  'arguments': { 'uri': 'exec:cat' } }");
    } else {                    /* also where it was left out of QEMU */
        memx_assert_error(vm, said,
            "{ 'execute': 'migrate', 'arguments': { 'channels': [ {"
            "  'channel-type': 'main', 'addr': { 'transport': 'rdma',"
            "    'host': '127.0.0.1', 'port': '1' } } ] } }");
    }
    memx_wait_status(vm, "running");
    memx_quit(vm);
}

/* Of a descriptor that is known only later.  (QEMU says first that it can't be
 * read.) */
static void test_no_socket(void)
{
    g_autofree char *path = memx_tmp_path("stream");
    int fd = g_open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    QTestState *vm = good_source();
    QDict *answer;

    g_assert_cmpint(fd, >=, 0);
    qtest_qmp_fds_assert_success(vm, &fd, 1,
        "{ 'execute': 'getfd', 'arguments': { 'fdname': 'stream' } }");
    close(fd);
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'migrate', 'arguments': { 'uri': 'fd:stream' } }");
    split_wait_failed(vm, "");
    answer = migrate_query(vm);
    g_assert_false(qdict_haskey(answer, "split")); /* it has not begun */
    qobject_unref(answer);
    memx_wait_status(vm, "running");
    memx_quit(vm);
}

static void test_snapshot(void)
{
    QTestState *vm = memx_plain_vm("-m 32M");
    g_autofree char *said = NULL;

    migrate_set_capability(vm, "split-migration", true);
    said = qtest_hmp(vm, "savevm s0");
    g_assert_nonnull(strstr(said, "split-migration"));
    memx_quit(vm);
}

/* Only with -incoming can a backend do without servers. */
static void test_no_servers(void)
{
    QTestState *vm = memx_plain_vm("-m 32M");

    memx_assert_error(vm, "servers.0",
        "{ 'execute': 'object-add', 'arguments': { 'id': 'm0',"
        "  'qom-type': 'memory-backend-memx', 'size': 134217728,"
        "  'local-size': 33554432 } }");
    memx_quit(vm);
}

/* --- the destination refuses ------------------------------------------- */

typedef struct BadTarget {
    const char *name;
    const char *args;       /* of the destination; RAM is 64 MiB */
    bool source_splits;
    bool target_splits;
    const char *expected;   /* at the destination */
    const char *logged;     /* there, if QEMU itself refuses: it tells of it
                             * in its log only */
} BadTarget;

#define MEMX_TARGET "-m 64M -object memory-backend-memx,id=pc.ram,size=64M," \
    "local-size=32M -machine memory-backend=pc.ram"

static const BadTarget bad_targets[] = {
    { "target/capability/source-only", MEMX_TARGET, true, false,
      "load of migration failed", "Capability split-migration is off, but "
      "received capability is on" },
    { "target/capability/target-only", MEMX_TARGET, false, true,
      "load of migration failed", "Capability split-migration is on, but "
      "received capability is off" },
    { "target/capability/none", MEMX_TARGET, false, false,
      "switch the capability split-migration on" },
    { "target/ordinary-memory", "-m 64M", true, true,
      "no memory-backend-memx" },
    { "dest-too-small/setup", "-m 64M -object memory-backend-memx,id=pc.ram,"
      "size=64M,local-size=16M -machine memory-backend=pc.ram", true, true,
      "local-size of 16384 KiB, but the source may send 32768 KiB" },
    { "target/size", "-m 128M -object memory-backend-memx,id=pc.ram,size=128M,"
      "local-size=32M -machine memory-backend=pc.ram", true, true,
      "load of migration failed",
      "Size mismatch: pc.ram: 0x4000000 != 0x8000000" },
};

static void assert_logged(const char *log, const char *expected)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(log, &text, NULL, NULL));
    if (!strstr(text, expected)) {
        g_error("'%s' is not in the log: %s", expected, text);
    }
}

static void test_bad_target(const void *opaque)
{
    const BadTarget *bad = opaque;
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *log = memx_tmp_path("target-log");
    g_autofree char *args = g_strdup_printf("%s -incoming defer 2> %s",
                                            bad->args, log);
    QTestState *from = memx_plain_vm("-m 64M");
    QTestState *to = memx_plain_vm(args);

    migrate_set_capability(from, "split-migration", bad->source_splits);
    migrate_set_capability(to, "split-migration", bad->target_splits);
    migrate_set_parameter_str(from, "split-hosts", server->address);
    migrate_set_parameter_int(from, "split-local-size", 32 * MIB);
    migrate_incoming_qmp(to, "tcp:127.0.0.1:0", NULL,
                         "{ 'exit-on-error': false }");
    memx_fill(from, 0, 64 * MIB, 1);
    migrate_qmp(from, to, NULL, NULL, "{}");
    split_wait_failed(to, bad->expected);
    if (bad->logged) {
        assert_logged(log, bad->logged);
    }
    /* Told, or where to look if it was QEMU itself that refused; a source that
     * doesn't split has QEMU's own words. */
    split_wait_failed(from, !bad->source_splits ? "" :
                            bad->logged ? "its log says what" : bad->expected);
    /* Nothing moved. */
    g_assert_cmpuint(split_number(from, "sent"), ==, 0);
    memx_wait_status(from, "running");
    memx_verify(from, 0, 64 * MIB, 1);
    memx_quit(from);
    memx_quit(to);
    memx_server_free(server);
}

/* --- the servers refuse ------------------------------------------------ */

static void refused_by_servers(Split *s, const char *expected)
{
    split_converge(s);
    split_migrate(s);
    split_wait_failed(s->from, expected);
    split_assert_runs(s->from);
    split_end(s);
}

static void test_unreachable(void)
{
    Split s;

    split_begin(&s, "plain", "");
    memx_server_kill(s.servers[1]);
    refused_by_servers(&s, s.servers[1]->address);
}

static void test_wrong_key(void)
{
    g_autofree char *file = memx_tmp_path("split-key");
    g_autofree char *option = g_strdup_printf("--key-file %s", file);
    Split s;

    g_assert_true(g_file_set_contents_full(file,
        "0123456789abcdef0123456789abcdef", -1, 0, 0600, NULL));
    split_begin(&s, "plain", option);
    qtest_qmp_assert_success(s.from,
        "{ 'execute': 'object-add', 'arguments': { 'qom-type': 'secret',"
        "  'id': 'wrong', 'data': 'wrong-and-long-enough-for-a-key' } }");
    migrate_set_parameter_str(s.from, "split-key-secret", "wrong");
    refused_by_servers(&s, s.servers[0]->address);
}

/* The source has the servers' key, the destination does not. */
static void test_no_key_at_target(void)
{
    g_autofree char *file = memx_tmp_path("split-key");
    g_autofree char *option = g_strdup_printf("--key-file %s", file);
    Split s;

    g_assert_true(g_file_set_contents_full(file,
        "0123456789abcdef0123456789abcdef", -1, 0, 0600, NULL));
    split_begin(&s, "plain", option);
    qtest_qmp_assert_success(s.from,
        "{ 'execute': 'object-add', 'arguments': { 'qom-type': 'secret',"
        "  'id': 'right', 'file': %s } }", file);
    migrate_set_parameter_str(s.from, "split-key-secret", "right");
    split_converge(&s);
    split_migrate(&s);
    split_wait_failed(s.to, "key");
    split_wait_failed(s.from, "key");
    split_assert_runs(s.from);
    split_end(&s);
}

static void test_server_full(void)
{
    Split s;
    QTestState *other[SPLIT_SERVERS];
    unsigned i;

    split_begin(&s, "plain", "");
    for (i = 0; i < SPLIT_SERVERS; i++) {
        other[i] = memx_vm(s.servers[i], "272M", "32M", "", "");
    }
    split_converge(&s);
    split_migrate(&s);
    split_wait_failed(s.from, "reserved");
    split_assert_runs(s.from);
    for (i = 0; i < SPLIT_SERVERS; i++) {
        memx_quit(other[i]);
    }
    split_end(&s);
}

void memx_add_split_refusal_tests(void)
{
    unsigned i;

    qtest_add_func("/migration/split/parameters", test_parameters);
    qtest_add_func("/migration/split/refuse/capabilities",
                   test_capabilities);
    for (i = 0; i < G_N_ELEMENTS(bad_migrations); i++) {
        g_autofree char *path = g_strdup_printf("/migration/split/bad/%s",
                                                bad_migrations[i].name);

        qtest_add_data_func(path, &bad_migrations[i], test_bad_migration);
    }
    qtest_add_data_func("/migration/split/refuse/file", "file",
                        test_no_answer);
    qtest_add_data_func("/migration/split/refuse/exec", "exec",
                        test_no_answer);
    qtest_add_data_func("/migration/split/refuse/rdma", "rdma",
                        test_no_answer);
    qtest_add_func("/migration/split/refuse/no-socket", test_no_socket);
    qtest_add_func("/migration/split/refuse/snapshot", test_snapshot);
    qtest_add_func("/migration/split/refuse/no-servers", test_no_servers);
    for (i = 0; i < G_N_ELEMENTS(bad_targets); i++) {
        g_autofree char *path = g_strdup_printf("/migration/split/%s",
                                                bad_targets[i].name);

        qtest_add_data_func(path, &bad_targets[i], test_bad_target);
    }
    qtest_add_func("/migration/split/bad/hosts/unreachable", test_unreachable);
    qtest_add_func("/migration/split/wrong-secret/setup", test_wrong_key);
    qtest_add_func("/migration/split/wrong-secret/before-commit",
                   test_no_key_at_target);
    qtest_add_func("/migration/split/server-full/setup", test_server_full);
}
