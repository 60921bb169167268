/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server: a listener, its connections, and the store they work on.
 */
#ifndef MS_SERVER_H
#define MS_SERVER_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "peer.h"
#include "transport.h"
#include "store.h"

#define MS_CONNECTIONS_MAX 1024
#define MS_STRANGERS_MAX 64         /* that have not finished their hello */
#define MS_STRANGER_SECONDS 10      /* they have to finish it */
#define MS_IDLE_SECONDS 60          /* without a space and without a request */
#define MS_ACCEPT_PAUSE_MS 200      /* after one that failed */

/* How far a connection has come. */
typedef enum MsStage {
    MS_STAGE_STRANGER,  /* nothing proven: HELLO, AUTH */
    MS_STAGE_ADMITTED,  /* OPEN, PING */
    MS_STAGE_SERVED,    /* a lane of a space */
} MsStage;

typedef struct MsServer MsServer;

typedef struct MsConnection {
    /* Constant. */
    MsServer *server;
    MemxChannel *channel;
    char *peer;

    /* Of its thread. */
    bool greeted;               /* HELLO was answered */
    uint8_t client_nonce[MEMX_NONCE_BYTES];
    uint8_t server_nonce[MEMX_NONCE_BYTES];
    MsSpace *space;             /* and under the server's lock: side, lane */
    unsigned side;              /* not of a reader */
    MemxLane lane;
    MsPins *pins;               /* of a lane that reads, else NULL */
    struct MsCopySource *source; /* what it copied from last; copy.c */
    bool may_write;             /* an owner's, unless the space is offered:
                                   set by no other thread, see offer.c */

    /* Of its thread, read by others. */
    _Atomic uint64_t counters[MS_N_COUNTERS];
    _Atomic int64_t active_us;  /* when it came, or asked for something while
                                   it had no space */

    /* Under the server's lock. */
    GList link;                 /* in server->connections, oldest first */
    MsStage stage;              /* written by its thread */
    bool doomed;                /* a stranger that made room for another */
    bool fenced;                /* its side lost the space, for ever */
} MsConnection;

struct MsServer {
    /* Constant. */
    char *name;                 /* for people */
    const MemxTransport *transport; /* the listener's: TCP, unless a test
                                       sets another before it starts */
    MemxListener *listener;
    GBytes *key;                /* NULL: everybody is admitted */
    int64_t orphan_timeout_s;   /* 0: never */
    int64_t started_us;

    _Atomic uint32_t load_permille;

    /* Protects all below, the stage and lane of connections, which spaces
     * there are (store.h) and their lanes.  Not held while a request is
     * served or anything is sent.  Before the locks of store and frames. */
    GMutex lock;
    GCond changed;              /* a lane or a connection ended */
    MsStore *store;             /* NULL while it is handed over */
    GQueue connections;
    unsigned n_strangers;       /* without those that are doomed */
    unsigned n_drops;           /* spaces whose memory is being given back,
                                   not by their own connection */
    bool stopping;
    GSource *accept_source;
    uint64_t counters[MS_N_COUNTERS]; /* of connections that ended */
    uint64_t n_accepted;
    uint64_t n_turned_away;

    /* Rates of the last second; the main loop's, read under the lock. */
    uint64_t last_counters[MS_N_COUNTERS];
    int64_t last_us;
    double rates[MS_N_COUNTERS];
};

extern const char *const ms_counter_names[MS_N_COUNTERS];

/* @listener, @store and a reference to @key belong to the server. */
MsServer *ms_server_new(const char *name, MemxListener *listener,
                        MsStore *store, GBytes *key,
                        int64_t orphan_timeout_s);
/* After ms_server_stop(). */
void ms_server_free(MsServer *server);

/* Accepts connections, from the default main context. */
void ms_server_start(MsServer *server);
/* Accepts no more, ends all connections and waits for their threads: after
 * it nothing changes the store.  Any thread but a connection's. */
void ms_server_stop(MsServer *server);

/* Once a second, from the main loop: deadlines, load, rates, orphans. */
void ms_server_tick(MsServer *server);

/* From now on, also after a restart with the pages, clients are told to move
 * what they have here elsewhere; or that they need not, after all. */
void ms_server_drain(MsServer *server, bool drain);

/*
 * Drops the space whose id, in hexadecimal, begins with @prefix; one that has
 * connections, or is offered, only with @force.  Any thread but a connection's.
 */
bool ms_server_drop(MsServer *server, const char *prefix, bool force,
                    GError **error);

/* The sum over all connections, also those that ended. */
void ms_server_count_locked(MsServer *server,
                            uint64_t counters[MS_N_COUNTERS]);
void ms_space_count_locked(const MsSpace *space,
                           uint64_t counters[MS_N_COUNTERS]);

static inline void ms_count(MsConnection *connection, MsCounter counter,
                            uint64_t n)
{
    _Atomic uint64_t *at = &connection->counters[counter];

    /* One writer: no need for a locked instruction. */
    atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) +
                          n, memory_order_relaxed);
}

#endif
