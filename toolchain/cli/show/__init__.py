"""Show: values to lines of text, tables, progress and JSON.

Rules of this room: it formats what the library returns; it decides nothing and reads no file.
"""
