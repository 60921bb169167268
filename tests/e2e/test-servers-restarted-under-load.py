#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each server is restarted with its pages, one after another, under load: no
VM is stopped and no byte is wrong."""

from memxlib import e2e


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="320M", local="80M", servers=servers)
    load = vm.guest.load()
    for server in servers + servers[:1]:
        server.restart_with_pages()
        load.wait_progress()
        t.say(f"{server.name} was restarted")
    load.finish()
    vm.check_never_stopped()


e2e.main(test)
