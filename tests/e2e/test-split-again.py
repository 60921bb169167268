#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
"""A VM that has memory on servers moves to another host, where its remote
memory stays; and again, to a host that is large enough for all of it."""

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"


def move(t, load, source, dest, servers, local):
    info = Migration(source, dest, servers, local).start().finish()
    split = info["split"]
    check(split["left"] > 0, f"nothing stayed where it was: {split}")
    check(split["moved"] == 0, f"it went to other servers: {split}")
    check(source.quit() == 0, "the source did not end well")
    load.wait_progress()
    t.say(f"moved in {info['total-time']} ms: {split['left'] >> 20} MiB stayed "
          f"where they were, {split['sent'] >> 20} MiB went to servers")


def released(server, vm):
    vm.backend()  # for the log, should it fail
    status = server.status()
    return status["used_bytes"] == 0 and status["reserved_bytes"] == 0


def test(t):
    servers = t.memservers(2)
    first = t.vm(size=SIZE, local=LOCAL, servers=servers, name="first")
    load = first.guest.load("--percent 70 --write-percent 10")
    first.wait_backend("memory is remote", lambda b: b["remote"] > 64 << 20)

    second = t.vm(size=SIZE, local=LOCAL, source=first, name="second")
    move(t, load, first, second, servers, LOCAL)
    check(second.backend()["remote"] > 0, "nothing is remote")

    third = t.vm(size=SIZE, local=SIZE, source=second, name="third")
    move(t, load, second, third, servers, SIZE)
    third.wait_backend("all of it came home", lambda b: b["remote"] == 0, 120)
    for server in servers:
        wait_until(f"{server.name} is released",
                   lambda s=server: released(s, third))
        server.end()
    load.wait_progress()
    load.finish()
    third.check_never_stopped()


e2e.main(test, seconds=580)
