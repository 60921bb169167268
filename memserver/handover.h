/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hand-over: a successor process gets store and listener of a running one.
 *
 * Theory of operation
 *
 *   successor                            predecessor
 *   hand-over           ------------>    ends all connections, unmaps
 *                       <------------    capacity; memfds and listener
 *   maps, recovers,
 *   all is well: ready  ------------>    can't serve any more from here on,
 *                       <------------    go        unless the successor dies
 *   serves: serving     ------------>    exits
 *
 * Clients see their connections closed; new ones wait in the listener's
 * queue, which both have, until the one or the other accepts them.
 *
 * The predecessor resumes whenever the control connection ends before
 * "serving": a successor that still has it open serves only after "go", and
 * one that closed it has exited, or will without having served.  What it may
 * have changed after "go" does not matter, since resuming finds everything
 * anew in the memfds, as after a crash.
 */
#ifndef MS_HANDOVER_H
#define MS_HANDOVER_H

#include "server.h"

/* The predecessor's side, on control connection @fd.  True: the successor
 * serves, false: this server does, as before. */
bool ms_handover_give(MsServer *server, int fd);

/* What the successor gets. */
typedef struct MsHandover {
    int fd;                 /* the control connection */
    int fds[MS_N_FILES];
    int listener_fd;
    uint64_t capacity_bytes;
} MsHandover;

/* The successor's side: asks, and waits for the descriptors. */
bool ms_handover_take(MsHandover *handover, const char *path, GError **error);
/* Says ready, waits for go. */
bool ms_handover_ready(MsHandover *handover, GError **error);
/* Says serving. */
void ms_handover_done(MsHandover *handover);

#endif
