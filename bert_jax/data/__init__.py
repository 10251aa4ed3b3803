"""From raw text to batches: readers, tokenizer, corpus, instances by index, loader."""
