#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with remote memory can be reset, and boots again on what was left
of its memory."""

from memxlib import e2e
from memxlib.wait import ALL


def test(t):
    vm = t.vm(size="256M", local="64M", servers=t.memservers(2),
              extra=["-action", "reboot=reset"])
    vm.guest.run("memverify --percent 70 --rounds 0")
    for _ in range(2 if ALL else 1):
        vm.guest.rebooted(lambda: vm.qmp.command("system_reset"))
        vm.guest.run("memverify --percent 70 --rounds 0")
    vm.check_never_stopped()


e2e.main(test)
