/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The daemon's log: one line a message on stderr.  Under systemd each line
 * carries its priority, which the journal strips and keeps.
 */
#ifndef MS_LOG_H
#define MS_LOG_H

#include <glib.h>

void ms_log_info(const char *format, ...) G_GNUC_PRINTF(1, 2);
void ms_log_warn(const char *format, ...) G_GNUC_PRINTF(1, 2);
void ms_log_error(const char *format, ...) G_GNUC_PRINTF(1, 2);

/*
 * For what a stranger can cause: at most ten such lines a second, the rest
 * are counted and the count is told with the next line that gets through.
 */
void ms_log_stranger(const char *format, ...) G_GNUC_PRINTF(1, 2);

#endif
