#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""While QEMU's main loop itself waits for a page, since a virtio-blk disk
without an I/O thread reads into it, query-memx still answers out of band."""

from memxlib import e2e
from memxlib.wait import Failure, check, wait_until


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="320M", local="80M", servers=servers,
              extra=t.disk("64M", aio="native"),
              memx={"server_timeout": 2})
    options = "--percent 70 --disk /dev/vda --disk-percent 100 --threads 1"
    load = vm.guest.load(options)
    load.wait_progress()
    servers[0].pause()
    pending = []

    def main_loop_waits():
        number = vm.qmp.send("query-status")
        try:
            vm.qmp.wait(number, 3)
            return False
        except Failure:
            pending.append(number)
            return True
    wait_until("the main loop waits for a page", main_loop_waits, 60)
    t.say("the main loop waits")
    backend = vm.backend(oob=True)
    check(backend["faults"]["waiting"] > 0, "query-memx shows nobody waiting")
    vm.qmp.wait_event("MEMX_STALLED", 30)
    check(vm.backend(oob=True)["stalled"], "query-memx does not say stalled")
    servers[0].resume()
    vm.qmp.wait(pending[0], 60)
    t.say("the main loop goes on")
    load.wait_progress()
    load.finish()

    load = vm.guest.load(options)
    load.wait_progress()
    servers[0].pause()
    wait_until("the main loop waits again", main_loop_waits, 60)
    vm.qmp.send("memx-abandon", oob=True)
    status = vm.process.wait_exit(20)
    check(status == 1, f"QEMU ended with {status}")
    servers[0].resume()


e2e.main(test)
