/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The threads that use the region, as a guest and its host would.
 */
#ifndef WORKERS_H
#define WORKERS_H

#include "honesty.h"
#include "shadow-array.h"

typedef struct Workers Workers;

/* @local_min .. @local_max: what the local size is set to. */
Workers *workers_start(Shadow *shadow, MemxRegion *region, Honesty *honesty,
                       uint64_t local_min, uint64_t local_max,
                       uint32_t seed);
/* Waits until each has got something done; false after the deadline. */
bool workers_await_progress(Workers *workers, unsigned deadline_s);
/* Ends them and prints what they did. */
void workers_stop(Workers *workers);

#endif
