"""Real models of torchvision, timm and transformers through attach, split, link and parity.

Not part of the test suite: the zoos need an environment of their own (``make test-zoo``), so no
file here is named ``test_*``. Weights are untrained and drawn from a seed; nothing is downloaded.
"""
