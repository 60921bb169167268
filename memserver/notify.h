/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What systemd, or whoever plays its part, is told, and the descriptors it
 * keeps for us: sd_notify(3) and sd_listen_fds(3), spoken directly.
 */
#ifndef MS_NOTIFY_H
#define MS_NOTIFY_H

#include <glib.h>
#include <stdbool.h>
#include "backing.h"

/* Is there somebody to tell? */
bool ms_notify_heard(void);

/* Sends lines such as "READY=1"; without a listener, nothing. */
void ms_notify(const char *format, ...) G_GNUC_PRINTF(1, 2);

/*
 * Gives the memfds to the descriptor store, under their names.  False and
 * @error if there is a listener that does not take them.
 */
bool ms_notify_keep(const int fds[MS_N_FILES], GError **error);

/* How many descriptors came from the descriptor store, of ours; those that
 * did are in @fds, the others are -1.  Strange ones are closed. */
int ms_notify_kept(int fds[MS_N_FILES]);

#endif
