"""From raw text to a corpus: sources, sentences, vocabulary, work units, the writer, Beam.

`build` goes from step to step. Its steps leave files that a later start finds and takes over.
"""
