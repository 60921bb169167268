#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memserver/admission/version is the same without Linux
"""A server that speaks another version of the protocol is refused by name,
and one that changes its version while the VM runs stalls it at worst."""

import struct

from memxlib import e2e
from memxlib.proxy import HEADER_BYTES, TO_CLIENT, TO_SERVER
from memxlib.vm import memx_object
from memxlib.wait import check

OP_HELLO = 1


def is_hello(message):
    return struct.unpack_from("<H", message, 4)[0] == OP_HELLO


def client_of_the_future(direction, message):
    """Versions 1000 to 1001 are all that the client offers."""
    if direction == TO_SERVER and is_hello(message):
        struct.pack_into("<II", message, HEADER_BYTES[direction], 1000, 1001)
    return message


def server_of_the_future(direction, message):
    """The server chose a version that it was not offered."""
    if direction == TO_CLIENT and is_hello(message):
        struct.pack_into("<I", message, HEADER_BYTES[direction], 1000)
    return message


def test(t):
    server = t.memserver()
    proxy = t.proxy(server)
    for rewrite, word in ((client_of_the_future, "no common protocol version"),
                          (server_of_the_future, "does not speak MemX's")):
        proxy.rewrite(rewrite)
        status, output = t.run_qemu(
            "-m", "256M", "-machine", "memory-backend=pc.ram", "-object",
            memx_object("pc.ram", "256M", "64M", [proxy]))
        check(status == 1, f"QEMU ended with {status}")
        check(proxy.address in output and word in output,
              f"the message does not help: {output}")
        check(server.spaces() == [], "a space was left behind")

    proxy.rewrite(None)
    vm = t.vm(size="256M", local="64M", servers=[proxy])
    load = vm.guest.load()
    proxy.rewrite(server_of_the_future)
    proxy.cut()
    vm.qmp.wait_event("MEMX_SERVER_LOST", 30)
    proxy.rewrite(None)
    vm.qmp.wait_event("MEMX_SERVER_BACK", 30)
    load.wait_progress()
    load.finish()


e2e.main(test)
