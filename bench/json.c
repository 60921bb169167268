/*
 * A writer of JSON: see json.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "json.h"

#include <math.h>

void json_init(Json *json)
{
    json->text = g_string_new(NULL);
    json->depth = 0;
    json->first = TRUE;
}

char *json_finish(Json *json)
{
    g_string_append_c(json->text, '\n');
    return g_string_free(json->text, FALSE);
}

static void append_quoted(GString *text, const char *value)
{
    g_string_append_c(text, '"');
    for (const char *c = value; *c; c++) {
        if (*c == '"' || *c == '\\') {
            g_string_append_printf(text, "\\%c", *c);
        } else if ((unsigned char)*c < ' ') {
            g_string_append_printf(text, "\\u%04x", *c);
        } else {
            g_string_append_c(text, *c);
        }
    }
    g_string_append_c(text, '"');
}

static void begin(Json *json, const char *key)
{
    if (json->depth > 0) {
        g_string_append(json->text, json->first ? "\n" : ",\n");
        g_string_append_printf(json->text, "%*s", 2 * json->depth, "");
    }
    json->first = FALSE;
    if (key) {
        append_quoted(json->text, key);
        g_string_append(json->text, ": ");
    }
}

static void open_any(Json *json, const char *key, char bracket)
{
    begin(json, key);
    g_string_append_c(json->text, bracket);
    json->depth++;
    json->first = TRUE;
}

static void close_any(Json *json, char bracket)
{
    json->depth--;
    if (!json->first) {
        g_string_append_printf(json->text, "\n%*s", 2 * json->depth, "");
    }
    g_string_append_c(json->text, bracket);
    json->first = FALSE;
}

void json_open_object(Json *json, const char *key)
{
    open_any(json, key, '{');
}

void json_close_object(Json *json)
{
    close_any(json, '}');
}

void json_open_list(Json *json, const char *key)
{
    open_any(json, key, '[');
}

void json_close_list(Json *json)
{
    close_any(json, ']');
}

void json_number(Json *json, const char *key, double value)
{
    char buf[G_ASCII_DTOSTR_BUF_SIZE];

    if (!isfinite(value)) {
        json_null(json, key);
        return;
    }
    begin(json, key);
    /* Byte counts stay exact, everything else keeps six digits. */
    g_ascii_formatd(buf, sizeof buf,
                    fabs(value) < 9e15 && value == floor(value) ? "%.0f"
                                                                : "%.6g",
                    value);
    g_string_append(json->text, buf);
}

void json_string(Json *json, const char *key, const char *value)
{
    begin(json, key);
    append_quoted(json->text, value);
}

void json_bool(Json *json, const char *key, gboolean value)
{
    begin(json, key);
    g_string_append(json->text, value ? "true" : "false");
}

void json_null(Json *json, const char *key)
{
    begin(json, key);
    g_string_append(json->text, "null");
}
