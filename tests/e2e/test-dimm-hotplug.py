#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/memory/dimm is the same without Linux
"""Remote memory can be plugged in as a DIMM, used, and unplugged again,
whereupon the servers hold nothing of it."""

from memxlib import e2e
from memxlib.wait import check, wait_until


def memory_total(vm):
    return int(vm.guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo"))


def test(t):
    servers = t.memservers(2)
    vm = t.vm(memory=["-m", "256M,slots=2,maxmem=1G"],
              kernel_args="memhp_default_state=online_movable")
    before = memory_total(vm)
    vm.qmp.command("object-add", qom_type="memory-backend-memx", id="mem1",
                   size=256 << 20, local_size=64 << 20,
                   servers=[server.address for server in servers])
    vm.qmp.command("device_add", driver="pc-dimm", id="dimm1", memdev="mem1")
    wait_until("the guest has more memory",
               lambda: memory_total(vm) > before + 200 * 1024, 30)
    vm.guest.run("memverify --percent 80 --rounds 1", 120)
    backend = vm.backend("mem1")
    check(backend["faults"]["remote"] > 0, "the DIMM was not used")
    vm.qmp.command("device_del", id="dimm1")
    vm.qmp.wait_event("DEVICE_DELETED", 60)
    vm.qmp.command("object-del", id="mem1")
    check(vm.memx() == [], "query-memx still lists it")
    for server in servers:
        server.wait_spaces("nothing is left", lambda spaces: not spaces)
    vm.guest.run("memverify --percent 50 --rounds 0")


e2e.main(test)
