"""What training keeps: counted on real allocations, told by rule, and held to a budget.

Rules of this folder: nothing here changes how a model trains. ``measured`` counts what autograd
really keeps and allocates; ``analytic`` and ``rules`` tell it from shapes alone, without looking at
what autograd does, so that holding one against the other means something; ``fit`` answers what a
budget holds. Comparing methods and plotting is another room's (``bench``).
"""
