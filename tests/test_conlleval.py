"""The scores of conlleval, against hand-made cases and its rules written out."""

import itertools
import random
import re

import pytest
from data_packs import pack

from bert_jax.common.errors import UserError
from bert_jax.tasks import conll
from bert_jax.tasks.base import Source
from bert_jax.tasks.tagging import Tagging


def _score(gold: str, predicted: str) -> tuple[int, int, int]:
    """(gold, found, correct) of sentences between bars."""
    sides = [[s.split() for s in text.split("|")] for text in (gold, predicted)]
    total = conll.total(conll.count(*sides).values())
    return total.gold, total.found, total.correct


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("O O O", []),
        ("I-X I-X O", [("X", 0, 2)]),  # IOB1
        ("I-X B-X O", [("X", 0, 1), ("X", 1, 2)]),  # IOB1: neighbours of one type
        ("B-X I-X B-X", [("X", 0, 2), ("X", 2, 3)]),  # and at the end of the sentence
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),  # an I of another type begins an entity
        ("O I-X O I-X", [("X", 1, 2), ("X", 3, 4)]),
        ("B-a-b I-a-b I-a", [("a-b", 0, 2), ("a", 2, 3)]),  # types with hyphens
        ("E-X I-X", [("X", 0, 1), ("X", 1, 2)]),  # IOE: what follows an E begins anew
        ("E-X E-X", [("X", 0, 1), ("X", 1, 2)]),
        ("B-X E-X E-X", [("X", 0, 2), ("X", 2, 3)]),
        ("B-X L-X I-X L-X", [("X", 0, 2), ("X", 2, 4)]),  # BILOU
        ("S-X I-X U-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("B-X E-X B-X E-X", [("X", 0, 2), ("X", 2, 4)]),  # BIOES: neighbours of one type
    ],
)
def test_entities_by_the_rules_of_conlleval(tags, entities):
    assert conll.chunks(tags.split()) == entities


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("I-X I-X O", []),  # seqeval's strict IOB2: nothing begins without a B
        ("B-X I-Y I-Y", [("X", 0, 1)]),
        ("B-X I-Y I-X", [("X", 0, 1)]),
        ("B-X I-X B-X", [("X", 0, 2), ("X", 2, 3)]),
    ],
)
def test_strict_entities(tags, entities):
    assert conll.chunks(tags.split(), strict=True) == entities


@pytest.mark.parametrize(
    "gold, predicted, counts",
    [
        ("B-X I-X O", "B-X I-X O", (1, 1, 1)),
        ("B-X I-X O", "I-X I-X O", (1, 1, 1)),  # IOB1 against IOB2: the same entity
        ("B-X I-X O", "B-X O O", (1, 1, 0)),  # a part does not count
        ("B-X I-X", "B-X B-X", (1, 2, 0)),
        ("B-X I-X", "B-Y I-Y", (1, 1, 0)),
        ("O B-X | I-X O", "O B-X | I-X O", (2, 2, 2)),  # none goes over the end of a sentence
        ("O O", "O O", (0, 0, 0)),
    ],
)
def test_counts(gold, predicted, counts):
    assert _score(gold, predicted) == counts


def test_scores_of_nothing_are_zero():
    none = conll.Counts()
    assert (none.precision, none.recall, none.f1) == (0, 0, 0)


# Pairs of letters, of the word before and this one, between which an entity of a type ends, and
# another begins. The first of each are those of the script of CoNLL-2000; those of S were added to
# it by others, for BIOES, as was the end of an E before a B.
ENDS = "BB BO IB IO EE EI EO", "EB ES BS IS SB SE SI SO SS"
STARTS = "BB IB OB OI EE EI OE", "EB ES BS IS OS SB SE SI SS"


def _reference(gold, predicted, official=False):
    """conlleval's loop with its two predicates, its line per word and its state.

    Source of the rules: the Perl script of CoNLL-2000 (endOfChunk, startOfChunk, $inCorrect).
    official: without what others added to it.
    """
    ending, starting = (
        set(" ".join(pairs[: 1 if official else 2]).split()) for pairs in (ENDS, STARTS)
    )

    def split(tag):
        match = re.match(r"^([^-]*)-(.*)$", tag)
        return match.groups() if match else (tag, "")

    def letters(before, now):
        both = before[0] + now[0]
        return both if official else both.replace("U", "S").replace("L", "E")

    def ends(before, now):
        return letters(before, now) in ending or (before[0] != "O" and before[1] != now[1])

    def starts(before, now):
        return letters(before, now) in starting or (now[0] != "O" and before[1] != now[1])

    counts = {"gold": {}, "found": {}, "correct": {}}
    tokens = right = 0
    last = [("O", ""), ("O", "")]
    inside_correct = False

    def add(name, kind):
        counts[name][kind] = counts[name].get(kind, 0) + 1

    lines = []
    for sentence in zip(gold, predicted, strict=True):
        lines += [*zip(*sentence, strict=True), None]
    for line in lines:
        now = [split(tag) for tag in line or ("O", "O")]
        end = [ends(*pair) for pair in zip(last, now, strict=True)]
        start = [starts(*pair) for pair in zip(last, now, strict=True)]
        if inside_correct:
            if all(end) and last[0][1] == last[1][1]:
                inside_correct = False
                add("correct", last[0][1])
            elif end[0] != end[1] or now[0][1] != now[1][1]:
                inside_correct = False
        if all(start) and now[0][1] == now[1][1]:
            inside_correct = True
        for side, name in enumerate(("gold", "found")):
            if start[side]:
                add(name, now[side][1])
        if line:
            tokens += 1
            right += now[0] == now[1]
        last = now
    if inside_correct:
        add("correct", last[0][1])
    return counts, right / tokens


SCHEMES = {"IOB": "OOBIIBI", "IOE": "OOEIIEI", "BIOES": "OOBIESBIE", "BILOU": "OOBILUBIL"}
SCHEMES |= {"all": "OOOBBIIEESLU"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fuzz_against_the_written_out_rules(scheme, tmp_path):
    """Tags at random, and so most of them astray; in memory, and through files."""
    rng = random.Random(scheme)
    official = scheme in ("IOB", "IOE")
    tags = [
        letter if letter == "O" else f"{letter}-{'XXY'[rng.randrange(3)]}"
        for letter in SCHEMES[scheme] * 3
    ]
    several = 0
    for _ in range(1500):
        gold = [rng.choices(tags, k=rng.randint(1, 7)) for _ in range(rng.randint(1, 3))]
        # Most tags are kept, so that entities are often right.
        kept = rng.random()
        predicted = [[t if rng.random() < kept else rng.choice(tags) for t in s] for s in gold]
        expected, accuracy = _reference(gold, predicted, official)
        counts = conll.count(gold, predicted)
        for name in ("gold", "found", "correct"):
            found = {kind: getattr(row, name) for kind, row in counts.items()}
            assert {k: n for k, n in found.items() if n} == expected[name], (gold, predicted)
        assert conll.accuracy(gold, predicted) == accuracy
        several += sum(expected["correct"].values()) > 1
        if several % 10 == 1:
            _check_files(tmp_path, gold, predicted, expected, accuracy)
    assert several > 250


def _check_files(folder, gold, predicted, expected, accuracy):
    """Of files of the gold tags and of predictions, the latter with and without a gold column."""
    task = Tagging("custom")
    sides = [list(itertools.chain(*side)) for side in (gold, predicted)]

    def write(name, *columns):
        rows = iter(zip(*columns, strict=True))
        blocks = ["\n".join(f"w {' '.join(next(rows))}" for _ in tags) for tags in gold]
        (folder / name).write_text("\n\n".join(blocks) + "\n")
        return folder / name

    examples = task.read(Source(files={"dev": str(write("gold", sides[0]))}), "dev")
    for columns in (sides, sides[1:]):
        scores = task.score(examples, task.read_predictions(write("found", *columns), examples))
        number = {name: sum(kinds.values()) for name, kinds in expected.items()}
        assert scores["accuracy"] == accuracy
        assert scores["precision"] == number["correct"] / max(number["found"], 1)
        assert scores["recall"] == number["correct"] / max(number["gold"], 1)


def test_predictions_of_ours_for_gold_in_iob1_are_right_word_by_word(tmp_path):
    """Our file holds both columns in IOB2, which conlleval compares."""
    path = tmp_path / "gold"
    path.write_text("a I-X\nb I-X\nc O\n")
    task = Tagging("custom")
    examples = task.read(Source(files={"dev": str(path)}), "dev")
    assert examples[0].written == ("I-X", "I-X", "O")
    predictions = [("B-X", "I-X", "O")]
    assert task.score(examples, predictions)["accuracy"] == 1
    written, report = task.write(tmp_path, "dev", examples, predictions)
    assert "accuracy: 100.00%" in report.read_text()
    assert task.score(examples, task.read_predictions(written, examples))["accuracy"] == 1
    # A file of predictions alone is compared with the gold tags as they are.
    written.write_text("a B-X\nb I-X\nc O\n")
    scores = task.score(examples, task.read_predictions(written, examples))
    assert (scores["accuracy"], scores["f1"]) == (pytest.approx(2 / 3), 1)


def test_report_reads_like_conlleval():
    gold = [["B-LOC", "I-LOC", "O", "B-PER"], ["O", "B-PER"]]
    predicted = [["B-LOC", "I-LOC", "O", "B-LOC"], ["O", "B-PER"]]
    assert conll.report(gold, predicted) == (
        "processed 6 tokens with 3 phrases; found: 3 phrases; correct: 2.\n"
        "accuracy:  83.33%; precision:  66.67%; recall:  66.67%; FB1:  66.67\n"
        "              LOC: precision:  50.00%; recall: 100.00%; FB1:  66.67  2\n"
        "              PER: precision: 100.00%; recall:  50.00%; FB1:  66.67  1\n"
    )


def test_character_f1_of_klue():
    # Tags O, B, I, and one that occurs nowhere, which counts as 1; [CLS] and [SEP] are right Os.
    gold, predicted = [["B-X", "I-X", "O"]], [["B-X", "O", "O"]]
    labels = ("O", "B-X", "I-X", "B-Y")
    expected = (2 * 3 / (3 + 4) + 1 + 0 + 1) / 4
    assert conll.character_f1(gold, predicted, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "tags, iob2",
    [
        ("I-X I-X O I-X B-X", "B-X I-X O B-X B-X"),  # IOB1
        ("B-X I-X O B-X B-X", "B-X I-X O B-X B-X"),  # IOB2
        ("B-X E-X O S-X S-X B-Y I-Y E-Y", "B-X I-X O B-X B-X B-Y I-Y I-Y"),  # BIOES
        ("B-X L-X O U-X", "B-X I-X O B-X"),  # BILOU
        ("B-X E-X E-X I-X", "B-X I-X B-X B-X"),  # a broken scheme
        ("I-X I-Y", "B-X B-Y"),
    ],
)
def test_schemes_become_iob2(tags, iob2):
    assert conll.to_iob2(tags.split()) == tuple(iob2.split())


def _file(tmp_path, text: str):
    path = tmp_path / "data.conll"
    path.write_bytes(text.encode())
    return path


def test_conll2003_columns_and_documents(tmp_path):
    text = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n"
        "-DOCSTART- -X- -X- O\n\nPeter NNP I-NP I-PER\n\nHe PRP I-NP O\n"
    )
    sentences = conll.read_sentences(_file(tmp_path, text))
    assert [s.words for s in sentences] == [("EU", "rejects"), ("Peter",), ("He",)]
    assert [s.tags for s in sentences] == [("B-ORG", "O"), ("B-PER",), ("O",)]
    assert [s.group for s in sentences] == ["data.conll#1", "data.conll#2", "data.conll#2"]
    assert sentences[0].where.endswith("data.conll:3")
    assert sentences[0].where_word(1).endswith("data.conll:4")


def test_line_ends_marks_and_empty_lines(tmp_path):
    text = "\ufeffa\tB-X\r\nb c\tI-X\r\n\t\r\n\r\nd\tO\n\n \n"
    sentences = conll.read_sentences(_file(tmp_path, text))
    assert [(s.words, s.tags) for s in sentences] == [
        (("a", "b c"), ("B-X", "I-X")),
        (("d",), ("O",)),
    ]


def test_a_no_break_space_is_part_of_a_word(tmp_path):
    (tmp_path / "a.txt").write_text("10\u00a0000  O\nx B-A\n", encoding="utf-8")
    (sentence,) = conll.read_sentences(tmp_path / "a.txt")
    assert sentence.words == ("10\u00a0000", "x") and sentence.tags == ("O", "B-A")


def test_one_column_has_no_tags(tmp_path):
    (sentence,) = conll.read_sentences(_file(tmp_path, "a\nb\n"))
    assert sentence.words == ("a", "b") and sentence.tags is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "data.conll holds no sentences"),
        ("\n\n-DOCSTART- -X- O O\n", "data.conll holds no sentences"),
        ("a O\nb\n", "data.conll:2: 1 columns"),
        ("a x O\nb O\n", "data.conll:2: 2 columns, where the lines above have 3"),
        ("a O\nb X-LOC\n", "data.conll:2: 'X-LOC' is not a tag"),
        ("a O\nb B-\n", "data.conll:2: 'B-' is not a tag"),
        ("index\tsentence\n0\tA text.\n", "data.conll:1: 'sentence' is not a tag"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        conll.read_sentences(_file(tmp_path, text))


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "data.conll"
    path.write_bytes("Müller\tB-PER\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        conll.read_sentences(path)


def test_wnut17_is_read_whole():
    folder = pack("tasks") / "wnut17"
    train = conll.read_sentences(folder / "wnut17train.conll")
    dev = conll.read_sentences(folder / "emerging.dev.conll")
    assert (len(train), len(dev)) == (3394, 1009)
    counts = conll.count([s.tags for s in dev], [s.tags for s in dev])
    assert len(counts) == 6 and conll.total(counts.values()) == conll.Counts(836, 836, 836)


def test_klue_is_read_whole():
    path = pack("tasks") / "klue" / "klue-ner-train-first5000.tsv"
    sentences = conll.read_sentences(path, joined=True)
    assert len(sentences) == 5000
    assert sentences[0].id == "klue-ner-v1_train_00000_wikitree"
    headers = re.findall(r"^## (klue\S*)\t(.*)$", path.read_text(encoding="utf-8"), re.M)
    texts = {name: re.sub(r"<([^<>]*):[A-Z]{2}>", r"\1", text) for name, text in headers}
    different = [s for s in sentences if "".join(s.words) != texts[s.id]]
    # One sentence ends in a space that its header lacks.
    assert ["".join(s.words).removesuffix(" ") == texts[s.id] for s in different] == [True]


def test_a_space_without_a_tag_is_a_character(tmp_path):
    first, second = conll.read_sentences(_file(tmp_path, "a\n \nb\n\nc\n"), joined=True)
    assert (first.words, second.words) == (("a", " ", "b"), ("c",))
    assert len(conll.read_sentences(_file(tmp_path, "a\n \nb\n"))) == 2  # of words, a blank line
