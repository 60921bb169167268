#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that is gone with its pages stalls the VM within server-timeout,
with an event; no page becomes zeros; and memx-abandon ends QEMU, saying what
was lost."""

from memxlib import e2e
from memxlib.wait import check, wait_until


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="320M", local="80M", servers=servers,
              memx={"server_timeout": 3})
    load = vm.guest.load()
    servers[1].kill()
    # On a busy machine the other one may be slow to answer, and blamed, too.
    wait_until("the event blames the server", lambda: any(
        lost["data"]["server"] == servers[1].address
        for lost in vm.qmp.events("MEMX_SERVER_LOST")), 30)
    vm.qmp.wait_event("MEMX_STALLED", 60)
    t.say("stalled")
    states = {server["address"]: server["state"]
              for server in vm.backend(oob=True)["servers"]}
    check(states == {servers[0].address: "up", servers[1].address: "down"},
          f"query-memx says {states}")
    t.say("the server comes back, empty")
    servers[1].start()
    vm.qmp.wait_event("MEMX_SERVER_EMPTY", 30)
    check(vm.backend(oob=True)["faults"]["waiting"] > 0,
          "nobody waits any more, though the pages are lost")
    load.check_no_mismatch()
    vm.qmp.send("memx-abandon", {"id": "pc.ram"}, oob=True)
    status = vm.process.wait_exit(20)
    check(status == 1, f"QEMU ended with {status}")
    check(servers[1].address in vm.process.output(),
          f"QEMU's last words do not name the server:\n{vm.process.output()}")
    load.check_no_mismatch()


e2e.main(test)
