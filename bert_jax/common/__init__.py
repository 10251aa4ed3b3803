"""What three rooms or more need: errors, files, locks, keys, fields of configs, the command line.

Imports nothing else of the package. Nothing here knows JAX arrays but `keys`.
"""
