/*
 * Report: see report.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "report.h"

#include <json-glib/json-glib.h>
#include <math.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define MB_PER_GBIT 125
#define LINK_FILLED 0.95
#define LIST_MAX 8

typedef struct Verdict {
    char *key;
    char *missing;          /* why there is no value */
    bool list;
    double value[LIST_MAX];
    int n;
    double must;
    double aim;
} Verdict;

typedef struct Detail {
    char *key;
    double value;
} Detail;

struct Report {
    char *command;
    bool quick;
    int repetitions;
    uint64_t verified_pages;
    GArray *verdicts;
    GArray *figures;
    GArray *details;
    GPtrArray *warnings;
};

Report *report_new(const char *command, bool quick, int repetitions)
{
    Report *report = g_new0(Report, 1);

    report->command = g_strdup(command);
    report->quick = quick;
    report->repetitions = repetitions;
    report->verdicts = g_array_new(FALSE, TRUE, sizeof(Verdict));
    report->figures = g_array_new(FALSE, TRUE, sizeof(Figure));
    report->details = g_array_new(FALSE, TRUE, sizeof(Detail));
    report->warnings = g_ptr_array_new_with_free_func(g_free);
    return report;
}

void report_free(Report *report)
{
    for (guint i = 0; i < report->verdicts->len; i++) {
        Verdict *verdict = &g_array_index(report->verdicts, Verdict, i);

        g_free(verdict->key);
        g_free(verdict->missing);
    }
    for (guint i = 0; i < report->details->len; i++) {
        g_free(g_array_index(report->details, Detail, i).key);
    }
    g_array_unref(report->verdicts);
    g_array_unref(report->figures);
    g_array_unref(report->details);
    g_ptr_array_unref(report->warnings);
    g_free(report->command);
    g_free(report);
}

void report_verdict(Report *report, const char *key, double value,
                    double must, double aim)
{
    Verdict verdict = { .key = g_strdup(key), .value = { value }, .n = 1,
                        .must = must, .aim = aim };

    g_array_append_val(report->verdicts, verdict);
}

void report_verdict_list(Report *report, const char *key,
                         const double *values, int n, double must,
                         double aim)
{
    Verdict verdict = { .key = g_strdup(key), .list = true,
                        .n = MIN(n, LIST_MAX), .must = must, .aim = aim };

    memcpy(verdict.value, values, (size_t)verdict.n * sizeof(double));
    g_array_append_val(report->verdicts, verdict);
}

void report_verdict_missing(Report *report, const char *key,
                            const char *reason)
{
    Verdict verdict = { .key = g_strdup(key), .missing = g_strdup(reason) };

    g_array_append_val(report->verdicts, verdict);
}

void report_figure(Report *report, const Figure *figure)
{
    g_array_append_val(report->figures, *figure);
}

Figure figure_begin(const char *name, const char *unit, const char *raw_name,
                    const Pinning *pinning, const char *link, CpuLoad *load)
{
    /* A link's name goes with the link; the report is printed later. */
    Figure figure = { .name = name, .unit = unit, .raw_name = raw_name,
                      .pinning = pinning->name,
                      .link = g_intern_string(link) };

    cpu_load_begin(load);
    figure.loadavg = load->loadavg;
    return figure;
}

void figure_end(Figure *figure, const CpuLoad *load)
{
    figure->others_cpus = cpu_load_others(load);
}

void figure_add(Figure *figure, double raw, double ours)
{
    series_add(&figure->raw, raw);
    series_add(&figure->ours, ours);
    if (raw > 0) {
        series_add(&figure->ratio, ours / raw);
    }
}

void report_detail(Report *report, const char *key, double value)
{
    Detail detail = { g_strdup(key), value };

    g_array_append_val(report->details, detail);
}

void report_verified(Report *report, uint64_t pages)
{
    report->verified_pages += pages;
}

void report_warn(Report *report, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(report->warnings, g_strdup_vprintf(format, args));
    va_end(args);
}

void report_link_filled(Report *report, const Figure *figure, int gbit)
{
    double raw = series_median(&figure->raw);

    if (raw < LINK_FILLED * gbit * MB_PER_GBIT) {
        report_warn(report, "%s, %s: raw TCP itself carries %.0f MB/s of %d; "
                    "what binds here is not the link but the CPUs, and the "
                    "ratio is one of CPU time. With --link=%d the link would "
                    "bind", figure->name, figure->pinning, raw,
                    gbit * MB_PER_GBIT, MAX((int)(raw / 2 / MB_PER_GBIT), 1));
    }
}

/* NAN, of what wasn't measured, becomes null. */
static void put_number(JsonBuilder *json, const char *key, double value)
{
    if (key) {
        json_builder_set_member_name(json, key);
    }
    if (!isfinite(value)) {
        json_builder_add_null_value(json);
    } else if (value == floor(value) && fabs(value) < 9e15) {
        json_builder_add_int_value(json, (gint64)value);
    } else {
        json_builder_add_double_value(json, value);
    }
}

static void put_string(JsonBuilder *json, const char *key, const char *value)
{
    if (key) {
        json_builder_set_member_name(json, key);
    }
    json_builder_add_string_value(json, value);
}

static void put_series(JsonBuilder *json, const char *key,
                       const Series *series)
{
    json_builder_set_member_name(json, key);
    json_builder_begin_object(json);
    put_number(json, "median", series_median(series));
    put_number(json, "min", series_min(series));
    put_number(json, "max", series_max(series));
    json_builder_set_member_name(json, "values");
    json_builder_begin_array(json);
    for (int i = 0; i < series->n; i++) {
        put_number(json, NULL, series->value[i]);
    }
    json_builder_end_array(json);
    json_builder_end_object(json);
}

static void put_figure(JsonBuilder *json, const Figure *figure)
{
    json_builder_begin_object(json);
    put_string(json, "name", figure->name);
    put_string(json, "unit", figure->unit);
    put_string(json, "pinning", figure->pinning);
    if (figure->link) {
        put_string(json, "link", figure->link);
    }
    put_number(json, "loadavg", figure->loadavg);
    put_number(json, "others_cpus", figure->others_cpus);
    if (figure->raw_name) {
        put_string(json, "raw_is", figure->raw_name);
        put_series(json, "raw", &figure->raw);
    }
    put_series(json, "memx", &figure->ours);
    if (figure->raw_name) {
        put_series(json, "ratio", &figure->ratio);
    }
    json_builder_end_object(json);
}

static void put_verdict(JsonBuilder *json, const Verdict *verdict)
{
    if (verdict->missing) {
        g_autofree char *key = g_strconcat(verdict->key, "_missing", NULL);

        put_number(json, verdict->key, NAN);
        put_string(json, key, verdict->missing);
    } else if (verdict->list) {
        json_builder_set_member_name(json, verdict->key);
        json_builder_begin_array(json);
        for (int i = 0; i < verdict->n; i++) {
            put_number(json, NULL, verdict->value[i]);
        }
        json_builder_end_array(json);
    } else {
        put_number(json, verdict->key, verdict->value[0]);
    }
}

static void put_limits(JsonBuilder *json, Report *report)
{
    json_builder_set_member_name(json, "limits");
    json_builder_begin_object(json);
    for (guint i = 0; i < report->verdicts->len; i++) {
        Verdict *verdict = &g_array_index(report->verdicts, Verdict, i);

        if (!verdict->missing) {
            json_builder_set_member_name(json, verdict->key);
            json_builder_begin_object(json);
            put_number(json, "must", verdict->must);
            put_number(json, "aim", verdict->aim);
            json_builder_end_object(json);
        }
    }
    json_builder_end_object(json);
}

static void put_machine(JsonBuilder *json)
{
    struct utsname name;

    uname(&name);
    json_builder_set_member_name(json, "machine");
    json_builder_begin_object(json);
    put_string(json, "kernel", name.release);
    put_number(json, "cpus", (double)sysconf(_SC_NPROCESSORS_ONLN));
    put_number(json, "usable_cpus", pinning_cpus());
    put_number(json, "memory_bytes", (double)sysconf(_SC_PHYS_PAGES) *
                                     (double)sysconf(_SC_PAGESIZE));
    json_builder_end_object(json);
}

static void put_report(JsonBuilder *json, Report *report)
{
    put_string(json, "command", report->command);
    for (guint i = 0; i < report->verdicts->len; i++) {
        put_verdict(json, &g_array_index(report->verdicts, Verdict, i));
    }
    put_limits(json, report);
    json_builder_set_member_name(json, "quick");
    json_builder_add_boolean_value(json, report->quick);
    put_number(json, "repetitions", report->repetitions);
    put_number(json, "verified_pages", (double)report->verified_pages);
    put_machine(json);
    json_builder_set_member_name(json, "figures");
    json_builder_begin_array(json);
    for (guint i = 0; i < report->figures->len; i++) {
        put_figure(json, &g_array_index(report->figures, Figure, i));
    }
    json_builder_end_array(json);
    json_builder_set_member_name(json, "details");
    json_builder_begin_object(json);
    for (guint i = 0; i < report->details->len; i++) {
        Detail *detail = &g_array_index(report->details, Detail, i);

        put_number(json, detail->key, detail->value);
    }
    json_builder_end_object(json);
    json_builder_set_member_name(json, "warnings");
    json_builder_begin_array(json);
    for (guint i = 0; i < report->warnings->len; i++) {
        put_string(json, NULL, g_ptr_array_index(report->warnings, i));
    }
    json_builder_end_array(json);
}

char *report_json(Report *report)
{
    g_autoptr(JsonBuilder) json = json_builder_new();
    g_autoptr(JsonNode) root = NULL;
    g_autofree char *text = NULL;

    json_builder_begin_object(json);
    put_report(json, report);
    json_builder_end_object(json);
    root = json_builder_get_root(json);
    text = json_to_string(root, TRUE);
    return g_strconcat(text, "\n", NULL);
}

static char *number_text(double value)
{
    if (isnan(value)) {
        return g_strdup("-");
    }
    if (fabs(value) >= 1000) {
        return g_strdup_printf("%.0f", value);
    }
    return g_strdup_printf(fabs(value) >= 10 ? "%.1f" : "%.3g", value);
}

static char *series_text(const Series *series)
{
    g_autofree char *median = number_text(series_median(series));
    g_autofree char *min = number_text(series_min(series));
    g_autofree char *max = number_text(series_max(series));

    return g_strdup_printf("%s (%s..%s)", median, min, max);
}

static void table_figure(GString *text, const Figure *figure)
{
    g_autofree char *ours = series_text(&figure->ours);
    g_autofree char *raw = series_text(&figure->raw);
    g_autofree char *ratio = number_text(series_median(&figure->ratio));
    g_autofree char *where =
        g_strjoin(", ", figure->pinning, figure->link, NULL);

    g_string_append_printf(text, "  %-34s %-20s %6s %24s %24s %8s\n",
                           figure->name, where, figure->unit,
                           figure->raw_name ? raw : "-", ours,
                           figure->raw_name ? ratio : "-");
}

static const char *judgement(const Verdict *verdict)
{
    bool upper = verdict->aim < verdict->must, must = true, aim = true;

    for (int i = 0; i < verdict->n; i++) {
        double value = verdict->value[i];

        must &= upper ? value <= verdict->must : value >= verdict->must;
        aim &= upper ? value <= verdict->aim : value >= verdict->aim;
    }
    return aim ? "aim reached" : must ? "reached" : "NOT reached";
}

static void table_verdict(GString *text, const Verdict *verdict)
{
    g_autofree char *must = number_text(verdict->must);
    g_autofree char *aim = number_text(verdict->aim);
    g_autoptr(GString) values = g_string_new(NULL);

    if (verdict->missing) {
        g_string_append_printf(text, "  %-22s not measured: %s\n",
                               verdict->key, verdict->missing);
        return;
    }
    for (int i = 0; i < verdict->n; i++) {
        g_autofree char *value = number_text(verdict->value[i]);

        g_string_append_printf(values, "%s%s", i ? " " : "", value);
    }
    g_string_append_printf(text, "  %-22s %-24s must be at %s %s, aim %s: "
                           "%s\n", verdict->key, values->str,
                           verdict->aim < verdict->must ? "most" : "least",
                           must, aim, judgement(verdict));
}

char *report_table(Report *report)
{
    GString *text = g_string_new(NULL);

    g_string_append_printf(text, "%s%s: %d repetitions, median (least.."
                           "greatest)\n", report->command,
                           report->quick ? " (quick: the figures say nothing)"
                                         : "", report->repetitions);
    g_string_append_printf(text, "  %-34s %-20s %6s %24s %24s %8s\n",
                           "figure", "where", "unit", "raw", "memx",
                           "memx/raw");
    for (guint i = 0; i < report->figures->len; i++) {
        table_figure(text, &g_array_index(report->figures, Figure, i));
    }
    for (guint i = 0; i < report->details->len; i++) {
        Detail *detail = &g_array_index(report->details, Detail, i);
        g_autofree char *value = number_text(detail->value);

        g_string_append_printf(text, "  %-55s %6s %24s\n", detail->key, "",
                               value);
    }
    g_string_append_printf(text, "  pages compared with what was written: %"
                           G_GUINT64_FORMAT "\n", report->verified_pages);
    for (guint i = 0; i < report->verdicts->len; i++) {
        table_verdict(text, &g_array_index(report->verdicts, Verdict, i));
    }
    for (guint i = 0; i < report->warnings->len; i++) {
        g_string_append_printf(text, "  warning: %s\n",
                               (char *)g_ptr_array_index(report->warnings,
                                                         i));
    }
    return g_string_free(text, FALSE);
}
