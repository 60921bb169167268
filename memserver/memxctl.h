/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memxctl: asks and tells a memserver, and looks at this machine.
 */
#ifndef MS_MEMXCTL_H
#define MS_MEMXCTL_H

#include <glib.h>
#include <stdbool.h>
#include "control-json.h"

/* Exit statuses. */
enum {
    MEMXCTL_OK = 0,
    MEMXCTL_FAILED = 1,
    MEMXCTL_USAGE = 2,
};

/* Sub-commands; argv[0] is the sub-command's name. */
int memxctl_status(int argc, char **argv);
int memxctl_drop(int argc, char **argv);
int memxctl_drain(int argc, char **argv);
int memxctl_doctor(int argc, char **argv);

/* Parses a sub-command's options; the rest stays in argv.  On failure says
 * why and returns false: exit with MEMXCTL_USAGE. */
bool memxctl_options(int *argc, char ***argv, const GOptionEntry *entries,
                     const char *arguments, const char *summary);

/*
 * Asks the memserver at @control (NULL: the default) one question.  NULL if
 * there is no answer or it is an error; why has been said.
 */
JsonNode *memxctl_ask(const char *control, JsonBuilder *question);

/* Whether an answer has what is read of it, see ms_json_check(); if not, that
 * has been said. */
bool memxctl_check(JsonObject *object, const MsJsonMember *members);

/* "memxctl: ..." on stderr. */
void memxctl_error(const char *format, ...) G_GNUC_PRINTF(1, 2);

#endif
