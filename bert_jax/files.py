"""Files that are written whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file under another name and moves it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
    return path
