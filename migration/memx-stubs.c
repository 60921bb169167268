/*
 * What QEMU's tools, which have block devices but no VM, need of hooks.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "hooks.h"

bool memx_may_run(Error **errp)
{
    return true;
}
