#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 340
"""A guest with a tenth of its RAM local finds every byte as it wrote it."""

from memxlib import e2e
from memxlib.wait import check


def test(t):
    vm = t.vm(size="480M", local="48M", servers=t.memservers(2))
    print(vm.guest.run("memverify --percent 75 --rounds 1 --hot-percent 10",
                       200).splitlines()[-1])
    backend = vm.backend()
    check(backend["local"] <= backend["local-size"] * 1.02,
          "more is local than local-size allows")
    vm.check_never_stopped()
    check(vm.quit() == 0, "QEMU did not end well")


e2e.main(test, seconds=300)
