/*
 * What the qtests of memory-backend-memx share: memservers, VMs, queries.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_HELPERS_H
#define MEMX_HELPERS_H

#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

/* A memserver process of this test.  All of them end with the test. */
typedef struct MemxServer {
    char *address;
    char *control;
    const char *capacity;
    GPid pid;               /* 0 while it does not run */
} MemxServer;

/* $MEMX_MEMSERVER, or one on the PATH. */
bool memx_have_memserver(void);

MemxServer *memx_server_new(const char *capacity, const char *options);
void memx_server_free(MemxServer *server);
void memx_server_kill(MemxServer *server);
void memx_server_start(MemxServer *server, const char *options);
void memx_server_pause(MemxServer *server);
void memx_server_go_on(MemxServer *server);
/* What "memxctl status --json" says; it is beside memserver. */
char *memx_server_status(const MemxServer *server);
/* "memxctl drain" */
void memx_server_drain(const MemxServer *server, bool undo);

/* A port of this host at which nobody listens. */
unsigned memx_free_port(void);

/* A file or socket name in a folder that goes away with the test. */
char *memx_tmp_path(const char *name);

/*
 * A VM whose RAM, @size, is a memory-backend-memx "pc.ram" on @server.
 * @options are further options of the object ("" or ",x=y"), @args of QEMU.
 * Its monitor has out-of-band commands.
 */
QTestState *memx_vm(const MemxServer *server, const char *size,
                    const char *local_size, const char *options,
                    const char *args);
/* A VM without any memx RAM, otherwise the same. */
QTestState *memx_plain_vm(const char *args);

/* As qtest_quit(), which looks ten times a second whether QEMU has ended. */
void memx_quit(QTestState *vm);

/* query-memx: the entry of @id; free it with qobject_unref(). */
QDict *memx_query(QTestState *vm, const char *id);
uint64_t memx_query_number(QTestState *vm, const char *id, const char *path);
/* The same, waiting until @minimum <= it <= @maximum. */
void memx_wait_number(QTestState *vm, const char *id, const char *path,
                      uint64_t minimum, uint64_t maximum);

/* The property "servers" of "pc.ram", with commas between. */
char *memx_servers(QTestState *vm);

/* query-memx lists nothing. */
void memx_assert_none(QTestState *vm);

/* An out-of-band command, with what its answer must hold. */
QDict *memx_oob(QTestState *vm, const char *command);

/* The command fails, with @expected somewhere in its message. */
void memx_assert_error(QTestState *vm, const char *expected,
                       const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* Waits until query-status says so. */
void memx_wait_status(QTestState *vm, const char *status);

/* RAM without the holes of a PC: writes or verifies a pattern of @seed. */
void memx_fill(QTestState *vm, uint64_t from, uint64_t to, unsigned seed);
void memx_verify(QTestState *vm, uint64_t from, uint64_t to, unsigned seed);

/* Until a condition holds; fails after a minute. */
#define memx_wait_until(condition)                                          \
    do {                                                                    \
        gint64 end_ = g_get_monotonic_time() + 60 * G_TIME_SPAN_SECOND;     \
        while (!(condition)) {                                              \
            g_assert_cmpint(g_get_monotonic_time(), <, end_);               \
            g_usleep(10 * 1000);                                            \
        }                                                                   \
    } while (0)

/* memx-memory-tests.c, memx-failure-tests.c, memx-servers-tests.c,
 * memx-tracking-tests.c */
void memx_add_memory_tests(void);
void memx_add_servers_tests(void);
void memx_add_failure_tests(void);
void memx_add_tracking_tests(void);

#endif
