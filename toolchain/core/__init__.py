"""Words that every room uses: errors, files, digests, typed fields, canonical JSON, timing.

Rules of this room: standard library, numpy and rfc8785; it knows no other room and no framework.
``errors`` imports nothing. Nothing here knows what a backbone, a bundle or a recipe is.
"""
