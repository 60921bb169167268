/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this machine has and how busy it is.
 */
#ifndef MS_HOST_H
#define MS_HOST_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Bytes that can be taken without swapping or being killed: MemAvailable of
 * /proc/meminfo, or less where a memory cgroup (v2) leaves less.  0 if
 * /proc can't be read.
 */
uint64_t ms_host_available_bytes(void);

/* A field of /proc/meminfo, such as "SwapTotal", in bytes; 0 if unknown. */
uint64_t ms_host_meminfo_bytes(const char *field);

/* How busy the CPUs were since the last call, 0..1000; one caller. */
unsigned ms_host_load_permille(void);

/* "512M", "1.5TiB", "4096" (bytes) to bytes. */
bool ms_parse_size(const char *text, uint64_t *bytes, GError **error);

#endif
