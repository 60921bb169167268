#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that is killed and started again by systemd, with what systemd's
descriptor store kept for it, has all of its pages."""

from memxlib import e2e


def test(t):
    servers = [t.memserver(store=True), t.memserver(store=True)]
    vm = t.vm(size="320M", local="80M", servers=servers)
    load = vm.guest.load()
    for server in servers + servers[:1]:
        server.crash_and_restart()
        load.wait_progress()
        t.say(f"{server.name} crashed and came back")
    load.finish()
    vm.check_never_stopped()


e2e.main(test)
