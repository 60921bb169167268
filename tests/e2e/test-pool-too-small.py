#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/bad/servers/too-small, /memx/memory/local-size/bad: without Linux
"""A pool that cannot hold the VM's memory is noticed at the start; one that
cannot hold more of it refuses to have local-size lowered."""

from memxlib import e2e
from memxlib.qmp import QmpError
from memxlib.vm import memx_object
from memxlib.wait import check


def test(t):
    small = [t.memserver(capacity="64M") for _ in range(2)]
    status, output = t.run_qemu(
        "-m", "512M", "-machine", "memory-backend=pc.ram", "-object",
        memx_object("pc.ram", "512M", "128M", small))
    check(status == 1, f"QEMU ended with {status}")
    check("pc.ram" in output and "MiB" in output,
          f"the message does not help: {output}")
    for server in small:
        check(server.spaces() == [], "a space was left behind")

    vm = t.vm(size="256M", local="192M", servers=small)
    load = vm.guest.load("--percent 60")
    try:
        vm.set_local_size("64M")
        check(False, "local-size was lowered below what the pool can take")
    except QmpError as refusal:
        t.say(f"refused: {refusal}")
    check(vm.backend()["local-size"] == 192 << 20, "local-size has changed")
    load.wait_progress()
    load.finish()


e2e.main(test)
