#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: test-guest-verifies-with-tenth-local.py is harder
"""A guest with a quarter of its RAM local finds every byte as it wrote it,
also where a disk wrote it."""

from memxlib import e2e
from memxlib.wait import check


def test(t):
    vm = t.vm(size="512M", local="128M", servers=t.memservers(2),
              extra=t.disk("64M"))
    print(vm.guest.run("memverify --percent 75 --rounds 1 --threads 4 "
                       "--disk /dev/vda", 180).splitlines()[-1])
    backend = vm.backend()
    check(backend["remote"] > 128 << 20, "hardly anything went remote")
    check(backend["faults"]["remote"] > 0, "nothing came back")
    check(backend["local"] <= backend["local-size"] * 1.02,
          "more is local than local-size allows")
    for server in backend["servers"]:
        check(server["stored"] > 0, f"{server['address']} got nothing")
    vm.check_never_stopped()
    check(vm.quit() == 0, "QEMU did not end well")


e2e.main(test)
