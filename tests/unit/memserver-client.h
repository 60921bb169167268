/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A client of a memserver, one request at a time, for tests of the server.
 *
 * Calls return a MemxError, or -errno when the connection is gone.
 */
#ifndef MEMSERVER_CLIENT_H
#define MEMSERVER_CLIENT_H

#include <stdint.h>
#include "peer.h"

#define CLIENT_TIMEOUT_MS 30000
#define ALL_PAGES UINT64_MAX

typedef struct Client {
    MemxPeer *peer;
    MemxOpen open;          /* ids, secret, epoch: change them at will */
    MemxChannel *lanes[MEMX_LANE_READER + 1];
    MemxPeerInfo info;      /* of the last connection made */
    MemxReply reply;        /* the last one */
    bool inherits;          /* connects again as an heir */
    bool persists;          /* when a lane isn't there or is lost in a call it
                               is opened (again) and the request repeated, as
                               a real client does; so no call returns -errno,
                               but maybe why OPEN was refused */
    bool loses;             /* sends the next request, and loses the
                               connection before the reply... */
    bool abandons;          /* ...which stays open at the server's side */
    MemxChannel *abandoned;
} Client;

/* With random ids and secret; @key may be NULL. */
Client *client_new(const char *address, GBytes *key);
/* Another client that knows the same space, its secret included. */
Client *client_new_rival(const Client *client);
/* The same, to be offered to by @owner under @session. */
Client *client_new_heir(const Client *owner, const uint8_t *session);
void client_free(Client *client);

/* Opens a lane, by creating the space or attaching to it. */
int client_create(Client *client, uint64_t size_pages,
                  uint64_t reserve_pages);
int client_attach(Client *client, MemxLane lane);
/* As the heir of open.session, with open.epoch. */
int client_inherit(Client *client, MemxLane lane);
/* One or the other, as client->inherits says; repeated until there is an
 * answer. */
int client_open(Client *client, MemxLane lane);
/* Attaches all three; repeats it until it works or 30 s have passed. */
void client_reattach(Client *client);
void client_cut(Client *client, MemxLane lane);
void client_cut_all(Client *client);

/* Stores pages that tell their generation, group and number, with hashes that
 * do. */
int client_store(Client *client, uint64_t group, uint64_t mask,
                 uint64_t generation);
/* Fetches pages; *generation is what they tell if each byte of them is as
 * client_store() made it and they all tell the same.  Aborts otherwise. */
int client_fetch(Client *client, MemxLane lane, uint64_t group, uint64_t mask,
                 uint64_t *generation);
int client_compare(Client *client, uint64_t group, uint64_t mask,
                   uint64_t generation, uint64_t *differ);
int client_drop(Client *client, uint64_t group, uint64_t mask);
/* The pages come from @source's space, on the server at @address; @key is the
 * one of both servers, or NULL. */
int client_copy(Client *client, GBytes *key, const Client *source,
                const char *address, uint64_t group, uint64_t mask);
/* As another server does: reads only. */
int client_attach_reader(Client *client);
int client_reserve(Client *client, uint64_t pages);
int client_close(Client *client);
int client_offer(Client *client, const uint8_t *session, const Client *heir);
/* MEMX_OP_RECLAIM, COMMIT or RESIGN. */
int client_decide(Client *client, MemxOpcode opcode, const uint8_t *session);
int client_ping(Client *client, MemxLane lane);

#endif
