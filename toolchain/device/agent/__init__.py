"""The agent: it fetches what is signed, tries it, and keeps the device as its policy says.

Rules of this room: ``trust`` says what may run, ``store`` writes it down, ``runtime`` runs it; the
agent calls them in order. What to do next is decided in pure functions; only the loop waits, asks
the clock and talks to a network. It imports no framework: what needs one runs in a process of its
own.
"""
