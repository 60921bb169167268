#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""While QEMU's main loop itself waits for a page, since a virtio-blk disk
without an I/O thread reads into it, query-memx and memx-abandon still work
out of band."""

from memxlib import e2e
from memxlib.wait import Failure, check

ATTEMPTS = 20


def pending_command(vm):
    """Sends a command that needs the main loop.  Returns its number if it
    is not answered, since the main loop waits."""
    number = vm.qmp.send("query-status")
    try:
        vm.qmp.wait(number, 3)
        return None
    except Failure:
        return number


def make_main_loop_wait(vm, load, server):
    """Whether a vCPU or the disk is the first to touch a missing page is
    chance, so it may take some attempts."""
    for _ in range(ATTEMPTS):
        server.pause()
        vm.wait_backend("somebody waits for a page",
                        lambda b: b["faults"]["waiting"] > 0, oob=True)
        number = pending_command(vm)
        if number is not None:
            return number
        server.resume()
        load.wait_progress()
    raise Failure(f"{ATTEMPTS} times the main loop was not the one to wait")


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="320M", local="80M", servers=servers,
              extra=t.disk("64M", aio="native"),
              memx={"server_timeout": 2})
    load = vm.guest.load("--percent 70 --disk /dev/vda --disk-percent 100 "
                         "--threads 1")
    load.wait_progress()
    pending = make_main_loop_wait(vm, load, servers[0])
    t.say("the main loop waits")
    vm.wait_backend("query-memx says stalled", lambda b: b["stalled"],
                    oob=True)
    servers[0].resume()
    vm.qmp.wait(pending, 60)
    t.say("the main loop goes on")
    load.wait_progress()

    make_main_loop_wait(vm, load, servers[0])
    t.say("the main loop waits again")
    vm.qmp.send("memx-abandon", oob=True)
    status = vm.process.wait_exit(20)
    check(status == 1, f"QEMU ended with {status}")
    load.check_no_mismatch()


e2e.main(test)
