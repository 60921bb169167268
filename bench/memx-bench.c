/*
 * memx-bench: measures remote memory against the raw operations that it is
 * made of, in a plain process.  docs/benchmarks.md says what each command
 * measures and how to read it.
 *
 * A benchmark reports and never judges: the exit status says whether it could
 * be measured and every byte was right, not whether it was fast.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "guard.h"
#include "raw-tcp.h"
#include "swap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_LIMIT_S 900
#define LOAD_PER_CPU_HIGH 0.3

typedef struct Command {
    const char *name;
    CommandFunc *func;
    const char *help;
} Command;

static const Command commands[] = {
    { "fault", bench_fault, "latency of a fault on a remote page" },
    { "load", bench_load, "the same while memory is being evicted" },
    { "stream", bench_stream, "sequential reading of remote memory" },
    { "evict", bench_evict, "sending memory away" },
    { "touch", bench_touch, "first writes to fresh memory" },
    { "random", bench_random, "random access, against kernel swap" },
    { "threads", bench_threads, "faults per second of several threads" },
    { "scale", bench_scale, "tables and decisions for terabytes" },
};

GQuark bench_error_quark(void)
{
    return g_quark_from_static_string("memx-bench-error");
}

static char *commands_help(void)
{
    GString *text = g_string_new("Commands:\n");

    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        g_string_append_printf(text, "  %-9s %s\n", commands[i].name,
                               commands[i].help);
    }
    g_string_append(text, "\nNeeds root for network namespaces, memory "
                    "cgroups and swap; see memx-bench(1).\n");
    return g_string_free(text, FALSE);
}

static const Command *command_find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (g_str_equal(commands[i].name, name)) {
            return &commands[i];
        }
    }
    return NULL;
}

static bool parse(int *argc, char ***argv, Options *options, int *limit_s,
                  const Command **command, GError **error)
{
    gboolean json = FALSE;
    const GOptionEntry entries[] = {
        { "json", 0, 0, G_OPTION_ARG_NONE, &json,
          "Print JSON instead of a table", NULL },
        { "output", 0, 0, G_OPTION_ARG_FILENAME, &options->output,
          "Write the JSON into a file as well", "FILE" },
        { "quick", 0, 0, G_OPTION_ARG_NONE, &options->quick,
          "Small and short: to see that it works, not how fast", NULL },
        { "repetitions", 0, 0, G_OPTION_ARG_INT, &options->repetitions,
          "Repetitions, 1 to 64, after a dropped one (5)", "N" },
        { "link", 0, 0, G_OPTION_ARG_INT, &options->link_gbit,
          "What the shaped link carries, 1 to 100 Gbit/s (10)", "GBIT" },
        { "memserver", 0, 0, G_OPTION_ARG_FILENAME, &options->memserver,
          "The daemon to start (the one beside this program)", "PATH" },
        { "scratch", 0, 0, G_OPTION_ARG_FILENAME, &options->scratch,
          "Where the swap file goes, on a local disk (/var/tmp)", "DIR" },
        { "time-limit", 0, 0, G_OPTION_ARG_INT, limit_s,
          "Give up after so many seconds (900)", "SECONDS" },
        { NULL }
    };
    g_autoptr(GOptionContext) context =
        g_option_context_new("COMMAND - measure remote memory");
    g_autofree char *help = commands_help();

    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_summary(context, help);
    if (!g_option_context_parse(context, argc, argv, error)) {
        return false;
    }
    options->json = json;
    if (*argc != 2) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "%s: name one command of those that --help lists",
                    *argc < 2 ? "no command" : "more than one command");
        return false;
    }
    *command = command_find((*argv)[1]);
    if (!*command) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "no such command: %s; --help lists them", (*argv)[1]);
        return false;
    }
    if (options->repetitions == 0) {
        options->repetitions = options->quick ? 2 : 5;
    }
    if (options->repetitions < 1 || options->repetitions > SERIES_MAX ||
        options->link_gbit < 1 || options->link_gbit > LINK_GBIT_MAX ||
        *limit_s < 1) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "--repetitions must be 1 to %d, --link 1 to %d, "
                    "--time-limit at least 1", SERIES_MAX, LINK_GBIT_MAX);
        return false;
    }
    return true;
}

/* The daemon beside this program, as it is built or installed, or in PATH. */
static char *find_memserver(const char *directory)
{
    static const char *const places[] = {
        "memserver", "../sbin/memserver", "../memserver/memserver",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        g_autofree char *path = g_build_filename(directory, places[i], NULL);

        if (g_file_test(path, G_FILE_TEST_IS_EXECUTABLE) &&
            g_file_test(path, G_FILE_TEST_IS_REGULAR)) {
            return g_steal_pointer(&path);
        }
    }
    return g_find_program_in_path("memserver");
}

static bool find_programs(Options *options, GError **error)
{
    g_autofree char *directory = NULL;

    options->self = g_file_read_link("/proc/self/exe", error);
    if (!options->self) {
        return false;
    }
    directory = g_path_get_dirname(options->self);
    if (!options->memserver) {
        options->memserver = find_memserver(directory);
    }
    if (!options->memserver) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_FAILED,
                    "no memserver in %s or in PATH: name it with "
                    "--memserver", directory);
        return false;
    }
    return true;
}

static void warn_of_load(Report *report)
{
    double load;

    if (getloadavg(&load, 1) == 1 &&
        load > LOAD_PER_CPU_HIGH * pinning_cpus()) {
        report_warn(report, "the load average was %.2f on %d CPUs at the "
                    "start: others' work makes figures vary", load,
                    pinning_cpus());
    }
    if (pinning_cpus() < 2) {
        report_warn(report, "this process may use one CPU only");
    }
}

static int run(const Options *options, const Command *command)
{
    g_autoptr(GError) error = NULL;
    Report *report = report_new(command->name, options->quick,
                                options->repetitions);
    bool ok;

    warn_of_load(report);
    ok = command->func(options, report, &error);
    if (ok) {
        g_autofree char *json = report_json(report);
        g_autofree char *table = report_table(report);

        fputs(options->json ? json : table, stdout);
        ok = fflush(stdout) == 0 &&
             (!options->output ||
              g_file_set_contents(options->output, json, -1, &error));
    }
    if (!ok) {
        fprintf(stderr, "memx-bench %s: %s\n", command->name,
                error ? error->message : "cannot print");
    }
    report_free(report);
    return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
    Options options = { .link_gbit = LINK_GBIT };
    const Command *command = NULL;
    g_autoptr(GError) error = NULL;
    int limit_s = DEFAULT_LIMIT_S, status;

    /* Workers, started by this program itself. */
    if (argc == 3 && g_str_equal(argv[1], "raw-tcp-server")) {
        return raw_tcp_server_main(argv[2]);
    }
    if (argc == 3 && g_str_equal(argv[1], "swap-worker")) {
        return swap_worker_main(argv[2]);
    }
    if (!parse(&argc, &argv, &options, &limit_s, &command, &error) ||
        !find_programs(&options, &error)) {
        fprintf(stderr, "memx-bench: %s\n", error->message);
        return 2;
    }
    if (!options.scratch) {
        options.scratch = g_strdup("/var/tmp");
    }
    guard_start((unsigned)limit_s);
    pinning_init();
    status = run(&options, command);
    guard_stop();
    g_free(options.memserver);
    g_free(options.self);
    g_free(options.scratch);
    g_free(options.output);
    return status;
}
