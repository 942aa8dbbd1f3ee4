"""Buckets from a workload: exact against trying everything."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from bcg.buckets import engine_ladder
from bcg.errors import UsageError
from bcg.workload import Workload, choose_buckets, choose_within, fit, read_workload


def test_both_forms_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('16\n\n{"tokens": 24, "at": 1.5}\n16\n')
    assert read_workload(path) == Workload(tokens=(16, 24), steps=(2, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token count$"),
        ("16\nmany\n", ":2: expected a token count, got 'many'$"),
        ('{"token": 1}\n', ":1: expected a token count"),
        ("true\n", ":1: expected a token count"),
        ("1.5\n", ":1: expected a token count"),
        ("0\n", ":1: a token count is from 1 to 1,048,576, got 0$"),
        ("1048577\n", ":1: a token count is from 1 to 1,048,576, got 1,048,577$"),
        ("[" * 100_000, ":1: expected a token count"),
    ],
)
def test_what_is_no_workload(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_workload(path)


def test_a_workload_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^cannot read workload .*: No such file"):
        read_workload(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text"):
        read_workload(tmp_path / "binary")


def test_padding_and_what_replays() -> None:
    found = fit(Workload.of([3, 4, 9, 9, 40]), (32, 4, 8, 16))
    assert (found.padded_tokens, found.real_tokens) == (1 + 0 + 7 + 7, 3 + 4 + 9 + 9)
    assert (found.replayed_steps, found.num_steps, found.used_buckets) == (4, 5, 2)


@pytest.mark.parametrize("seed", range(30))
def test_no_list_pads_less(seed: int) -> None:
    chance = random.Random(seed)
    workload = Workload.of(chance.choices(range(1, 30), k=chance.randint(1, 40)))
    num_buckets = chance.randint(1, 5)
    chosen = choose_buckets(workload, num_buckets)
    tried = min(
        fit(workload, (*others, workload.tokens[-1])).padded_tokens
        for size in range(num_buckets)
        for others in itertools.combinations(workload.tokens[:-1], size)
    )
    assert len(chosen) <= num_buckets
    assert chosen == tuple(sorted(set(chosen)))
    assert fit(workload, chosen).padded_tokens == tried
    assert fit(workload, chosen).replayed_steps == workload.num_steps


def test_as_many_buckets_as_counts_pad_nothing() -> None:
    workload = Workload.of([5, 7, 7, 300])
    assert choose_buckets(workload, 49) == (5, 7, 300)


def test_never_worse_than_the_engines_ladder() -> None:
    chance = random.Random(1)
    workload = Workload.of(min(4096, int(chance.lognormvariate(5, 1.3)) + 1) for _ in range(20_000))
    ladder = fit(workload, engine_ladder())
    chosen = fit(workload, choose_buckets(workload, len(engine_ladder())))
    assert chosen.replayed_steps == ladder.replayed_steps == 20_000
    assert chosen.padded_tokens < 0.75 * ladder.padded_tokens


def test_counts_above_the_largest_allowed_are_left_to_eager() -> None:
    workload = Workload.of([8, 16, 4096])
    chosen = choose_buckets(workload, 2, max_tokens=100)
    assert chosen == (8, 16)
    assert fit(workload, chosen).replayed_steps == 2
    with pytest.raises(UsageError, match="no step of the workload has at most 4 tokens"):
        choose_buckets(workload, 2, max_tokens=4)
    with pytest.raises(UsageError, match="^at least one bucket is needed, got 0$"):
        choose_buckets(workload, 0)


def test_a_budget_of_memory() -> None:
    workload = Workload.of([10, 20, 30, 40])

    def pool(tokens: int) -> int:
        return 100 * tokens

    assert choose_within(workload, 4400, pool, 100) == (10, 20, 30, 40)
    assert choose_within(workload, 4200, pool, 100) in {(20, 40), (10, 40), (30, 40)}
    assert choose_within(workload, 4099, pool, 100)[-1] == 30
    with pytest.raises(UsageError, match="holds no bucket: 10 tokens.* need 1.07 KiB on a GPU"):
        choose_within(workload, 1000, pool, 100)
