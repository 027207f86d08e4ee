"""A local HTTP server for loaded domains: the Open Inference Protocol, version 2.

Rules of this room: a model of the protocol is a domain that a runner has loaded. The protocol is
our own code and knows no sockets (``tensors``, ``protocol``). The sockets are waitress's and know
no protocol (``sockets``). ``app`` stands between them. Nothing here computes; a
:class:`~toolchain.device.Runner` does. No answer shows a path of the server's machine.
"""

from toolchain.device.serve.limits import Limits
from toolchain.device.serve.server import Server, serve

__all__ = ["Limits", "Server", "serve"]
