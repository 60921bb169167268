/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A space is handed from host to host at random: owners, heirs, those that
 * have lost and don't know it yet, two at a time; answers get lost, and the
 * server is killed and restarted with its pages, or upgraded.
 *
 * The test has a model of the space (handover-model.h), which knows what the
 * server may answer.  If it doesn't, the server did what no order of events
 * explains.  And it keeps few certainties of its own, which hold whatever the
 * model says (check_answer).
 *
 * MEMX_HANDOVER_STEPS=N sets how long; --seed=S repeats the same choices
 * (the first line tells it; threads and signals may interleave otherwise).
 */
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include "handover-model.h"
#include "memserver-client.h"
#include "server-process.h"

#define STEPS 4000
#define PAGES 512u
#define TOLD 24

/* What the test knows of a session for certain. */
typedef struct Session {
    int source;             /* who offered by it; -1: is no more */
    bool reclaiming;        /* it may not be offered again */
    bool reclaimed;
    bool committed;
} Session;

typedef struct Run {
    ServerProcess *server;
    Client *clients[MODEL_CLIENTS];
    uint32_t session[MODEL_CLIENTS]; /* by which it is an heir */
    GArray *sessions;       /* of Session */
    Model model;
    uint64_t generation;
    uint64_t writer_epoch;  /* of the last STORE that was accepted */
    int writer;
    char *told[TOLD];       /* what happened last */
    unsigned n_told;
    unsigned spaces, commits, reclaims, losses, kills, upgrades, lost_races;
} Run;

static int below(int n)
{
    return g_test_rand_int_range(0, n);
}

static void G_GNUC_PRINTF(2, 3) tell(Run *r, const char *format, ...)
{
    char **line = &r->told[r->n_told++ % TOLD];
    va_list args;

    g_free(*line);
    va_start(args, format);
    *line = g_strdup_vprintf(format, args);
    va_end(args);
}

static void G_GNUC_NORETURN fail(Run *r, const char *what)
{
    unsigned first = r->n_told > TOLD ? r->n_told - TOLD : 0;

    for (unsigned i = first; i < r->n_told; i++) {
        g_printerr("%u: %s\n", i, r->told[i % TOLD]);
    }
    g_error("%s (the seed is at the beginning of the output)", what);
}

/* A request, as a thread may make it. */
typedef struct Event {
    Run *run;
    ModelAnswer answer;     /* error < 0: none */
} Event;

/* --- Clients --- */

static void session_id(uint32_t session, uint8_t *id)
{
    memset(id, 0, MEMX_ID_BYTES);
    memcpy(id, &session, sizeof(session));
}

static Session *session_of(Run *r, uint32_t session)
{
    return &g_array_index(r->sessions, Session, session);
}

static const char *const names[] = {
    [MEMX_OP_OPEN] = "OPEN", [MEMX_OP_PING] = "PING",
    [MEMX_OP_FETCH] = "FETCH", [MEMX_OP_STORE] = "STORE",
    [MEMX_OP_DROP] = "DROP", [MEMX_OP_RESERVE] = "RESERVE",
    [MEMX_OP_CLOSE] = "CLOSE", [MEMX_OP_OFFER] = "OFFER",
    [MEMX_OP_RECLAIM] = "RECLAIM", [MEMX_OP_COMMIT] = "COMMIT",
    [MEMX_OP_RESIGN] = "RESIGN",
};

/* In any thread; touches nothing but its client. */
static void *perform(void *opaque)
{
    Event *e = opaque;
    Client *client = e->run->clients[e->answer.who];
    ModelRequest *q = &e->answer.request;
    uint8_t id[MEMX_ID_BYTES];

    session_id(q->session, id);
    switch (q->opcode) {
    case MEMX_OP_PING:
        e->answer.error = client_ping(client, q->lane);
        break;
    case MEMX_OP_FETCH:
        e->answer.error = client_fetch(client, q->lane, q->group, ALL_PAGES,
                                 &q->generation);
        break;
    case MEMX_OP_STORE:
        e->answer.error = client_store(client, q->group, ALL_PAGES, q->generation);
        break;
    case MEMX_OP_DROP:
        e->answer.error = client_drop(client, q->group, ALL_PAGES);
        break;
    case MEMX_OP_RESERVE:
        e->answer.error = client_reserve(client, PAGES);
        break;
    case MEMX_OP_CLOSE:
        e->answer.error = client_close(client);
        break;
    case MEMX_OP_OFFER:
        e->answer.error = client_offer(client, id, e->run->clients[q->heir]);
        break;
    default:
        e->answer.error = client_decide(client, q->opcode, id);
        break;
    }
    return NULL;
}

static void learn(Run *r, const ModelAnswer *first, const ModelAnswer *second)
{
    if (!model_learn(&r->model, first, second)) {
        fail(r, "no order of events explains the last answer");
    }
}

/* True if it has the lane then. */
static bool open_lane(Run *r, int who, int lane)
{
    Client *client = r->clients[who];
    Event e = { r, { who, { MEMX_OP_OPEN, lane } } };

    if (client->lanes[lane]) {
        return true;
    }
    e.answer.error = client_open(client, lane);
    tell(r, "%d OPEN lane %d: %d", who, lane, e.answer.error);
    learn(r, &e.answer, NULL);
    if (e.answer.error == 0 && lane == MEMX_LANE_ORDERED) {
        model_forget(&r->model, who);
    }
    return e.answer.error == 0;
}

/* What must be so whatever the model says. */
static void check_answer(Run *r, const ModelAnswer *a)
{
    uint64_t epoch = r->clients[a->who]->open.epoch;
    Session *s = session_of(r, a->request.session);

    if (a->error != 0) {
        return;
    }
    switch (a->request.opcode) {
    case MEMX_OP_STORE:
        if (epoch < r->writer_epoch ||
            (epoch == r->writer_epoch && r->writer != a->who)) {
            fail(r, "a fenced owner wrote");
        }
        r->writer_epoch = epoch;
        r->writer = a->who;
        break;
    case MEMX_OP_RECLAIM:
        s->reclaimed |= s->source == a->who;
        r->reclaims++;
        break;
    case MEMX_OP_COMMIT:
        s->committed = true;
        r->clients[a->who]->inherits = below(2);
        r->commits++;
        break;
    case MEMX_OP_CLOSE:
        client_cut_all(r->clients[a->who]);
        break;
    }
    if (s->reclaimed && s->committed) {
        fail(r, "one session was won by both");
    }
}

static void tell_answer(Run *r, const ModelAnswer *a, bool alone)
{
    tell(r, "%d %s lane %d session %u group %u generation %"
         G_GUINT64_FORMAT ": %d%s", a->who, names[a->request.opcode],
         a->request.lane, a->request.session, a->request.group,
         a->request.generation, a->error, alone ? "" : ", at the same time");
}

/* Learns what came of a request, or of two at a time. */
static void finish(Run *r, const Event *e, const Event *other)
{
    const Event *both[] = { e, other };
    const ModelAnswer *answered[2] = { NULL, NULL };
    unsigned n = 0;

    for (int i = 0; i < 2 && both[i]; i++) {
        const ModelAnswer *a = &both[i]->answer;

        tell_answer(r, a, !other);
        if (a->error >= 0) {
            answered[n++] = a;
            continue;
        }
        client_cut(r->clients[a->who], a->request.lane);
        if (a->request.opcode != MEMX_OP_FETCH &&
            a->request.opcode != MEMX_OP_PING) {
            model_lose(&r->model, a->who, &a->request);
        }
    }
    if (n) {
        learn(r, answered[0], answered[1]);
    }
    for (unsigned i = 0; i < n; i++) {
        check_answer(r, answered[i]);
    }
}

/* The winner finds every page. */
static void read_back(Run *r, int who)
{
    for (unsigned group = 0; group < MODEL_GROUPS; group++) {
        int lane = MEMX_LANE_ORDERED + below(3);
        Event e = { r, { who, { MEMX_OP_FETCH, lane, .group = group } } };

        if (open_lane(r, who, lane)) {
            perform(&e);
            finish(r, &e, NULL);
        }
    }
}

/* --- The run --- */

/* A host in whose place another one may be, or -1. */
static int find_place(Run *r, int but)
{
    for (int i = 0, who = below(MODEL_CLIENTS); i < MODEL_CLIENTS; i++) {
        who = (who + 1) % MODEL_CLIENTS;
        if (who != but && !model_may(&r->model, world_takes_part, who)) {
            return who;
        }
    }
    return -1;
}

/* A migration begins: an heir that has never been there. */
static bool new_heir(Run *r, Event *e)
{
    Client *owner = r->clients[e->answer.who], *heir;
    uint8_t id[MEMX_ID_BYTES];
    int place = find_place(r, e->answer.who);

    if (place < 0) {
        return false;
    }
    model_forget(&r->model, place);
    for (unsigned i = 1; i < r->sessions->len; i++) {
        Session *s = session_of(r, i);

        s->source = s->source == place ? -1 : s->source;
    }
    g_array_set_size(r->sessions, r->sessions->len + 1);
    e->answer.request.heir = place;
    e->answer.request.session = r->session[place] = r->sessions->len - 1;
    session_of(r, e->answer.request.session)->source = e->answer.who;
    session_id(e->answer.request.session, id);
    heir = client_new_heir(owner, id);
    client_free(r->clients[place]);
    r->clients[place] = heir;
    tell(r, "%d is the heir of %d by session %u", place, e->answer.who,
         e->answer.request.session);
    return true;
}

/* The offer's, mostly; or one of former times. */
static uint32_t some_session(Run *r)
{
    const World *w = &r->model.worlds[below(r->model.n)];
    unsigned last = r->sessions->len - 1, back = below(4);

    if (below(8)) {
        return below(8) && w->session ? w->session : MAX(1, w->committed);
    }
    return last > back ? last - back : 1;
}

/* Somebody; mostly one who has the space, or shall have it. */
static int someone(Run *r)
{
    int who = below(MODEL_CLIENTS);

    for (int i = 0; i < MODEL_CLIENTS && below(8) &&
         !model_may(&r->model, world_takes_part, who); i++) {
        who = (who + 1) % MODEL_CLIENTS;
    }
    return who;
}

static bool choose_offer(Run *r, Event *e)
{
    Session *s;

    e->answer.request.session = some_session(r);
    if (e->answer.request.session >= r->sessions->len) {
        return new_heir(r, e);
    }
    s = session_of(r, e->answer.request.session);
    if (model_may(&r->model, world_may_offer, e->answer.who) || !below(8)) {
        return new_heir(r, e);
    }
    if (s->source != e->answer.who || s->reclaiming) {
        return false;
    }
    /* The same again. */
    for (int i = 0; i < MODEL_CLIENTS; i++) {
        if (r->session[i] == e->answer.request.session) {
            e->answer.request.heir = i;
            return i != e->answer.who;
        }
    }
    return false;
}

/* What @who, whoever it is, asks for now. */
static bool choose(Run *r, Event *e, int who)
{
    static const int opcodes[] = {
        MEMX_OP_STORE, MEMX_OP_STORE, MEMX_OP_STORE, MEMX_OP_DROP,
        MEMX_OP_RESERVE, MEMX_OP_FETCH, MEMX_OP_FETCH, MEMX_OP_FETCH,
        MEMX_OP_PING, MEMX_OP_OFFER, MEMX_OP_OFFER, MEMX_OP_RECLAIM,
        MEMX_OP_COMMIT, MEMX_OP_COMMIT, MEMX_OP_RESIGN, MEMX_OP_CLOSE,
    };
    ModelRequest *q = &e->answer.request;

    memset(e, 0, sizeof(*e));
    e->run = r;
    e->answer.who = who;
    q->opcode = opcodes[below(G_N_ELEMENTS(opcodes))];
    q->lane = q->opcode == MEMX_OP_FETCH || q->opcode == MEMX_OP_PING ?
              MEMX_LANE_ORDERED + below(3) : MEMX_LANE_ORDERED;
    q->group = below(MODEL_GROUPS);
    q->generation = q->opcode == MEMX_OP_STORE ? ++r->generation : 0;
    if (!open_lane(r, who, q->lane)) {
        return false;
    }
    switch (q->opcode) {
    case MEMX_OP_OFFER:
        return choose_offer(r, e);
    case MEMX_OP_RECLAIM:
    case MEMX_OP_COMMIT:
    case MEMX_OP_RESIGN:
        q->session = some_session(r);
        if (q->session >= r->sessions->len) {
            return false;
        }
        session_of(r, q->session)->reclaiming |= q->opcode == MEMX_OP_RECLAIM;
        return q->opcode != MEMX_OP_RESIGN || !below(3);
    case MEMX_OP_CLOSE:
        return !below(4);
    default:
        return true;
    }
}

static void step_one(Run *r)
{
    Event e;

    if (!choose(r, &e, someone(r))) {
        return;
    }
    if (!below(6)) {
        r->clients[e.answer.who]->loses = true;
        r->clients[e.answer.who]->abandons = below(2);
        r->losses++;
    }
    perform(&e);
    finish(r, &e, NULL);
    if (e.answer.error == 0 && (e.answer.request.opcode == MEMX_OP_COMMIT ||
                          e.answer.request.opcode == MEMX_OP_RECLAIM)) {
        read_back(r, e.answer.who);
    }
}

static void step_two(Run *r)
{
    int who = someone(r), other = someone(r);
    GThread *thread;
    Event a, b;

    if (who == other || !choose(r, &a, who) || !choose(r, &b, other)) {
        return;
    }
    /* Its place, or its heir's, may be another host's by now. */
    if (!r->clients[a.answer.who]->lanes[a.answer.request.lane] ||
        (a.answer.request.opcode == MEMX_OP_OFFER &&
         b.answer.request.opcode == MEMX_OP_OFFER)) {
        return;
    }
    thread = g_thread_new("client", perform, &a);
    perform(&b);
    g_thread_join(thread);
    r->lost_races += a.answer.error < 0 || b.answer.error < 0;
    finish(r, &a, &b);
}

/* The server ends, with all connections, and is back. */
static void disturb(Run *r)
{
    bool killed = below(3);

    if (killed) {
        server_process_kill(r->server);
        server_process_restart(r->server, true);
    } else {
        server_process_take_over(r->server);
    }
    *(killed ? &r->kills : &r->upgrades) += 1;
    tell(r, "%s", killed ? "killed and restarted" : "upgraded");
    for (int who = 0; who < MODEL_CLIENTS; who++) {
        client_cut_all(r->clients[who]);
        model_forget(&r->model, who);
    }
}

/* The former one was closed: maybe without an answer, then its memory is about
 * to be given back. */
static void new_space(Run *r)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    for (int who = 0; who < MODEL_CLIENTS; who++) {
        if (r->clients[who]) {
            client_free(r->clients[who]);
        }
        r->clients[who] = who == 0 ?
            client_new(server_process_address(r->server), NULL) :
            client_new_rival(r->clients[0]);
        r->clients[who]->inherits = who != 0;
        session_id(UINT32_MAX, r->clients[who]->open.session);
        r->session[who] = 0;
    }
    g_assert_cmpint(client_create(r->clients[0], PAGES, PAGES), ==, 0);
    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_assert_cmpint(client_ping(r->clients[0], MEMX_LANE_ORDERED), ==, 0);
    } while (r->clients[0]->reply.free_pages != 16384 - PAGES);
    model_reset(&r->model);
    g_array_set_size(r->sessions, 1);
    r->writer_epoch = 0;
    r->spaces++;
    tell(r, "a new space, of 0");
}

static void test_random(void)
{
    const char *setting = g_getenv("MEMX_HANDOVER_STEPS");
    unsigned steps = setting ? strtoul(setting, NULL, 10) : STEPS;
    Run *r = g_new0(Run, 1);

    r->server = server_process_new("64M");
    r->sessions = g_array_new(false, true, sizeof(Session));
    new_space(r);
    for (unsigned step = 0; step < steps; step++) {
        if (!model_may(&r->model, world_is_open, 0)) {
            new_space(r);
        } else if (!below(80)) {
            disturb(r);
        } else if (!below(4)) {
            step_two(r);
        } else {
            step_one(r);
        }
    }
    g_test_message("%u steps, %u spaces, %u commits, %u reclaims, %u answers "
                   "lost, %u races cut, %u kills, %u upgrades", steps,
                   r->spaces, r->commits, r->reclaims, r->losses,
                   r->lost_races, r->kills, r->upgrades);
    if (steps >= STEPS) {
        g_assert_cmpuint(MIN(r->kills, r->upgrades), >, 1);
        g_assert_cmpuint(MIN(r->commits, r->reclaims), >, 10);
        g_assert_cmpuint(r->losses, >, 50);
    }
    for (int who = 0; who < MODEL_CLIENTS; who++) {
        client_free(r->clients[who]);
    }
    for (unsigned i = 0; i < TOLD; i++) {
        g_free(r->told[i]);
    }
    g_array_free(r->sessions, true);
    server_process_free(r->server);
    g_free(r);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memserver/handover/random", test_random);
    return g_test_run();
}
