/*
 * Split migration: what works.
 *
 * The guest is the one of QEMU's own migration tests: it increments a byte of
 * each of its pages, one after the other, for ever.  So all pages have the
 * same byte but for one edge, and whoever stops it can verify its memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)

/* Both are done, the destination has the VM, and most of it is remote. */
static void wait_split(Split *s)
{
    split_wait_completed(s->from);
    qtest_qmp_eventwait(s->to, "RESUME");
    g_assert_cmpuint(memx_query_number(s->to, "pc.ram", "local"), <=,
                     SPLIT_LOCAL_MIB * MIB * 51 / 50);
    /* Every 256th round of the guest's leaves zeros, which cost nothing. */
    memx_wait_number(s->to, "pc.ram", "remote", 16 * MIB, SPLIT_MIB * MIB);
}

/* The counters add up, and the stream carried less than the VM. */
static void check_figures(Split *s)
{
    g_assert_cmpuint(split_number(s->from, "pending"), ==, 0);
    g_assert_cmpuint(split_number(s->from, "cold-chunks"), >, 0);
    g_assert_cmpuint(split_number(s->from, "hot-chunks"), >, 0);
    g_assert_cmpuint(split_number(s->from, "main"), <=,
                     SPLIT_LOCAL_MIB * MIB);
    g_assert_cmpuint(split_number(s->from, "sent") +
                     split_number(s->from, "left"), >=, 16 * MIB);
    g_assert_cmpuint(read_ram_property_int(s->from, "transferred"), >=,
                     split_number(s->from, "sent"));
    g_assert_cmpuint(read_ram_property_int(s->from, "normal"), >=,
                     split_number(s->from, "main") / 4096);
}

static void test_split(const void *source)
{
    Split s;

    split_begin(&s, source, "");
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    check_figures(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

static void test_multifd(void)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_parameter_int(s.from, "multifd-channels", 4);
    migrate_set_parameter_int(s.to, "multifd-channels", 4);
    migrate_set_capability(s.from, "multifd", true);
    migrate_set_capability(s.to, "multifd", true);
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    check_figures(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

static void test_capability(const void *capability)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_capability(s.from, capability, true);
    if (g_str_equal(capability, "xbzrle")) {
        migrate_set_capability(s.to, capability, true);
    }
    /* Some rounds, so that it has something to do. */
    split_to_later_round(&s);
    split_converge(&s);
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

static void test_pause_before_switchover(void)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_capability(s.from, "pause-before-switchover", true);
    split_converge(&s);
    split_migrate(&s);
    wait_for_migration_status(s.from, "pre-switchover",
                              (const char *[]) { "failed", "completed",
                                                 NULL });
    migrate_continue(s.from, "pre-switchover");
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

/* A VM that was paused arrives paused; the source is gone when it goes on. */
static void test_paused(const void *source)
{
    Split s;

    split_begin(&s, source, "");
    qtest_qmp_assert_success(s.from, "{ 'execute': 'stop' }");
    split_converge(&s);
    split_migrate(&s);
    split_wait_completed(s.from);
    split_wait_completed(s.to);
    memx_wait_status(s.to, "paused");
    memx_quit(s.from);
    s.from = NULL;
    qtest_qmp_assert_success(s.to, "{ 'execute': 'cont' }");
    memx_wait_status(s.to, "running");
    split_assert_runs(s.to);
    split_end(&s);
}

/* It arrived paused, but its source takes it back, and migrates again. */
static void test_taken_back(void)
{
    Split s;

    split_begin(&s, "plain", "");
    qtest_qmp_assert_success(s.from, "{ 'execute': 'stop' }");
    split_converge(&s);
    split_migrate(&s);
    split_wait_completed(s.from);
    split_wait_completed(s.to);
    qtest_qmp_assert_success(s.from, "{ 'execute': 'cont' }");
    memx_assert_error(s.to, "the source of its split migration has it",
                      "{ 'execute': 'cont' }");
    split_assert_runs(s.from);
    split_end(&s);
}

/* Two NUMA nodes: one session, one arbiter. */
static void test_numa(void)
{
    Split s;

    split_begin_args(&s,
        "-object memory-backend-ram,id=m0,size=100M -numa node,memdev=m0 "
        "-object memory-backend-ram,id=m1,size=50M -numa node,memdev=m1",
        "-object memory-backend-memx,id=m0,size=100M,local-size=43M "
        "-object memory-backend-memx,id=m1,size=50M,local-size=22M "
        "-numa node,memdev=m0 -numa node,memdev=m1");
    split_converge(&s);
    split_migrate(&s);
    split_wait_completed(s.from);
    qtest_qmp_eventwait(s.to, "RESUME");
    split_assert_runs(s.to);
    memx_wait_number(s.to, "m0", "remote", 16 * MIB, 100 * MIB);
    split_end(&s);
}

/* From main host to main host; cold memory stays where it is. */
static void test_again(void)
{
    unsigned i;
    Split s;

    split_begin(&s, "plain", "");
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    for (i = 0; i < 2; i++) {
        split_go_on(&s);
        split_converge(&s);
        split_migrate(&s);
        split_wait_completed(s.from);
        qtest_qmp_eventwait(s.to, "RESUME");
        split_assert_runs(s.to);
    }
    split_end(&s);
}

static void add_tls(QTestState *vm, const char *endpoint, const char *dir)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'object-add', 'arguments': {"
        "  'qom-type': 'tls-creds-psk', 'id': 'tls0', 'endpoint': %s,"
        "  'dir': %s } }", endpoint, dir);
    migrate_set_parameter_str(vm, "tls-creds", "tls0");
}

/* With TLS, if the user accepts that the servers' part has none. */
static void test_tls(void)
{
    g_autofree char *keys = memx_tmp_path("keys.psk");
    g_autofree char *dir = g_path_get_dirname(keys);
    Split s;

    g_assert_true(g_file_set_contents(keys, "qemu:009d5638c40fde0c\n", -1,
                                      NULL));
    split_begin(&s, "plain", "");
    add_tls(s.from, "client", dir);
    add_tls(s.to, "server", dir);
    migrate_set_parameter_bool(s.from, "split-insecure", true);
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

void memx_add_split_tests(void)
{
    qtest_add_data_func("/migration/split/plain", "plain", test_split);
    qtest_add_data_func("/migration/split/memx", "memx", test_split);
    qtest_add_func("/migration/split/multifd", test_multifd);
    qtest_add_data_func("/migration/split/xbzrle", "xbzrle", test_capability);
    qtest_add_data_func("/migration/split/auto-converge", "auto-converge",
                        test_capability);
    qtest_add_func("/migration/split/numa", test_numa);
    qtest_add_func("/migration/split/again", test_again);
    qtest_add_func("/migration/split/tls", test_tls);
    qtest_add_func("/migration/split/pause-before-switchover",
                   test_pause_before_switchover);
    qtest_add_data_func("/migration/split/paused/plain", "plain",
                        test_paused);
    qtest_add_data_func("/migration/split/paused/memx", "memx", test_paused);
    qtest_add_func("/migration/split/paused/taken-back", test_taken_back);
}
