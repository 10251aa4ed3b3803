"""From stored text to batches: tokenizer, corpus, layouts, instances by index, loader, buckets.

Everything here runs on the host, in NumPy: worker processes of the input import it without JAX.
Instance i of pass p is a pure function of (corpus, seed, p, i), so the state of the input is one
integer. `preparing` and `tasks` share the readers of files as people have them, which are here too.
"""
