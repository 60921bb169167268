# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/bench-migration is made of."""
