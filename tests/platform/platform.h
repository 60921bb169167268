/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the programs of this folder share. Each is one proof of a kernel
 * behaviour that memx relies on and ends with 0 (proved), 77 (this machine
 * cannot show it; says why) or 1 (the kernel behaves otherwise: memx is not
 * safe on it). A constructor sets a deadline for the whole program, so none
 * hangs. docs/platform.md is the list.
 */
#ifndef MEMX_TESTS_PLATFORM_H
#define MEMX_TESTS_PLATFORM_H

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libmemx/uffd.h"

#define PAGE ((size_t)4096)
#define HOLES_OK MEMX_MOVE_ALLOW_HOLES

/* End with 1, saying where and what, unless @cond. */
#define check(cond, ...) \
    do { \
        if (!(cond)) { \
            fprintf(stderr, "%s:%d: not so: %s: ", __FILE__, __LINE__, #cond); \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n"); \
            exit(1); \
        } \
    } while (0)

/* As above for what returns a count or -errno. */
#define expect(call, wanted) \
    do { \
        long got_ = (call); \
        check(got_ == (long)(wanted), "got %ld%s%s", got_, \
              got_ < 0 ? ", " : "", got_ < 0 ? strerror(-got_) : ""); \
    } while (0)

/* Whether what is repeated many times may end early: on an emulated CPU. */
bool long_enough(void);

/* End with 77: this machine cannot show it. */
void skip(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

/* A userfaultfd as memx opens it, or skip. */
int open_uffd(void);

/* Anonymous private memory without huge pages: nothing is mapped in it. */
char *map_pages(size_t pages);

/* The same, registered in MISSING mode: empty, or with every byte @byte. */
char *map_registered(int uffd, size_t pages);
char *map_filled(int uffd, size_t pages, int byte);

/* Is every byte of the page @byte? */
bool page_is(const char *page, int byte);

/* Is the page there, asked without touching it? */
bool mapped(const void *page);

/* The next fault message; fails after 10 s. */
struct uffd_msg wait_fault(int uffd);

/* 'R', 'S', 'D', ... of a thread of this process. */
char thread_state(pid_t tid);

/* Wait until a thread sleeps in the kernel. */
void wait_asleep(pid_t tid);

/* Let others run for @ms; never used to make something happen in time. */
void linger(int ms);

/* A thread that runs @fn once; touch_byte() is one. */
struct thread {
    pthread_t thread;
    void (*fn)(struct thread *t);
    volatile char *addr;
    int fd;
    long result;
    atomic_int tid;
    atomic_bool done;
};

/* @t->addr and @t->fd are the caller's to set. Returns when it has a tid. */
void thread_start(struct thread *t, void (*fn)(struct thread *t));
void thread_join(struct thread *t);

/* @t->result = the byte at @t->addr. */
void touch_byte(struct thread *t);

/*
 * A file of @bytes, all @byte, opened O_DIRECT where that means DMA into user
 * pages (no tmpfs), already unlinked; or skip. In $MEMX_TEST_DIR or /var/tmp.
 */
int open_direct_file(size_t bytes, int byte);

#endif /* MEMX_TESTS_PLATFORM_H */
