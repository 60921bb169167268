/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is asked at the control socket; control.c tells the form.
 */
#ifndef MS_QUESTION_H
#define MS_QUESTION_H

#include <glib.h>
#include <stdbool.h>

typedef enum MsCommand {
    MS_COMMAND_STATUS,
    MS_COMMAND_DROP,
    MS_COMMAND_DRAIN,
    MS_COMMAND_HAND_OVER,
} MsCommand;

typedef struct MsQuestion {
    MsCommand command;
    char *space;            /* of drop; never empty */
    bool force;
    bool undo;              /* of drain */
} MsQuestion;

/* @line may be anything.  False and @error: there is nothing to clear. */
bool ms_question_parse(MsQuestion *question, const char *line,
                       GError **error);
void ms_question_clear(MsQuestion *question);

#endif
