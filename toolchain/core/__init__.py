"""Words that every room uses: errors, files, digests, typed fields, documents, timing.

Rules of this room: standard library, numpy and rfc8785; it knows no other room and no framework.
``errors`` imports nothing. Nothing here knows what a backbone, a bundle or a recipe is.

``fields`` holds rules and sections, ``words`` the rules that manifests share, ``canonical`` JSON in
its one form, ``sealed`` folders whose manifest lists their files, ``safetensors`` the one reader of
that header.
"""
