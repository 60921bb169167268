/*
 * What the tests of split migration share: two QEMUs of QEMU's own migration
 * framework, and memory servers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_SPLIT_HELPERS_H
#define MEMX_SPLIT_HELPERS_H

#include "memx-helpers.h"
#include "memx-proxy.h"
#include "migration/framework.h"

#define SPLIT_SERVERS 2

/* The framework's VMs have 150 MiB, of which their guest writes 99 again and
 * again. */
#define SPLIT_MIB 150
#define SPLIT_LOCAL_MIB 64
extern unsigned start_address, end_address; /* of these; framework.c */

typedef struct Split {
    MemxServer *servers[SPLIT_SERVERS];
    MemxProxy *links[SPLIT_SERVERS]; /* NULL: directly */
    MemxProxy *main;            /* between both, from split_migrate() on */
    char *hosts;                /* both, for split-hosts */
    char *source_args;
    char *target_args;
    QTestState *from, *to;
} Split;

/*
 * Servers, a source with ordinary RAM ("plain") or "memx" RAM, and a
 * destination that listens nowhere yet.
 */
void split_begin(Split *s, const char *source, const char *server_options);
/* With QEMU arguments of each side's own. */
void split_begin_args(Split *s, const char *source_args,
                      const char *target_args);
/* With links that can be cut. */
void split_begin_linked(Split *s, const char *source);
/* Another destination, after the first one has ended. */
void split_new_target(Split *s);
/* The destination is the source of the next one. */
void split_go_on(Split *s);
/* Listens, and migrates to it with what was set. */
void split_listen(Split *s);
void split_migrate(Split *s);
/* Migrates, until at least a round over all memory is done and another one has
 * begun; then it goes round and round. */
void split_to_later_round(Split *s);
/* Lets it end; also before it begins. */
void split_converge(Split *s);
/* What lives of them ends. */
void split_end(Split *s);
/* SIGKILL; *vm becomes NULL. */
void split_kill(QTestState **vm);

/* The guest there writes on, and its memory is whole. */
void split_assert_runs(QTestState *vm);

/* query-migrate's split figures: a number (0 before there are any), or the
 * phase. */
uint64_t split_number(QTestState *vm, const char *name);
char *split_session(QTestState *vm);
bool split_is_up(QTestState *vm, unsigned server);
bool split_is_in_phase(QTestState *vm, const char *phase);
void split_wait_phase(QTestState *vm, const char *phase);

/* Waits until the migration has ended as @status; its error, to be freed. */
char *split_wait_error(QTestState *vm, const char *status);
/* Waits until query-migrate says so, with @expected in its error. */
void split_wait_status(QTestState *vm, const char *status,
                       const char *expected);
void split_wait_failed(QTestState *vm, const char *expected);
/* If it fails, the test does with the reason. */
void split_wait_completed(QTestState *vm);
/* Waits until it has ended, one way or another. */
void split_wait_ended(QTestState *vm);
bool split_is_running(QTestState *vm);

/* Waits until an event has told so; other events until then are gone. */
void split_wait_entered(QTestState *vm, const char *phase);
/* "cont" is refused to this side, and an event says why. */
void split_wait_refused(Split *s, QTestState *vm, const char *verdict);

/* memxctl status: waits until there is no space. */
void split_wait_dropped(const MemxServer *server);
/* Waits until each space there is orphaned; how many. */
unsigned split_wait_orphaned(const MemxServer *server);

/* memx-split-tests.c, memx-split-failure-tests.c, memx-split-refusal-tests.c,
 * memx-split-hosts-tests.c, memx-split-memory-tests.c,
 * memx-split-stream-tests.c, memx-split-figures-tests.c */
void memx_add_split_tests(void);
void memx_add_split_figures_tests(void);
void memx_add_split_hosts_tests(void);
void memx_add_split_failure_tests(void);
void memx_add_split_refusal_tests(void);
void memx_add_split_memory_tests(void);
void memx_add_split_stream_tests(void);

#endif
