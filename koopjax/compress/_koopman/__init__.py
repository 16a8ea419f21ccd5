"""The Koopman method: a span replaced by few directions, their products, and a matrix.

Read in this order: `span` (what is replaced, as data), `directions` (the coordinates that matter),
`block` (the form of what takes its place, and its bytes), `search` (which form), `fit` (that form
on all samples; single `entries` of K), `method` (the whole, for one span or several), `trained`
(the projection trained on, through `varpro`).
"""
