#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memserver/admission/* is the same without Linux
"""A server with a key admits nobody without it, or with another one."""

import os

from memxlib import e2e
from memxlib.vm import memx_object
from memxlib.wait import check


def write_key(t, name, text):
    path = t.log_path(name)
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(path, 0o600)
    return path


def secret(name, path):
    return ["-object", f"secret,id={name},file={path}"]


def refused(t, server, *args, **options):
    status, output = t.run_qemu(
        "-m", "256M", "-machine", "memory-backend=pc.ram", *args, "-object",
        memx_object("pc.ram", "256M", "64M", [server], **options))
    check(status == 1, f"QEMU ended with {status}")
    check(server.address in output and "key" in output,
          f"the message does not help: {output}")
    check(server.spaces() == [], "a space was left behind")


def test(t):
    # as openssl or an editor writes it: the line's end is not the key
    good = write_key(t, "good.key", "correct horse battery staple, 32 bytes\n")
    bad = write_key(t, "bad.key", "correct horse battery stapler, 32 byte")
    server = t.memserver(key_file=good)
    refused(t, server)
    refused(t, server, *secret("k", bad), key_secret="k")
    vm = t.vm(size="256M", local="64M", servers=[server],
              extra=secret("k", good), memx={"key_secret": "k"})
    vm.guest.run("memverify --percent 60 --rounds 0")


e2e.main(test)
