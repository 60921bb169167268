#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that comes back without its pages, and had none but copies of
what is local as well, costs nothing: no page is lost, none is taken for
unchanged that the server no longer has."""

from memxlib import e2e
from memxlib.wait import check, wait_until

# Between what the guest uses and what the firmware does, at the end, memory is
# never touched: so all is local although local-size is less than the size.
SIZE_MIB, GUEST_MIB, FIRMWARE_MIB = 256, 176, 32


def bring_home(vm):
    """Reads all memory that was ever written."""
    def all_local():
        for first, mib in ((0, GUEST_MIB),
                           (SIZE_MIB - FIRMWARE_MIB, FIRMWARE_MIB)):
            vm.qmp.command("pmemsave", 60, val=first << 20, size=mib << 20,
                           filename="/dev/null")
        return vm.backend()["servers"][0]["remote"] == 0
    wait_until("all pages are local", all_local, 60)


def test(t):
    server = t.memserver()
    vm = t.vm(size=f"{SIZE_MIB}M", local="64M", servers=[server],
              memx={"keep_copies": "on", "server_timeout": 20},
              kernel_args=f"mem={GUEST_MIB}M")
    load = vm.guest.load("--percent 60 --write-percent 5")
    vm.set_local_size(f"{SIZE_MIB - 16}M") # with all of it, none are kept
    bring_home(vm)
    copies = vm.backend()["servers"][0]["kept"]
    check(copies > 16 << 20, f"only {copies} bytes are copies")
    server.restart_empty()
    vm.qmp.wait_event("MEMX_SERVER_BACK", 30)
    vm.check_never_stopped()
    check(not vm.qmp.events("MEMX_SERVER_EMPTY"), "pages were called lost")
    t.say(f"{copies >> 20} MiB of copies are gone")
    load.wait_progress()
    vm.set_local_size("64M")
    vm.wait_backend("local-size is reached",
                    lambda b: b["local"] <= b["local-size"], 60)
    load.wait_progress()
    load.finish()
    vm.check_never_stopped()


e2e.main(test)
