/*
 * A writer of JSON: what a report is printed with.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_JSON_H
#define BENCH_JSON_H

#include <glib.h>

typedef struct Json {
    GString *text;
    int depth;
    gboolean first;         /* in the innermost object or list */
} Json;

void json_init(Json *json);
char *json_finish(Json *json);

/* @key is NULL inside a list. */
void json_open_object(Json *json, const char *key);
void json_close_object(Json *json);
void json_open_list(Json *json, const char *key);
void json_close_list(Json *json);
void json_number(Json *json, const char *key, double value); /* NAN: null */
void json_string(Json *json, const char *key, const char *value);
void json_bool(Json *json, const char *key, gboolean value);
void json_null(Json *json, const char *key);

#endif
