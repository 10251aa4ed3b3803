"""Networks and what they are made of: operations, layers, the encoder, heads, the body of a task.

Modules of Flax give parameters their initialiser, dtype and logical axes; `operations` are plain
functions of arrays. `hidden` functions map tokens to vectors [B, S, D].
"""
