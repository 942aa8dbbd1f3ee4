from __future__ import annotations

import pytest
import torch

from bcg.errors import ModelError, ReplayError, UsageError
from bcg.input_makers import describe_inputs
from bcg.inputs import InputSpec
from bcg.static_inputs import StaticInputs

CPU = torch.device("cpu")
SPECS = (
    InputSpec("ids", torch.int64, (1, -1), 1),
    InputSpec("rows", torch.float32, (2, -1, 3), 1),
    InputSpec("scale", torch.float32, (4,), None),
)


def make_inputs(num_tokens: int, device: torch.device, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "ids": torch.randint(9, (1, num_tokens), device=device, generator=generator),
        "rows": torch.rand(2, num_tokens, 3, device=device, generator=generator),
        "scale": torch.ones(4, device=device),
    }


def live(num_tokens: int) -> dict[str, torch.Tensor]:
    return make_inputs(num_tokens, CPU, torch.Generator().manual_seed(num_tokens))


def test_token_dimensions_are_found_by_asking_twice() -> None:
    assert describe_inputs(make_inputs, CPU) == SPECS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n, d, g: {"mask": torch.ones(n, n)}, "^the token dimension of input 'mask' is ambiguous: asked for 8"),
        (lambda n, d, g: {"x": torch.ones(2 * n)}, "^the token dimension of input 'x' is ambiguous"),
        (lambda n, d, g: {"x": torch.ones([1] * n)}, "^the token dimension of input 'x' is ambiguous"),
        (lambda n, d, g: {"x": torch.ones(3)}, "^no input grows with the number of tokens: x"),
        (lambda n, d, g: {}, "^no input grows"),
        (lambda n, d, g: torch.ones(n), "^make_inputs must return a dict of tensors, got Tensor"),
        (lambda n, d, g: {"x": n}, "^make_inputs must return a dict from names to tensors, got 'x': int"),
        (lambda n, d, g: {f"x{n}": torch.ones(n)}, "^make_inputs gives other inputs for 16 tokens than for 8"),
        (lambda n, d, g: {"x": torch.ones(n, device="meta")}, "^make_inputs made input 'x' on meta, expected cpu"),
        (
            lambda n, d, g: {"x": torch.ones(n, dtype=torch.int32 if n > 8 else torch.int64)},
            "^input 'x' changes its dtype",
        ),
    ],
)
def test_inputs_that_cannot_be_described(make, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        describe_inputs(make, CPU)


def test_a_make_inputs_that_cannot_be_called() -> None:
    expected = r"^make_inputs\(n\) can't be called with \(num_tokens, device, generator\)"
    with pytest.raises(UsageError, match=expected) as caught:
        describe_inputs(lambda n: {"x": torch.ones(n)}, CPU)  # type: ignore[arg-type,misc]
    assert "make_inputs(num_tokens, device, generator)" in str(caught.value.hint)


def test_a_make_inputs_that_raises() -> None:
    with pytest.raises(ModelError, match="^make_inputs raised KeyError for 8 tokens: 'missing'$"):
        describe_inputs(lambda n, d, g: {}["missing"], CPU)


def test_views_of_all_buckets_share_one_address() -> None:
    static = StaticInputs(SPECS, 16, CPU)
    large, small = static.views(16), static.views(4)
    assert large["rows"].shape == (2, 16, 3)
    assert small["rows"].shape == (2, 4, 3)
    assert all(view.is_contiguous() for view in small.values())
    assert all(small[name].data_ptr() == large[name].data_ptr() for name in small)


def test_a_forward_may_reshape_what_it_is_given() -> None:
    static = StaticInputs(SPECS, 8, CPU)
    static.views(8)["ids"].squeeze_(0)
    static.load(live(8), 8, 8)
    assert torch.equal(static.views(8)["ids"], live(8)["ids"])


def test_load_copies_and_zeroes_padding() -> None:
    static = StaticInputs(SPECS, 8, CPU)
    for view in static.views(8).values():
        view.fill_(7)
    inputs = live(5)
    static.load(inputs, 8, 5)
    rows = static.views(8)["rows"]
    assert torch.equal(rows[:, :5], inputs["rows"])
    assert not rows[:, 5:].any()
    assert static.views(8)["ids"][0].tolist() == [*inputs["ids"][0].tolist(), 0, 0, 0]
    assert torch.equal(static.views(8)["scale"], inputs["scale"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(1, 5, dtype=torch.int32)}, r"^wrong input 'ids': expected int64 \[1, 5\], got int32"),
        (
            {"ids": torch.zeros(1, 6, dtype=torch.int64)},
            r"^wrong input 'ids': expected int64 \[1, 5\], got int64 \[1, 6\]",
        ),
        ({"more": torch.zeros(5)}, "^wrong inputs: expected ids, rows, scale, got ids, rows, scale, more"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_written(change, message: str) -> None:
    static = StaticInputs(SPECS, 8, CPU)
    with pytest.raises(ReplayError, match=message):
        static.load(live(5) | change, 8, 5)
    assert not any(view.any() for view in static.views(8).values())


def test_more_tokens_than_the_bucket_or_the_buffers_are_refused() -> None:
    static = StaticInputs(SPECS, 8, CPU)
    with pytest.raises(ReplayError, match="^5 tokens don't fit into the bucket of 4"):
        static.load(live(5), 4, 5)
    with pytest.raises(ReplayError, match="^no static inputs for 9 tokens"):
        static.views(9)
