"""Flax modules: layers, the encoder, and the heads on top of it."""
