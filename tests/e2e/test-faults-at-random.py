#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
"""Everything that can happen to servers and connections happens in random
order and combination while local-size and balloon change: the guest
stalls at worst, and finds every byte as it wrote it.

MEMX_SEED repeats a run (as far as threads allow), MEMX_ROUNDS makes it
longer."""

import os
import random
import time

from memxlib import e2e
from memxlib.proxy import TO_CLIENT, TO_SERVER

ROUNDS = int(os.environ.get("MEMX_ROUNDS", "30"))
SEED = int(os.environ.get("MEMX_SEED", time.time_ns() % 1000000))


class Faults:
    """What can happen; nothing of it lasts when calm() returns."""

    def __init__(self, rng, vm, servers, proxies):
        self._rng = rng
        self._vm = vm
        self._servers = servers
        self._proxies = proxies

    def cut(self):
        self._rng.choice(self._proxies).cut()

    def refuse(self):
        self._rng.choice(self._proxies).refuse()

    def stall(self):
        self._rng.choice(self._proxies).stall()

    def delay(self):
        self._rng.choice(self._proxies).delay(self._rng.random() / 50)

    def garble(self):
        self._rng.choice(self._proxies).garble(
            self._rng.randrange(1, 5),
            self._rng.choice((TO_CLIENT, TO_SERVER)))

    def pause(self):
        self._rng.choice(self._servers).pause()

    def restart(self):
        server = self._rng.choice(self._servers)
        server.resume()
        server.restart_with_pages()

    def crash(self):
        self._rng.choice(self._servers).crash_and_restart()

    def resize(self):
        self._vm.qmp.send("qom-set", {
            "path": "/objects/pc.ram", "property": "local-size",
            "value": self._rng.randrange(48, 256) << 20})

    def balloon(self):
        self._vm.qmp.send("balloon", {
            "value": self._rng.randrange(280, 320) << 20})

    def calm(self):
        for server in self._servers:
            server.resume()
        for proxy in self._proxies:
            proxy.resume()
            proxy.accept()
            proxy.delay(0)
            proxy.garble(0, TO_CLIENT)
            proxy.garble(0, TO_SERVER)


def test(t):
    t.say(f"MEMX_SEED={SEED}")
    rng = random.Random(SEED)
    servers = t.memservers(2, store=True)
    proxies = [t.proxy(server) for server in servers]
    vm = t.vm(size="320M", local="80M", servers=proxies, balloon="",
              extra=t.disk("64M"), memx={
                  "server_timeout": rng.choice((1, 30)),
                  "chunk_size": rng.choice(("256K", "1M", "4M")),
                  "keep_copies": rng.choice(("auto", "on", "off"))})
    faults = Faults(rng, vm, servers, proxies)
    kinds = [faults.cut, faults.refuse, faults.stall, faults.delay,
             faults.garble, faults.pause, faults.restart, faults.crash,
             faults.resize, faults.balloon]
    load = vm.guest.load("--percent 65 --threads 4 --disk /dev/vda", last="")
    for number in range(ROUNDS):
        chosen = rng.sample(kinds, rng.randrange(1, 4))
        t.log(f"round {number}: {' '.join(f.__name__ for f in chosen)}")
        for fault in chosen:
            fault()
        time.sleep(rng.random())  # not a wait: how long the fault lasts
        faults.calm()
        if rng.random() < 0.5:
            load.wait_progress()
    load.wait_progress()
    load.finish()


e2e.main(test, seconds=280 + 10 * ROUNDS)
