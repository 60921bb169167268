#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: a minute of swapping within the guest
# timeout: 740
"""A guest that swaps by itself stays live: its own swapping and ours do not
wait for each other."""

from memxlib import e2e
from memxlib.wait import ALL, check

MIB = 200 if ALL else 160       # more than the guest has


def swap_free_kib(vm):
    return int(vm.guest.run("awk '/SwapFree/ { print $2 }' /proc/meminfo"))


def test(t):
    vm = t.vm(size="192M", local="64M", servers=t.memservers(2),
              extra=t.disk("512M"))
    vm.guest.run("mkswap /dev/vda && swapon /dev/vda")
    before = swap_free_kib(vm)
    load = vm.guest.load(f"--mbytes {MIB} --hot-percent 30")
    ticker = vm.guest.start("ticker")
    for _ in range(10):
        load.wait_progress()
        vm.guest.is_alive()
    swapped = before - swap_free_kib(vm)
    check(swapped > 8 << 10, f"the guest swapped out {swapped} KiB only")
    t.say(f"{swapped >> 10} MiB are in the guest's swap")
    load.finish(300)
    ticker.wait_line(".")
    vm.check_never_stopped()


e2e.main(test, seconds=700)
