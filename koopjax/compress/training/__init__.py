"""Compression with training: students, pruning and quantising on the way, recipes."""
