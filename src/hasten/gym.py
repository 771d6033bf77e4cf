"""Importing this module registers the spaces known by name with Gymnasium, as ``hasten/NAME-v0``.

So ``gymnasium.make("hasten.gym:hasten/dram-v0")`` works in any process, and so do vector environments that make theirs
in others. ``import hasten`` does the same where Gymnasium is there already.
"""

from __future__ import annotations

from hasten.errors import MissingExtraError

try:
    import gymnasium as _gymnasium  # noqa: F401
except ImportError:
    raise MissingExtraError("gymnasium", "rl") from None

from hasten.spaces import register_environments

register_environments()
