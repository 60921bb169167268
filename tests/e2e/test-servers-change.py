#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/servers/* and /servers/random are the same without Linux
# timeout: 600
"""A VM's servers change while its guest writes and verifies: one is added, one
drained, one removed; then the VM moves to another host, and its remote memory
to other servers.  Each server that was left is ended."""

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"


def shows(vm, address):
    """query-memx's entry of a server, or None."""
    for server in vm.backend()["servers"]:
        if server["address"] == address:
            return server
    return None


def is_left(vm, server):
    return any(event["data"]["server"] == server.address
               for event in vm.qmp.events("MEMX_SERVER_RELEASED"))


def leave(t, vm, load, server):
    """Waits until the VM has left it, and ends it."""
    wait_until(f"{server.name} is released", lambda: is_left(vm, server), 120)
    check(shows(vm, server.address) is None, f"{server.name} is still listed")
    check(not server.spaces(), f"{server.name} has {server.spaces()}")
    server.end()
    load.wait_progress()
    t.say(f"{server.name} is left")


def test(t):
    one, two, three, four, five = t.memservers(5)
    vm = t.vm(size=SIZE, local=LOCAL, servers=[one, two], name="source")
    load = vm.guest.load("--percent 70 --write-percent 10")
    # Of 256; a third server gets 85 without taking any of theirs.
    vm.wait_backend("two servers have most chunks", lambda b: 180 <
                    sum(server["chunks"] for server in b["servers"]), 120)

    vm.set_servers([one, two, three])
    wait_until(f"{three.name} has its part", lambda:
               shows(vm, three.address)["moved"] > 0 and
               not any(server["to-move"]
                       for server in vm.backend()["servers"]), 120)
    load.wait_progress()
    t.say(f"{three.name} was added: "
          f"{shows(vm, three.address)['moved'] >> 20} MiB came there")

    one.memxctl("drain")
    leave(t, vm, load, one)
    check(vm.servers() == [two.address, three.address],
          f"the VM's servers are {vm.servers()}")

    vm.set_servers([three])
    leave(t, vm, load, two)

    vm.check_never_stopped()
    dest = t.vm(size=SIZE, local=LOCAL, source=vm, name="dest")
    info = Migration(vm, dest, [four, five], LOCAL).start().finish()
    check(info["split"]["moved"] > 0, f"nothing was moved: {info}")
    check(sorted(dest.servers()) == sorted([four.address, five.address]),
          f"the VM's servers are {dest.servers()}")
    t.say(f"moved in {info['total-time']} ms, "
          f"{info['split']['moved'] >> 20} MiB from server to server")
    check(vm.quit() == 0, "the source did not end well")
    check(not three.spaces(), f"{three.name} has {three.spaces()}")
    three.end()
    load.wait_progress()
    load.finish()
    dest.check_never_stopped()


e2e.main(test, seconds=580)
