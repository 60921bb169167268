/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <json-glib/json-glib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "lanes.h"
#include "status.h"

static const char *const lane_names[MS_LANES] = {
    [MEMX_LANE_ORDERED] = "ordered",
    [MEMX_LANE_FAULT] = "fault",
    [MEMX_LANE_FETCH] = "fetch",
};

static void add_int(JsonBuilder *json, const char *name, int64_t value)
{
    json_builder_set_member_name(json, name);
    json_builder_add_int_value(json, value);
}

static void add_pages(JsonBuilder *json, const char *name, uint64_t pages)
{
    add_int(json, name, pages * MEMX_PAGE_BYTES);
}

static void add_string(JsonBuilder *json, const char *name, const char *value)
{
    json_builder_set_member_name(json, name);
    json_builder_add_string_value(json, value);
}

static void add_bool(JsonBuilder *json, const char *name, bool value)
{
    json_builder_set_member_name(json, name);
    json_builder_add_boolean_value(json, value);
}

static void add_hex(JsonBuilder *json, const char *name, const uint8_t *id)
{
    char text[MEMX_ID_BYTES * 2 + 1];

    for (unsigned i = 0; i < MEMX_ID_BYTES; i++) {
        snprintf(text + 2 * i, 3, "%02x", id[i]);
    }
    add_string(json, name, text);
}

static void add_uuid(JsonBuilder *json, const char *name, const uint8_t *u)
{
    g_autofree char *text = g_strdup_printf(
        "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
        "%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3], u[4], u[5], u[6],
        u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);

    add_string(json, name, text);
}

static void begin(JsonBuilder *json, const char *name)
{
    json_builder_set_member_name(json, name);
    json_builder_begin_object(json);
}

static void add_counters(JsonBuilder *json, const uint64_t *counters)
{
    begin(json, "counters");
    for (int i = 0; i < MS_N_COUNTERS; i++) {
        add_int(json, ms_counter_names[i], counters[i]);
    }
    json_builder_end_object(json);
}

static void add_clients(JsonBuilder *json, const MsSpace *space)
{
    json_builder_set_member_name(json, "clients");
    json_builder_begin_array(json);
    for (unsigned i = 0; i < MS_SIDES * MS_LANES; i++) {
        unsigned side = i / MS_LANES, lane = i % MS_LANES;
        const MsConnection *connection = space->sides[side].lanes[lane];

        if (connection) {
            json_builder_begin_object(json);
            add_string(json, "lane", lane_names[lane]);
            add_string(json, "side",
                       side == space->owner_side ? "owner" : "heir");
            add_string(json, "address", connection->peer);
            json_builder_end_object(json);
        }
    }
    json_builder_end_array(json);
}

/* Servers that copy pages from here. */
static void add_readers(JsonBuilder *json, const MsSpace *space)
{
    json_builder_set_member_name(json, "readers");
    json_builder_begin_array(json);
    for (unsigned i = 0; i < MS_READERS; i++) {
        if (space->readers[i]) {
            json_builder_add_string_value(json, space->readers[i]->peer);
        }
    }
    json_builder_end_array(json);
}

/* A space that is being handed over, and who of the two is there. */
static void add_offer(JsonBuilder *json, const MsSpace *space)
{
    const MsOwner *owner = ms_space_owner(space);

    if (owner->offer_state == MS_OFFER_NONE) {
        return;
    }
    begin(json, "offer");
    add_hex(json, "session", owner->offer.session);
    add_hex(json, "heir", owner->offer.heir);
    add_bool(json, "heir_connected",
             ms_lanes_side_any_locked(space, !space->owner_side));
    add_bool(json, "owner_connected",
             ms_lanes_side_any_locked(space, space->owner_side));
    add_bool(json, "owner_resigned",
             owner->offer_state == MS_OFFER_RESIGNED);
    json_builder_end_object(json);
}

static const char *space_state(const MsSpace *space)
{
    if (!ms_lanes_any_locked(space)) {
        return "orphaned";
    }
    if (ms_space_owner(space)->offer_state == MS_OFFER_NONE) {
        return "owned";
    }
    return ms_lanes_side_any_locked(space, !space->owner_side) ? "incoming" :
                                                                 "offered";
}

static void add_space_locked(JsonBuilder *json, const MsSpace *space)
{
    const MsRecord *record = space->record;
    int64_t now_s = g_get_real_time() / G_USEC_PER_SEC;
    bool orphaned = !ms_lanes_any_locked(space);
    int64_t since_s = atomic_load(&record->orphaned_s);
    uint64_t counters[MS_N_COUNTERS];

    json_builder_begin_object(json);
    add_hex(json, "id", record->id);
    add_string(json, "vm_name", record->vm_name);
    add_uuid(json, "vm_uuid", record->vm_uuid);
    add_string(json, "region", record->region_name);
    add_pages(json, "size_bytes", space->size_pages);
    add_pages(json, "held_bytes", atomic_load(&space->held_pages));
    add_pages(json, "reserved_bytes", atomic_load(&record->reserved_pages));
    add_pages(json, "table_bytes", atomic_load(&space->table_pages));
    add_int(json, "epoch", ms_space_owner(space)->epoch);
    add_hex(json, "client", ms_space_owner(space)->client);
    add_int(json, "age_seconds",
            MAX(0, now_s - atomic_load(&record->created_s)));
    add_string(json, "state", space_state(space));
    if (orphaned) {
        add_int(json, "orphaned_seconds",
                since_s ? MAX(0, now_s - since_s) : 0);
    }
    add_offer(json, space);
    add_clients(json, space);
    add_readers(json, space);
    ms_space_count_locked(space, counters);
    add_counters(json, counters);
    json_builder_end_object(json);
}

static gint compare_spaces(gconstpointer a, gconstpointer b)
{
    const MsRecord *x = ((const MsSpace *)a)->record;
    const MsRecord *y = ((const MsSpace *)b)->record;
    int by_name = strcmp(x->vm_name, y->vm_name);

    return by_name ? by_name : strcmp(x->region_name, y->region_name);
}

static void add_store_locked(JsonBuilder *json, MsServer *server)
{
    MsStore *store = server->store;
    g_autoptr(GList) spaces = NULL;
    uint64_t reserved = 0, tables = 0;

    spaces = g_list_sort(g_hash_table_get_values(store->spaces),
                         compare_spaces);
    for (GList *link = spaces; link; link = link->next) {
        MsSpace *space = link->data;

        reserved += atomic_load(&space->record->reserved_pages);
        tables += atomic_load(&space->table_pages);
    }
    add_hex(json, "instance", store->backing.super->instance);
    add_bool(json, "draining", ms_store_draining(store));
    add_pages(json, "capacity_bytes", store->capacity_pages);
    add_pages(json, "free_bytes", ms_store_free_pages(store));
    add_pages(json, "used_bytes", ms_store_held_pages(store));
    add_pages(json, "reserved_bytes", reserved);
    add_pages(json, "table_bytes", tables);
    json_builder_set_member_name(json, "spaces");
    json_builder_begin_array(json);
    for (GList *link = spaces; link; link = link->next) {
        add_space_locked(json, link->data);
    }
    json_builder_end_array(json);
}

static void add_server_locked(JsonBuilder *json, MsServer *server)
{
    g_autofree char *address =
        server->transport->listener_address(server->listener);
    uint64_t counters[MS_N_COUNTERS];

    add_string(json, "name", server->name);
    add_string(json, "version", MEMX_VERSION);
    add_int(json, "protocol_version", MEMX_PROTOCOL_VERSION);
    add_int(json, "pid", getpid());
    add_string(json, "listen", address);
    add_bool(json, "key_required", server->key);
    add_int(json, "uptime_seconds",
            (g_get_monotonic_time() - server->started_us) / G_USEC_PER_SEC);
    add_int(json, "load_permille", atomic_load(&server->load_permille));
    add_int(json, "connections", server->connections.length);
    add_int(json, "accepted", server->n_accepted);
    add_int(json, "turned_away", server->n_turned_away);
    add_bool(json, "stopping", server->stopping);
    ms_server_count_locked(server, counters);
    add_counters(json, counters);
    begin(json, "rates_per_second");
    for (int i = 0; i < MS_N_COUNTERS; i++) {
        json_builder_set_member_name(json, ms_counter_names[i]);
        json_builder_add_double_value(json, server->rates[i]);
    }
    json_builder_end_object(json);
}

char *ms_status_json(MsServer *server)
{
    g_autoptr(JsonBuilder) json = json_builder_new();
    g_autoptr(JsonNode) root = NULL;

    json_builder_begin_object(json);
    g_mutex_lock(&server->lock);
    add_server_locked(json, server);
    if (server->store) {
        add_store_locked(json, server);
    }
    g_mutex_unlock(&server->lock);
    json_builder_end_object(json);
    root = json_builder_get_root(json);
    return json_to_string(root, FALSE);
}

char *ms_status_text(MsServer *server)
{
    g_autofree char *held = NULL, *capacity = NULL;
    unsigned n;

    g_mutex_lock(&server->lock);
    if (!server->store) {
        g_mutex_unlock(&server->lock);
        return g_strdup("handing over to a successor");
    }
    held = g_format_size_full(ms_store_held_pages(server->store) *
                              MEMX_PAGE_BYTES, G_FORMAT_SIZE_IEC_UNITS);
    capacity = g_format_size_full(server->store->capacity_pages *
                                  MEMX_PAGE_BYTES, G_FORMAT_SIZE_IEC_UNITS);
    n = g_hash_table_size(server->store->spaces);
    g_mutex_unlock(&server->lock);
    return g_strdup_printf("%s of %s held, %u space%s", held, capacity, n,
                           n == 1 ? "" : "s");
}
