#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 340
"""A guest that swaps by itself stays live: its own swapping and ours do not
wait for each other."""

from memxlib import e2e


def test(t):
    vm = t.vm(size="192M", local="64M", servers=t.memservers(2),
              extra=t.disk("512M"))
    vm.guest.run("mkswap /dev/vda && swapon /dev/vda")
    load = vm.guest.load("--mbytes 200 --hot-percent 30")
    ticker = vm.guest.start("ticker")
    for _ in range(3):
        load.wait_progress()
        vm.guest.is_alive()
        print(vm.guest.run("grep SwapFree /proc/meminfo"))
    load.finish(180)
    ticker.wait_line(".")
    vm.check_never_stopped()


e2e.main(test, seconds=300)
