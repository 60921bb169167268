/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A space is handed over: each rule of docs/protocol.md, "Hand-over", with the
 * real daemon.
 *
 * Most run three times: with a server that is undisturbed, with one that is
 * killed and restarted with its pages after each message that changes
 * something, and with one that is upgraded then.  The clients connect again.
 */
#include <glib.h>
#include <string.h>
#include "memserver-client.h"
#include "server-process.h"

#define PAGES 1024u
#define CAPACITY_PAGES 16384u
#define GROUPS 3u           /* stored; group g is of generation g + 1 */
#define FIRST_EPOCH 7u

typedef struct Fixture {
    ServerProcess *server;
    void (*disturb)(ServerProcess *server);
    Client *source;         /* the space's owner */
    Client *heir;
    uint8_t session[MEMX_ID_BYTES];
} Fixture;

static void crash(ServerProcess *server)
{
    server_process_kill(server);
    server_process_restart(server, true);
}

/* After a message, which gave @ret; passes that on. */
static int after(Fixture *f, int ret)
{
    if (f->disturb && ret == 0) {
        f->disturb(f->server);
    }
    return ret;
}

static Client *heir_new(Fixture *f)
{
    Client *heir = client_new_heir(f->source, f->session);

    heir->persists = true;
    return heir;
}

static void set_up(Fixture *f, gconstpointer disturb)
{
    f->disturb = (void (*)(ServerProcess *))disturb;
    f->server = server_process_new("64M");
    f->source = client_new(server_process_address(f->server), NULL);
    f->source->open.epoch = FIRST_EPOCH;
    g_assert_cmpint(client_create(f->source, PAGES, PAGES), ==, 0);
    f->source->persists = true;
    for (unsigned group = 0; group < GROUPS; group++) {
        g_assert_cmpint(client_store(f->source, group, ALL_PAGES, group + 1),
                        ==, 0);
    }
    memx_random(f->session, MEMX_ID_BYTES);
    f->heir = heir_new(f);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    client_free(f->heir);
    client_free(f->source);
    server_process_free(f->server);
}

/* --- What a client gets --- */

static int offer(Fixture *f)
{
    return after(f, client_offer(f->source, f->session, f->heir));
}

static int reclaim(Fixture *f)
{
    return after(f, client_decide(f->source, MEMX_OP_RECLAIM, f->session));
}

static int commit(Fixture *f)
{
    return after(f, client_decide(f->heir, MEMX_OP_COMMIT, f->session));
}

static int resign(Fixture *f)
{
    return after(f, client_decide(f->source, MEMX_OP_RESIGN, f->session));
}

/* The same for all that writes. */
static int try_writing(Client *client)
{
    int ret = client_store(client, GROUPS, 0xff, 99);

    g_assert_cmpint(client_drop(client, GROUPS, 0xff), ==, ret);
    g_assert_cmpint(client_reserve(client, PAGES), ==, ret);
    return ret;
}

/* The same for all that reads, on all lanes. */
static int try_reading(Client *client)
{
    uint64_t generation, differ;
    int ret;

    ret = client_compare(client, 0, ALL_PAGES, 1, &differ);
    g_assert_true(ret != 0 || differ == 0);
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        for (unsigned group = 0; group < GROUPS; group++) {
            g_assert_cmpint(client_fetch(client, lane, group, ALL_PAGES,
                                         &generation), ==, ret);
            g_assert_true(ret != 0 || generation == group + 1);
        }
        g_assert_cmpint(client_ping(client, lane), ==, ret);
    }
    if (ret == 0) {
        g_assert_cmpint(client_fetch(client, MEMX_LANE_FAULT, GROUPS, 1,
                                     &generation), ==, MEMX_ERR_NOT_HELD);
        g_assert_cmpuint(client->reply.space_pages, ==,
                         GROUPS * MEMX_GROUP_PAGES);
    }
    return ret;
}

static void assert_owns(Client *client)
{
    g_assert_cmpint(try_writing(client), ==, 0);
    g_assert_cmpint(try_reading(client), ==, 0);
}

static void assert_reads_only(Client *client)
{
    g_assert_cmpint(try_writing(client), ==, MEMX_ERR_OFFERED);
    g_assert_cmpint(client_close(client), ==, MEMX_ERR_OFFERED);
    g_assert_cmpint(try_reading(client), ==, 0);
}

static void assert_lost(Client *client)
{
    g_assert_cmpint(try_writing(client), ==, MEMX_ERR_EPOCH);
    g_assert_cmpint(try_reading(client), ==, MEMX_ERR_EPOCH);
    g_assert_cmpint(client_close(client), ==, MEMX_ERR_EPOCH);
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_null(client->lanes[lane]);
    }
}

/* Has lanes, but they have ended. */
static void assert_ended(Client *client)
{
    client->persists = false;
    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        g_assert_cmpint(client_ping(client, lane), <, 0);
    }
    client->persists = true;
}

/* --- Offers --- */

static void test_offer_ends_writing(Fixture *f, gconstpointer data)
{
    assert_owns(f->source);
    g_assert_cmpint(offer(f), ==, 0);
    assert_reads_only(f->source);
    /* Its reservation stands. */
    g_assert_cmpint(client_ping(f->source, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpuint(f->source->reply.free_pages, ==, CAPACITY_PAGES - PAGES);
}

static void test_offer_again(Fixture *f, gconstpointer data)
{
    uint8_t another[MEMX_ID_BYTES] = { 1 };

    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(offer(f), ==, 0);
        g_assert_cmpint(client_offer(f->source, another, f->heir), ==,
                        MEMX_ERR_OFFERED);
        g_assert_cmpint(client_offer(f->source, f->session, f->source), ==,
                        MEMX_ERR_OFFERED);
        g_assert_cmpint(try_reading(f->heir), ==, 0);
    }
    assert_reads_only(f->source);
    g_assert_cmpint(commit(f), ==, 0);
    assert_owns(f->heir);
}

/* Nothing is offered then. */
static void test_offer_refused(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(client_offer(f->source, f->session, f->source), ==,
                    MEMX_ERR_OWNED);
    assert_owns(f->source);
    client_cut_all(f->source);
    f->source->open.epoch = UINT64_MAX;
    g_assert_cmpint(offer(f), ==, MEMX_ERR_RANGE);
    assert_owns(f->source);
}

/* Nobody can become the owner beside the heir. */
static void test_offered_to_one_only(Fixture *f, gconstpointer data)
{
    Client *rival = client_new_rival(f->source);

    g_assert_cmpint(offer(f), ==, 0);
    rival->persists = true;
    for (int i = 0; i < 2; i++) {
        rival->open.epoch = FIRST_EPOCH - 1;
        g_assert_cmpint(try_reading(rival), ==, MEMX_ERR_EPOCH);
        for (unsigned raise = 0; raise < 3; raise++) {
            rival->open.epoch = FIRST_EPOCH + raise;
            g_assert_cmpint(try_reading(rival), ==, MEMX_ERR_OFFERED);
        }
        /* Once with nobody connected. */
        client_cut_all(f->source);
    }
    /* Neither by calling itself the owner, or the heir, anew. */
    memcpy(rival->open.client, f->source->open.client, MEMX_ID_BYTES);
    g_assert_cmpint(try_reading(rival), ==, MEMX_ERR_OFFERED);
    memcpy(rival->open.client, f->heir->open.client, MEMX_ID_BYTES);
    rival->open.epoch = FIRST_EPOCH + 1;
    g_assert_cmpint(try_reading(rival), ==, MEMX_ERR_OFFERED);
    client_free(rival);
    assert_reads_only(f->source);
}

/* --- Heirs --- */

static void test_heir_reads(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(offer(f), ==, 0);
    assert_reads_only(f->heir);
    g_assert_cmpuint(f->heir->info.opened.epoch, ==, FIRST_EPOCH);
    g_assert_cmpuint(f->heir->info.opened.reserved_pages, ==, PAGES);
    /* It can't decide for the owner, nor the owner for it. */
    g_assert_cmpint(client_offer(f->heir, f->session, f->heir), ==,
                    MEMX_ERR_OFFERED);
    g_assert_cmpint(client_decide(f->heir, MEMX_OP_RECLAIM, f->session), ==,
                    MEMX_ERR_OFFERED);
    g_assert_cmpint(client_decide(f->heir, MEMX_OP_RESIGN, f->session), ==,
                    MEMX_ERR_OFFERED);
    g_assert_cmpint(client_decide(f->source, MEMX_OP_COMMIT, f->session), ==,
                    MEMX_ERR_OFFERED);
    assert_reads_only(f->heir);
    /* Both at a time; and either comes and goes as it likes. */
    assert_reads_only(f->source);
    client_cut_all(f->heir);
    assert_reads_only(f->source);
    client_cut_all(f->source);
    assert_reads_only(f->heir);
}

static void test_no_heir(Fixture *f, gconstpointer data)
{
    Client *heir = f->heir;
    MemxOpen open = heir->open;

    /* Before it is offered. */
    g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_EPOCH);
    g_assert_cmpint(offer(f), ==, 0);
    heir->open.session[15] ^= 1;
    g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_EPOCH);
    heir->open = open;
    heir->open.client[15] ^= 1;
    g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_EPOCH);
    heir->open = open;
    for (unsigned raise = 0; raise < 3; raise += 2) {
        heir->open.epoch = FIRST_EPOCH + raise;
        g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_EPOCH);
    }
    heir->open = open;
    heir->open.secret[15] ^= 1;
    g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_NO_SPACE);
    heir->open = open;
    heir->open.size_pages = PAGES - 1;
    g_assert_cmpint(try_reading(heir), ==, MEMX_ERR_RANGE);
    heir->open = open;
    g_assert_cmpint(try_reading(heir), ==, 0);
}

/* Hand-over is a matter of the ordered lane. */
static void test_wrong_lane(Fixture *f, gconstpointer data)
{
    Client *clients[] = { f->source, f->heir };

    g_assert_cmpint(offer(f), ==, 0);
    for (int i = 0; i < 4; i++) {
        Client *client = clients[i / 2];
        MemxLane lane = MEMX_LANE_FAULT + i % 2;
        MemxChannel *ordered;

        g_assert_cmpint(try_reading(client), ==, 0);
        ordered = client->lanes[MEMX_LANE_ORDERED];
        client->lanes[MEMX_LANE_ORDERED] = client->lanes[lane];
        g_assert_cmpint(client_offer(client, f->session, f->heir), ==,
                        MEMX_ERR_LANE);
        for (int op = MEMX_OP_RECLAIM; op <= MEMX_OP_RESIGN; op++) {
            g_assert_cmpint(client_decide(client, op, f->session), ==,
                            MEMX_ERR_LANE);
        }
        client->lanes[MEMX_LANE_ORDERED] = ordered;
    }
    assert_reads_only(f->source);
    g_assert_cmpint(try_reading(f->heir), ==, 0);
}

/* --- Decisions --- */

static void test_reclaim(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(reclaim(f), ==, 0);
    assert_owns(f->source);
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(try_reading(f->heir), ==, 0);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(reclaim(f), ==, 0);
        assert_owns(f->source);
        if (i == 0) {
            assert_ended(f->heir);
        }
        g_assert_cmpint(commit(f), ==, MEMX_ERR_EPOCH);
        assert_lost(f->heir);
    }
    g_assert_cmpuint(f->source->info.opened.epoch, ==, FIRST_EPOCH);
}

/* Of another session than the one that is offered: nothing happens. */
static void test_reclaim_another(Fixture *f, gconstpointer data)
{
    uint8_t another[MEMX_ID_BYTES] = { 1 };

    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(after(f, client_decide(f->source, MEMX_OP_RECLAIM,
                                           another)), ==, 0);
    assert_reads_only(f->source);
    g_assert_cmpint(commit(f), ==, 0);
    assert_owns(f->heir);
}

static void test_commit(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(try_reading(f->source), ==, 0);
    g_assert_cmpint(try_reading(f->heir), ==, 0);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(commit(f), ==, 0);
        assert_owns(f->heir);
        if (i == 0) {
            assert_ended(f->source);
        }
        g_assert_cmpint(reclaim(f), ==, MEMX_ERR_EPOCH);
        g_assert_cmpint(offer(f), ==, MEMX_ERR_EPOCH);
        g_assert_cmpint(resign(f), ==, MEMX_ERR_EPOCH);
        assert_lost(f->source);
    }
    /* It may come again as the heir or plainly, now and later. */
    for (int i = 0; i < 4; i++) {
        client_cut_all(f->heir);
        f->heir->inherits = i % 2;
        assert_owns(f->heir);
        g_assert_cmpuint(f->heir->info.opened.epoch, ==, FIRST_EPOCH + 1);
        g_assert_cmpint(client_decide(f->heir, MEMX_OP_COMMIT, f->session),
                        ==, 0);
    }
    g_assert_cmpint(after(f, client_close(f->heir)), ==, 0);
    client_cut_all(f->heir);
    g_assert_cmpint(try_reading(f->heir), ==, MEMX_ERR_NO_SPACE);
}

/* The heir of one session can't commit another, nor does the owner. */
static void test_commit_another(Fixture *f, gconstpointer data)
{
    uint8_t another[MEMX_ID_BYTES] = { 1 };

    g_assert_cmpint(client_decide(f->source, MEMX_OP_COMMIT, f->session), ==,
                    MEMX_ERR_EPOCH);
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(after(f, client_decide(f->heir, MEMX_OP_COMMIT, another)),
                    ==, MEMX_ERR_EPOCH);
    assert_reads_only(f->heir);
    assert_reads_only(f->source);
    g_assert_cmpint(commit(f), ==, 0);
    g_assert_cmpint(client_decide(f->heir, MEMX_OP_COMMIT, another), ==,
                    MEMX_ERR_EPOCH);
    assert_owns(f->heir);
}

/* Answers are lost; both ask again until they have one. */
static void test_lost_answers(Fixture *f, gconstpointer data)
{
    f->source->loses = true;
    g_assert_cmpint(offer(f), ==, 0);
    assert_reads_only(f->source);
    f->source->loses = true;
    g_assert_cmpint(reclaim(f), ==, 0);
    assert_owns(f->source);
    memx_random(f->session, MEMX_ID_BYTES);
    memcpy(f->heir->open.session, f->session, MEMX_ID_BYTES);
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(try_reading(f->heir), ==, 0);
    f->heir->loses = true;
    g_assert_cmpint(commit(f), ==, 0);
    assert_owns(f->heir);
    f->source->loses = true;
    g_assert_cmpint(reclaim(f), ==, MEMX_ERR_EPOCH);
    assert_lost(f->source);
}

static void test_resign(Fixture *f, gconstpointer data)
{
    uint8_t another[MEMX_ID_BYTES] = { 1 };

    g_assert_cmpint(resign(f), ==, MEMX_ERR_LANE);
    assert_owns(f->source);
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(client_decide(f->source, MEMX_OP_RESIGN, another), ==,
                    MEMX_ERR_LANE);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(resign(f), ==, 0);
        g_assert_cmpint(reclaim(f), ==, MEMX_ERR_EPOCH);
        g_assert_cmpint(offer(f), ==, 0);
        assert_reads_only(f->source);
    }
    client_cut_all(f->source);
    g_assert_cmpint(commit(f), ==, 0);
    assert_owns(f->heir);
    assert_lost(f->source);
}

/* The last one that is left drops it. */
static void test_resigned_heir_closes(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(offer(f), ==, 0);
    g_assert_cmpint(client_close(f->heir), ==, MEMX_ERR_OFFERED);
    g_assert_cmpint(resign(f), ==, 0);
    g_assert_cmpint(try_reading(f->source), ==, 0);
    g_assert_cmpint(try_reading(f->heir), ==, 0);
    g_assert_cmpint(try_writing(f->heir), ==, MEMX_ERR_OFFERED);
    g_assert_cmpint(client_close(f->heir), ==, 0);
    g_assert_cmpuint(f->heir->reply.free_pages, ==, CAPACITY_PAGES);
    assert_ended(f->source);
    client_cut_all(f->heir);
    after(f, 0);
    g_assert_cmpint(try_reading(f->source), ==, MEMX_ERR_NO_SPACE);
    g_assert_cmpint(try_reading(f->heir), ==, MEMX_ERR_NO_SPACE);
}

/* After a migration that failed and one that did not, there are others. */
static void test_again_and_again(Fixture *f, gconstpointer data)
{
    for (unsigned round = 0; round < 2; round++) {
        uint8_t former[MEMX_ID_BYTES];
        Client *first = f->heir;

        g_assert_cmpint(offer(f), ==, 0);
        g_assert_cmpint(try_reading(f->heir), ==, 0);
        g_assert_cmpint(reclaim(f), ==, 0);
        memcpy(former, f->session, MEMX_ID_BYTES);
        memx_random(f->session, MEMX_ID_BYTES);
        f->heir = heir_new(f);
        g_assert_cmpint(offer(f), ==, 0);
        assert_lost(first);
        g_assert_cmpint(client_decide(f->heir, MEMX_OP_COMMIT, former), ==,
                        MEMX_ERR_EPOCH);
        g_assert_cmpint(commit(f), ==, 0);
        assert_owns(f->heir);
        g_assert_cmpuint(f->heir->open.epoch, ==, FIRST_EPOCH + round + 1);
        assert_lost(f->source);
        assert_lost(first);

        /* It is the owner; the first one's host will have it back. */
        client_free(f->source);
        f->source = f->heir;
        g_assert_cmpint(client_offer(f->source, f->session, first), ==,
                        MEMX_ERR_EPOCH);
        assert_owns(f->source);
        memx_random(f->session, MEMX_ID_BYTES);
        memcpy(first->open.session, f->session, MEMX_ID_BYTES);
        first->open.epoch = f->source->open.epoch + 1;
        f->heir = first;
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*disturb)(ServerProcess *server);
    } disturbances[] = {
        { "", NULL },
        { "-killed", crash },
        { "-upgraded", server_process_take_over },
    };
    static const struct {
        const char *name;
        void (*function)(Fixture *f, gconstpointer data);
    } tests[] = {
        { "offer-ends-writing", test_offer_ends_writing },
        { "offer-again", test_offer_again },
        { "offer-refused", test_offer_refused },
        { "offered-to-one-only", test_offered_to_one_only },
        { "heir-reads", test_heir_reads },
        { "no-heir", test_no_heir },
        { "wrong-lane", test_wrong_lane },
        { "reclaim", test_reclaim },
        { "reclaim-another", test_reclaim_another },
        { "commit", test_commit },
        { "commit-another", test_commit_another },
        { "lost-answers", test_lost_answers },
        { "resign", test_resign },
        { "resigned-heir-closes", test_resigned_heir_closes },
        { "again-and-again", test_again_and_again },
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(tests); i++) {
        for (unsigned k = 0; k < G_N_ELEMENTS(disturbances); k++) {
            g_autofree char *path = g_strdup_printf(
                "/memserver/handover/%s%s", tests[i].name,
                disturbances[k].name);

            g_test_add(path, Fixture, (void *)disturbances[k].disturb, set_up,
                       tests[i].function, tear_down);
        }
    }
    return g_test_run();
}
