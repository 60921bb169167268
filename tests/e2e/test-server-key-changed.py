#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that is restarted, with its pages, but with another key than the
running VM has, stalls the VM, and the logs of both say why; with the right
key again the VM goes on, and every byte is there."""

import os

from memxlib import e2e
from memxlib.wait import check, wait_until


def write_key(t, name, text):
    path = t.log_path(name)
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(path, 0o600)
    return path


def test(t):
    good = write_key(t, "good.key", "correct horse battery staple, 32 bytes")
    other = write_key(t, "other.key", "another horse, another battery stapl")
    server = t.memserver(key_file=good, store=True)
    vm = t.vm(size="256M", local="64M", servers=[server],
              memx={"key_secret": "k", "server_timeout": 2},
              extra=["-object", f"secret,id=k,file={good}"])
    load = vm.guest.load()
    server.key_file = other
    server.crash_and_restart()
    vm.qmp.wait_event("MEMX_SERVER_LOST", 30)
    stalled = vm.qmp.wait_event("MEMX_STALLED", 60)
    check(server.address in stalled["message"] and
          "key" in stalled["message"],
          f"the event does not say why: {stalled['message']}")
    wait_until("the server's log speaks of the key",
               lambda: "key" in server.process.output(), 30)
    check(vm.backend(oob=True)["servers"][0]["state"] == "down",
          "a server that admits nobody is not down")
    t.say(stalled["message"])
    load.check_no_mismatch()
    server.key_file = good
    server.crash_and_restart()
    vm.qmp.wait_event("MEMX_SERVER_BACK", 30)
    vm.qmp.wait_event("MEMX_RESUMED", 30)
    load.wait_progress()
    load.finish()
    check(not vm.qmp.events("MEMX_SERVER_EMPTY"), "pages were called lost")


e2e.main(test)
