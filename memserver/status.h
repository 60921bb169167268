/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the control socket tells of the server, as JSON.
 */
#ifndef MS_STATUS_H
#define MS_STATUS_H

#include "server.h"

/* One line without its end.  Any thread but a connection's. */
char *ms_status_json(MsServer *server);

/* "1.5 GiB of 4.0 GiB held, 2 spaces": for systemctl status and the log. */
char *ms_status_text(MsServer *server);

#endif
