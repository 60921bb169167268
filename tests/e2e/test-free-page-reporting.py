#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/memory/give-back/free-page-reporting is the same without Linux
"""Memory that the guest reports as free is given back on the servers too."""

from memxlib import e2e
from memxlib.wait import check, wait_until


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="384M", local="96M", servers=servers,
              balloon=",free-page-reporting=on")

    def held():
        return sum(server.held_bytes() for server in servers)
    vm.guest.run("memverify --percent 75 --rounds 1", 120)
    # What it held is free now.  The guest reports it bit by bit, and not
    # what is in pieces of less than 2 MiB.
    before = held()
    check(before > 150 << 20, f"the servers hold {before} bytes only")
    vm.wait_backend("half of it was never written", lambda b:
                    b["never-written"] > 192 << 20, 60)
    wait_until("the servers hold less than half of what they did",
               lambda: held() < before / 2, 30)
    t.say(f"servers held {before >> 20} MiB, now {held() >> 20} MiB")
    check(vm.backend()["paging"]["discarded"] > 0, "nothing was discarded")
    load = vm.guest.load()
    load.wait_progress()
    load.finish()


e2e.main(test)
