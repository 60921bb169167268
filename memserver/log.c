/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdbool.h>
#include <stdio.h>
#include <syslog.h>
#include "log.h"

#define STRANGER_LINES_PER_SECOND 10

static void write_line(int priority, const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);

    /* One write a line: threads' lines do not mix. */
    if (g_getenv("JOURNAL_STREAM")) {
        fprintf(stderr, "<%d>%s\n", priority, text);
    } else {
        fprintf(stderr, "memserver: %s\n", text);
    }
}

#define DEFINE_LOG(name, priority)              \
    void name(const char *format, ...)          \
    {                                           \
        va_list args;                           \
                                                \
        va_start(args, format);                 \
        write_line(priority, format, args);     \
        va_end(args);                           \
    }

DEFINE_LOG(ms_log_info, LOG_INFO)
DEFINE_LOG(ms_log_warn, LOG_WARNING)
DEFINE_LOG(ms_log_error, LOG_ERR)

void ms_log_stranger(const char *format, ...)
{
    static GMutex lock;
    static gint64 second;
    static unsigned lines, suppressed;
    unsigned untold = 0;
    bool say;
    va_list args;

    g_mutex_lock(&lock);
    if (g_get_monotonic_time() / G_USEC_PER_SEC != second) {
        second = g_get_monotonic_time() / G_USEC_PER_SEC;
        lines = 0;
        untold = suppressed;
        suppressed = 0;
    }
    say = lines++ < STRANGER_LINES_PER_SECOND;
    if (!say) {
        suppressed++;
    }
    g_mutex_unlock(&lock);

    if (untold) {
        ms_log_warn("%u messages about other connections left out", untold);
    }
    if (say) {
        va_start(args, format);
        write_line(LOG_NOTICE, format, args);
        va_end(args);
    }
}
