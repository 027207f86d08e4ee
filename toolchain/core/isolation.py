"""Putting a process out of reach of networks.

Rules of this file: the standard library only, and no thread: a process with threads cannot make a
user namespace. So it is called before anything that computes is imported.
"""

from __future__ import annotations

import ctypes

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


def leave_networks() -> bool:
    """Leave every network, the loopback too, for good; return whether the system let us.

    It moves this process into an empty network namespace, with a user namespace of its own where it
    may not do that otherwise (unshare(2), user_namespaces(7)). Systems that have neither, or forbid
    them, refuse.
    """
    try:
        unshare = ctypes.CDLL(None).unshare
    except (OSError, AttributeError):
        return False
    return any(unshare(flags) == 0 for flags in (_NEW_NETWORK, _NEW_USER | _NEW_NETWORK))
