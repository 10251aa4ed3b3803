"""Saving a figure. Imported late: matplotlib takes as long as a third of JAX."""

import warnings
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from bert_jax.common.files import written_whole

# Tried in this order for each character; the others have Hangul.
_FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # no font has it: a box is drawn
        for text in figure.findobj(Text):
            text.set_fontfamily([name for name in _FONTS if name in installed])
        figure.tight_layout()
        with written_whole(path) as made:
            figure.savefig(made, dpi=110, format="png")
    return path
