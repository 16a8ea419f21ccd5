"""The Koopman method: a span replaced by few directions, their products, and a matrix.

Read in this order: `span` (what is replaced, as data), `block` (the coordinates that matter, the
form of what takes its place, and its bytes), `search` (which form), `fit` (that form on all
samples, K whole or with single entries), `method` (the whole, for one span or several), `trained`
(the projection trained on, through the solve).
"""
