"""``da3 bench``: what the runtime takes and saves on the machine at hand.

Rules of this room: it measures with the library's own paths and asserts nothing. Goals stand beside
figures; nobody enforces them. Things that are compared run interleaved, in one run. ``domains``
makes what is measured (with ``graphs``), in a process of its own, so that the process that measures
time and memory loads no framework. ``footprint`` measures training and needs torch. Every other
file needs onnxruntime alone. ``latency``, ``swap``, ``memory``, ``load`` and ``overhead`` are the
parts. ``run`` joins them into one document, and ``report`` shows it. Of all rooms only the command
line imports this one.
"""
