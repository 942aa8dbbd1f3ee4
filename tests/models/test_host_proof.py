"""Whole models on the host device: after all buckets were captured, each replays other inputs bitwise as eager."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bcg import Batch, GraphRunner, load_target, make_batch

BUCKETS = (8, 16, 32)
TINY = ("qwen3-tiny", "qwen3-moe-tiny", "nemotron-h-tiny", "deepseek-v3-tiny")

SENTENCES = (
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
    "Shares lost a lot of value on Monday.",
    "How do I bake bread without yeast?",
    "What is a recipe for a loaf with no yeast in it?",
    "The graph was captured once and replayed many times.",
    "It rained all night and the river rose.",
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", TINY)
def test_a_preset_replays_bitwise_as_eager(model: str, dtype: str) -> None:
    runner = GraphRunner(load_target(model, device="cpu", dtype=dtype))
    results = runner.capture(BUCKETS)
    assert [result.status for result in results] == ["captured"] * 3
    generator = torch.Generator().manual_seed(21)
    for lengths in ((32,), (8,), (16,), (31,), (9,), (1,), (5, 3), (4, 4, 4), (16,), (32,)):
        batch = make_batch(runner.target, lengths, generator)
        replayed = runner.replay(batch).clone()
        padded = runner.eager_padded(batch)
        assert torch.equal(replayed, padded), lengths
        torch.testing.assert_close(
            padded.float(), runner.eager(batch).float(), rtol=0, atol=1e-5 if dtype == "float32" else 0.1
        )
    assert runner.num_replays == 10


def embed(hidden: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The model's own pooling: the mean over each sentence's tokens, normalized."""
    means = torch.stack([rows.mean(dim=1)[0] for rows in hidden.split(lengths, dim=1)])
    return torch.nn.functional.normalize(means)


def nearest(embeddings: Tensor) -> list[list[int]]:
    """For each sentence all others, the nearest first."""
    return (embeddings @ embeddings.T).argsort(dim=1, descending=True)[:, 1:].tolist()


def test_a_trained_model_on_real_text_replays_bitwise_and_ranks_the_same(minilm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokens = [tokenizer(text)["input_ids"] for text in SENTENCES]
    lengths = tuple(map(len, tokens))
    runner = GraphRunner(load_target(str(minilm), device="cpu"))
    runner.capture([16, 32, 64, 128])
    batch = Batch(
        {
            "input_ids": torch.tensor([list(itertools.chain.from_iterable(tokens))]),
            "position_ids": torch.tensor([[index for length in lengths for index in range(length)]]),
        },
        lengths,
    )
    packed = runner.replay(batch).clone()
    assert torch.equal(packed, runner.eager_padded(batch))
    alone = []
    for ids in tokens:
        single = Batch({"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None]}, (len(ids),))
        replayed = runner.replay(single).clone()
        assert torch.equal(replayed, runner.eager_padded(single))
        alone.append(runner.eager(single))
    eager = torch.cat(alone, dim=1)
    torch.testing.assert_close(packed, eager, rtol=0, atol=1e-5)
    ranking = nearest(embed(packed, lengths))
    assert ranking == nearest(embed(eager, lengths))
    assert [row[0] for row in ranking[:6]] == [1, 0, 3, 2, 5, 4]
    assert runner.num_replays == len(SENTENCES) + 1
