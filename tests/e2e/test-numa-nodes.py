#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memx/object/numa-node is the same without Linux
"""NUMA nodes can have remote memory of their own, each with its local size;
given as JSON, the way libvirt does it."""

import json

from memxlib import e2e
from memxlib.wait import check


def node(number, servers):
    backend = {"qom-type": "memory-backend-memx", "id": f"ram-node{number}",
               "size": 192 << 20, "local-size": (32 + 32 * number) << 20,
               "servers": [server.address for server in servers]}
    return ["-object", json.dumps(backend), "-numa",
            f"node,nodeid={number},cpus={number},memdev=ram-node{number}"]


def test(t):
    servers = t.memservers(2)
    vm = t.vm(memory=["-m", "384M", *node(0, servers), *node(1, servers)])
    nodes = vm.guest.run("ls -d /sys/devices/system/node/node?").split()
    check(len(nodes) == 2, f"the guest has {nodes}")
    vm.guest.run("memverify --percent 75 --rounds 1", 180)
    for backend in vm.memx():
        check(backend["local"] <= backend["local-size"] * 1.02,
              f"{backend['id']} holds more than its local-size")
        check(backend["faults"]["remote"] > 0, f"{backend['id']} idled")
    check(len(servers[0].spaces()) == 2, "not a space for each node")


e2e.main(test)
