/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions as tests make them, and a pattern that tells a page, a word in it
 * and a generation from all others.
 */
#ifndef REGION_FIXTURE_H
#define REGION_FIXTURE_H

#include <glib.h>
#include "memx.h"
#include "server-process.h"
#include "transport.h"

#define MIB (1ull << 20)
#define PAGE_BYTES 4096ull

/* Zero fields: a chunk of 256 KiB, copies kept by auto, 30 s. */
typedef struct RegionFixture {
    void *base;             /* or NULL: the region maps its own */
    uint64_t size, local, chunk;
    MemxKeepCopies keep_copies;
    MemxHugePages huge_pages;
    unsigned server_timeout_ms;
    ServerProcess **servers;
    unsigned n_servers;
    MemxTrackerOptions tracker; /* cpu_percent 0: the default */
    MemxEventFunc *event;
    void *opaque;
} RegionFixture;

MemxRegion *region_fixture_try(const RegionFixture *fixture, GError **error);
MemxRegion *region_fixture_new(const RegionFixture *fixture);

/* connect() of a @transport that is TCP but for what a test puts in its
 * place. */
MemxChannel *tcp_connect_for(const MemxTransport *transport, const char *host,
                             const char *port, int timeout_ms, int cancel_fd,
                             GError **error);

uint64_t pattern_word(uint64_t page, unsigned generation, unsigned word);
/* Generation 0 is never-written: zeros.  Plain stores and loads only, so that
 * a sanitizer's own reads don't get in the way. */
void pattern_write(void *base, uint64_t page, unsigned generation);
/* Ends the test with a message if it isn't there. */
void pattern_check(const void *base, uint64_t page, unsigned generation);

/* Reads statistics until @done says so; the deadline is a minute. */
typedef bool StatsFunc(const MemxStats *stats, uint64_t argument);
void await_stats(MemxRegion *region, MemxStats *stats, StatsFunc *done,
                 uint64_t argument);
StatsFunc stats_all_written;    /* no page was never written */
StatsFunc stats_local_at_most;  /* @argument bytes */

#endif
