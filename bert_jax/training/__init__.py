"""One loop for everything that learns: `loop` runs the steps that `trainer` makes.

It knows an objective, an optimiser, a mesh and phases of batches. It knows neither tasks nor
models. What it leaves in a work directory is described by `workdir`, `checkpoint` and `metrics`.
"""
