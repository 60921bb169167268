# SPDX-License-Identifier: GPL-2.0-or-later
"""A swap file of our own."""

import os
import subprocess

from .wait import Skip


def _run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              check=False)
    except FileNotFoundError as missing:
        raise Skip(f"{command[0]} is missing") from missing
    if done.returncode != 0:
        raise Skip(f"{' '.join(command)}: {done.stderr.strip()}")


def add_swap_file(test, mib):
    """Preferred to all other swap, until the test is over."""
    # Its name tells scripts/leaks.py whose it is.
    path = test.log_path(f"memx-swap-{os.getpid()}")
    with open(path, "wb") as file:
        os.chmod(path, 0o600)
        test.cleanup(os.unlink, path)
        try:
            os.posix_fallocate(file.fileno(), 0, mib << 20)
        except OSError as error:
            raise Skip(f"no swap file in {test.log_dir}: {error}") from error
    _run("mkswap", path)
    _run("swapon", "-p", "32767", path)
    test.cleanup(subprocess.run, ["swapoff", path])
