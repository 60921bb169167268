#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest and its tools work on ordinary memory: what fails elsewhere is
not their fault."""

from memxlib import e2e
from memxlib.wait import check, wait_until


def test(t):
    vm = t.vm(size="256M", extra=t.disk("64M"))
    check(vm.status() == "running", "the VM does not run")
    ticker = vm.guest.start("ticker")
    vm.guest.run("memverify --percent 50 --disk /dev/vda")
    wait_until("the ticker ticks", lambda: len(ticker.lines) > 5)
    sizes = vm.guest.run("gendata 1000000 > /tmp/d; wc -c < /tmp/d")
    check(sizes == "1000000", f"gendata made {sizes} bytes")
    check(vm.quit() == 0, "QEMU did not end well")


e2e.main(test)
