"""What training keeps: counted before it runs, measured while it runs, compared with a budget.

Rules of this room: nothing here changes how a model trains. ``analytic`` counts a step on tensors
without values, with the ledger that counts real steps (``lean.ledger``). ``measured`` reads the
peak of a real step. ``fit`` answers what a budget holds. ``bench`` compares methods and plots them;
this room does not.
"""
