/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memxctl status: what the control socket tells (status.c), for people.
 */
#include <stdio.h>
#include <string.h>
#include "memxctl.h"

/* What is read below; all of it is checked before any of it is. */

static const MsJsonMember server_members[] = {
    { "name", MS_JSON_STRING },
    { "listen", MS_JSON_STRING },
    { "key_required", MS_JSON_BOOLEAN },
    { "uptime_seconds", MS_JSON_INTEGER },
    { "load_permille", MS_JSON_INTEGER },
    { "connections", MS_JSON_INTEGER },
    { "turned_away", MS_JSON_INTEGER },
    { "stopping", MS_JSON_BOOLEAN },
    { "rates_per_second", MS_JSON_OBJECT },
    /* Missing while it hands over. */
    { "draining", MS_JSON_BOOLEAN, .optional = true },
    { "capacity_bytes", MS_JSON_INTEGER, .optional = true },
    { "free_bytes", MS_JSON_INTEGER, .optional = true },
    { "used_bytes", MS_JSON_INTEGER, .optional = true },
    { "reserved_bytes", MS_JSON_INTEGER, .optional = true },
    { "spaces", MS_JSON_OBJECTS, .optional = true },
    { NULL },
};

static const MsJsonMember rate_members[] = {
    { "stored_pages", MS_JSON_NUMBER },
    { "fetched_pages", MS_JSON_NUMBER },
    { "fetches", MS_JSON_NUMBER },
    { NULL },
};

static const MsJsonMember space_members[] = {
    { "id", MS_JSON_STRING },
    { "vm_name", MS_JSON_STRING },
    { "vm_uuid", MS_JSON_STRING },
    { "region", MS_JSON_STRING },
    { "state", MS_JSON_STRING },
    { "size_bytes", MS_JSON_INTEGER },
    { "held_bytes", MS_JSON_INTEGER },
    { "reserved_bytes", MS_JSON_INTEGER },
    { "age_seconds", MS_JSON_INTEGER },
    { "orphaned_seconds", MS_JSON_INTEGER, .optional = true },
    { "clients", MS_JSON_OBJECTS },
    { "offer", MS_JSON_OBJECT, .optional = true },
    { NULL },
};

static const MsJsonMember client_members[] = {
    { "address", MS_JSON_STRING },
    { "side", MS_JSON_STRING },
    { NULL },
};

static const MsJsonMember offer_members[] = {
    { "owner_resigned", MS_JSON_BOOLEAN },
    { "session", MS_JSON_STRING },
    { NULL },
};

/* The array @name of @object, which may be missing. */
static unsigned n_elements(JsonObject *object, const char *name)
{
    return json_object_has_member(object, name) ?
           json_array_get_length(json_object_get_array_member(object, name)) :
           0;
}

static JsonObject *element(JsonObject *object, const char *name, unsigned i)
{
    return json_array_get_object_element(
        json_object_get_array_member(object, name), i);
}

static bool check_space(JsonObject *space)
{
    bool ok = memxctl_check(space, space_members) &&
              (!json_object_has_member(space, "offer") ||
               memxctl_check(json_object_get_object_member(space, "offer"),
                             offer_members));

    for (unsigned i = 0; ok && i < n_elements(space, "clients"); i++) {
        ok = memxctl_check(element(space, "clients", i), client_members);
    }
    return ok;
}

static bool check_status(JsonObject *status)
{
    bool ok = memxctl_check(status, server_members) &&
              memxctl_check(json_object_get_object_member(
                                status, "rates_per_second"), rate_members);

    for (unsigned i = 0; ok && i < n_elements(status, "spaces"); i++) {
        ok = check_space(element(status, "spaces", i));
    }
    return ok;
}

static char *size_text(JsonObject *object, const char *member)
{
    return g_format_size_full(
        json_object_get_int_member_with_default(object, member, 0),
        G_FORMAT_SIZE_IEC_UNITS);
}

/* "3 d 4 h", "12 min", "5 s" */
static char *age_text(int64_t seconds)
{
    if (seconds >= 86400) {
        return g_strdup_printf("%d d %d h", (int)(seconds / 86400),
                               (int)(seconds / 3600 % 24));
    }
    if (seconds >= 3600) {
        return g_strdup_printf("%d h %d min", (int)(seconds / 3600),
                               (int)(seconds / 60 % 60));
    }
    if (seconds >= 60) {
        return g_strdup_printf("%d min", (int)(seconds / 60));
    }
    return g_strdup_printf("%d s", (int)seconds);
}

static void print_server(JsonObject *s)
{
    g_autofree char *capacity = size_text(s, "capacity_bytes");
    g_autofree char *freed = size_text(s, "free_bytes");
    g_autofree char *used = size_text(s, "used_bytes");
    g_autofree char *reserved = size_text(s, "reserved_bytes");
    g_autofree char *up = age_text(
        json_object_get_int_member(s, "uptime_seconds"));
    JsonObject *rates = json_object_get_object_member(s, "rates_per_second");
    double pages_in = json_object_get_double_member(rates, "stored_pages");
    double pages_out = json_object_get_double_member(rates, "fetched_pages");

    printf("%s: listening on %s%s, up %s, load %.0f %%%s\n",
           json_object_get_string_member(s, "name"),
           json_object_get_string_member(s, "listen"),
           json_object_get_boolean_member(s, "key_required") ?
           "" : " without a key", up,
           json_object_get_int_member(s, "load_permille") / 10.0,
           json_object_get_boolean_member(s, "stopping") ?
           ", handing over" : "");
    if (json_object_get_boolean_member_with_default(s, "draining", FALSE)) {
        unsigned n = n_elements(s, "spaces");

        printf("  DRAINING  %s left, in %u space%s\n", used, n,
               n == 1 ? "" : "s");
    }
    printf("  capacity  %s\n  used      %s\n  reserved  %s\n  free      %s\n",
           capacity, used, reserved, freed);
    printf("  traffic   %.0f pages/s in (%.1f MiB/s), %.0f pages/s out "
           "(%.1f MiB/s), %.0f fetches/s\n", pages_in, pages_in / 256,
           pages_out, pages_out / 256,
           json_object_get_double_member(rates, "fetches"));
    printf("  clients   %d connections, %d turned away\n",
           (int)json_object_get_int_member(s, "connections"),
           (int)json_object_get_int_member(s, "turned_away"));
}

/* The hosts of one side. */
static void print_clients(JsonObject *space, const char *side)
{
    g_autofree char *before = NULL;

    for (unsigned i = 0; i < n_elements(space, "clients"); i++) {
        JsonObject *client = element(space, "clients", i);
        const char *address = json_object_get_string_member(client,
                                                            "address");
        g_autofree char *host = g_strndup(
            address, strrchr(address, ':') ?
            (size_t)(strrchr(address, ':') - address) : strlen(address));

        if (strcmp(json_object_get_string_member(client, "side"), side)) {
            continue;
        }
        /* Three lanes of one host, mostly. */
        if (g_strcmp0(before, host)) {
            printf("%s%s", before ? ", " : "", host);
        }
        g_free(before);
        before = g_steal_pointer(&host);
    }
    printf("%s", before ? "" : "not connected");
}

/* A migration that nobody has decided yet. */
static void print_offer(JsonObject *space)
{
    JsonObject *offer;

    if (!json_object_has_member(space, "offer")) {
        return;
    }
    offer = json_object_get_object_member(space, "offer");
    printf("  offered   to a migration's destination, ");
    print_clients(space, "heir");
    printf("%s; session %.8s\n",
           json_object_get_boolean_member(offer, "owner_resigned") ?
           ", the source has left" : "",
           json_object_get_string_member(offer, "session"));
}

static void print_space(JsonObject *space)
{
    g_autofree char *size = size_text(space, "size_bytes");
    g_autofree char *held = size_text(space, "held_bytes");
    g_autofree char *reserved = size_text(space, "reserved_bytes");
    g_autofree char *age = age_text(
        json_object_get_int_member(space, "age_seconds"));
    bool orphaned = !strcmp(json_object_get_string_member(space, "state"),
                            "orphaned");

    printf("\nspace %s\n", json_object_get_string_member(space, "id"));
    printf("  VM        %s (%s), region %s\n",
           json_object_get_string_member(space, "vm_name"),
           json_object_get_string_member(space, "vm_uuid"),
           json_object_get_string_member(space, "region"));
    printf("  memory    %s held, %s reserved, of %s\n", held, reserved, size);
    if (orphaned) {
        g_autofree char *since = age_text(
            json_object_get_int_member_with_default(
                space, "orphaned_seconds", 0));

        printf("  owner     ORPHANED for %s; created %s ago\n", since, age);
    } else {
        printf("  owner     ");
        print_clients(space, "owner");
        printf("; created %s ago\n", age);
    }
    print_offer(space);
}

int memxctl_status(int argc, char **argv)
{
    g_autofree char *control = NULL;
    gboolean json = FALSE;
    const GOptionEntry entries[] = {
        { "control", 0, 0, G_OPTION_ARG_FILENAME, &control,
          "The memserver's control socket", "PATH" },
        { "json", 0, 0, G_OPTION_ARG_NONE, &json,
          "For programs: JSON, with everything there is", NULL },
        { NULL },
    };
    g_autoptr(JsonBuilder) question = json_builder_new();
    g_autoptr(JsonNode) answer = NULL;
    JsonObject *status;

    if (!memxctl_options(&argc, &argv, entries, NULL,
                         "Shows what a memserver holds, for whom, and how "
                         "busy it is.")) {
        return MEMXCTL_USAGE;
    }
    if (argc > 1) {
        memxctl_error("status takes no '%s'", argv[1]);
        return MEMXCTL_USAGE;
    }
    json_builder_begin_object(question);
    json_builder_set_member_name(question, "command");
    json_builder_add_string_value(question, "status");
    json_builder_end_object(question);
    answer = memxctl_ask(control, question);
    if (!answer) {
        return MEMXCTL_FAILED;
    }
    if (json) {
        g_autofree char *text = json_to_string(answer, TRUE);

        puts(text);
        return MEMXCTL_OK;
    }
    status = json_node_get_object(answer);
    if (!check_status(status)) {
        return MEMXCTL_FAILED;
    }
    print_server(status);
    for (unsigned i = 0; i < n_elements(status, "spaces"); i++) {
        print_space(element(status, "spaces", i));
    }
    return MEMXCTL_OK;
}
