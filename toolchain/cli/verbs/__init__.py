"""Verbs: one file for each command.

Rules of this room: a verb parses its options, calls the library and shows the result. No verb
imports another verb.
"""
