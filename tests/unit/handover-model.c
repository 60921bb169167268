/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <glib.h>
#include <string.h>
#include "handover-model.h"
#include "memx-protocol.h"

/* --- What a server should do --- */

static int may_write(const World *w, int who)
{
    return w->owner == who && w->state == MODEL_OWNED ? 0 : MEMX_ERR_OFFERED;
}

static int model_offer(World *w, int who, const ModelRequest *request)
{
    if (w->owner != who) {
        return MEMX_ERR_OFFERED;
    }
    if (w->state != MODEL_OWNED) {
        return w->session == request->session && w->heir == request->heir ?
               0 : MEMX_ERR_OFFERED;
    }
    if (w->committed == request->session) {
        return MEMX_ERR_EPOCH;
    }
    w->state = MODEL_OFFERED;
    w->session = request->session;
    w->heir = request->heir;
    return 0;
}

static int model_reclaim(World *w, int who, const ModelRequest *request)
{
    if (w->owner != who) {
        return MEMX_ERR_OFFERED;
    }
    if (w->state == MODEL_OWNED || w->session != request->session) {
        return 0;
    }
    if (w->state == MODEL_RESIGNED) {
        return MEMX_ERR_EPOCH;
    }
    w->state = MODEL_OWNED;
    w->session = 0;
    return 0;
}

static int model_commit(World *w, int who, const ModelRequest *request)
{
    if (w->owner == who) {
        return w->committed == request->session ? 0 :
               w->state != MODEL_OWNED && w->session == request->session ?
               MEMX_ERR_OFFERED : MEMX_ERR_EPOCH;
    }
    if (w->session != request->session) {
        return MEMX_ERR_EPOCH;
    }
    w->owner = who;
    w->committed = w->session;
    w->state = MODEL_OWNED;
    w->session = 0;
    return 0;
}

static int model_resign(World *w, int who, const ModelRequest *request)
{
    if (w->owner != who) {
        return MEMX_ERR_OFFERED;
    }
    if (w->state == MODEL_OWNED || w->session != request->session) {
        return MEMX_ERR_LANE;
    }
    w->state = MODEL_RESIGNED;
    return 0;
}

static int model_close(World *w, int who)
{
    if (w->owner == who ? w->state != MODEL_OWNED : w->state != MODEL_RESIGNED) {
        return MEMX_ERR_OFFERED;
    }
    w->closed = true;
    return 0;
}

/* Does in @w what the server should do, and returns what it should say; -1
 * for pages that should not be what they are. */
static int apply(World *w, int who, const ModelRequest *request)
{
    uint64_t *page = &w->pages[request->group];
    int ret;

    if (w->closed) {
        return MEMX_ERR_NO_SPACE;
    }
    if (w->owner != who && (w->state == MODEL_OWNED || w->heir != who)) {
        return MEMX_ERR_EPOCH;
    }
    switch (request->opcode) {
    case MEMX_OP_OPEN:
    case MEMX_OP_PING:
        return 0;
    case MEMX_OP_FETCH:
        return !*page ? MEMX_ERR_NOT_HELD :
               *page == request->generation ? 0 : -1;
    case MEMX_OP_STORE:
    case MEMX_OP_DROP:
        ret = may_write(w, who);
        *page = ret == 0 ? request->generation : *page;
        return ret;
    case MEMX_OP_RESERVE:
        return may_write(w, who);
    case MEMX_OP_CLOSE:
        return model_close(w, who);
    case MEMX_OP_OFFER:
        return model_offer(w, who, request);
    case MEMX_OP_RECLAIM:
        return model_reclaim(w, who, request);
    case MEMX_OP_COMMIT:
        return model_commit(w, who, request);
    default:
        return model_resign(w, who, request);
    }
}

/* --- Worlds --- */

static void add_world(World *worlds, unsigned *n, const World *w)
{
    for (unsigned i = 0; i < *n; i++) {
        if (!memcmp(&worlds[i], w, sizeof(*w))) {
            return;
        }
    }
    g_assert_cmpuint(*n, <, MODEL_WORLDS_MAX);
    memcpy(&worlds[(*n)++], w, sizeof(*w));
}

/* Those that were made are what there is. */
static void turn(Model *m)
{
    m->n = m->n_next;
    memcpy(m->worlds, m->next, m->n * sizeof(*m->worlds));
    m->n_next = 0;
}

/* What was not answered has been applied by now, or not. */
static void pass_time(Model *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        for (int who = 0; who < MODEL_CLIENTS; who++) {
            World w;

            memcpy(&w, &m->worlds[i], sizeof(w));
            if (w.late[who].opcode) {
                apply(&w, who, &w.late[who]);
                memset(&w.late[who], 0, sizeof(w.late[who]));
                add_world(m->worlds, &m->n, &w);
            }
        }
    }
}

void model_reset(Model *m)
{
    memset(m, 0, sizeof(*m));
    m->n = 1;
}

void model_lose(Model *m, int who, const ModelRequest *request)
{
    for (unsigned i = 0; i < m->n; i++) {
        m->worlds[i].late[who] = *request;
    }
}

void model_forget(Model *m, int who)
{
    pass_time(m);
    for (unsigned i = 0; i < m->n; i++) {
        World *w = &m->worlds[i];

        memset(&w->late[who], 0, sizeof(w->late[who]));
        add_world(m->next, &m->n_next, w);
    }
    turn(m);
}

static bool agrees(World *w, const ModelAnswer *a)
{
    return apply(w, a->who, &a->request) == a->error;
}

bool model_learn(Model *m, const ModelAnswer *first,
                 const ModelAnswer *second)
{
    pass_time(m);
    for (unsigned i = 0; i < m->n; i++) {
        for (int order = 0; order < (second ? 2 : 1); order++) {
            World w;

            memcpy(&w, &m->worlds[i], sizeof(w));
            if (agrees(&w, order ? second : first) &&
                (!second || agrees(&w, order ? first : second))) {
                add_world(m->next, &m->n_next, &w);
            }
        }
    }
    turn(m);
    return m->n > 0;
}

bool model_may(Model *m, bool (*test)(const World *w, int who), int who)
{
    pass_time(m);
    for (unsigned i = 0; i < m->n; i++) {
        if (test(&m->worlds[i], who)) {
            return true;
        }
    }
    return false;
}

bool world_is_open(const World *w, int who)
{
    return !w->closed;
}

bool world_may_offer(const World *w, int who)
{
    return !w->closed && w->owner == who && w->state == MODEL_OWNED;
}

bool world_takes_part(const World *w, int who)
{
    return !w->closed && (w->owner == who ||
                          (w->state != MODEL_OWNED && w->heir == who));
}
