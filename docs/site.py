"""Gathers the pages of the documentation, and what they link to, into one folder for a site.

  python docs/site.py && mkdocs serve

Pages link to files of the repository as they lie in it, so that they can be read there. The tools
that build sites want all pages in one folder: in build/docs the repository's root and docs/ are the
same folder, and the links are made to fit. This needs Python alone, and fits every such tool.
"""

import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "docs"
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")  # of files; URLs have a colon


def target(page: str, link: str) -> str:
    """Returns the file that a link of a page means, or "" if it is none; from the root, both."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if (ROOT / path).is_file() else ""


def place(path: str) -> str:
    """Returns where a file of the repository lies in the site."""
    return "readme.md" if path == "README.md" else path.removeprefix("docs/")  # index.md is first


def fitted(page: str, text: str) -> str:
    """Returns the text of a page with links as they are in the site."""

    def fit(match: re.Match[str]) -> str:
        path = target(page, match[2])
        if not path:
            return match[0]
        link = posixpath.relpath(place(path), posixpath.dirname(place(page)) or ".")
        return f"{match[1]}{link}{match[3] or ''}"

    return _LINK.sub(fit, text)


def gather() -> dict[str, str]:
    """Returns the text of every page by its path, beginning with docs/; "" for what is no page."""
    found = dict.fromkeys((f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))), "")
    queue = list(found)
    for path in queue:  # which grows
        if not path.endswith(".md"):
            continue
        found[path] = (ROOT / path).read_text(encoding="utf-8")
        for _, link, _ in _LINK.findall(found[path]):
            linked = target(path, link)
            if linked and linked not in found:
                found[linked] = ""
                queue.append(linked)
    return found


def main() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    for path, text in gather().items():
        to = SITE / place(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".md"):
            to.write_text(fitted(path, text), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, to)


if __name__ == "__main__":
    main()
