/*
 * The tracker `damon`: what its tests may change.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TRACKER_DAMON_H
#define MEMX_TRACKER_DAMON_H

/* In front of /sys and /proc; "" but in tests. */
extern const char *memx_damon_root;

#endif
