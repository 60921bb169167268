#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: a VM that libvirt knows nothing of
"""What docs/libvirt.md says that an unpatched libvirt can do: memx memory by
qemu:commandline, looked at and changed past libvirt."""

import re

from memxlib import hosts
from memxlib.domain import Domain
from memxlib.wait import wait_until

SIZE, LOCAL, LESS = "192M", "96M", "64M"
XMLNS = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def command_line(servers, key):
    words = ["-object", f"secret,id=memxkey,file={key}", "-object",
             f"memory-backend-memx,id=memx0,size={SIZE},local-size={LOCAL},"
             f"servers.0={servers[0].address},key-secret=memxkey",
             "-machine", "memory-backend=memx0"]
    return (f"<qemu:commandline {XMLNS}>"
            + "".join(f"<qemu:arg value='{word}'/>" for word in words)
            + "</qemu:commandline>")


def test(t):
    network = hosts.Network(t)
    host = network.host1
    servers = network.memservers(["mem1"])
    with open(network.key_file, encoding="ascii") as file:
        host.write("/run/key", file.read(), 0o400)
    host.run("chown", network.qemu_user.strip("+"), "/run/key")
    domain = Domain(host, size=SIZE, extra=command_line(servers, "/run/key"))
    load = domain.guest.load("--percent 60")

    def local_mib():
        info = host.virsh("qemu-monitor-command", domain.name, "--hmp",
                          "info memx")
        return float(re.search(r"^\s+local +([\d.]+) MiB", info, re.M).group(1))
    wait_until("it has its local size", lambda: local_mib() <= 96)
    host.virsh("qemu-monitor-command", domain.name, "--hmp",
               f"qom-set /objects/memx0 local-size {LESS}")
    wait_until("it has less", lambda: local_mib() <= 64)
    load.wait_progress()
    load.finish()


hosts.main(test)
