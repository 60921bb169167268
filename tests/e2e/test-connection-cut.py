#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that break, again and again, lose nothing."""

from memxlib import e2e
from memxlib.wait import check


def cut(vm, proxies, number):
    def reconnects(backend):
        return backend["servers"][number]["reconnects"]
    before = reconnects(vm.backend(oob=True))
    proxies[number].cut()
    vm.wait_backend("the connection is back",
                    lambda b: reconnects(b) > before, 60, oob=True)


def test(t):
    proxies = [t.proxy(server) for server in t.memservers(2)]
    vm = t.vm(size="320M", local="80M", servers=proxies)
    load = vm.guest.load()
    for _ in range(5):
        for number in range(len(proxies)):
            cut(vm, proxies, number)
            load.wait_progress()
    t.say("cut ten times")
    for proxy in proxies:
        proxy.refuse()
    vm.qmp.wait_event("MEMX_SERVER_LOST", 60)
    for proxy in proxies:
        proxy.accept()
    vm.qmp.wait_event("MEMX_SERVER_BACK", 60)
    load.wait_progress()
    load.finish()
    vm.check_never_stopped()
    for server in vm.backend()["servers"]:
        check(server["reconnects"] >= 5, f"{server['reconnects']} reconnects")


e2e.main(test)
