"""Text of TFDS data sets, read by example number and without TensorFlow where possible."""

import functools
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError


def dataset_folder(name: str) -> Path:
    """Folder of a prepared data set: `name` itself if it is one, else TFDS makes it.

    Raises:
      UserError: `name` is neither a folder of a data set nor a name that TFDS can prepare here.
    """
    if (Path(name) / "dataset_info.json").exists():
        return Path(name)
    if Path(name).is_dir():
        raise UserError(f"{name} is not a TFDS data set (it has no dataset_info.json)")
    import tensorflow_datasets as tfds

    try:
        import tensorflow  # noqa: F401  # what the named data sets are built with

        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_dir)
    except ImportError as error:
        raise UserError(
            f"{name} is not a folder; as the name of a TFDS data set, it can be checked and made "
            "only with TensorFlow: pip install tensorflow-cpu (or give the folder of a data set "
            "made elsewhere, in array_record format)"
        ) from error
    except Exception as error:  # whatever the builder of the data set raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"TFDS could not make {name!r}: {reason}") from error


@functools.lru_cache(maxsize=4)
def open_split(folder: Path, split: str) -> tuple[Any, Any] | None:
    """(random-access source, TFDS's DatasetInfo) of a split; None where there is none of that name.

    Raises:
      UserError: not a data set in array_record format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        if split not in builder.info.splits:
            return None
        return builder.as_data_source(split), builder.info
    except Exception as error:  # TFDS raises many kinds, for another file format for example
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"TFDS data set {folder} cannot be read: {reason}") from error


def open_text(folder: Path, feature: str) -> tuple[Any, int]:
    """(random-access source of the train split, bytes of its examples).

    Raises:
      UserError: no train split, no text feature of that name, or not in array_record format.
    """
    opened = open_split(folder, "train")
    if opened is None:
        raise UserError(f"TFDS data set {folder} has no train split")
    source, info = opened
    if feature not in info.features:
        raise UserError(
            f"TFDS data set {folder} has no feature {feature!r}, but {', '.join(info.features)}: "
            "set --config.text_feature"
        )
    return source, info.splits["train"].num_bytes
