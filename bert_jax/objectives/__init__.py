"""What is learnt: each objective turns (params, batch, key) into a loss and metrics."""
