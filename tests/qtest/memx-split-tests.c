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
    if (!s->source_args) {      /* ordinary RAM comes back from nowhere */
        g_assert_cmpuint(split_number(s->from, "fetched"), ==, 0);
    }
    g_assert_cmpuint(read_ram_property_int(s->from, "normal"), >=,
                     split_number(s->from, "main") / 4096);
}

static void test_split(const void *source)
{
    uint64_t both;
    Split s;

    split_begin(&s, source, "");
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    check_figures(&s);
    /* What went to servers counts in QEMU's own figures, on top. */
    both = split_number(s.from, "sent") + split_number(s.from, "main");
    g_assert_cmpuint(read_ram_property_int(s.from, "transferred"), >=, both);
    g_assert_cmpuint(read_ram_property_int(s.from, "normal"), >=, both / 4096);
    split_assert_runs(s.to);
    split_end(&s);
}

/* What goes through the stream goes there by way of multifd's channels; the
 * guest's pages have next to nothing in them. */
static void test_multifd(const void *compression)
{
    uint64_t main, bytes;
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_parameter_int(s.from, "multifd-channels", 4);
    migrate_set_parameter_int(s.to, "multifd-channels", 4);
    migrate_set_parameter_str(s.from, "multifd-compression", compression);
    migrate_set_parameter_str(s.to, "multifd-compression", compression);
    migrate_set_capability(s.from, "multifd", true);
    migrate_set_capability(s.to, "multifd", true);
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    check_figures(&s);
    main = split_number(s.from, "main");
    bytes = read_ram_property_int(s.from, "multifd-bytes");
    g_test_message("%" PRIu64 " of %" PRIu64 " bytes", bytes, main);
    if (g_str_equal(compression, "none")) {
        g_assert_cmpuint(bytes, >=, main / 2);
    } else {
        g_assert_cmpuint(bytes, >, 0);
        g_assert_cmpuint(bytes, <, main / 4);
    }
    split_assert_runs(s.to);
    split_end(&s);
}

/* A number of query-migrate; 0 if it is not told. */
static int64_t told(QTestState *vm, const char *dict, const char *name)
{
    QDict *all = migrate_query(vm);
    QDict *in = dict ? qdict_get_qdict(all, dict) : all;
    int64_t value = in ? qdict_get_try_int(in, name, 0) : 0;

    qobject_unref(all);
    return value;
}

static void test_xbzrle(void)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_capability(s.from, "xbzrle", true);
    migrate_set_capability(s.to, "xbzrle", true);
    split_to_later_round(&s);
    memx_wait_until(told(s.from, "xbzrle-cache", "pages") > 0);
    split_converge(&s);
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

static void test_auto_converge(void)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_capability(s.from, "auto-converge", true);
    split_to_later_round(&s);
    memx_wait_until(told(s.from, NULL, "cpu-throttle-percentage") > 0);
    split_converge(&s);
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

static void test_late_block_activate(void)
{
    Split s;

    split_begin(&s, "plain", "");
    migrate_set_capability(s.from, "late-block-activate", true);
    migrate_set_capability(s.to, "late-block-activate", true);
    split_converge(&s);
    split_migrate(&s);
    wait_split(&s);
    split_assert_runs(s.to);
    split_end(&s);
}

/* Over a socket that somebody else has connected. */
static void test_fd(void)
{
    int fds[2];
    Split s;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    split_begin(&s, "plain", "");
    qtest_qmp_fds_assert_success(s.from, &fds[0], 1,
        "{ 'execute': 'getfd', 'arguments': { 'fdname': 'stream' } }");
    qtest_qmp_fds_assert_success(s.to, &fds[1], 1,
        "{ 'execute': 'getfd', 'arguments': { 'fdname': 'stream' } }");
    close(fds[0]);
    close(fds[1]);
    migrate_incoming_qmp(s.to, "fd:stream", NULL, "{}");
    split_converge(&s);
    migrate_qmp(s.from, s.to, "fd:stream", NULL, "{}");
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

/* A memx VM fetches what it had evicted, and was to be left where it is. */
static void test_fetched(void)
{
    Split s;

    split_begin(&s, "memx", "");
    split_to_later_round(&s);
    memx_wait_until(split_number(s.from, "fetched") > 0);
    split_converge(&s);
    wait_split(&s);
    g_assert_cmpuint(split_number(s.from, "fetched"), >, 0);
    split_assert_runs(s.to);
    split_end(&s);
}

static uint64_t before_commit(const Split *s)
{
    return memx_query_number(s->to, "pc.ram", "paging.fetched-before-commit");
}

static uint64_t fetched(const Split *s)
{
    return memx_query_number(s->to, "pc.ram", "faults.remote") +
           memx_query_number(s->to, "pc.ram", "paging.prefetched");
}

/* A VM that was paused arrives paused; the source is gone when it goes on.
 * What is read of its memory until then is fetched, and is told apart. */
static void test_paused(const void *source)
{
    uint64_t before, at, then;
    unsigned address;
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
    before = before_commit(&s);
    for (address = start_address; address < end_address; address += 4096) {
        qtest_readb(s.to, address);
    }
    /* Nothing can be evicted that may not be stored. */
    g_assert_cmpuint(memx_query_number(s.to, "pc.ram", "local"), >,
                     SPLIT_LOCAL_MIB * MIB);
    qtest_qmp_assert_success(s.to, "{ 'execute': 'cont' }");
    memx_wait_status(s.to, "running");
    at = before_commit(&s);
    then = fetched(&s);
    g_assert_cmpuint(at, >, before);
    memx_wait_number(s.to, "pc.ram", "local", 0, SPLIT_LOCAL_MIB * MIB);
    split_assert_runs(s.to);
    g_assert_cmpuint(fetched(&s), >, then);
    g_assert_cmpuint(before_commit(&s), ==, at);
    split_end(&s);
}

/* An image of 1 MiB, and the virtio disk that it is. */
static char *disk(const char *path)
{
    g_autofree char *zeros = g_malloc0(MIB);

    g_assert_true(g_file_set_contents(path, zeros, MIB, NULL));
    return g_strdup_printf("-blockdev driver=file,node-name=disk,filename=%s,"
                           "locking=on -device virtio-blk-pci,drive=disk",
                           path);
}

/* As if another QEMU had it open. */
static int lock(const char *path)
{
    struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    int fd = open(path, O_RDWR | O_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(fcntl(fd, F_OFD_SETLK, &all), ==, 0);
    return fd;
}

/* The VM is the destination's, but its disk isn't, yet. */
static void test_locked_disk(void)
{
    g_autofree char *from = memx_tmp_path("from.img");
    g_autofree char *to = memx_tmp_path("to.img");
    g_autofree char *source = disk(from), *target = disk(to);
    g_autofree char *args = g_strdup_printf(
        "-object memory-backend-memx,id=pc.ram,size=%uM,local-size=%uM "
        "-machine memory-backend=pc.ram %s", SPLIT_MIB, SPLIT_LOCAL_MIB,
        target);
    Split s;
    int fd;

    split_begin_args(&s, source, args);
    split_converge(&s);
    fd = lock(to);
    split_migrate(&s);
    split_wait_completed(s.from);
    split_wait_completed(s.to);
    memx_wait_status(s.to, "paused");
    memx_assert_error(s.from, "the destination of its split migration has it",
                      "{ 'execute': 'cont' }");
    memx_assert_error(s.from, "the destination of its split migration has it",
                      "{ 'execute': 'blockdev-set-active',"
                      "  'arguments': { 'active': true } }");
    memx_assert_error(s.to, "lock byte", "{ 'execute': 'cont' }");
    memx_wait_status(s.to, "paused");
    close(fd);
    qtest_qmp_assert_success(s.to, "{ 'execute': 'cont' }");
    memx_wait_status(s.to, "running");
    split_assert_runs(s.to);
    split_end(&s);
    unlink(from);
    unlink(to);
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
    qtest_add_func("/migration/split/fetched", test_fetched);
    qtest_add_data_func("/migration/split/multifd/plain", "none",
                        test_multifd);
    qtest_add_data_func("/migration/split/multifd/zlib", "zlib",
                        test_multifd);
    qtest_add_func("/migration/split/xbzrle", test_xbzrle);
    qtest_add_func("/migration/split/auto-converge", test_auto_converge);
    qtest_add_func("/migration/split/late-block-activate",
                   test_late_block_activate);
    qtest_add_func("/migration/split/fd", test_fd);
    qtest_add_func("/migration/split/numa", test_numa);
    qtest_add_func("/migration/split/again", test_again);
    qtest_add_func("/migration/split/tls", test_tls);
    qtest_add_func("/migration/split/pause-before-switchover",
                   test_pause_before_switchover);
    qtest_add_data_func("/migration/split/paused/plain", "plain",
                        test_paused);
    qtest_add_data_func("/migration/split/paused/memx", "memx", test_paused);
    qtest_add_func("/migration/split/paused/taken-back", test_taken_back);
    qtest_add_func("/migration/split/locked-disk", test_locked_disk);
}
