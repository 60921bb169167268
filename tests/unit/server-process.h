/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memserver, as a test uses it: the real program, in a process of its own,
 * on a port of loopback.
 *
 * The test plays the service manager's part: it keeps the descriptors that
 * the daemon hands out (FDSTORE), and gives them to the next one after a
 * crash.  What goes wrong here ends the test with a message; no call fails.
 *
 * Start and restart from a thread that lives as long as the server shall: it
 * is killed when that thread ends, so that no failed test leaves one behind.
 */
#ifndef SERVER_PROCESS_H
#define SERVER_PROCESS_H

#include <stdbool.h>

typedef struct ServerProcess ServerProcess;

/* @capacity as for memserver --capacity; returns when it serves. */
ServerProcess *server_process_new(const char *capacity);
/* The same with more @options, NULL-terminated. */
ServerProcess *server_process_new_with(const char *capacity,
                                       const char *const *options);
/* Ends it, if it still runs, and removes all that is left of it. */
void server_process_free(ServerProcess *server);

/* Of its control socket. */
const char *server_process_control_path(const ServerProcess *server);
/* What $MEMXCTL prints for "COMMAND [OPTION]", which succeeds; g_free(). */
char *server_process_memxctl(const ServerProcess *server, const char *command,
                             const char *option);
/* Until "memxctl status --json" has @text. */
void server_process_await_status(const ServerProcess *server,
                                 const char *text);
#define NO_SPACE "\"spaces\" : []"
int server_process_pid(const ServerProcess *server);
/* What it has logged since it was last started; g_free(). */
char *server_process_log(const ServerProcess *server);

/* "127.0.0.1:port"; stays the same over restarts. */
const char *server_process_address(const ServerProcess *server);

/* SIGSTOP, and all of its threads stand still when this returns; SIGCONT. */
void server_process_stop(ServerProcess *server);
void server_process_continue(ServerProcess *server);

/* A crash: it is killed and gone when this returns. */
void server_process_kill(ServerProcess *server);
/* After a kill: starts it again, with its pages or as a new, empty one. */
void server_process_restart(ServerProcess *server, bool with_pages);
/* An upgrade: a second one takes over from the first, which ends. */
void server_process_take_over(ServerProcess *server);

#endif
