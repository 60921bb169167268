/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: where memxctl and a successor ask.
 */
#ifndef MS_CONTROL_H
#define MS_CONTROL_H

#include "server.h"

/* The longest lines. */
#define MS_QUESTION_MAX_BYTES 4096
#define MS_ANSWER_MAX_BYTES (16u << 20)

typedef struct MsControl MsControl;

/*
 * Listens at @path, readable and writable by the owner only; replaces a
 * socket that nobody listens at, and with @replace any.  Calls @handed_over
 * in the main loop once a successor serves in our place.
 */
MsControl *ms_control_open(const char *path, bool replace, MsServer *server,
                           void (*handed_over)(void *opaque), void *opaque,
                           GError **error);
/* Waits for a hand-over that is going on; true once a successor serves. */
bool ms_control_settle(MsControl *control);
/* Unlinks the socket, unless it is a successor's by now. */
void ms_control_close(MsControl *control);

/* $RUNTIME_DIRECTORY/memserver.sock, else /run/memx/memserver.sock. */
char *ms_control_default_path(void);

/* Connects to the control socket at @path.  -1 and @error. */
int ms_control_connect(const char *path, GError **error);

/* Blocking, on a connected control socket.  Lines come without their end. */
bool ms_control_send(int fd, const char *line, const int *fds, int n_fds,
                     GError **error);
/* NULL and @error at the end, after @timeout_s (0: none) of silence, and for a
 * line of more than @max_bytes or with a NUL in it; else it may be anything.
 * Descriptors that came along are in @fds, *n_fds of them, at most that. */
char *ms_control_receive(int fd, size_t max_bytes, int timeout_s, int *fds,
                         int *n_fds, GError **error);

#endif
