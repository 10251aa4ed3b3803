"""What a config costs on a slice that nobody has rented: by the TPU compiler, without a TPU.

`tpu` knows the chips, `program` reads what was compiled, `text` says it to people.
"""
