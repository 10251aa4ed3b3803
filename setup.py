"""Adds the config files to the package; all else is in pyproject.toml.

They stay at the top of the repository, where people look for them and copy them, and are installed
as `bert_jax/configs`. A list of packages in pyproject.toml could say so, but would have to be kept
by hand; a search cannot.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bert_jax", "bert_jax.*"]), "bert_jax.configs"],
    package_dir={"bert_jax.configs": "configs"},
    package_data={"bert_jax": ["py.typed"]},
)
