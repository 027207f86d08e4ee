"""``da3 bench``: what the runtime takes and saves on the machine at hand.

Rules of this room: it measures with the library's own paths and asserts nothing; targets stand
beside figures and are never enforced. What is compared runs interleaved in one run. ``domains``
makes what is measured, in a process of its own, so that no framework is loaded where time and
memory are looked at; every other file needs onnxruntime alone. ``latency``, ``swap``, ``memory``,
``load`` and ``overhead`` are the parts, ``run`` joins them into one document, ``report`` shows it.
"""
