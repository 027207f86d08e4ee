"""The recipes that come with the toolchain: package data only, no code.

One flat YAML file per domain, its stem the domain's name; `toolchain.recipe` reads them.
"""
