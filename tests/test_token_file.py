"""Token ids in an Arrow file are the rows in memory, and shards follow from either in the same way."""

import contextlib
import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from clues.cluster.worker import Scorer, Task
from clues.config import TokenSettings
from clues.data import tokenfile
from clues.data.pieces import TurnRun
from clues.data.tokenfile import (
    TokenRows,
    encode_into,
    hash_rows,
    pack_rows,
    unpack_rows,
    write_rows,
)
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.data.views import View
from clues.errors import DataError
from clues.model.adapters import Checkpoint
from clues.scoring import job as jobs
from clues.scoring.job import Job, rows_per_shard
from tests.bounded import within


def many(n: int) -> list[EncodedRow]:
    """Rows of one to nine tokens, some of them equal in length and id."""
    draw = random.Random(3)
    rows = []
    for row in range(n):
        length = draw.randrange(1, 10)
        ids = tuple(draw.randrange(2**31) for _ in range(length))
        mask = tuple(draw.random() < 0.5 for _ in range(length))
        rows.append(EncodedRow(row, f"{draw.randrange(n // 2):016x}", ids, mask, row % 3 == 0))
    return rows


@pytest.fixture
def short_batches(monkeypatch):
    monkeypatch.setattr(tokenfile, "ROWS_PER_BATCH", 16)


def test_rows_come_back_as_they_were(tmp_path, short_batches):
    rows = many(100)
    file = write_rows(rows, tmp_path)
    assert list(file) == rows
    assert [file[i] for i in (0, 15, 16, 99, -1)] == [rows[i] for i in (0, 15, 16, 99, -1)]
    assert file[14:18] == rows[14:18]
    assert file.lengths.tolist() == [len(row.ids) for row in rows]
    assert file.id_texts.tolist() == [row.id for row in rows]
    with pytest.raises(IndexError):
        file[100]
    assert unpack_rows(pack_rows(rows[5:9])) == rows[5:9]


def test_the_hash_is_that_of_the_file_and_needs_none(tmp_path, short_batches):
    rows = many(40)
    file = write_rows(iter(rows), tmp_path)
    assert hash_rows(rows) == file.hash == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert hash_rows(rows[:-1]) != file.hash
    assert [p.name for p in tmp_path.iterdir()] == [file.path.name], "a part is left behind"


def test_no_rows_are_a_file_too(tmp_path):
    assert list(write_rows([], tmp_path)) == []


def test_another_file_is_no_token_file(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1 or not")
    with pytest.raises(DataError, match=r"x\.arrow: not the file of token ids that was written"):
        tokenfile.TokenRows(tmp_path / "x.arrow", "")
    with pytest.raises(DataError, match="slice"):
        unpack_rows(b"rubbish")


def test_a_private_folder_keeps_it_private(tmp_path):
    tmp_path.chmod(0o700)
    assert write_rows(many(3), tmp_path).path.stat().st_mode & 0o777 == 0o600


def test_the_plan_and_the_key_are_the_same_in_memory_and_in_the_file(
    tmp_path, short_batches, monkeypatch
):
    monkeypatch.setattr(jobs, "ROWS_PER_SHARD", 7)
    rows = many(60)
    ours = Job.of_losses(rows, {})
    theirs = Job.of_losses(write_rows(rows, tmp_path), {})
    assert ours.key == theirs.key
    assert ours.shards() == theirs.shards()
    # The slow, obvious order.
    order = sorted(range(60), key=lambda i: (-len(rows[i].ids), rows[i].id, i))
    assert ours.shards() == [order[i : i + 7] for i in range(0, 60, 7)]
    assert ours.ids_of(2) == [rows[i].id for i in order[14:21]] == theirs.ids_of(2)


def test_no_job_has_more_than_ten_thousand_shards():
    for n in (1, 256, 257, 2_560_000, 2_560_001, 10_000_000):
        size = rows_per_shard(n)
        assert size >= 256, "small jobs keep the shards that they had"
        assert -(-n // size) <= 10_000
    assert rows_per_shard(2_560_000) == 256


def test_a_packed_job_is_the_job_without_its_rows():
    state = {"a.lora_A.weight": torch.arange(6.0).reshape(2, 3)}
    job = Job(many(4), Checkpoint(3, 0.1, state, {}, {}, 2), [state, {}], "sgd", "side_branch")
    back = Job.unpacked(job.packed(), job.rows)
    assert back.key == job.key
    assert np.array_equal(back.directions[0]["a.lora_A.weight"], state["a.lora_A.weight"])
    with pytest.raises(ValueError, match="not what was written"):
        Job.unpacked(job.packed()[:-1], ())


def test_rows_encoded_into_a_file_are_those_encoded_in_memory(tmp_path, tokenizer, samples):
    encoder = RowEncoder(tokenizer, TokenSettings(template="alpaca", max_length=60))
    here = encode_rows(samples, encoder, where="rows")
    (tmp_path / "tokens-old.arrow").write_bytes(b"of other rows")
    there = encode_into(tmp_path, iter(samples), encoder, where="rows")
    assert list(there.rows) == list(here.rows)
    assert there.dropped == here.dropped
    assert here.dropped, "a row that is too long would show whether reasons come along"
    assert len(list(tmp_path.iterdir())) == 1, "token ids of other rows are left behind"
    short = RowEncoder(tokenizer, TokenSettings(template="alpaca", max_length=8))
    with pytest.raises(DataError, match="no row fits into 8 tokens"):
        encode_into(tmp_path, samples, short, where="rows")


def test_a_view_is_the_rows_that_it_names():
    rows = many(20)
    view = View(rows, [3, 3, 19, 0])
    assert list(view) == [rows[3], rows[3], rows[19], rows[0]]
    assert view[1:3] == [rows[3], rows[19]]
    assert view[-1] == rows[0]
    assert hash_rows(view) == hash_rows(list(view))
    changed = View(rows, [1], lambda row: replace(row, id="other"))
    assert changed[0].id == "other"
    with pytest.raises(IndexError):
        view[4]


SHORT, LONG = 120, 4_000


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes of a file, cut or with one to twenty of them changed."""
    draw = random.Random(seed)
    if draw.randrange(4) == 0:
        return data[: draw.randrange(len(data))]
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = draw.randrange(len(found))
        found[at] = draw.choice((found[at] ^ 1 << draw.randrange(8), 0, 127, 255))
    return bytes(found)


def tried(tmp_path, seeds: range) -> str:
    """What comes of damaged token files and slices: nothing, or the first that was not refused."""
    turns = (TurnRun(1, 3, 4), TurnRun(3, 4, 5))
    rows = [
        EncodedRow(n, f"{n:016x}", (7,) * 5, (True,) * 5, False, turns=turns) for n in range(60)
    ]
    file = write_rows(rows, tmp_path)
    whole, packed = file.path.read_bytes(), pack_rows(rows)
    for seed in seeds:
        data = damaged(whole, seed)
        file.path.write_bytes(data)
        try:
            if list(TokenRows(file.path, file.hash)) != rows:
                return f"seed {seed}: other rows"
        except DataError:
            pass
        with contextlib.suppress(DataError):
            unpack_rows(damaged(packed, seed))
    return ""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "seeds", [range(SHORT), pytest.param(range(SHORT, LONG), marks=pytest.mark.long)]
)
def test_a_damaged_token_file_ends_no_process_and_gives_no_other_tokens(tmp_path, seeds):
    assert within(lambda: tried(tmp_path, seeds) or "all refused", seconds=60) == "all refused"


def test_a_shard_that_did_not_arrive_as_it_was_sent_is_not_scored(tmp_path):
    rows = many(8)
    packed = pack_rows(rows)
    digest = hashlib.sha256(packed).hexdigest()
    sent = Task("key", range(8), ("nowhere", "0"), digest, packed)
    assert Scorer()._rows(sent) == rows
    other = pack_rows([replace(rows[0], ids=rows[1].ids, mask=rows[1].mask), *rows[1:]])
    with pytest.raises(DataError, match="did not arrive as they were sent"):
        Scorer()._rows(sent._replace(rows=other))
    file = write_rows(rows, tmp_path)
    mapped = sent._replace(rows=None, place=(str(file.path), file.hash))
    assert Scorer()._rows(mapped) == rows
    file.path.write_bytes(other)
    assert Scorer()._rows(mapped) is None, "another file under the same name is not ours"
