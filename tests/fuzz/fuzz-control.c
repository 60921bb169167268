/*
 * What somebody sends to the control socket: a question that can be answered,
 * or why it is none, in text that an answer can hold.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "control-json.h"
#include "control.h"
#include "fuzz.h"
#include "question.h"

#define INPUT_BYTES_MAX 65536

/* A refusal says why, and nothing else does. */
static void check_told(bool ok, GError *error)
{
    FUZZ_CHECK(ok == !error);
    FUZZ_CHECK(ok || g_utf8_validate(error->message, -1, NULL));
    g_clear_error(&error);
}

static char *receive(const uint8_t *data, size_t bytes)
{
    GError *error = NULL;
    char *line;
    int fds[2];

    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    if (bytes) {
        FUZZ_CHECK(send(fds[1], data, bytes, MSG_NOSIGNAL) ==
                   (ssize_t)bytes);
    }
    shutdown(fds[1], SHUT_WR);
    line = ms_control_receive(fds[0], MS_QUESTION_MAX_BYTES, 10, NULL, NULL,
                              &error);
    check_told(line, error);
    close(fds[0]);
    close(fds[1]);
    return line;
}

/* What is parsed can be said. */
static void parse_json(const char *line)
{
    GError *error = NULL;
    JsonNode *root = ms_json_parse(line, &error);

    check_told(root, error);
    if (root) {
        g_autofree char *text = json_to_string(root, FALSE);

        FUZZ_CHECK(JSON_NODE_HOLDS_OBJECT(root));
        FUZZ_CHECK(g_utf8_validate(text, -1, NULL));
        json_node_unref(root);
    }
}

static void parse_question(const char *line)
{
    MsQuestion question = { .command = 77 };
    GError *error = NULL;
    bool ok = ms_question_parse(&question, line, &error);

    check_told(ok, error);
    if (ok) {
        FUZZ_CHECK(question.command <= MS_COMMAND_HAND_OVER);
        FUZZ_CHECK(g_utf8_validate(question.space, -1, NULL));
        FUZZ_CHECK(question.command != MS_COMMAND_DROP || *question.space);
        ms_question_clear(&question);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    g_autofree char *line = NULL, *text = NULL;

    if (bytes > INPUT_BYTES_MAX) {
        return 0;
    }
    line = receive(data, bytes);
    if (line) {
        FUZZ_CHECK(strlen(line) == bytes - 1);
        parse_question(line);
    }
    /* As an answer, which may be longer. */
    text = bytes ? g_strndup((const char *)data, bytes) : g_strdup("");
    parse_json(text);
    return 0;
}
