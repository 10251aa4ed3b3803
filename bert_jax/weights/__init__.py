"""A trained model as one thing, wherever it comes from and wherever it goes.

`store` opens runs of ours, `hugging_face` and `tf1` read and write the formats of others, by the
names that the family gives. `finetune_start` puts a new head on what was opened.
"""
