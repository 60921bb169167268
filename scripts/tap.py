# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the Test Anything Protocol: which tests a program says it ran."""

import re

LINE = re.compile(r"^(\s*)(not )?ok\b\s*(\d+)?\s*(?:- )?(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)(?:\s*#\s*SKIP\S*\s*(.*))?$", re.I)
DIRECTIVE = re.compile(r"(?:^|\s)#\s*(SKIP|TODO)\S*\s*(.*)$", re.I)


def looks_like_tap(text):
    lines = text.splitlines()
    return any(PLAN.match(line) for line in lines)


def parse(text):
    """Returns a list of (name, "ok" | "fail" | "skip", reason)."""
    tests = []
    plan = None
    top_level = 0
    depth = 0
    for line in text.splitlines():
        match = PLAN.match(line)
        if match:
            plan = int(match.group(1))
            if plan == 0:
                tests.append(("all", "skip", match.group(2) or "no reason"))
            continue
        if line.startswith("Bail out!"):
            after = f" after {tests[-1][0]}" if tests else ""
            tests.append((f"bail out{after}", "fail",
                          line[len("Bail out!"):].strip()))
            continue
        match = LINE.match(line)
        if not match:
            continue
        indent, failed, number, name = match.groups()
        # The line that closes a subtest sums up lines already counted.
        closes = len(indent) < depth
        depth = len(indent)
        top_level += depth == 0
        if closes and not failed:
            continue
        status, reason = "fail" if failed else "ok", ""
        directive = DIRECTIVE.search(name)
        if directive:
            name = name[:directive.start()]
            reason = directive.group(2).strip() or "no reason"
            status = "skip"
        tests.append((name.strip() or f"test {number}", status, reason))
    if plan is None:
        tests.append(("plan", "fail", "ended before it said how many tests"))
    elif plan and plan != top_level:
        tests.append(("plan", "fail", f"{plan} tests announced, "
                      f"{top_level} reported"))
    return tests
