/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "control.h"
#include "memxctl.h"

/* Giving back the memory of a large space takes seconds. */
#define ANSWER_TIMEOUT_S 120

static const char usage[] =
    "Usage: memxctl COMMAND [OPTION...]\n"
    "\n"
    "  status [--json]             capacity, spaces, clients and rates\n"
    "  drop SPACE [--force]        drop an orphaned space and its pages\n"
    "  drain [--undo]              have clients move everything elsewhere\n"
    "  doctor [SERVER...]          is this machine fit, are servers reachable\n"
    "\n"
    "status, drop and drain ask the memserver of this machine; --control PATH says\n"
    "which, if its control socket is not in the usual place.\n"
    "memxctl COMMAND --help tells more.\n";

void memxctl_error(const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "memxctl: %s\n", text);
}

bool memxctl_options(int *argc, char ***argv, const GOptionEntry *entries,
                     const char *arguments, const char *summary)
{
    g_autofree char *name = g_strdup_printf("memxctl %s", (*argv)[0]);
    g_autoptr(GOptionContext) context = g_option_context_new(arguments);
    g_autoptr(GError) error = NULL;

    g_set_prgname(name);
    g_option_context_set_summary(context, summary);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, &error)) {
        memxctl_error("%s; see %s --help", error->message, name);
        return false;
    }
    return true;
}

static char *question_text(JsonBuilder *question)
{
    g_autoptr(JsonNode) root = json_builder_get_root(question);

    return json_to_string(root, FALSE);
}

static void not_understood(const GError *error)
{
    memxctl_error("the answer is not one of a memserver of this version: %s",
                  error->message);
}

bool memxctl_check(JsonObject *object, const MsJsonMember *members)
{
    g_autoptr(GError) error = NULL;

    if (!ms_json_check(object, members, &error)) {
        not_understood(error);
        return false;
    }
    return true;
}

JsonNode *memxctl_ask(const char *control, JsonBuilder *question)
{
    static const MsJsonMember members[] = {
        { "error", MS_JSON_STRING, .optional = true },
        { NULL },
    };
    g_autofree char *path = control ? g_strdup(control) :
                                      ms_control_default_path();
    g_autofree char *text = question_text(question);
    g_autofree char *line = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) root = NULL;
    int fd = ms_control_connect(path, &error);
    JsonObject *object;

    if (fd >= 0) {
        /* A memserver that hung up meanwhile has said why. */
        ms_control_send(fd, text, NULL, 0, NULL);
        line = ms_control_receive(fd, MS_ANSWER_MAX_BYTES, ANSWER_TIMEOUT_S,
                                  NULL, NULL, &error);
        close(fd);
    }
    if (!line) {
        memxctl_error("%s", error->message);
        return NULL;
    }
    root = ms_json_parse(line, &error);
    if (!root) {
        not_understood(error);
        return NULL;
    }
    object = json_node_get_object(root);
    if (!memxctl_check(object, members)) {
        return NULL;
    }
    if (json_object_has_member(object, "error")) {
        memxctl_error("%s", json_object_get_string_member(object, "error"));
        return NULL;
    }
    return g_steal_pointer(&root);
}

int memxctl_drop(int argc, char **argv)
{
    g_autofree char *control = NULL;
    gboolean force = FALSE;
    const GOptionEntry entries[] = {
        { "control", 0, 0, G_OPTION_ARG_FILENAME, &control,
          "The memserver's control socket", "PATH" },
        { "force", 0, 0, G_OPTION_ARG_NONE, &force,
          "Also if a VM uses it, which loses that memory", NULL },
        { NULL },
    };
    g_autoptr(JsonBuilder) question = json_builder_new();
    g_autoptr(JsonNode) answer = NULL;

    if (!memxctl_options(&argc, &argv, entries, "SPACE",
                         "Drops a space with all of its pages.  SPACE is its "
                         "id, or as much of it as is unique.")) {
        return MEMXCTL_USAGE;
    }
    if (argc != 2) {
        memxctl_error("drop needs one SPACE; memxctl status lists them");
        return MEMXCTL_USAGE;
    }
    json_builder_begin_object(question);
    json_builder_set_member_name(question, "command");
    json_builder_add_string_value(question, "drop");
    json_builder_set_member_name(question, "space");
    json_builder_add_string_value(question, argv[1]);
    json_builder_set_member_name(question, "force");
    json_builder_add_boolean_value(question, force);
    json_builder_end_object(question);
    answer = memxctl_ask(control, question);
    return answer ? MEMXCTL_OK : MEMXCTL_FAILED;
}

int memxctl_drain(int argc, char **argv)
{
    g_autofree char *control = NULL;
    gboolean undo = FALSE;
    const GOptionEntry entries[] = {
        { "control", 0, 0, G_OPTION_ARG_FILENAME, &control,
          "The memserver's control socket", "PATH" },
        { "undo", 0, 0, G_OPTION_ARG_NONE, &undo,
          "It may stay; what has been moved doesn't come back", NULL },
        { NULL },
    };
    g_autoptr(JsonBuilder) question = json_builder_new();
    g_autoptr(JsonNode) answer = NULL;

    if (!memxctl_options(&argc, &argv, entries, NULL,
                         "Has all clients move what they have on this server "
                         "to their other servers, while their VMs run.")) {
        return MEMXCTL_USAGE;
    }
    if (argc > 1) {
        memxctl_error("drain takes no '%s'", argv[1]);
        return MEMXCTL_USAGE;
    }
    json_builder_begin_object(question);
    json_builder_set_member_name(question, "command");
    json_builder_add_string_value(question, "drain");
    json_builder_set_member_name(question, "undo");
    json_builder_add_boolean_value(question, undo);
    json_builder_end_object(question);
    answer = memxctl_ask(control, question);
    return answer ? MEMXCTL_OK : MEMXCTL_FAILED;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {
        { "status", memxctl_status },
        { "drop", memxctl_drop },
        { "drain", memxctl_drain },
        { "doctor", memxctl_doctor },
    };
    const char *name = argc > 1 ? argv[1] : "";

    setlocale(LC_ALL, "");
    signal(SIGPIPE, SIG_IGN);
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (!strcmp(name, commands[i].name)) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (!strcmp(name, "--version")) {
        printf("memxctl %s\n", MEMX_VERSION);
        return MEMXCTL_OK;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "help")) {
        fputs(usage, stdout);
        return MEMXCTL_OK;
    }
    if (*name) {
        memxctl_error("there is no command '%s'", name);
    }
    fputs(usage, stderr);
    return MEMXCTL_USAGE;
}
