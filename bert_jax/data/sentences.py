"""Splits paragraphs into sentences: English, Korean, Chinese and Japanese."""

import re

_CLOSE = "\"'”’»)\\]」』）】〉》›"
_OPEN = "\"'“‘«(\\[「『（【〈《‹¿¡"
_STOP = re.compile(rf"[.!?…。！？｡]+[{_CLOSE}]*")
_CJK_STOP = re.compile("[。！？｡]")
_NEXT = re.compile(rf"\s*[{_OPEN}]*")
_NEXT_WORD = re.compile(rf"\s*[{_OPEN}]*([\w'’]+)")
# Quoted speech that the sentence goes on from: 「…。」と言った, "…." 라고 말했다.
_GOES_ON = re.compile(
    r"[とっ、，,]|(?:이?라(?:고|는|며)?|하(?:고|며)|고|며|는|의|에|등(?:이|을|의|에)?)(?![가-힣])"
)
_WORD = re.compile(r"[\w.&'’-]*\Z")
# Never end a sentence: titles and the like, before a name or a number.
_TITLE_WORDS = """
mr mrs ms messrs mme mlle dr prof rev fr st hon gov sen rep pres gen col lt maj capt cmdr adm sgt
cpl pvt supt insp mt ft no nos vol vols fig figs pp ch sec art ed eds trans ca cf viz vs v e.g i.e
approx est dept univ al op p c d b chap tr cdre
"""
# Can end one: only before a word that often begins one.
_MAYBE_WORDS = """
jr sr inc ltd co corp bros etc esq ph.d m.d b.a m.a d.c a.m p.m u.s u.k u.n jan feb mar apr jun
jul aug sep sept oct nov dec
"""
_STARTER_WORDS = """
the a an it its he she his her they their there this that these those we our i in on at by for
from as after although and but if when while since however it's many most some several both each
all one two during with to what who how why where no yes not so then thus
"""
_TITLES = frozenset(_TITLE_WORDS.split())
_MAYBE = frozenset(_MAYBE_WORDS.split())
_STARTERS = frozenset(_STARTER_WORDS.split())


def split_sentences(text: str) -> list[str]:
    """Sentences of a paragraph, in order; only white space between them is lost.

    Knows English (abbreviations, initials, quotes after the stop, decimals, ellipses), Chinese and
    Japanese full stops, and Korean endings with and without a space after the stop.
    """
    result = []
    start = 0
    for match in _STOP.finditer(text):
        end = match.end()
        if end == len(text):
            break
        after = text[end]
        if after.isspace():
            # The first character of what follows, past opening quotes and brackets.
            at = end + 1
            if not text[at : at + 1].isalnum():
                at = _NEXT.match(text, end).end()  # type: ignore[union-attr]
            if at == len(text):
                break
            after = text[at]
        elif not (_CJK_STOP.search(match[0]) or _is_korean_ending(text, match.start(), after)):
            continue  # without white space: 3.14, U.S.
        if _ends_sentence(text, start, match, after):
            sentence = text[start:end].strip()
            if sentence:
                result.append(sentence)
            start = end
    rest = text[start:].strip()
    if rest:
        result.append(rest)
    return result


def _is_korean_ending(text: str, stop: int, after: str) -> bool:
    """Whether a stop without white space after it is that of 다. or 요. before a syllable."""
    return "가" <= after <= "힣" and text[stop - 1 : stop] in ("다", "요", "죠", "까")


def _ends_sentence(text: str, start: int, match: re.Match, after: str) -> bool:
    """Whether a sentence that began at `start` ends at `match`; `after` follows it."""
    stop, end = match[0], match.end()
    if after.islower() or after in ".!?…,;:":
        return False
    closed = stop[-1] not in ".!?…。！？｡"
    if closed and _GOES_ON.match(text, end + (text[end] == " ")):
        return False
    if stop != ".":
        return True
    # Only a little before the stop is looked at: a line of many stops would cost its square.
    word_match = _WORD.search(text, max(start, match.start() - 20), match.start())
    word = word_match[0] if word_match else ""
    before = text[max(start, match.start() - 30) : match.start() - len(word)].rstrip()
    if word.isdigit():  # a list number, or a Korean date: 2020. 3. 15.
        date = after.isdigit() or (len(word) < 3 and "가" <= after <= "힣")
        return not date and bool(before)
    lower = word.lower()
    if lower in _TITLES:
        return False
    initial = len(word) == 1 and word.isalpha() and word.isupper() and word.isascii()
    acronym = len(word) >= 3 and word[1::2].strip(".") == "" and word[::2].isalpha()
    if initial or acronym or lower in _MAYBE:
        following = _NEXT_WORD.match(text, end)
        if word == "I" and before and before[-1] != ".":
            return True  # the pronoun: It was I.
        if not following:
            return False
        initial = len(following[1]) == 1 and text[following.end() : following.end() + 1] == "."
        return following[1].lower() in _STARTERS and not initial
    return True
