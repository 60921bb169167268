#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""local-size can be changed while the VM runs: lowered, memory leaves until
it fits; raised, the guest may use it; nonsense is refused."""

from memxlib import e2e
from memxlib.qmp import QmpError
from memxlib.wait import check


def test(t):
    vm = t.vm(size="384M", local="256M", servers=t.memservers(2))
    load = vm.guest.load()
    for size in ("64M", "192M", "48M", "384M"):
        vm.set_local_size(size)
        limit = vm.backend()["local-size"]
        vm.wait_backend(f"no more than {size} are local",
                        lambda b: b["local"] <= limit * 1.02, 60)
        load.wait_progress()
        t.say(f"local-size={size}: {vm.backend()['local'] >> 20} MiB local")
    for size in ("1M", "385M", "0"):
        try:
            vm.set_local_size(size)
            check(False, f"local-size={size} was accepted")
        except QmpError as refusal:
            t.say(f"local-size={size}: {refusal}")
    check(vm.backend()["local-size"] == 384 << 20, "local-size has changed")
    load.finish()
    vm.check_never_stopped()


e2e.main(test)
