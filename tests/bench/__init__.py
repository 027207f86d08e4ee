"""``toolchain.bench``: parts run at toy size; nothing here looks at a time."""
