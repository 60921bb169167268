/*
 * Split migration of a memx VM to other memory servers than it has: before
 * anything goes to the destination its memory goes there, from server to
 * server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

/* A memx VM on the servers of @s, with much of its memory there. */
static void begin(Split *s)
{
    split_begin(s, "memx", "");
    memx_wait_number(s->from, "pc.ram", "remote", 1, UINT64_MAX);
}

static void assert_servers(QTestState *vm, const char *expected)
{
    g_autofree char *now = memx_servers(vm);

    g_assert_cmpstr(now, ==, expected);
}

static void assert_unused(const MemxServer *server)
{
    g_autofree char *status = memx_server_status(server);

    g_assert_nonnull(strstr(status, "\"spaces\" : []"));
}

static void wait_target(Split *s)
{
    split_wait_completed(s->from);
    qtest_qmp_eventwait(s->to, "RESUME");
}

/* All of its servers are others afterwards, and it needs the old ones no
 * more. */
static void test_all(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxServer *d = memx_server_new("256M", "");
    g_autofree char *hosts = g_strdup_printf("%s,%s", c->address, d->address);
    unsigned i;
    Split s;

    begin(&s);
    migrate_set_parameter_str(s.from, "split-hosts", hosts);
    split_converge(&s);
    split_migrate(&s);
    wait_target(&s);
    g_assert_cmpuint(split_number(s.from, "moved"), >, 0);
    g_assert_cmpuint(split_number(s.from, "to-move"), ==, 0);
    assert_servers(s.to, hosts);
    for (i = 0; i < SPLIT_SERVERS; i++) {
        assert_unused(s.servers[i]);
        memx_server_kill(s.servers[i]);
    }
    split_assert_runs(s.to);
    split_end(&s);
    memx_server_free(c);
    memx_server_free(d);
}

/* One stays, one goes, one comes; then a second time, back again. */
static void test_some(void)
{
    MemxServer *c = memx_server_new("256M", "");
    g_autofree char *hosts = NULL, *back = NULL;
    Split s;

    begin(&s);
    hosts = g_strdup_printf("%s,%s", s.servers[1]->address, c->address);
    back = g_strdup(s.servers[0]->address);
    migrate_set_parameter_str(s.from, "split-hosts", hosts);
    split_converge(&s);
    split_migrate(&s);
    wait_target(&s);
    assert_unused(s.servers[0]);
    split_go_on(&s);
    assert_servers(s.from, hosts);
    migrate_set_parameter_str(s.from, "split-hosts", back);
    split_converge(&s);
    split_migrate(&s);
    wait_target(&s);
    assert_servers(s.to, back);
    assert_unused(s.servers[1]);
    assert_unused(c);
    split_assert_runs(s.to);
    split_end(&s);
    memx_server_free(c);
}

/* --- failures ---------------------------------------------------------- */

/* On its way to another server, with the first of its chunks held up; so is
 * what the guest evicts there meanwhile: no page is on that server alone. */
static MemxProxy *in_the_middle(Split *s, const MemxServer *c)
{
    MemxProxy *link = memx_proxy_new(c->address, true);

    begin(s);
    migrate_set_parameter_str(s->from, "split-hosts",
                              memx_proxy_address(link));
    memx_proxy_hold(link, MEMX_REQUESTS, MEMX_OP_STORE);
    memx_proxy_hold(link, MEMX_REPLIES, MEMX_OP_COPY);
    split_converge(s);
    split_migrate(s);
    memx_proxy_wait_any_held(link);
    memx_wait_until(split_number(s->from, "to-move") > 0);
    return link;
}

static void let_go(MemxProxy *link)
{
    memx_proxy_let_go(link, MEMX_REQUESTS);
    memx_proxy_let_go(link, MEMX_REPLIES);
}

/* The source has the VM, old servers and new ones; nothing moves any more. */
static void assert_stays(Split *s, MemxProxy *link)
{
    g_autofree char *all = g_strdup_printf("%s,%s,%s", s->servers[0]->address,
                                           s->servers[1]->address,
                                           memx_proxy_address(link));

    let_go(link);
    assert_servers(s->from, all);
    split_assert_runs(s->from);
    assert_servers(s->from, all);
}

/* Afterwards it goes where it was to go. */
static void test_cancel(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxProxy *link;
    Split s;

    link = in_the_middle(&s, c);
    migrate_cancel(s.from);
    split_wait_status(s.from, "cancelled", "");
    assert_stays(&s, link);
    memx_quit(s.to);
    split_new_target(&s);
    split_migrate(&s);
    wait_target(&s);
    assert_servers(s.to, memx_proxy_address(link));
    split_assert_runs(s.to);
    split_end(&s);
    memx_proxy_free(link);
    memx_server_free(c);
}

static void test_dest_killed(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxProxy *link;
    Split s;

    link = in_the_middle(&s, c);
    split_kill(&s.to);
    split_wait_failed(s.from, "");
    assert_stays(&s, link);
    split_end(&s);
    memx_proxy_free(link);
    memx_server_free(c);
}

/* A server that is to be left does not answer for a while. */
static void test_old_stopped(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxProxy *link;
    Split s;

    link = in_the_middle(&s, c);
    memx_server_pause(s.servers[0]);
    let_go(link);
    memx_wait_until(!split_is_up(s.from, 0));
    memx_server_go_on(s.servers[0]);
    wait_target(&s);
    assert_servers(s.to, memx_proxy_address(link));
    split_assert_runs(s.to);
    split_end(&s);
    memx_proxy_free(link);
    memx_server_free(c);
}

/* One that is to be left comes back without its pages: the VM's loss. */
static void test_old_killed(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxProxy *link;
    Split s;

    link = in_the_middle(&s, c);
    memx_server_kill(s.servers[0]);
    memx_server_start(s.servers[0], "");
    qtest_qmp_eventwait(s.from, "MEMX_SERVER_EMPTY");
    let_go(link);
    qtest_qmp_send(s.from, "{ 'exec-oob': 'memx-abandon' }");
    qtest_set_expected_status(s.from, EXIT_FAILURE);
    qtest_wait_qemu(s.from);
    split_wait_failed(s.to, "");
    split_end(&s);
    memx_proxy_free(link);
    memx_server_free(c);
}

/* The new one comes back without what was copied: it is copied again. */
static void test_new_killed(void)
{
    MemxServer *c = memx_server_new("256M", "");
    MemxProxy *link;
    Split s;

    link = in_the_middle(&s, c);
    memx_server_kill(c);
    memx_server_start(c, "");
    memx_proxy_drop(link, MEMX_REQUESTS);
    memx_proxy_drop(link, MEMX_REPLIES);
    wait_target(&s);
    assert_servers(s.to, memx_proxy_address(link));
    split_assert_runs(s.to);
    split_end(&s);
    memx_proxy_free(link);
    memx_server_free(c);
}

/* The servers are as before, and the VM runs. */
static void refused(const char *host, const char *expected)
{
    g_autofree char *before = NULL;
    Split s;

    begin(&s);
    before = memx_servers(s.from);
    migrate_set_parameter_str(s.from, "split-hosts", host);
    split_migrate(&s);
    split_wait_failed(s.from, expected);
    assert_servers(s.from, before);
    split_assert_runs(s.from);
    split_end(&s);
}

static void test_unreachable(void)
{
    refused("127.0.0.1:1", "127.0.0.1:1");
}

static void test_too_small(void)
{
    MemxServer *c = memx_server_new("16M", "");

    refused(c->address, "must be reserved");
    assert_unused(c);
    memx_server_free(c);
}

void memx_add_split_hosts_tests(void)
{
    qtest_add_func("/migration/split/other-hosts/all", test_all);
    qtest_add_func("/migration/split/other-hosts/some", test_some);
    qtest_add_func("/migration/split/other-hosts/cancel", test_cancel);
    qtest_add_func("/migration/split/other-hosts/dest-killed",
                   test_dest_killed);
    qtest_add_func("/migration/split/other-hosts/old-stopped",
                   test_old_stopped);
    qtest_add_func("/migration/split/other-hosts/old-killed",
                   test_old_killed);
    qtest_add_func("/migration/split/other-hosts/new-killed",
                   test_new_killed);
    qtest_add_func("/migration/split/other-hosts/unreachable",
                   test_unreachable);
    qtest_add_func("/migration/split/other-hosts/too-small", test_too_small);
}
