"""Instances by index: the released algorithm exactly, and the randomness behind it."""

import collections
import itertools
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import programs
import pytest
import reference_instances as reference
from reference_instances import (
    CLS,
    FIRST,
    PAD,
    SEP,
    TEMPLATE,
    make,
    numbered,
    random_documents,
    rows,
)

from bert_jax.common.errors import UserError
from bert_jax.data.corpus import open_corpus
from bert_jax.data.draws import Purpose, below, random_bits, uniform
from bert_jax.data.instances import Instances

SHAPES = {  # documents, sentences, longest sentence, share of sentences 40 times as long
    "ordinary": (20, 30, 12, 0.0),
    "one_document": (1, 60, 9, 0.0),
    "two_documents": (2, 40, 9, 0.1),
    "one_sentence_each": (50, 1, 30, 0.1),
    "long_sentences": (6, 12, 60, 0.5),
    "tiny_sentences": (10, 200, 2, 0.0),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("short", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_instance_by_instance(shape, short, half):
    for trial, seq_length in enumerate([5, 6, 8, 16, 31, 64, 128]):
        rng = np.random.default_rng([trial, len(shape)])
        documents = random_documents(rng, *SHAPES[shape])
        instances = make(
            documents, seq_length, seed=trial - 2, short_seq_prob=short, exact_half=half
        )
        for pass_ in (0, 3):
            draws = reference.KeyedDraws(trial - 2, pass_)
            expected = reference.pass_instances(documents, seq_length, short, draws, half)
            order = instances.order(pass_)
            assert sorted(order) == [x.first_sentence for x in expected]
            expected = {x.first_sentence: x for x in expected}
            # Every slot of the pass, and beyond its own chunks where it has fewer than pass 0.
            n = instances.per_pass
            wanted = [expected[int(order[i % len(order)])] for i in range(n)]
            batch = instances.batch(pass_ * n + np.arange(n))
            assert rows(batch, "tokens") == [x.tokens(CLS, SEP) for x in wanted]
            assert rows(batch, "segments") == [x.segments() for x in wanted]
            assert batch["pair_label"].tolist() == [x.is_random_next for x in wanted]
            assert batch["instance"].tolist() == [[pass_, i] for i in range(n)]
            padding = np.arange(seq_length) >= batch["lengths"][:, None]
            assert (batch["tokens"][padding] == PAD).all()
            assert (batch["segments"][padding] == 0).all()
            assert (batch["weight"] == 1).all()


def test_plans_do_not_depend_on_the_size_of_the_planning_window(monkeypatch):
    documents = random_documents(np.random.default_rng(0), 8, 40, 9)
    whole = make(documents)._layout.chunks(1)
    for window in (1, 3, 50):
        monkeypatch.setattr("bert_jax.data.layouts._PLAN_SENTENCES", window)
        assert (make(documents)._layout.chunks(1) == whole).all()


def test_half_of_the_pairs_are_random_by_the_papers_rule():
    """A sentence as long as an instance is a chunk of its own, whose next the released code makes
    random always."""
    documents = random_documents(np.random.default_rng(0), 40, 100, 60, 0.5)
    shares = []
    for half in (False, True):
        instances = make(documents, 32, exact_half=half)
        batch = instances.batch(np.arange(instances.per_pass))
        shares.append(batch["pair_label"].mean())
    # The last sentences of the 40 documents have no next one.
    assert shares[0] > 0.9 and shares[1] == pytest.approx(0.515, abs=0.02)


# Statistics against the reference under independent randomness -----------------------------------


def statistics(triples, count, documents):
    """Facts about a pass of `count` instances from (A, B, is random) of many of them, read off the
    tokens alone, each of which stands at one place of the text."""
    places = {}  # token -> document, tokens of its sentence before and after it
    for number, document in enumerate(documents):
        for sentence in document:
            for place, token in enumerate(sentence):
                places[token] = number, place, len(sentence) - 1 - place
    lengths = np.array([len(a) + len(b) for a, b, _ in triples])
    random = [(a, b) for a, b, is_random in triples if is_random]
    # Cuts as far as they are seen: what is missing of the first and last sentence of a segment.
    front = np.array([sum(places[x[0]][1] for x in pair[:2]) for pair in triples])
    back = np.array([sum(places[x[-1]][2] for x in pair[:2]) for pair in triples])
    return {
        "instances_per_token": count / len(places),
        "random_next": len(random) / len(triples),
        "b_from_another_document": np.mean([places[a[0]][0] != places[b[0]][0] for a, b in random]),
        "a_share": np.mean([len(a) / (len(a) + len(b)) for a, b, _ in triples]),
        "front_cuts": front.sum() / (front + back).sum(),
        "cut_tokens": (front + back).mean(),
        "cut": ((front + back) > 0).mean(),
        **{f"length_{q}": np.quantile(lengths, q) for q in (0.25, 0.5)},
        "mean_length": lengths.mean(),
        "full": np.mean(lengths == lengths.max()),
    }


def pass_statistics(instances, pass_, documents):
    """`statistics` of a pass of ours."""
    count = len(instances.order(pass_))
    n = min(count, instances.per_pass)
    batch = instances.batch(pass_ * instances.per_pass + np.arange(n))
    triples = []
    for tokens, is_random in zip(rows(batch, "tokens"), batch["pair_label"], strict=True):
        middle = tokens.index(SEP)
        triples.append((tokens[1:middle], tokens[middle + 1 : -1], is_random))
    return statistics(triples, count, documents)


def assert_statistics_agree(documents, seq_length, short, passes, precision):
    """Our passes against as many of the reference under Python's own randomness: every fact within
    four standard errors of the difference, as estimated from the passes; these are at most
    `precision` of the fact, or the test could not tell anything."""
    instances = make(documents, seq_length, seed=1, short_seq_prob=short)
    ours, theirs = [], []
    for i in range(passes):
        ours.append(pass_statistics(instances, i, documents))
        free = reference.pass_instances(documents, seq_length, short, reference.FreeDraws(i))
        triples = [(x.a, x.b, x.is_random_next) for x in free]
        theirs.append(statistics(triples, len(free), documents))
    for name in ours[0]:
        a, b = (np.array([facts[name] for facts in side]) for side in (ours, theirs))
        error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / passes)
        assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9, (name, a, b)
        assert error <= precision * b.mean(), (name, a, b)
    return {name: np.mean([facts[name] for facts in ours]) for name in ours[0]}


def test_statistics_agree_with_independent_randomness():
    rng = np.random.default_rng(7)
    # Sentences as long as in prose: log-normal around 21 tokens.
    lengths = [np.clip(rng.lognormal(2.9, 0.6, n), 1, 200) for n in rng.integers(10, 60, 400)]
    facts = assert_statistics_agree(numbered(lengths), 128, 0.1, passes=8, precision=0.05)
    assert 0.5 < facts["random_next"] < 0.6  # above a half: chunks of one sentence, too
    assert facts["b_from_another_document"] == 1.0


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """The train split of a few real books, as `bert_jax.prepare` makes it."""
    root = Path(__file__).parents[1]
    pack = root.parent / "shared" / "data" / "text_books.tar.xz"
    if not pack.exists():
        pytest.skip(f"the book pack {pack} is not on this machine")
    folder = tmp_path_factory.mktemp("books")
    with tarfile.open(pack, "r|xz") as archive:  # a stream: it stops after the first books
        for book in itertools.islice((x for x in archive if x.isfile()), 8):
            (folder / Path(book.name).name).write_bytes(archive.extractfile(book).read())
    done = programs.run(
        "-m", "bert_jax.prepare", f"--out={folder / 'corpus'}",
        "--config=configs/prepare.py:source=book", f"--config.input={folder}/*.*",
        "--config.vocab_size=4000", "--config.held_out=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return open_corpus(folder / "corpus").splits["train"]


def test_real_books_give_the_reference_s_statistics(books):
    ends = [0, *books.document_ends.tolist()]
    lengths = [books.sentence_lengths[a:b] for a, b in itertools.pairwise(ends)]
    # Without short targets: with them a few documents' lottery would drown everything else.
    facts = assert_statistics_agree(numbered(lengths), 128, 0.0, passes=4, precision=0.02)
    assert facts["full"] > 0.95 and 0.5 <= facts["random_next"] < 0.53


@pytest.mark.parametrize("pairs", [True, False])
def test_real_books_are_read_at_the_right_places(books, pairs):
    ends = [0, *books.document_ends.tolist()]
    lengths = [books.sentence_lengths[a:b] for a, b in itertools.pairwise(ends)]
    places = make(numbered(lengths), 128, pairs=pairs)
    real = Instances(books, 128, 5, TEMPLATE, "pairs" if pairs else "blocks")
    text = np.concatenate(books.tokens(np.array(ends[:-1]), np.array(ends[1:])))
    slots = np.random.default_rng(0).integers(0, 3 * real.per_pass, 2000)
    batch, expected = real.batch(slots), places.batch(slots)
    is_text = expected["tokens"] >= FIRST
    expected["tokens"][is_text] = text[expected["tokens"][is_text] - FIRST]
    for name in batch:
        assert np.array_equal(batch[name], expected[name]), name


# Passes, order, batches --------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [True, False])
def test_an_instance_does_not_depend_on_its_batch(pairs):
    documents = random_documents(np.random.default_rng(1), 20, 30, 12)
    instances = make(documents, pairs=pairs)
    n = 2 * instances.per_pass + 5
    whole = instances.batch(np.arange(n))
    shuffled = np.random.default_rng(2).permutation(n)
    again = make(documents, pairs=pairs)
    for part in np.array_split(shuffled, 17):
        for name, array in again.batch(part).items():
            assert array.dtype in (np.int32, np.float32)
            assert (array == whole[name][part]).all(), name


@pytest.mark.parametrize("pairs", [True, False])
def test_passes_and_seeds_differ(pairs):
    documents = random_documents(np.random.default_rng(3), 20, 60, 12)
    first = make(documents, pairs=pairs)
    n = first.per_pass

    def contents(instances, pass_):
        return rows(instances.batch(pass_ * n + np.arange(n)), "tokens")

    for other in (contents(first, 1), contents(make(documents, seed=6, pairs=pairs), 0)):
        same_slot = np.mean([x == y for x, y in zip(contents(first, 0), other, strict=True)])
        seen = {tuple(x) for x in contents(first, 0)}
        assert same_slot < 0.02
        assert np.mean([tuple(x) in seen for x in other]) < 0.3
    assert contents(first, 0) == contents(make(documents, pairs=pairs), 0)


def test_static_data_repeat_after_dupe_factor_passes():
    documents = random_documents(np.random.default_rng(4), 10, 30, 12)
    static, dynamic = make(documents, dupe_factor=2), make(documents)
    n = static.per_pass
    slots = np.arange(2 * n)
    once = static.batch(slots)
    for name, array in static.batch(slots + 2 * n).items():
        assert (array == once[name]).all(), name  # instance, too: so masks repeat
    for name, array in dynamic.batch(slots).items():
        assert (array == once[name]).all(), name
    assert set(once["instance"][:, 0]) == {0, 1}


def test_the_order_is_a_random_permutation_of_the_whole_text():
    documents = random_documents(np.random.default_rng(5), 100, 60, 12)
    instances = make(documents)
    for pass_ in range(2):
        order, chunks = instances.order(pass_), instances._layout.chunks(pass_)
        assert (np.sort(order) == chunks).all()
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.05
    # The first slots, which evaluation takes, are spread over the documents.
    first = instances._text.document_of(instances.order(0)[:100])
    assert len(set(first.tolist())) > 45
    assert np.histogram(first, 4, (0, 100))[0].min() > 10


def test_threads_and_pickles_give_the_same_batch():
    documents = random_documents(np.random.default_rng(6), 20, 60, 12)
    instances = make(documents)
    slots = np.arange(instances.per_pass - 4, instances.per_pass + 4)
    expected = instances.batch(slots)["tokens"]
    fresh = pickle.loads(pickle.dumps(make(documents)))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fresh.batch(slots)["tokens"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all((x == expected).all() for x in results)


def test_only_a_few_plans_are_kept():
    instances = make(random_documents(np.random.default_rng(6), 5, 20, 12))
    for pass_ in range(10):
        instances.batch(np.array([pass_ * instances.per_pass]))
    assert len(instances._orders) <= 3


# Blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_length", [3, 8, 64])
def test_blocks_cover_every_document_once_and_move_from_pass_to_pass(seq_length):
    documents = random_documents(np.random.default_rng(8), 15, 30, 12, long=0.05)
    instances = make(documents, seq_length, pairs=False)
    n = instances.per_pass
    width = seq_length - 2
    sizes = [sum(map(len, document)) for document in documents]
    assert n == sum(-(-size // width) for size in sizes)
    first_lengths = []
    for pass_ in range(3):
        batch = instances.batch(pass_ * n + np.arange(n))
        assert "pair_label" not in batch
        assert (batch["segments"] == 0).all()
        found = rows(batch, "tokens")
        assert all(row[0] == CLS and row[-1] == SEP and len(row) > 2 for row in found)
        blocks = sorted(row[1:-1] for row in found)
        assert all(block == list(range(block[0], block[-1] + 1)) for block in blocks)
        assert [t for block in blocks for t in block] == list(range(FIRST, FIRST + sum(sizes)))
        starts, token = {block[0]: len(block) for block in blocks}, FIRST
        for size in sizes:
            assert token in starts  # no block crosses into the document
            first_lengths.append(starts[token])
            token += size
    if width > 1:
        assert len(set(zip(*np.array(first_lengths).reshape(3, -1), strict=True))) > 1
        a, b, _ = np.array(first_lengths).reshape(3, -1)
        assert (a != b).any()


# Randomness --------------------------------------------------------------------------------------


def test_the_hash_is_splitmix64():
    # Outputs of the published generator for seed 1234567 (state increments by the golden ratio).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [
        int(random_bits(1234567 * pow(0x9E3779B97F4A7C15, -1, 2**64) + i)[0]) for i in range(3)
    ] == expected
    keys = np.array([0, 1, 7, 2**40, -1])
    for seed in (0, -3, 2**70 + 1):
        ours = random_bits(seed, Purpose.A_END, 4, keys, 2)
        assert ours.tolist() == [reference.keyed_bits(seed, 3, 4, k, 2) for k in keys.tolist()]


def test_draws_are_uniform_and_independent_of_each_other():
    n = 200_000
    position = np.arange(n)
    a = uniform(1, Purpose.A_END, 0, position)
    counts = np.histogram(a, 100, (0, 1))[0]
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 150  # chi square, 99 degrees: p 0.0007
    others = {
        "purpose": uniform(1, Purpose.RANDOM_NEXT, 0, position),
        "pass": uniform(1, Purpose.A_END, 1, position),
        "seed": uniform(2, Purpose.A_END, 0, position),
        "neighbour": uniform(1, Purpose.A_END, 0, position + 1),
        "counter": uniform(1, Purpose.A_END, 0, position, 1),
    }
    for name, b in others.items():
        counts = np.histogram2d(a, b, 10, [[0, 1], [0, 1]])[0]
        assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 150, name
    bits = random_bits(1, Purpose.CUT_A, 0, position)[:, None] >> np.arange(64, dtype=np.uint64) & 1
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.006  # every bit is a fair coin: 5 sigma
    assert abs(np.corrcoef(bits.T) - np.eye(64)).max() < 0.0125


def test_below_reaches_every_number_and_never_the_bound():
    draws = uniform(3, np.arange(60_000))
    for bound in (1, 2, 3, 7, 10):
        counts = collections.Counter(below(draws, bound).tolist())
        assert sorted(counts) == list(range(bound))
        assert max(counts.values()) - min(counts.values()) < 0.1 * 60_000 / bound + 900
    largest = np.array([1 - 2.0**-53])
    assert all(below(largest, bound)[0] == bound - 1 for bound in (1, 2, 3, 10, 10**6 + 3, 2**40))
    assert below(largest, 0)[0] == 0


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_length": 4}, "seq_length 4 is too short"),
        ({"seq_length": 2, "pairs": False}, "seq_length 2 is too short"),
        ({"short_seq_prob": 1.5}, "short_seq_prob 1.5"),
        ({"dupe_factor": 0}, "dupe_factor 0"),
    ],
)
def test_values_that_make_no_instance_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make([[[5, 6], [7]]], **options)


def test_an_empty_split_is_named():
    with pytest.raises(UserError, match="no document"):
        make([])
