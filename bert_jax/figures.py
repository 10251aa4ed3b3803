"""Saving a figure. Imported late: matplotlib takes as long as a third of JAX."""

import warnings
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

# Tried in this order for each character; the others have Hangul.
_FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # no font has it: a box is drawn
        for text in figure.findobj(Text):
            text.set_fontfamily([name for name in _FONTS if name in installed])
        figure.tight_layout()
        figure.savefig(temporary, dpi=110, format="png")
    return temporary.replace(path)
