/*
 * Capability and parameters of a split migration.
 *
 * They live in QEMU's own MigrationParameters, so that QMP, HMP and libvirt
 * treat them as any other; what QEMU's options.c would say about them is
 * here.  Hosts are only read when a migration begins (memx-split-plan.c):
 * libvirt sets capabilities first and parameters in any order.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qapi/visitor.h"
#include "hooks.h"
#include "memx-split.h"

#define WARM_UP_DEFAULT 3
#define WARM_UP_MAX 60

bool memx_split_migration(void)
{
    return migrate_get_current()->
        capabilities[MIGRATION_CAPABILITY_SPLIT_MIGRATION];
}

bool memx_split_capability(int capability)
{
    return capability == MIGRATION_CAPABILITY_SPLIT_MIGRATION;
}

/* What a split can't go together with, and why. */
static const struct {
    MigrationCapability capability;
    const char *why;
} conflicts[] = {
    { MIGRATION_CAPABILITY_POSTCOPY_RAM,
      "cold memory is fetched from memory servers, not from the source" },
    { MIGRATION_CAPABILITY_X_COLO, "COLO needs all memory at both sides" },
    { MIGRATION_CAPABILITY_MAPPED_RAM, "a file can't take a VM over" },
    { MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
      "a snapshot can't take a VM over" },
    { MIGRATION_CAPABILITY_X_IGNORE_SHARED, "it splits private memory only" },
    { MIGRATION_CAPABILITY_RDMA_PIN_ALL, "it needs a socket" },
#ifdef CONFIG_LINUX
    { MIGRATION_CAPABILITY_ZERO_COPY_SEND,
      "pages may leave this host while they are being sent" },
#endif
};

bool memx_split_allows_capabilities(const bool *caps, Error **errp)
{
    unsigned i;

    if (!caps[MIGRATION_CAPABILITY_SPLIT_MIGRATION]) {
        return true;
    }
    for (i = 0; i < G_N_ELEMENTS(conflicts); i++) {
        if (caps[conflicts[i].capability]) {
            error_setg(errp, "split-migration and %s exclude each other: %s; "
                       "switch one of them off",
                       MigrationCapability_str(conflicts[i].capability),
                       conflicts[i].why);
            return false;
        }
    }
    return true;
}

/* Who takes a VM over must be able to refuse it. */
bool memx_allows_transport(int transport, Error **errp)
{
    if (memx_split_migration() &&
        transport != MIGRATION_ADDRESS_TYPE_SOCKET) {
        error_setg(errp, "split-migration needs a destination that answers: "
                   "use tcp: or unix:, not %s:, or switch it off",
                   MigrationAddressType_str(transport));
        return false;
    }
    return true;
}

/* --- parameters -------------------------------------------------------- */

void memx_params_init(MigrationParameters *params)
{
    params->split_hosts = g_strdup("");
    params->split_key_secret = g_strdup("");
    params->split_warm_up = WARM_UP_DEFAULT;
}

/* Always all of them: who changes one for a while wants to put it back. */
void memx_params_query(MigrationParameters *to,
                       const MigrationParameters *from)
{
    to->split_hosts = g_strdup(from->split_hosts);
    to->has_split_local_size = true;
    to->split_local_size = from->split_local_size;
    to->has_split_warm_up = true;
    to->split_warm_up = from->split_warm_up;
    to->split_key_secret = g_strdup(from->split_key_secret);
    to->has_split_insecure = true;
    to->split_insecure = from->split_insecure;
}

void memx_params_apply(const MigrateSetParameters *from,
                       MigrationParameters *to)
{
    if (from->split_hosts) {
        g_free(to->split_hosts);
        to->split_hosts = g_strdup(from->split_hosts);
    }
    if (from->has_split_local_size) {
        to->split_local_size = from->split_local_size;
    }
    if (from->has_split_warm_up) {
        to->split_warm_up = from->split_warm_up;
    }
    if (from->split_key_secret) {
        g_free(to->split_key_secret);
        to->split_key_secret = g_strdup(from->split_key_secret);
    }
    if (from->has_split_insecure) {
        to->split_insecure = from->split_insecure;
    }
}

bool memx_params_check(const MigrateSetParameters *params, Error **errp)
{
    if (params->has_split_warm_up && params->split_warm_up > WARM_UP_MAX) {
        error_setg(errp, "split-warm-up must be 0 to %d seconds",
                   WARM_UP_MAX);
        return false;
    }
    return true;
}

void memx_params_hmp_set(int parameter, const char *name, Visitor *v,
                         MigrateSetParameters *p, Error **errp)
{
    switch (parameter) {
    case MIGRATION_PARAMETER_SPLIT_HOSTS:
        visit_type_str(v, name, &p->split_hosts, errp);
        break;
    case MIGRATION_PARAMETER_SPLIT_LOCAL_SIZE:
        p->has_split_local_size = true;
        visit_type_size(v, name, &p->split_local_size, errp);
        break;
    case MIGRATION_PARAMETER_SPLIT_WARM_UP:
        p->has_split_warm_up = true;
        visit_type_uint32(v, name, &p->split_warm_up, errp);
        break;
    case MIGRATION_PARAMETER_SPLIT_KEY_SECRET:
        visit_type_str(v, name, &p->split_key_secret, errp);
        break;
    case MIGRATION_PARAMETER_SPLIT_INSECURE:
        p->has_split_insecure = true;
        visit_type_bool(v, name, &p->split_insecure, errp);
        break;
    default:
        g_assert_not_reached();
    }
}

void memx_params_hmp_print(Monitor *mon, const MigrationParameters *p)
{
    monitor_printf(mon, "%s: '%s'\n",
        MigrationParameter_str(MIGRATION_PARAMETER_SPLIT_HOSTS),
        p->split_hosts);
    monitor_printf(mon, "%s: %" PRIu64 " bytes\n",
        MigrationParameter_str(MIGRATION_PARAMETER_SPLIT_LOCAL_SIZE),
        p->split_local_size);
    monitor_printf(mon, "%s: %u s\n",
        MigrationParameter_str(MIGRATION_PARAMETER_SPLIT_WARM_UP),
        p->split_warm_up);
    monitor_printf(mon, "%s: '%s'\n",
        MigrationParameter_str(MIGRATION_PARAMETER_SPLIT_KEY_SECRET),
        p->split_key_secret);
    monitor_printf(mon, "%s: %s\n",
        MigrationParameter_str(MIGRATION_PARAMETER_SPLIT_INSECURE),
        p->split_insecure ? "on" : "off");
}
