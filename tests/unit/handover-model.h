/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A model of a space that is handed over, for tests: after docs/protocol.md,
 * and not after memserver's code.
 *
 * What was sent and not answered may have been applied, and may still be,
 * until its lane is opened again or the server ends.  So there are several
 * *worlds*, all that agree with the answers so far.  Each answer leaves those
 * where it is the right one.
 */
#ifndef HANDOVER_MODEL_H
#define HANDOVER_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define MODEL_CLIENTS 4
#define MODEL_GROUPS 6u
#define MODEL_WORLDS_MAX 512u

typedef struct ModelRequest {
    int opcode;             /* 0: none */
    int lane;
    uint32_t session;
    int heir;
    unsigned group;
    uint64_t generation;    /* STORE: of the pages; FETCH: what they are of */
} ModelRequest;

typedef enum ModelState { MODEL_OWNED, MODEL_OFFERED, MODEL_RESIGNED }
    ModelState;

/* What the space may be like.  Clients are numbers. */
typedef struct World {
    int closed;
    int owner;
    uint32_t committed;     /* the session by which it became the owner */
    ModelState state;
    uint32_t session;       /* of the offer, and the heir */
    int heir;
    uint64_t pages[MODEL_GROUPS]; /* generations; 0: not held */
    ModelRequest late[MODEL_CLIENTS]; /* sent, without an answer */
} World;

typedef struct Model {
    unsigned n;
    World worlds[MODEL_WORLDS_MAX];
    unsigned n_next;        /* being made */
    World next[MODEL_WORLDS_MAX];
} Model;

/* A request and what came of it. */
typedef struct ModelAnswer {
    int who;
    ModelRequest request;
    int error;
} ModelAnswer;

/* A new space of client 0. */
void model_reset(Model *model);

/* @who sent a request, and has no answer. */
void model_lose(Model *model, int who, const ModelRequest *request);
/* What @who had sent will not be applied any more. */
void model_forget(Model *model, int who);

/* What was answered, @second (or NULL) at the same time.  False if no order
 * of events explains that. */
bool model_learn(Model *model, const ModelAnswer *first,
                 const ModelAnswer *second);

/* Whether it may be so. */
bool model_may(Model *model, bool (*test)(const World *world, int who),
               int who);
bool world_is_open(const World *world, int who);
bool world_may_offer(const World *world, int who);
/* The owner or the heir. */
bool world_takes_part(const World *world, int who);

#endif
