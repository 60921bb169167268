/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <gio/gio.h>
#include "host.h"

uint64_t ms_host_meminfo_bytes(const char *field)
{
    g_autofree char *text = NULL;
    g_autofree char *key = g_strdup_printf("%s:", field);
    char *at;

    if (!g_file_get_contents("/proc/meminfo", &text, NULL, NULL)) {
        return 0;
    }
    for (at = text; at; at = strchr(at, '\n'), at = at ? at + 1 : NULL) {
        if (g_str_has_prefix(at, key)) {
            return g_ascii_strtoull(at + strlen(key), NULL, 10) * 1024;
        }
    }
    return 0;
}

/* A number in a file of a cgroup; "max", or no such file, is no limit. */
static uint64_t read_limit(const char *cgroup, const char *file)
{
    g_autofree char *path = g_build_filename(cgroup, file, NULL);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        !g_ascii_isdigit(text[0])) {
        return UINT64_MAX;
    }
    return g_ascii_strtoull(text, NULL, 10);
}

static uint64_t cgroup_available(void)
{
    g_autofree char *text = NULL;
    g_autofree char *path = NULL;
    uint64_t available = UINT64_MAX;
    const char *own;

    if (!g_file_get_contents("/proc/self/cgroup", &text, NULL, NULL)) {
        return available;
    }
    own = g_str_has_prefix(text, "0::") ? text : strstr(text, "\n0::");
    if (!own) {
        return available;
    }
    own = strchr(own, '/');
    g_strdelimit(text, "\n", '\0');
    path = g_strconcat("/sys/fs/cgroup", own, NULL);
    while (strlen(path) > strlen("/sys/fs/cgroup")) {
        uint64_t limit = read_limit(path, "memory.max");
        uint64_t used = read_limit(path, "memory.current");

        if (limit != UINT64_MAX && used != UINT64_MAX) {
            available = MIN(available, limit > used ? limit - used : 0);
        }
        *strrchr(path, '/') = '\0';
    }
    return available;
}

uint64_t ms_host_available_bytes(void)
{
    return MIN(ms_host_meminfo_bytes("MemAvailable"), cgroup_available());
}

unsigned ms_host_load_permille(void)
{
    static uint64_t last_busy, last_total;
    uint64_t v[8] = { 0 }, busy, total = 0;
    unsigned permille = 0;
    FILE *file = fopen("/proc/stat", "re");

    /* user nice system idle iowait irq softirq steal */
    if (!file) {
        return 0;
    }
    if (fscanf(file, "cpu %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT
               " %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT
               " %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT
               " %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT,
               &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6],
               &v[7]) != 8) {
        fclose(file);
        return 0;
    }
    fclose(file);
    for (int i = 0; i < 8; i++) {
        total += v[i];
    }
    busy = total - v[3] - v[4];
    if (total > last_total && busy >= last_busy) {
        permille = (busy - last_busy) * 1000 / (total - last_total);
    }
    last_busy = busy;
    last_total = total;
    return MIN(permille, 1000);
}

bool ms_parse_size(const char *text, uint64_t *bytes, GError **error)
{
    static const char units[] = "BKMGTP";
    char *end;
    double value = g_ascii_strtod(text, &end);
    const char *unit = *end ? strchr(units, g_ascii_toupper(*end)) : units;

    if (end == text || !isfinite(value) || value <= 0 || !unit ||
        (*end && end[1] && g_ascii_strcasecmp(end + 1, "iB") &&
         g_ascii_strcasecmp(end + 1, "B")) ||
        ldexp(value, 10 * (unit - units)) >= 0x1p63) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "'%s' is not a size; give bytes, or a number with K, M, "
                    "G or T such as 64G", text);
        return false;
    }
    *bytes = ldexp(value, 10 * (unit - units));
    return true;
}
