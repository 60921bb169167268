/*
 * What differs among versions of QEMU.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_COMPAT_H
#define MEMX_COMPAT_H

#define MEMX_QEMU_VERSION (QEMU_VERSION_MAJOR * 100 + QEMU_VERSION_MINOR)

/* 10.1 made the second argument of class_init functions const. */
#if MEMX_QEMU_VERSION >= 1001
typedef const void MemxClassData;
#else
typedef void MemxClassData;
#endif

#endif
