"""Documents of every kind of source, sentences in several languages, prose of docstrings."""

import random
import re

import pytest

from bert_jax.common.errors import UserError
from bert_jax.data.sentences import split_sentences
from bert_jax.preparing import pydocs, text
from bert_jax.preparing.text import Reader, document_start


@pytest.mark.parametrize(
    "expected",
    [
        # English: titles, initials, acronyms, decimals, quotes after the stop, ellipses
        ["Mr. Smith met Dr. J. K. Rowling at St. Mary's.", "It cost $3.50.", "He paid."],
        ["She came from the U.S. Senate.", "He lives in the U.S.", "The house is old."],
        ['"Why not?" he asked.', '"I know."', "She left... and came back.", "Wait...", "Then?"],
        ["It was over by 5 p.m. on Monday.", "See Fig. 3 and p. 5 by M. I. Kutuzov.", "Done!"],
        ["He said “Go.”", "(They went.)", "We saw cats, dogs, etc. in there.", "It was I.", "Yes."],
        ["1. Introduction to it.", "It was built in 1999.", "Then 2.5 more came, e.g. Tom's."],
        ["“Stop!” cried Tom.", "“Why?”", "Tom asked."],
        # Korean: with a space and without, quoted speech going on, dates
        ["그는 학교에 갔다.", "밥을 먹었어요.", "정말요?", "네!"],
        ["그는 2020. 3. 15. 서울에서 태어났다.", '"안녕." 라고 말했다.', "“가자.” 는 말이다."],
        # Japanese and Chinese: no spaces
        ["今日は晴れです。", "「行くよ。」と彼は言った。", "本当？", "はい！"],
        ["他说：“你好。”", "我们走吧！", "好的。"],
    ],
)
def test_sentences(expected):
    cjk = all(re.search("[。！？]", sentence) for sentence in expected)
    assert split_sentences(("" if cjk else " ").join(expected)) == expected


def test_korean_sentences_without_a_space():
    assert split_sentences("그는 갔다.그리고 왔다.끝") == ["그는 갔다.", "그리고 왔다.", "끝"]


def test_nothing_but_space_is_lost():
    rng = random.Random(0)
    parts = [
        "Mr.",
        "A",
        "the",
        ".",
        "。",
        "」",
        '"',
        "...",
        "? ",
        " ",
        "다.",
        "가",
        "1.",
        ")",
        "U.S.",
        "\u3000",
    ]
    for _ in range(3000):
        source = "".join(rng.choices(parts, k=rng.randint(0, 25)))
        sentences = split_sentences(source)
        assert "".join("".join(sentences).split()) == "".join(source.split())
        assert all(s and s == s.strip() for s in sentences)


def _documents(tmp_path, data, source="text", on_error="stop"):
    path = tmp_path / "file.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    reader = Reader(on_error)
    return list(reader.documents(source, path)), reader


def test_plain_text(tmp_path):
    documents, _ = _documents(tmp_path, "One.\nTwo.\n\n\n \nThree.\n")
    assert documents == [["One.", "Two."], ["Three."]]


def test_windows_line_ends_bom_and_nul(tmp_path):
    documents, reader = _documents(tmp_path, b"\xef\xbb\xbfO\0ne.\r\nTwo.\r\n\r\nThree.\0")
    assert documents == [["One.", "Two."], ["Three."]]
    assert reader.notes == {"nul_bytes": 2}


def test_invalid_utf8_names_file_line_and_byte(tmp_path):
    data = b"One.\nTw\xffo.\nThree.\n\nFour."
    with pytest.raises(UserError, match=r"file\.txt:2: invalid UTF-8 \(byte 7\);.*on_error=skip"):
        _documents(tmp_path, data)
    documents, reader = _documents(tmp_path, data, on_error="skip")
    assert documents == [["One.", "Three."], ["Four."]]
    assert reader.notes == {"invalid_lines": 1}


def test_wikiextractor(tmp_path):
    source = (
        '<doc id="1" url="u" title="A &amp; B">\nA &amp; B\n\nFirst.\nA &amp; B\n\n3 &lt; 4.\n'
        "</doc>\n"
        'between\n<doc id="2" title="C">\nC\n\n</doc>\n<doc id="3" title="D">\nText.\n</doc>\n'
    )
    documents, _ = _documents(tmp_path, source, "wikiextractor")
    assert documents == [["First.", "A & B", "3 < 4."], ["Text."]]


def test_book(tmp_path):
    source = "# Title: X\n\n-----\n\n## Chapter 1\nIt was a\ndark night.\n\nThe end.\n* * *\n"
    documents, _ = _documents(tmp_path, source, "book")
    assert documents == [["Title: X", "Chapter 1", "It was a dark night.", "The end."]]


@pytest.mark.parametrize("source", ["text", "wikiextractor"])
def test_ranges_of_any_size_give_all_documents_once(tmp_path, source):
    rng = random.Random(0)
    bodies = ["\n".join(f"Line {i} {j}." for j in range(rng.randint(1, 5))) for i in range(60)]
    if source == "text":
        data = "".join(b + "\n" + "\n" * rng.randint(1, 3) for b in bodies)
        data = data.replace("\n", "\r\n", 40)
    else:
        data = "".join(f'<doc title="T">\nT\n\n{b}\n</doc>\n' for b in bodies)
    whole, _ = _documents(tmp_path, data, source)
    assert len(whole) == 60
    path, size = tmp_path / "file.txt", len(data.encode())
    for step in (1, 7, 100, 333):
        found, begin = [], 0
        while begin < size:
            end = document_start(source, path, begin + step)
            assert end > begin
            found += Reader().documents(source, path, begin, end)
            begin = end
        assert found == whole


def test_a_very_long_line_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LINE_BYTES", 1000)
    monkeypatch.setattr(text, "DOCUMENT_CHARS", 5000)
    words = [f"wort{i}é한" for i in range(2000)]
    documents, reader = _documents(tmp_path, " ".join(words) + "\nEnd.\n\nNext.")
    pieces = [piece for document in documents for piece in document]
    assert " ".join(pieces).split() == [*words, "End.", "Next."]
    assert max(len(piece.encode()) for piece in pieces) <= 1000
    assert len(documents) > 4 and reader.notes["long_lines"] > 20
    unbroken, _ = _documents(tmp_path, "한é" * 3000)  # no space to cut at: between characters
    assert "".join(piece for document in unbroken for piece in document) == "한é" * 3000


def test_the_end_of_a_file_without_line_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LINE_BYTES", 1000)
    for length in range(995, 1005):
        line = ("word " * 300)[: length - 5] + " LAST"
        documents, _ = _documents(tmp_path, line)
        assert " ".join(piece for piece in documents[0]).endswith(" LAST"), length


def test_long_sentences_are_cut_at_spaces():
    reader = Reader()
    source = " ".join(f"word{i}" for i in range(3000))
    sentences = reader.sentences(source)
    assert " ".join(sentences) == source and max(map(len, sentences)) <= text.SENTENCE_CHARS
    assert reader.notes == {"long_sentences": 1}
    assert "".join(reader.sentences("x" * 5001)) == "x" * 5001
    assert reader.sentences("One. Two.", split=False) == ["One. Two."]


DOCSTRING = """Draws samples from a distribution, see :func:`~random.gauss`.

    It takes **some** time, e.g. for a large
    number of samples. Use `draw` for fewer ones::

        x = draw(5)  # This is code. It is not kept.

    Parameters
    ----------
    size : int, optional
        The number of samples that should be drawn at once.
    low (float): The lowest value that can be drawn by it.

    >>> samples(3)
    [1, 2, 3]

    .. note:: This directive is left out.

    ======  =======
    Name    Meaning
    ======  =======

    - The first point of a list of things.
    - The second point,
      which is a longer one.
    https://example.com/a
    """


def test_docstrings_become_prose():
    import inspect

    assert pydocs.clean_docstring(inspect.cleandoc(DOCSTRING)) == [
        "Draws samples from a distribution, see random.gauss.",
        "It takes some time, e.g. for a large number of samples. Use draw for fewer ones:",
        "The number of samples that should be drawn at once.",
        "The lowest value that can be drawn by it.",
        "The first point of a list of things.",
        "The second point, which is a longer one.",
    ]


def test_modules_and_duplicates(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        '"""This module does some things."""\nx = """This is not a docstring at all."""\n'
        'class A:\n    """This class does some more things."""\n'
        '    def f(self):\n        """This method does many other things."""\n'
    )
    assert pydocs.module_prose(path) == [
        "This module does some things.",
        "This class does some more things.",
        "This method does many other things.",
    ]
    path.write_text("def broken(:\n")
    assert pydocs.module_prose(path) == []
    long = ["This sentence is here. " + "And this one is long enough to be kept. " * 12]
    documents = list(pydocs.unique_documents([long, ["This sentence is here."], ["Short."]]))
    assert documents == []  # repeats are dropped, what is left is too short
    many = [" ".join(f"Sentence number {i} of this text is here." for i in range(20))]
    assert list(pydocs.unique_documents([many, many])) == [many]


def test_python_files_have_names_without_machine_paths():
    files = pydocs.python_files()
    assert files == sorted(files) and len(files) > 500
    assert all(name.startswith(("stdlib/", "site-packages")) for name, _ in files)
    assert not any("/test/" in name or "/tests/" in name for name, _ in files)
