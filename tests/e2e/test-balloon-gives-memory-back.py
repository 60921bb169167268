#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/memory/give-back/balloon is the same without Linux
"""Memory that the guest's balloon takes is given back on the servers too,
and is ordinary memory again when the balloon returns it."""

from memxlib import e2e
from memxlib.wait import check, wait_until


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="384M", local="96M", servers=servers, balloon="")

    def held():
        return sum(server.held_bytes() for server in servers)
    vm.guest.run("memverify --percent 75 --rounds 0")
    before = held()
    check(before > 150 << 20, f"the servers hold {before} bytes only")
    vm.qmp.command("balloon", value=128 << 20)
    wait_until("the balloon has its size", lambda: vm.qmp.command(
        "query-balloon")["actual"] <= 130 << 20, 60)
    wait_until("the servers hold less than half of that",
               lambda: held() < before / 2, 30)
    t.say(f"servers held {before >> 20} MiB, now {held() >> 20} MiB")
    check(vm.backend()["paging"]["discarded"] > 30000, "too few discards")
    vm.qmp.command("balloon", value=384 << 20)
    wait_until("the balloon is empty", lambda: vm.qmp.command(
        "query-balloon")["actual"] >= 384 << 20, 60)
    vm.guest.run("memverify --percent 75 --rounds 1", 120)
    vm.check_never_stopped()


e2e.main(test)
