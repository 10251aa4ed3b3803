"""What is learnt: each objective turns (params, batch, key) into a loss and metrics.

Corruption of tokens belongs here and is a pure JAX function of (batch, key), so a stored corpus
serves every objective.
"""
