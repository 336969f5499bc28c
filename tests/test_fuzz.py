"""Spoiled files end in the product's own errors, whatever reads them; `python -m tests.fuzz` takes many more."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from fuzz.mutate import content, tree
from fuzz.readers import READERS, SLOW, Reader
from fuzz.runner import Fault, fuzz, made
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmflow.models.batches import read_batch
from tvmflow.report import check_report
from tvmflow.spec import UserError
from tvmflow.system.untrusted import shortened

SEED = int(os.environ.get("TVMFLOW_FUZZ_SEED", "0"))
INPUTS, SECONDS = 2000, 0.75


@pytest.mark.parametrize("name", [name for name in READERS if name not in SLOW])
def test_readers(name):
    """Up to 2,000 inputs a reader, as far as a second goes."""
    reader = READERS[name]
    outcomes = list(fuzz(reader, reader.corpus(), SEED, range(INPUTS), seconds=SECONDS))
    print(f"{len(outcomes)} inputs of {name}, seed {SEED}")
    assert outcomes
    faults = {(outcome.kind, outcome.where): outcome for outcome in outcomes if isinstance(outcome, Fault)}
    assert not faults, "\n".join(map(str, faults.values()))


def misread(path: Path) -> None:
    """A reader with every fault that there can be."""
    match path.read_bytes():
        case b"raise":
            raise KeyError("x")
        case b"lines":
            raise UserError("two\nlines")
        case b"long":
            raise UserError("x" * 10_000)
        case b"crash":
            os.abort()
        case b"exit":
            sys.exit(3)
        case b"sleep":
            time.sleep(60)
        case b"memory":
            bytearray(3 << 30)
        case b"refuse":
            raise UserError("It is no file of ours.")


def test_faults_are_found(monkeypatch):
    """Each kind of fault, by the number of the input that shows it; what was refused or taken is none."""
    monkeypatch.setattr("fuzz.runner.SECONDS", 1)
    corpus = [
        {"file": text}
        for text in (b"good", b"refuse", b"raise", b"lines", b"crash", b"long", b"sleep", b"memory", b"exit", b"good")
    ]
    reader = Reader(name="misread", read=misread, corpus=lambda: corpus, path="file")
    outcomes = list(fuzz(reader, corpus, 0, range(10)))
    found = {outcome.number: outcome.kind for outcome in outcomes if isinstance(outcome, Fault)}
    assert found == {
        2: "KeyError",
        3: "a message that is no line",
        4: "signal",
        5: "a message that is too long",
        6: "time-out",
        7: "MemoryError",
        8: "SystemExit",
    }
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 1, 9]


@pytest.mark.parametrize("name", ["batch", "board", "array", "image", "ledger"])
def test_inputs_come_again(name):
    reader = READERS[name]
    corpus = reader.corpus()
    inputs = [made(reader, corpus, 3, number) for number in range(200)]
    assert inputs == [made(reader, corpus, 3, number) for number in range(200)]
    assert len({str(files) for files in inputs}) > 150


def test_inputs_differ_by_seed():
    reader = READERS["board"]
    corpus = reader.corpus()
    number = len(corpus)
    assert made(reader, corpus, 1, number) != made(reader, corpus, 2, number)


def test_every_format_is_spoiled_by_what_it_is():
    """Of an archive's, a header's or a document's spoiled forms, most can still be opened."""
    from random import Random

    document = json.dumps({"a": [1, 2, {"b": "text"}], "c": 1.5}).encode()
    opened = 0
    for number in range(200):
        try:
            json.loads(content(document, Random(number)))
            opened += 1
        except (ValueError, RecursionError):
            pass
    assert opened > 100


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_no_bytes_are_a_batch(noise):
    for start in (b"", b"\x80\x02", b"\x80\x02}(U\x06labels]U\x04data", b"\x80\x04cnumpy\nndarray\n"):
        with pytest.raises(UserError, match="is no CIFAR-10 batch"):
            read_batch("data_batch_1", start + noise)


@given(documents)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_no_document_is_a_report(document):
    with pytest.raises(UserError):
        check_report(document, Path("report.json"))


@given(st.text(max_size=2000))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_any_words_are_shown_in_a_line(text):
    assert shortened(text).isprintable()
    assert len(shortened(text)) <= 160


@given(documents, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_any_document_can_be_spoiled(document, rng):
    json.dumps(tree(document, rng))
