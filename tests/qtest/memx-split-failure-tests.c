/*
 * Split migration: the failure table of docs/split-migration.md.  A test is
 * named /migration/split/ROW/MOMENT.
 *
 * A row is something that goes wrong, with what comes of it at each moment.
 * The links to the memory servers and between both sides are proxies
 * (memx-proxy.h): they hold the message that ends a moment until what goes
 * wrong has happened.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

typedef enum Moment {
    SETUP,              /* until the split */
    FIRST_ROUND,
    LATER_ROUND,
    BEFORE_COMMIT,      /* the VM is stopped, nobody has asked the arbiter */
    HALF_COMMITTED,     /* the arbiter has said yes, another server has not */
    COMMITTED,
    N_MOMENTS
} Moment;

static const char *const moment_names[] = {
    "setup", "first-round", "later-round", "before-commit", "half-committed",
    "committed",
};

typedef struct Cell Cell;
typedef void Action(Split *s, const Cell *cell);

typedef struct Row {
    const char *name;
    int server;             /* that it happens to; -1: none */
    const char *status;     /* of none: how the migration ends at the source */
    Action *reach;          /* the moment */
    Action *strike;
    Action *heal;           /* or NULL: it can't be undone */
    Action *outcome[N_MOMENTS];
} Row;

struct Cell {
    const Row *row;
    Moment moment;
};

/* --- moments ----------------------------------------------------------- */

/* Memory moves.  Answers of the destination go no further: what it says
 * at its end is not known at the source until they are let go. */
static void begin_to_end(Split *s)
{
    migrate_ensure_non_converge(s->from);
    split_migrate(s);
    split_wait_phase(s->from, "transfer");
    memx_proxy_hold(s->main, MEMX_REPLIES, MEMX_OP_ANY);
    split_converge(s);
}

static void reach_before_commit(Split *s)
{
    memx_proxy_hold(s->links[0], MEMX_REQUESTS, MEMX_OP_COMMIT);
    begin_to_end(s);
    memx_proxy_wait_held(s->links[0], MEMX_REQUESTS);
}

/* Before the last byte; the source has nothing left to do but this. */
static void reach_offer(Split *s)
{
    memx_proxy_hold(s->links[1], MEMX_REQUESTS, MEMX_OP_OFFER);
    split_converge(s);
    split_migrate(s);
    memx_proxy_wait_held(s->links[1], MEMX_REQUESTS);
}

static void reach_half_committed(Split *s)
{
    memx_proxy_hold(s->links[1], MEMX_REQUESTS, MEMX_OP_COMMIT);
    begin_to_end(s);
    memx_wait_status(s->to, "running");
    memx_proxy_wait_held(s->links[1], MEMX_REQUESTS);
}

static void reach_committed(Split *s)
{
    begin_to_end(s);
    memx_wait_status(s->to, "running");
    memx_proxy_wait_done(s->links[1], MEMX_OP_COMMIT);
}

static void reach(Split *s, const Cell *cell)
{
    switch (cell->moment) {
    case SETUP:
        migrate_set_parameter_int(s->from, "split-warm-up", 60);
        split_migrate(s);
        split_wait_phase(s->from, "warm-up");
        break;
    case FIRST_ROUND:
        migrate_ensure_non_converge(s->from);
        split_migrate(s);
        memx_wait_until(split_number(s->from, "sent") > 0);
        break;
    case LATER_ROUND:
        split_to_later_round(s);
        break;
    case BEFORE_COMMIT:
        reach_before_commit(s);
        break;
    case HALF_COMMITTED:
        reach_half_committed(s);
        break;
    default:
        reach_committed(s);
    }
}

/* Of what happens to a server. */
static void reach_server(Split *s, const Cell *cell)
{
    if (cell->moment == BEFORE_COMMIT) {
        reach_offer(s);
    } else {
        reach(s, cell);
    }
}

/* The arbiter has committed, but nobody knows it. */
static void reach_arbiter(Split *s, const Cell *cell)
{
    if (cell->moment == HALF_COMMITTED) {
        memx_proxy_hold(s->links[0], MEMX_REPLIES, MEMX_OP_COMMIT);
        begin_to_end(s);
        memx_proxy_wait_held(s->links[0], MEMX_REPLIES);
    } else {
        reach(s, cell);
    }
}

/* The VM is stopped, but not all of its memory has arrived. */
static void reach_switchover(Split *s, const Cell *cell)
{
    if (cell->moment == BEFORE_COMMIT) {
        migrate_set_capability(s->from, "pause-before-switchover", true);
        split_converge(s);
        split_migrate(s);
        wait_for_migration_status(s->from, "pre-switchover",
                                  (const char *[]) { "failed", "completed",
                                                     NULL });
    } else {
        reach(s, cell);
    }
}

/* Held messages are lost, with their connections; answers of the destination
 * get through. */
static void let_go(Split *s)
{
    unsigned i;

    for (i = 0; i < SPLIT_SERVERS; i++) {
        memx_proxy_drop(s->links[i], MEMX_REQUESTS);
        memx_proxy_drop(s->links[i], MEMX_REPLIES);
    }
    memx_proxy_let_go(s->main, MEMX_REPLIES);
}

/* --- what goes wrong --------------------------------------------------- */

static void kill_dest(Split *s, const Cell *cell)
{
    split_kill(&s->to);
}

static void kill_source(Split *s, const Cell *cell)
{
    split_kill(&s->from);
}

/* It comes back without what it was sent. */
static void kill_server(Split *s, const Cell *cell)
{
    memx_server_kill(s->servers[cell->row->server]);
    if (cell->moment != SETUP) {
        memx_server_start(s->servers[cell->row->server], "");
    }
}

static void stop_server(Split *s, const Cell *cell)
{
    memx_server_pause(s->servers[cell->row->server]);
}

static void server_goes_on(Split *s, const Cell *cell)
{
    memx_server_go_on(s->servers[cell->row->server]);
}

static void cut_server(Split *s, const Cell *cell)
{
    memx_proxy_cut(s->links[cell->row->server]);
}

static void mend_server(Split *s, const Cell *cell)
{
    memx_proxy_mend(s->links[cell->row->server]);
}

static void cut_main(Split *s, const Cell *cell)
{
    memx_proxy_cut(s->main);
}

static void cancel(Split *s, const Cell *cell)
{
    migrate_cancel(s->from);
}

static void refuse_stores(Split *s, const Cell *cell)
{
    memx_proxy_fail(s->links[cell->row->server], MEMX_OP_STORE,
                    MEMX_ERR_FULL);
    if (cell->moment == BEFORE_COMMIT) {
        migrate_continue(s->from, "pre-switchover");
    }
}

static void take_stores(Split *s, const Cell *cell)
{
    memx_proxy_fail(s->links[cell->row->server], MEMX_OP_STORE, 0);
}

static void heal(Split *s, const Cell *cell)
{
    if (cell->row->heal) {
        cell->row->heal(s, cell);
    }
}

/* --- what comes of it -------------------------------------------------- */

/* The user learns which server it was, or that it was none. */
static void source_tells(Split *s, const Cell *cell, const char *status)
{
    g_autofree char *error = split_wait_error(s->from, status);
    unsigned i;

    g_assert_cmpstr(error, !=, "");
    for (i = 0; i < SPLIT_SERVERS; i++) {
        bool named = strstr(error, memx_proxy_address(s->links[i]));

        if (cell->row->server < 0 || cell->row->server == i) {
            g_assert_cmpint(named, ==, cell->row->server >= 0);
        }
    }
}

/* Which also tells whether there was an offer. */
static const char *last_phase(const Cell *cell)
{
    return cell->moment < BEFORE_COMMIT ||
           cell->row->reach == reach_switchover ? "cancelled" : "reclaimed";
}

/* The source has the VM, the destination nothing, the servers neither. */
static void source_has_it(Split *s, const Cell *cell)
{
    unsigned i;

    split_assert_runs(s->from);
    split_wait_phase(s->from, last_phase(cell));
    split_wait_entered(s->from, last_phase(cell));
    heal(s, cell);
    let_go(s);
    if (s->to && cell->row->server < 0 && cell->moment == BEFORE_COMMIT) {
        split_wait_refused(s, s->to, "theirs");
    } else if (s->to) {
        split_wait_failed(s->to, "load of migration failed");
        g_assert_false(split_is_running(s->to));
    }
    /* Also where they could not be told before. */
    for (i = 0; i < SPLIT_SERVERS; i++) {
        if (s->servers[i]->pid) {
            split_wait_dropped(s->servers[i]);
        }
    }
    split_assert_runs(s->from);
}

static void source_failed(Split *s, const Cell *cell)
{
    source_tells(s, cell, "failed");
    source_has_it(s, cell);
}

/* It can migrate again. */
static void source_cancelled(Split *s, const Cell *cell)
{
    split_wait_status(s->from, "cancelled", "");
    source_has_it(s, cell);
    memx_quit(s->to);
    split_new_target(s);
    migrate_set_parameter_int(s->from, "split-warm-up", 0);
    split_converge(s);
    split_migrate(s);
    split_wait_completed(s->from);
    split_assert_runs(s->to);
}

static void assert_orphaned(Split *s)
{
    unsigned i;

    for (i = 0; i < SPLIT_SERVERS; i++) {
        g_assert_cmpuint(split_wait_orphaned(s->servers[i]), ==, 1);
    }
}

/* Nobody: the source is dead, and the VM was its own. */
static void nobody_has_it(Split *s, const Cell *cell)
{
    split_wait_failed(s->to, "load of migration failed");
    g_assert_false(split_is_running(s->to));
    assert_orphaned(s);
}

/* Nobody: the destination is dead, and the VM was its own. */
static void target_had_it(Split *s, const Cell *cell)
{
    let_go(s);
    split_wait_completed(s->from);
    split_wait_refused(s, s->from, "theirs");
    memx_quit(s->from);
    s->from = NULL;
    assert_orphaned(s);
}

static void target_has_it(Split *s, const Cell *cell)
{
    let_go(s);
    /* It may have given up waiting for the answer. */
    split_wait_ended(s->to);
    if (!split_is_running(s->to)) {
        qtest_qmp_assert_success(s->to, "{ 'execute': 'cont' }");
    }
    if (s->from) {
        if (cell->row->status) {
            source_tells(s, cell, cell->row->status);
        } else {
            split_wait_ended(s->from);
        }
        split_wait_refused(s, s->from, "theirs");
    }
    split_wait_entered(s->to, "committed");
    split_assert_runs(s->to);
}

/* The source runs on; the migration ends when it is over. */
static void goes_on(Split *s, const Cell *cell)
{
    memx_wait_until(split_number(s->from, "pending") > 0 &&
                    !split_is_up(s->from, cell->row->server));
    split_assert_runs(s->from);
    split_converge(s);
    split_assert_runs(s->from);
    heal(s, cell);
    split_wait_completed(s->from);
    target_has_it(s, cell);
}

static bool is_up(Split *s, unsigned server)
{
    QDict *info = memx_query(s->to, "pc.ram");
    const QListEntry *e = qlist_first(qdict_get_qlist(info, "servers"));
    bool up;

    for (; server; server--) {
        e = qlist_next(e);
    }
    up = g_str_equal(qdict_get_str(qobject_to(QDict, qlist_entry_obj(e)),
                                   "state"), "up");
    qobject_unref(info);
    return up;
}

/* The destination has the VM, which may wait for the server's pages. */
static void target_waits(Split *s, const Cell *cell)
{
    unsigned server = cell->row->server;

    let_go(s);
    split_wait_ended(s->from);
    if (server) {
        split_wait_refused(s, s->from, "theirs");
    } else {                    /* perhaps it knew it before */
        memx_assert_error(s->from, "the VM stays stopped",
                          "{ 'execute': 'cont' }");
    }
    memx_wait_until(!is_up(s, server));
    heal(s, cell);
    memx_wait_until(is_up(s, server));
    target_has_it(s, cell);
}

/* As above, but the pages are lost: nobody gets zeros instead. */
static void target_lost_pages(Split *s, const Cell *cell)
{
    QDict *event;

    let_go(s);
    event = qtest_qmp_eventwait_ref(s->to, "MEMX_SERVER_EMPTY");
    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "server"),
                    ==, memx_proxy_address(s->links[cell->row->server]));
    qobject_unref(event);
    split_wait_ended(s->from);
    split_wait_refused(s, s->from, "theirs");
    /* It waits for ever, until somebody gives it up. */
    qtest_qmp_send(s->to, "{ 'exec-oob': 'memx-abandon' }");
    qtest_set_expected_status(s->to, EXIT_FAILURE);
    qtest_wait_qemu(s->to);
}

/* The other server takes what this one refuses. */
static void target_evicts_elsewhere(Split *s, const Cell *cell)
{
    target_has_it(s, cell);
    qtest_qmp_eventwait(s->to, "MEMX_POOL_FULL");
    heal(s, cell);
    split_assert_runs(s->to);
}

/* Neither may run before the arbiter answers; then one does. */
static void both_ask(Split *s, const Cell *cell)
{
    let_go(s);
    split_wait_ended(s->from);
    split_wait_ended(s->to);
    split_wait_refused(s, s->to, "unknown");
    if (cell->moment == BEFORE_COMMIT) {
        split_wait_refused(s, s->from, "unknown");
    } else {                    /* perhaps it knew it before */
        memx_assert_error(s->from, "the VM stays stopped",
                          "{ 'execute': 'cont' }");
    }
    heal(s, cell);
    if (cell->moment == BEFORE_COMMIT) {
        qtest_qmp_assert_success(s->from, "{ 'execute': 'cont' }");
        split_wait_refused(s, s->to, "theirs");
        split_wait_entered(s->from, "reclaimed");
        split_assert_runs(s->from);
    } else {
        split_wait_refused(s, s->from, "theirs");
        target_has_it(s, cell);
    }
}

/* --- the table --------------------------------------------------------- */

static const Row rows[] = {
    { "dest-killed", -1, NULL, reach, kill_dest, NULL,
      { source_failed, source_failed, source_failed,
        source_failed, target_had_it, target_had_it } },
    { "source-killed", -1, NULL, reach, kill_source, NULL,
      { nobody_has_it, nobody_has_it, nobody_has_it,
        target_has_it, target_has_it, target_has_it } },
    { "server-killed", 1, NULL, reach_server, kill_server, NULL,
      { source_failed, source_failed, source_failed,
        source_failed, target_lost_pages, target_lost_pages } },
    { "server-stopped", 1, NULL, reach_server, stop_server, server_goes_on,
      { source_failed, goes_on, goes_on,
        source_failed, target_waits, target_waits } },
    { "main-link-cut", -1, "failed", reach, cut_main, NULL,
      { source_failed, source_failed, source_failed,
        source_failed, target_has_it, target_has_it } },
    { "server-link-cut", 1, NULL, reach_server, cut_server, mend_server,
      { source_failed, goes_on, goes_on,
        source_failed, target_waits, target_waits } },
    { "arbiter-unreachable", 0, NULL, reach_arbiter, cut_server, mend_server,
      { source_failed, goes_on, goes_on,
        both_ask, both_ask, target_waits } },
    { "cancel", -1, "cancelled", reach, cancel, NULL,
      { source_cancelled, source_cancelled, source_cancelled,
        source_cancelled, target_has_it, target_has_it } },
    { "server-full", 1, NULL, reach_switchover, refuse_stores, take_stores,
      { NULL /* memx-split-refusal-tests.c */, source_failed, source_failed,
        source_failed, target_evicts_elsewhere, target_evicts_elsewhere } },
};

static Cell cells[G_N_ELEMENTS(rows)][N_MOMENTS];

static void test_cell(const void *opaque)
{
    const Cell *cell = opaque;
    const Row *row = cell->row;
    Split s;

    split_begin_linked(&s, "plain");
    /* Which chunks are hot makes no difference here. */
    migrate_set_parameter_int(s.from, "split-warm-up", 0);
    if (row->server >= 0 && cell->moment == SETUP) {
        row->strike(&s, cell);
        split_migrate(&s);
    } else {
        row->reach(&s, cell);
        row->strike(&s, cell);
    }
    row->outcome[cell->moment](&s, cell);
    split_end(&s);
}

/* --- more -------------------------------------------------------------- */

/* While a server does not answer: at once all the same. */
static void test_cancel_connect(void)
{
    gint64 began;
    Split s;

    split_begin(&s, "plain", "");
    memx_server_pause(s.servers[0]);
    split_migrate(&s);
    split_wait_phase(s.from, "connect");
    began = g_get_monotonic_time();
    migrate_cancel(s.from);
    split_wait_status(s.from, "cancelled", "");
    g_test_message("cancelled after %" G_GINT64_FORMAT " ms",
                   (g_get_monotonic_time() - began) / 1000);
    memx_server_go_on(s.servers[0]);
    split_assert_runs(s.from);
    split_end(&s);
}

/* The source is a memx VM: its pages stay what they are. */
static void test_cancel_memx(void)
{
    Split s;

    split_begin_linked(&s, "memx");
    split_to_later_round(&s);
    migrate_cancel(s.from);
    split_wait_status(s.from, "cancelled", "");
    split_assert_runs(s.from);
    split_end(&s);
}

/* Who knows that the other side is dead can do without the arbiter. */
static void test_force(void)
{
    g_autofree char *session = NULL;
    Split s;

    split_begin_linked(&s, "plain");
    reach_before_commit(&s);
    memx_server_kill(s.servers[0]);
    split_kill(&s.to);
    let_go(&s);
    split_wait_ended(s.from);
    split_wait_refused(&s, s.from, "unknown");
    memx_assert_error(s.from, "no split migration",
        "{ 'execute': 'memx-force-owner', 'arguments': { 'session': 'x' } }");
    session = split_session(s.from);
    qtest_qmp_assert_success(s.from,
        "{ 'execute': 'memx-force-owner', 'arguments': { 'session': %s } }",
        session);
    qtest_qmp_assert_success(s.from, "{ 'execute': 'cont' }");
    split_assert_runs(s.from);
    split_end(&s);
}

void memx_add_split_failure_tests(void)
{
    unsigned i, m;

    for (i = 0; i < G_N_ELEMENTS(rows); i++) {
        for (m = 0; m < N_MOMENTS; m++) {
            g_autofree char *path = g_strdup_printf("/migration/split/%s/%s",
                                                    rows[i].name,
                                                    moment_names[m]);

            cells[i][m] = (Cell) { &rows[i], m };
            if (rows[i].outcome[m]) {
                qtest_add_data_func(path, &cells[i][m], test_cell);
            }
        }
    }
    qtest_add_func("/migration/split/cancel/connect", test_cancel_connect);
    qtest_add_func("/migration/split/cancel/memx", test_cancel_memx);
    qtest_add_func("/migration/split/force-owner", test_force);
}
