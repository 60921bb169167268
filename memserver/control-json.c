/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * json-glib takes more than JSON: several values of which one counts,
 * comments, assignments.  And it recurses without a limit before version 1.10,
 * so that a line of brackets overflows the stack.  So each line is looked at
 * before it is parsed.
 */
#include <string.h>
#include <gio/gio.h>
#include "control-json.h"

/* A status needs 5. */
#define DEPTH_MAX 16

static bool refuse(GError **error, const char *why)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s", why);
    return false;
}

/* Behind the string that begins at @at; NULL and @error if it doesn't end, or
 * would end sooner in C. */
static const char *skip_string(const char *at, GError **error)
{
    while (*++at != '"') {
        if (g_str_has_prefix(at, "\\u0000")) {
            refuse(error, "there is a NUL character in it");
            return NULL;
        }
        if (*at == '\\') {
            at++;
        }
        if (!*at) {
            refuse(error, "not JSON: a string does not end");
            return NULL;
        }
    }
    return at + 1;
}

/* One object, not too deep, and nothing but what JSON is made of. */
static bool check_shape(const char *line, GError **error)
{
    const char *at = line + strspn(line, " \t\r\n");
    int depth = 0;

    if (*at != '{') {
        return refuse(error, "not a JSON object");
    }
    do {
        if (*at == '"') {
            at = skip_string(at, error);
            if (!at) {
                return false;
            }
            continue;
        }
        if (strchr("{[", *at)) {
            if (++depth > DEPTH_MAX) {
                return refuse(error, "nested too deep");
            }
        } else if (strchr("}]", *at)) {
            depth--;
        } else if (!g_ascii_isalnum(*at) && !strchr(":,+-. \t\r\n", *at)) {
            return refuse(error, "not JSON: something between its values");
        }
        at++;
    } while (*at && depth);
    at += strspn(at, " \t\r\n");
    if (depth) {
        return refuse(error, "not JSON: an object does not end");
    }
    return !*at || refuse(error, "something follows the JSON object");
}

JsonNode *ms_json_parse(const char *line, GError **error)
{
    g_autoptr(JsonParser) parser = NULL;
    JsonNode *root;

    if (!g_utf8_validate(line, -1, NULL)) {
        refuse(error, "not UTF-8");
        return NULL;
    }
    if (!check_shape(line, error)) {
        return NULL;
    }
    parser = json_parser_new();
    if (!json_parser_load_from_data(parser, line, -1, error)) {
        g_prefix_error(error, "not JSON: ");
        return NULL;
    }
    root = json_parser_steal_root(parser);
    if (!root || !JSON_NODE_HOLDS_OBJECT(root)) {
        g_clear_pointer(&root, json_node_unref);
        refuse(error, "not a JSON object");
    }
    return root;
}

static const char *const type_names[] = {
    [MS_JSON_STRING] = "a string",
    [MS_JSON_BOOLEAN] = "true or false",
    [MS_JSON_INTEGER] = "an integer",
    [MS_JSON_NUMBER] = "a number",
    [MS_JSON_OBJECT] = "an object",
    [MS_JSON_OBJECTS] = "an array of objects",
};

static bool holds_objects(JsonNode *node)
{
    JsonArray *array;

    if (!JSON_NODE_HOLDS_ARRAY(node)) {
        return false;
    }
    array = json_node_get_array(node);
    for (unsigned i = 0; i < json_array_get_length(array); i++) {
        if (!JSON_NODE_HOLDS_OBJECT(json_array_get_element(array, i))) {
            return false;
        }
    }
    return true;
}

static bool holds(JsonNode *node, MsJsonType type)
{
    GType value = JSON_NODE_HOLDS_VALUE(node) ?
                  json_node_get_value_type(node) : G_TYPE_INVALID;

    switch (type) {
    case MS_JSON_STRING:
        return value == G_TYPE_STRING;
    case MS_JSON_BOOLEAN:
        return value == G_TYPE_BOOLEAN;
    case MS_JSON_INTEGER:
        return value == G_TYPE_INT64;
    case MS_JSON_NUMBER:
        return value == G_TYPE_INT64 || value == G_TYPE_DOUBLE;
    case MS_JSON_OBJECT:
        return JSON_NODE_HOLDS_OBJECT(node);
    case MS_JSON_OBJECTS:
        return holds_objects(node);
    }
    g_assert_not_reached();
}

bool ms_json_check(JsonObject *object, const MsJsonMember *members,
                   GError **error)
{
    for (const MsJsonMember *m = members; m->name; m++) {
        JsonNode *node = json_object_get_member(object, m->name);

        if (node ? !holds(node, m->type) : !m->optional) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                        "\"%s\" must be %s%s", m->name, type_names[m->type],
                        node ? "" : ", and is missing");
            return false;
        }
    }
    return true;
}
