/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>
#include <gio/gio.h>
#include "control-json.h"
#include "question.h"

static const MsJsonMember members[] = {
    { "command", MS_JSON_STRING },
    { "space", MS_JSON_STRING, .optional = true },
    { "force", MS_JSON_BOOLEAN, .optional = true },
    { "undo", MS_JSON_BOOLEAN, .optional = true },
    { NULL },
};

static const char *const command_names[] = {
    [MS_COMMAND_STATUS] = "status",
    [MS_COMMAND_DROP] = "drop",
    [MS_COMMAND_DRAIN] = "drain",
    [MS_COMMAND_HAND_OVER] = "hand-over",
};

static bool find_command(MsCommand *command, const char *name,
                         GError **error)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(command_names); i++) {
        if (!strcmp(name, command_names[i])) {
            *command = i;
            return true;
        }
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                "no such command: '%s'", name);
    return false;
}

bool ms_question_parse(MsQuestion *question, const char *line,
                       GError **error)
{
    g_autoptr(JsonNode) root = ms_json_parse(line, error);
    const char *space;
    JsonObject *object;

    if (!root) {
        return false;
    }
    object = json_node_get_object(root);
    *question = (MsQuestion) { 0 };
    if (!ms_json_check(object, members, error) ||
        !find_command(&question->command,
                      json_object_get_string_member(object, "command"),
                      error)) {
        return false;
    }
    space = json_object_get_string_member_with_default(object, "space", "");
    if (question->command == MS_COMMAND_DROP && !*space) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "drop needs a \"space\"");
        return false;
    }
    question->space = g_strdup(space);
    question->force = json_object_get_boolean_member_with_default(
        object, "force", FALSE);
    question->undo = json_object_get_boolean_member_with_default(
        object, "undo", FALSE);
    return true;
}

void ms_question_clear(MsQuestion *question)
{
    g_clear_pointer(&question->space, g_free);
}
