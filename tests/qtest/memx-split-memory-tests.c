/*
 * Split migration of VMs that no guest runs in: the test itself writes their
 * memory, and so knows what of it is in use.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

#define MIB (1024ull * 1024)
#define SIZE_MIB 64
#define LOCAL_MIB 32

#define TARGET "-m 64M -object memory-backend-memx,id=pc.ram,size=64M," \
    "local-size=32M -machine memory-backend=pc.ram -incoming defer"

static QTestState *source(const char *args, const char *hosts)
{
    QTestState *vm = memx_plain_vm(args);

    migrate_set_capability(vm, "split-migration", true);
    migrate_set_parameter_str(vm, "split-hosts", hosts);
    migrate_set_parameter_int(vm, "split-local-size", LOCAL_MIB * MIB);
    migrate_set_parameter_int(vm, "split-warm-up", 0);
    return vm;
}

static QTestState *target(const char *args)
{
    QTestState *vm = memx_plain_vm(args);

    migrate_set_capability(vm, "split-migration", true);
    migrate_incoming_qmp(vm, "tcp:127.0.0.1:0", NULL,
                         "{ 'exit-on-error': false }");
    return vm;
}

static void stop(QTestState *vm)
{
    qtest_qmp_assert_success(vm, "{ 'execute': 'stop' }");
}

/* --- what is hot ------------------------------------------------------- */

/* Chunks, of a MiB.  Where the history doesn't tell, the first ones are hot:
 * so these are not. */
#define WRITTEN 44
#define WRITTEN_END 60
#define UNUSED 26
#define UNUSED_END 34

/* A page of each, while the source learns what is in use. */
static void write_while_it_warms_up(QTestState *vm)
{
    uint64_t chunk;

    split_wait_phase(vm, "warm-up");
    while (split_is_in_phase(vm, "warm-up")) {
        for (chunk = WRITTEN; chunk < WRITTEN_END; chunk++) {
            memx_fill(vm, chunk * MIB + MIB / 2, chunk * MIB + MIB / 2 + 4096,
                      1);
        }
    }
}

static uint64_t fetched(QTestState *vm)
{
    return memx_query_number(vm, "pc.ram", "faults.remote");
}

/* Ordinary memory, of which nothing is known: what is written during the
 * warm-up goes to the main host, all of these chunks; what isn't to servers,
 * though it was written before. */
static void test_warm_up(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *from = source("-m 64M", server->address);
    QTestState *to = target(TARGET);
    uint64_t before;

    stop(from);                 /* and the destination: nothing is fetched */
    memx_fill(from, 0, SIZE_MIB * MIB, 1);
    migrate_set_parameter_int(from, "split-warm-up", 3);
    migrate_qmp(from, to, NULL, NULL, "{}");
    write_while_it_warms_up(from);
    split_wait_completed(from);
    split_wait_completed(to);
    before = fetched(to);
    memx_verify(to, WRITTEN * MIB, WRITTEN_END * MIB, 1);
    g_assert_cmpuint(fetched(to), ==, before);
    memx_verify(to, UNUSED * MIB, UNUSED_END * MIB, 1);
    g_assert_cmpuint(fetched(to), >, before);
    qtest_qmp_assert_success(to, "{ 'execute': 'cont' }");
    memx_verify(to, 0, SIZE_MIB * MIB, 1);
    memx_quit(from);
    memx_quit(to);
    memx_server_free(server);
}

/* --- a server that has an IPv6 address only ---------------------------- */

static bool have_ipv6(void)
{
    struct sockaddr_in6 sin = {
        .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT,
    };
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool have = fd >= 0 &&
                bind(fd, (struct sockaddr *)&sin, sizeof(sin)) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return have;
}

static MemxServer *server_new_ipv6(void)
{
    MemxServer *server = memx_server_new("256M", "");

    memx_server_kill(server);
    g_free(server->address);
    server->address = g_strdup_printf("[::1]:%u", memx_free_port());
    memx_server_start(server, "");
    return server;
}

static void test_ipv6(void)
{
    g_autofree char *servers = NULL;
    MemxServer *server;
    QTestState *from, *to;

    if (!have_ipv6()) {
        g_test_skip("this machine has no [::1]");
        return;
    }
    server = server_new_ipv6();
    from = source("-m 64M", server->address);
    to = target(TARGET);
    memx_fill(from, 0, SIZE_MIB * MIB, 1);
    migrate_qmp(from, to, NULL, NULL, "{}");
    split_wait_completed(from);
    memx_wait_status(to, "running");
    g_assert_cmpuint(split_number(from, "sent"), >, 0);
    servers = memx_servers(to);
    g_assert_cmpstr(servers, ==, server->address);
    memx_verify(to, 0, SIZE_MIB * MIB, 1);
    memx_quit(from);
    memx_quit(to);
    memx_server_free(server);
}

/* --- memory that is unplugged meanwhile -------------------------------- */

#define ACPI_SELECTOR 0xa00     /* docs/specs/acpi_mem_hotplug.rst */
#define ACPI_CONTROL 0xa14
#define ACPI_EJECT 8

static int unix_socket(struct sockaddr_un *sun, const char *path)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *sun = (struct sockaddr_un) { .sun_family = AF_UNIX };
    g_strlcpy(sun->sun_path, path, sizeof(sun->sun_path));
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

/* Who connects waits: its queue is full, of @first. */
static int listen_with_full_queue(const char *path, int *first)
{
    struct sockaddr_un sun;
    int fd = unix_socket(&sun, path);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), ==, 0);
    g_assert_cmpint(listen(fd, 0), ==, 0);
    *first = unix_socket(&sun, path);
    g_assert_cmpint(connect(*first, (struct sockaddr *)&sun, sizeof(sun)), ==,
                    0);
    return fd;
}

/* The guest was asked for a DIMM before "migrate" looked at it, and lets it go
 * while the connection to the destination is made. */
static void test_unplugged(void)
{
    g_autofree char *path = memx_tmp_path("target");
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    QTestState *from = source("-m 64M,slots=2,maxmem=256M "
                              "-object memory-backend-ram,id=m1,size=64M "
                              "-device pc-dimm,id=d1,memdev=m1 2> /dev/null",
                              "127.0.0.1:1");
    int listener, fds[3], i;

    listener = listen_with_full_queue(path, &fds[0]);
    qtest_qmp_assert_success(from,
        "{ 'execute': 'device_del', 'arguments': { 'id': 'd1' } }");
    qtest_qmp_assert_success(from,
        "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
    qtest_outl(from, ACPI_SELECTOR, 0);
    qtest_outb(from, ACPI_CONTROL, ACPI_EJECT);
    qtest_qmp_eventwait(from, "DEVICE_DELETED");
    fds[1] = accept(listener, NULL, NULL);
    fds[2] = accept(listener, NULL, NULL);
    split_wait_failed(from, "memory was unplugged meanwhile");
    memx_wait_status(from, "running");
    memx_quit(from);
    for (i = 0; i < 3; i++) {
        close(fds[i]);
    }
    close(listener);
}

void memx_add_split_memory_tests(void)
{
    qtest_add_func("/migration/split/warm-up", test_warm_up);
    qtest_add_func("/migration/split/ipv6", test_ipv6);
    qtest_add_func("/migration/split/unplugged", test_unplugged);
}
