"""The store: what is installed on a device.

Rules of this room: only this room writes installed domains. What it holds was verified once, when
it was installed; a reader checks that it is still the same file.
"""
