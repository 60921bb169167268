/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A split migration as a program drives it: the stream is a memcpy.  A VM is
 * memory with a writer, who says what he wrote after he has, as a dirty log
 * does.  Unless it says otherwise, what fails ends the test with a message.
 */
#ifndef SPLIT_FIXTURE_H
#define SPLIT_FIXTURE_H

#include "region-fixture.h"

#define WAIT_MS 20000

/* One side's memory, with what was written to it. */
typedef struct Vm {
    uint8_t *base;
    uint64_t n_pages;
    uint8_t *generation;    /* 0: zeros */
    uint64_t *dirty;        /* atomic: a bit per page */
    GThread *writer;
    int stop;               /* atomic */
    unsigned seed;
    uint64_t writes;        /* atomic */
    MemxRegion *region;     /* if not NULL, the writer also reads runs of pages
                               and gives some back */
} Vm;

typedef struct Move {
    Vm *vm;
    MemxRegion *source;
    uint64_t main_bytes;
    uint64_t local_bytes;   /* of the destination */
    unsigned connect_timeout_ms; /* the same; 0: as by default */
    bool sparse;
    uint8_t *base;          /* of the destination */
    MemxArrival *arrival;
    uint64_t streamed, taken;
} Move;

/* The writer. */
void vm_start(Vm *vm);
void vm_stop(Vm *vm);
Vm *vm_new(uint8_t *base, uint64_t bytes, unsigned seed);
void vm_free(Vm *vm);
/* Three quarters of it, of these every fourth 2 MiB with zeros. */
void vm_fill(Vm *vm, unsigned generation);
void vm_write(Vm *vm, uint64_t page, unsigned generation);
void vm_check(const Vm *vm);
void *move_map(uint64_t bytes);
MemxArrival *move_arrival(Move *m);
/* As memx_split_begin(), of a VM all of which is dirty. */
bool move_try(Move *m, GError **error);
void move_begin(Move *m);
/* One record, or with @last all of them, to the arrival. */
void move_records(Move *m, bool last);
/* Once through the memory, as QEMU does. */
void move_pass(Move *m);
void move_drain(Move *m);
void move_offer(Move *m);
MemxRegion *move_finish(Move *m);
void move_commit(MemxRegion *region);
/* From the beginning through some passes. */
void move_transfer(Move *m);

#endif
