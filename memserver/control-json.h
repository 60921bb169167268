/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * JSON that came over the control socket: whatever the other end sent.
 */
#ifndef MS_CONTROL_JSON_H
#define MS_CONTROL_JSON_H

#include <json-glib/json-glib.h>
#include <stdbool.h>

typedef enum MsJsonType {
    MS_JSON_STRING,
    MS_JSON_BOOLEAN,
    MS_JSON_INTEGER,
    MS_JSON_NUMBER,         /* or an integer */
    MS_JSON_OBJECT,
    MS_JSON_OBJECTS,        /* an array of nothing else */
} MsJsonType;

/* A list of them ends with one without a name. */
typedef struct MsJsonMember {
    const char *name;
    MsJsonType type;
    bool optional;
} MsJsonMember;

/* The object that is all of @line, or NULL and @error. */
JsonNode *ms_json_parse(const char *line, GError **error);

/*
 * Has @object these members, of these types?  Others may be there, too.
 * What is asked about here may be read with json_object_get_*_member(), which
 * don't tell a wrong type, and give NULL for it.
 */
bool ms_json_check(JsonObject *object, const MsJsonMember *members,
                   GError **error);

#endif
