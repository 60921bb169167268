/*
 * Split migration: what is seen and set of it, in QMP and HMP, while it goes
 * on and afterwards.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

#define MIB ((uint64_t)1 << 20)

/* --- HMP --------------------------------------------------------------- */

/* What "info ..." says has this line. */
static void assert_line(QTestState *vm, const char *command, const char *line)
{
    g_autofree char *said = qtest_hmp(vm, "%s", command);
    g_auto(GStrv) lines = g_strsplit(said, "\r\n", -1);

    if (!g_strv_contains((const char *const *)lines, line)) {
        g_error("%s has no '%s' but: %s", command, line, said);
    }
}

static const struct {
    const char *set;
    const char *before, *after;
} settings[] = {
    { "split-hosts a:1,[::1]:2", "split-hosts: ''",
      "split-hosts: 'a:1,[::1]:2'" },
    { "split-local-size 6G", "split-local-size: 0 bytes",
      "split-local-size: 6442450944 bytes" },
    { "split-warm-up 7", "split-warm-up: 3 s", "split-warm-up: 7 s" },
    { "split-key-secret key0", "split-key-secret: ''",
      "split-key-secret: 'key0'" },
    { "split-insecure on", "split-insecure: off", "split-insecure: on" },
};

static void test_hmp_settings(void)
{
    QTestState *vm = memx_plain_vm("-m 32M");
    g_autofree char *refused = NULL;
    unsigned i;

    assert_line(vm, "info migrate_capabilities", "split-migration: off");
    g_free(qtest_hmp(vm, "migrate_set_capability split-migration on"));
    assert_line(vm, "info migrate_capabilities", "split-migration: on");
    for (i = 0; i < G_N_ELEMENTS(settings); i++) {
        assert_line(vm, "info migrate_parameters", settings[i].before);
        g_free(qtest_hmp(vm, "migrate_set_parameter %s", settings[i].set));
        assert_line(vm, "info migrate_parameters", settings[i].after);
    }
    refused = qtest_hmp(vm, "migrate_set_parameter split-warm-up 61");
    g_assert_nonnull(strstr(refused, "split-warm-up must be 0 to 60"));
    memx_quit(vm);
}

/* "info migrate" has the figures of query-migrate, which rest. */
static void check_hmp_figures(QTestState *vm)
{
    g_autofree char *said = qtest_hmp(vm, "info migrate");
    g_autofree char *session = split_session(vm);
    g_autofree char *head = g_strdup_printf("split: offered, session %s\r\n"
        "split chunks: %" PRIu64 " hot, %" PRIu64 " cold\r\n"
        "split main host: %" PRIu64 " of %" PRIu64 " kbytes, ", session,
        split_number(vm, "hot-chunks"), split_number(vm, "cold-chunks"),
        split_number(vm, "main") / 1024, split_number(vm, "main-limit") / 1024);
    g_autofree char *servers = g_strdup_printf(
        "split servers: sent %" PRIu64 " kbytes, pending 0 kbytes, left there %"
        PRIu64 " kbytes\r\n", split_number(vm, "sent") / 1024,
        split_number(vm, "left") / 1024);

    if (!strstr(said, head) || !strstr(said, servers)) {
        g_error("neither '%s' nor '%s' may lack in: %s", head, servers, said);
    }
}

/* --- progress ---------------------------------------------------------- */

/* Figures that never fall. */
static const char *const rising[][2] = {
    { "ram", "transferred" }, { "ram", "normal" }, { "ram", "duplicate" },
    { "split", "sent" }, { "split", "main" }, { "split", "zero-pages" },
    { "split", "left" }, { "split", "fetched" },
};

typedef struct Progress {
    uint64_t last[G_N_ELEMENTS(rising)];
    uint64_t sent[SPLIT_SERVERS];
    bool flows[SPLIT_SERVERS];  /* a rate was told */
    bool all_flow;
    char *status;
    unsigned looks;
} Progress;

static void rises(uint64_t *last, QDict *in, const char *name)
{
    uint64_t now = qdict_get_int(in, name);

    if (now < *last) {
        g_error("%s: %" PRIu64 " after %" PRIu64, name, now, *last);
    }
    *last = now;
}

static void look_at_servers(Progress *p, QList *servers)
{
    const QListEntry *e;
    unsigned i = 0;

    p->all_flow = true;
    QLIST_FOREACH_ENTRY(servers, e) {
        QDict *server = qobject_to(QDict, qlist_entry_obj(e));

        g_assert_cmpuint(i, <, SPLIT_SERVERS);
        rises(&p->sent[i], server, "sent");
        p->flows[i] |= qdict_get_int(server, "rate") > 0;
        p->all_flow &= p->flows[i];
        i++;
    }
    p->all_flow &= i == SPLIT_SERVERS;
}

static void look(Progress *p, QTestState *vm)
{
    QDict *all = migrate_query(vm);
    unsigned i;

    g_free(p->status);
    p->status = g_strdup(qdict_get_str(all, "status"));
    p->looks++;
    for (i = 0; i < G_N_ELEMENTS(rising); i++) {
        QDict *in = qdict_get_qdict(all, rising[i][0]);

        if (in) {               /* not while it is set up */
            rises(&p->last[i], in, rising[i][1]);
        }
    }
    if (qdict_haskey(all, "split")) {
        look_at_servers(p, qdict_get_qlist(qdict_get_qdict(all, "split"),
                                           "servers"));
    }
    qobject_unref(all);
}

/* Over several rounds, the switch-over, and after it. */
static void test_progress(const void *source)
{
    Progress p = { 0 };
    unsigned i;
    Split s;

    split_begin(&s, source, "");
    migrate_ensure_non_converge(s.from);
    migrate_set_parameter_int(s.from, "max-bandwidth", 100 * 1000 * 1000);
    migrate_set_parameter_int(s.from, "avail-switchover-bandwidth", 1000);
    split_migrate(&s);
    memx_wait_until((look(&p, s.from), p.all_flow) &&
                    get_migration_pass(s.from) >= 3);
    split_converge(&s);
    memx_wait_until((look(&p, s.from), g_str_equal(p.status, "completed")));
    look(&p, s.from);
    g_test_message("%u looks", p.looks);
    for (i = 0; i < SPLIT_SERVERS; i++) {
        g_assert_cmpuint(p.sent[i], >, 0);
    }
    check_hmp_figures(s.from);
    g_free(p.status);
    split_assert_runs(s.to);
    split_end(&s);
}

/* --- max-bandwidth ----------------------------------------------------- */

#define LIMIT (16 * MIB)        /* a second */
#define PART (24 * MIB)         /* of each, at least */

/*
 * Stream and servers share it: by the time that it took, as seen from
 * outside, which only makes it longer, they have not sent more together than
 * one may.
 */
static void test_max_bandwidth(void)
{
    uint64_t stream, servers, more_stream = 0, more_servers = 0;
    gint64 began, us;
    Split s;

    split_begin(&s, "plain", "");
    migrate_ensure_non_converge(s.from);
    migrate_set_parameter_int(s.from, "max-bandwidth", LIMIT);
    split_migrate(&s);
    memx_wait_until(split_number(s.from, "sent") > 0);
    began = g_get_monotonic_time();
    stream = read_ram_property_int(s.from, "precopy-bytes");
    servers = split_number(s.from, "sent");
    memx_wait_until(
        (more_stream = read_ram_property_int(s.from, "precopy-bytes") -
                       stream) > PART &&
        (more_servers = split_number(s.from, "sent") - servers) > PART);
    us = g_get_monotonic_time() - began;
    g_test_message("%" PRIu64 " + %" PRIu64 " MiB in %" PRIi64 " ms",
                   more_stream / MIB, more_servers / MIB, us / 1000);
    g_assert_cmpuint(more_stream + more_servers, <,
                     LIMIT * us / G_TIME_SPAN_SECOND * 9 / 8 + 4 * MIB);
    split_converge(&s);
    split_wait_completed(s.from);
    split_assert_runs(s.to);
    split_end(&s);
}

void memx_add_split_figures_tests(void)
{
    qtest_add_func("/migration/split/hmp", test_hmp_settings);
    qtest_add_data_func("/migration/split/progress/plain", "plain",
                        test_progress);
    qtest_add_data_func("/migration/split/progress/memx", "memx",
                        test_progress);
    qtest_add_func("/migration/split/max-bandwidth", test_max_bandwidth);
}
