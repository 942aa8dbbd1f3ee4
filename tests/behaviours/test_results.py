"""Behaviours 14 to 21: what a break returns reaches the next segment, at the same address every time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bcg import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
    CaptureError,
    HostReadError,
    ReplayError,
    eager_on_graph,
)


@dataclass
class Result:
    data: Tensor
    note: str
    parts: tuple[Tensor, ...] = ()


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def capture(device: str, function: Callable[[Tensor], Any], use: Callable[[Any], Tensor]) -> Any:
    """Capture `use(break(x))`; return the graph, its input, the break's result in the body and the output."""
    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        handed = eager_on_graph(function)(x + 0)
        y = use(handed) + 0
    return graph, x, handed, y


def test_14_a_tensor_is_written_in_place(device: str) -> None:
    graph, x, handed, y = capture(device, lambda t: t * 2, lambda r: r)
    address = handed.data_ptr()
    for value in (3, 4):
        x.fill_(value)
        graph.replay()
        assert handed.tolist() == y.tolist() == [2.0 * value] * 4
        assert handed.data_ptr() == address
    (boundary,) = graph.breaks[0].boundaries
    assert boundary.data_ptr() == address


def test_15_every_tensor_of_a_dict(device: str) -> None:
    graph, x, handed, y = capture(device, lambda t: {"a": t * 2, "b": {"c": t + 1}}, lambda r: r["a"] + r["b"]["c"])
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [16.0] * 4
    assert handed["b"]["c"].tolist() == [6.0] * 4


def test_16_an_object_gets_its_tensors_copied_and_its_other_attributes_replaced(device: str) -> None:
    notes = iter(["capture", "replay"])
    graph, x, handed, y = capture(device, lambda t: Result(t * 2, next(notes)), lambda r: r.data)
    assert handed.note == "capture"
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10.0] * 4
    assert handed.note == "replay"


@pytest.mark.parametrize(("first", "later"), [(2, 5), (True, False), (None, 5), (None, "text")])
def test_16_a_number_of_an_object_that_changes_is_an_error(device: str, first: Any, later: Any) -> None:
    """Found by hand: segments went on with the number of the capture, as no tuple's number may."""
    numbers = iter([first, first, later])
    graph, _, _, _ = capture(device, lambda t: Result(t * 2, next(numbers)), lambda r: r.data)
    graph.replay()
    with pytest.raises(ReplayError, match=rf"^break <lambda>\.note returned .* at replay; at capture it was {first!r}"):
        graph.replay()


@pytest.mark.parametrize("names", [(["more"], []), ([], ["more"])])
def test_16_another_attribute_at_replay_is_an_error(device: str, names: tuple[list[str], list[str]]) -> None:
    attributes = iter(names)

    def returns(t: Tensor) -> Result:
        result = Result(t * 2, "note")
        for name in next(attributes):
            setattr(result, name, t * 3)
        return result

    graph, _, _, _ = capture(device, returns, lambda r: r.data)
    with pytest.raises(
        ReplayError, match=r"^break returns returned attributes data, .* at replay; at capture it was attributes data, "
    ):
        graph.replay()


def test_16_an_object_that_the_break_keeps_is_not_touched(device: str) -> None:
    kept = Result(torch.full((4,), 9.0, device=device), "kept")
    own = kept.data
    graph, _, handed, y = capture(device, lambda t: kept, lambda r: r.data)
    assert kept.data is own and handed is not kept
    own.fill_(11)
    graph.replay()
    assert y.tolist() == [11.0] * 4


def test_17_tuples_lists_and_named_tuples(device: str) -> None:
    graph, x, handed, y = capture(
        device,
        lambda t: ([t + 1, t + 2], Pair(t * 2, t * 3)),
        lambda r: r[0][0] + r[0][1] + r[1].left + r[1].right,
    )
    assert isinstance(handed[1], Pair)
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [11.0 + 12.0 + 20.0 + 30.0] * 4


@pytest.mark.parametrize("value", [None, 7, "text", 2.5, True, (1, "x")])
def test_18_a_value_without_a_tensor_is_passed_through(device: str, value: object) -> None:
    graph, _, handed, _ = capture(device, lambda t: value, lambda r: torch.zeros(4, device=device))
    assert handed == value
    graph.replay()


def test_18_a_number_that_changes_is_an_error(device: str) -> None:
    numbers = iter([5, 5, 7])
    graph, _, _, _ = capture(device, lambda t: next(numbers), lambda r: torch.full((4,), float(r), device=device))
    graph.replay()
    with pytest.raises(ReplayError, match=r"^break <lambda> returned 7 at replay; at capture it was 5"):
        graph.replay()


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (1, True),
        (1, 1.0),
        (1, torch.tensor(1)),
        (1, torch.ones(2)),
        (None, torch.ones(2)),
    ],
)
def test_18_a_value_of_another_type_is_an_error(device: str, first: object, later: object) -> None:
    """Found by hand: what was equal passed, whatever its type, and a tensor of several values was an error of torch."""
    values = iter([first, later])
    graph, _, _, _ = capture(device, lambda t: next(values), lambda r: torch.zeros(4, device=device))
    with pytest.raises(ReplayError, match=rf"^break <lambda> returned .* at replay; at capture it was {first}"):
        graph.replay()


@pytest.mark.parametrize("number", [float("nan"), complex("nan")])
def test_18_not_a_number_stays_the_same(device: str, number: complex) -> None:
    graph, _, _, y = capture(device, lambda t: number * 1, lambda r: torch.full((4,), r, device=device))
    y.zero_()
    graph.replay()
    assert y.isnan().all()


def test_19_fields_keep_their_own_row_counts(device: str) -> None:
    graph, x, handed, y = capture(
        device, lambda t: (t[:1] * 2, t[:3] * 3, t.sum()), lambda r: r[0].sum() + r[1].sum() + r[2]
    )
    x.fill_(2)
    graph.replay()
    assert [tuple(part.shape) for part in handed] == [(1,), (3,), ()]
    assert y.item() == 4.0 + 18.0 + 8.0


def test_20_a_result_survives_churn_and_spares_other_tensors(device: str) -> None:
    graph, x, _, y = capture(device, lambda t: t * 2, lambda r: r)
    for value in range(3):
        churn = [torch.full((4,), -1.0, device=device) for _ in range(64)]
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2.0 * value] * 4
        assert all(tensor.tolist() == [-1.0] * 4 for tensor in churn)


def test_21_same_shaped_results_keep_distinct_addresses(device: str) -> None:
    graph, x, handed, y = capture(device, lambda t: (t + 1, t + 2), lambda r: r[0] * 10 + r[1])
    assert handed[0].data_ptr() != handed[1].data_ptr()
    x.fill_(1)
    graph.replay()
    assert y.tolist() == [23.0] * 4


def test_results_that_share_memory_keep_sharing_it(device: str) -> None:
    def halves(t: Tensor) -> tuple[Tensor, Tensor]:
        whole = t * 2
        return whole, whole[:2]

    graph, x, handed, y = capture(device, halves, lambda r: r[1].add_(100) * 0 + r[0][:2])
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [106.0] * 2
    assert handed[0].data_ptr() == handed[1].data_ptr()


@pytest.mark.parametrize("shares", [lambda r: (r, r), lambda r: (r, r[:2]), lambda r: ([r], [r])])
def test_one_memory_at_capture_and_two_at_replay_is_an_error(device: str, shares: Callable[[Tensor], Any]) -> None:
    """Found by hand: both results were poured into one boundary, and the last one won."""
    calls = iter(range(3))

    def returns(t: Tensor) -> Any:
        first, second = shares(t * 2), shares(t * 100)
        return first if next(calls) < 2 else (first[0], second[1])

    graph, _, _, _ = capture(device, returns, lambda r: torch.zeros(4, device=device))
    graph.replay()
    with pytest.raises(
        ReplayError,
        match=r"^break returns\[1\]\S* returned .* at replay; at capture it was .* returns\[0\]",
    ) as caught:
        graph.replay()
    assert caught.value.hazard == "S9"


def test_one_tensor_twice_is_one_tensor_in_the_next_segment(device: str) -> None:
    def twice(t: Tensor) -> tuple[Tensor, Tensor]:
        doubled = t * 2
        return doubled, doubled

    graph, x, handed, y = capture(device, twice, lambda r: r[0].add_(1) * 0 + r[1])
    assert handed[0] is handed[1]
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [7.0] * 4
    assert graph.breaks[0].boundary_bytes == x.nbytes


def test_two_tensors_at_capture_and_one_at_replay(device: str) -> None:
    """Each has its boundary, so both get what the one holds."""
    calls = iter(range(2))

    def returns(t: Tensor) -> tuple[Tensor, Tensor]:
        return (t * 2, t * 3) if next(calls) == 0 else (t * 5,) * 2

    graph, _, _, y = capture(device, returns, lambda r: r[0] + r[1])
    graph.replay()
    assert y.tolist() == [10.0] * 4


@pytest.mark.parametrize(
    ("view", "expected"),
    [(lambda z: z.conj(), 3.0 - 6.0j), (lambda z: z.conj().imag, -6.0), (lambda z: torch._neg_view(z), -3.0 - 6.0j)],
    ids=["conj", "imag", "neg"],
)
def test_a_conjugated_or_negated_view_stays_one(
    device: str, view: Callable[[Tensor], Tensor], expected: complex
) -> None:
    """Found by hand: of two results over one memory, the second lost its conjugation."""

    def both(t: Tensor) -> tuple[Tensor, Tensor]:
        whole = t * (1 + 2j)
        return whole, view(whole)

    graph, x, handed, y = capture(device, both, lambda r: r[1] * 1)
    assert torch.equal(handed[1], view(handed[0]))
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [expected] * 4


def test_a_view_that_is_conjugated_only_at_replay_is_an_error(device: str) -> None:
    views = iter([lambda z: z[:], torch.conj])

    def both(t: Tensor) -> tuple[Tensor, Tensor]:
        whole = t * (1 + 2j)
        return whole, next(views)(whole)

    graph, _, _, _ = capture(device, both, lambda r: r[1] * 1)
    with pytest.raises(ReplayError, match=r"^break both\[1\] returned .*complex64.* at replay; at capture it was"):
        graph.replay()


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (lambda t: t.view(2, 2), lambda t: t.view(2, 2).t()),
        (lambda t: t, lambda t: t.view(torch.int32)),
        (lambda t: t.view(torch.complex64), lambda t: t.view(torch.complex64).conj()),
    ],
    ids=["strides", "dtype", "conj"],
)
def test_another_view_of_an_argument_at_replay_is_an_error(
    device: str, first: Callable[[Tensor], Tensor], later: Callable[[Tensor], Tensor]
) -> None:
    """Found by hand: the address and the shape of a square matrix are those of its transpose."""
    views = iter([first, first, later])
    graph, _, _, _ = capture(device, lambda t: next(views)(t), lambda r: r * 1)
    graph.replay()
    with pytest.raises(ReplayError, match=r"^break <lambda> returned .* at replay; at capture it was a view of"):
        graph.replay()


def test_an_argument_that_is_returned_stays_the_argument(device: str) -> None:
    x = torch.zeros(4, device=device)
    in_place = eager_on_graph(lambda t: t.add_(1))
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph):
        given = x * 2
        returned = in_place(given)
        returned.mul_(10)
        y = given + 0
    x.fill_(2)
    graph.replay()
    assert returned is given
    assert y.tolist() == [50.0] * 4
    assert graph.breaks[0].boundary_bytes == 0


def test_an_expanded_result_is_held(device: str) -> None:
    graph, x, handed, y = capture(device, lambda t: (t[:1] * 2).expand(4), lambda r: r)
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [6.0] * 4
    assert handed.stride() == (0,)


def test_another_shape_at_replay_is_an_error_that_names_the_break(device: str) -> None:
    sizes = iter([4, 3])

    def shrinking(t: Tensor) -> Tensor:
        return t[: next(sizes)] * 2

    graph, _, _, _ = capture(device, shrinking, lambda r: r)
    with pytest.raises(ReplayError, match=r"^break shrinking returned \(3,\).* at capture it was \(4,\)"):
        graph.replay()


def test_another_tuple_at_replay_is_an_error(device: str) -> None:
    lengths = iter([2, 1])
    graph, _, _, _ = capture(device, lambda t: (t * 2,) * next(lengths), lambda r: r[0])
    with pytest.raises(ReplayError, match=r"returned 1 items at replay; at capture it was a tuple of 2 items"):
        graph.replay()


@pytest.mark.parametrize("make", [lambda t: deque([t]), lambda t: {t}, lambda t: iter([t])])
def test_an_unknown_structure_is_an_error_at_capture(device: str, make: Callable[[Tensor], Any]) -> None:
    with pytest.raises(CaptureError, match=r"^break <lambda> returned a .* whose tensors can't be found") as caught:
        capture(device, make, lambda r: torch.zeros(4, device=device))
    assert caught.value.hazard == "S9"


@pytest.mark.parametrize("is_island", [True, False])
def test_a_break_without_autocast_has_none_at_replay(device: str, is_island: bool) -> None:
    """Neither in an island inside of one, nor where the caller has one on."""
    weight = torch.randn(8, 8, device=device)
    multiply = eager_on_graph(lambda t: (t @ weight).float())
    x = torch.randn(4, 8, device=device)
    graph = BreakableCUDAGraph(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=is_island), BreakableCUDAGraphCapture(graph):
        with torch.autocast(device, enabled=False):
            y = multiply(x + 1) * 2
    x.normal_()
    with torch.autocast(device, torch.bfloat16):
        graph.replay()
    assert torch.equal(y, ((x + 1) @ weight) * 2)


def test_a_break_keeps_the_autocast_of_its_surroundings(device: str) -> None:
    dtypes: list[torch.dtype] = []

    @eager_on_graph
    def product(t: Tensor) -> Tensor:
        result = t.view(2, 2) @ t.view(2, 2)
        dtypes.append(result.dtype)
        return result

    x = torch.ones(4, device=device)
    graph = BreakableCUDAGraph(device)
    with BreakableCUDAGraphCapture(graph), torch.autocast(device, torch.bfloat16):
        product(x)
    graph.replay()
    assert dtypes == [torch.bfloat16, torch.bfloat16]


@dataclass(slots=True)
class Slotted:
    data: Tensor
    note: str = "note"


class BesideEntries(dict[str, Tensor]):
    b: Any = None


def with_attribute(t: Tensor) -> BesideEntries:
    result = BesideEntries(a=t * 2)
    result.b = t * 3
    return result


def test_the_tensors_of_an_object_with_slots(device: str) -> None:
    graph, x, _, y = capture(device, lambda t: Slotted(t * 2), lambda r: r.data)
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10.0] * 4


@pytest.mark.parametrize(
    "make",
    [
        lambda t: partial(torch.add, t * 2),
        lambda t: lambda u=t * 2: u,
        lambda t: Holds(t * 2),
        lambda t: Holds(t * 2).forward,
    ],
    ids=["partial", "function", "module", "method"],
)
def test_something_new_that_nobody_looks_into_is_an_error_at_replay(device: str, make: Callable[[Tensor], Any]) -> None:
    """Found by hand: the next segment went on with the tensors of the capture."""
    graph, _, _, _ = capture(device, make, lambda r: torch.zeros(4, device=device))
    with pytest.raises(
        ReplayError, match=r"^break <lambda> returned another \w+ at replay; at capture it was the same"
    ):
        graph.replay()


class Holds(torch.nn.Module):
    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.held = held

    def forward(self) -> Tensor:
        return self.held


def test_the_same_module_function_or_generator_may_be_returned_again(device: str) -> None:
    module, generator = torch.nn.ReLU(), torch.Generator(device)
    graph, x, handed, y = capture(
        device, lambda t: (module, module.forward, torch.relu, generator, t * 2), lambda r: r[0](r[4])
    )
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10.0] * 4
    assert handed[0] is module


def test_tensors_beside_the_entries_of_a_dict(device: str) -> None:
    graph, x, handed, y = capture(device, with_attribute, lambda r: r["a"] + r.b)
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [25.0] * 4
    assert isinstance(handed, BesideEntries)


def test_a_number_beside_the_entries_of_a_dict_that_changes_is_an_error(device: str) -> None:
    """Found by hand: nobody looked at it."""
    numbers = iter([1, 7])

    def returns(t: Tensor) -> BesideEntries:
        result = BesideEntries(a=t * 2)
        result.b = next(numbers)
        return result

    graph, _, _, _ = capture(device, returns, lambda r: r["a"] * r.b)
    with pytest.raises(ReplayError, match=r"^break returns\.b returned 7 at replay; at capture it was 1"):
        graph.replay()


@pytest.mark.parametrize("change", [lambda items: items.pop(), lambda items: items.append(items[0] * 2)])
def test_a_list_that_a_break_changes_is_an_error(device: str, change: Callable[[list[Tensor]], Any]) -> None:
    """Found by hand: at replay it was changed again and again, and what was put there never reached a segment."""
    x = torch.ones(4, device=device)
    with pytest.raises(CaptureError, match="^break <lambda> changed a list or dict that it was given") as caught:
        with BreakableCUDAGraphCapture(BreakableCUDAGraph(device)):
            eager_on_graph(change)([x + 1, x + 2])
    assert caught.value.hazard == "S9"


def test_a_sparse_tensor_stays_inside_its_break(device: str) -> None:
    """Sparse tensors have no storage: those that a break makes, holds or is given must not be asked for one."""
    held = torch.eye(4, device=device).to_sparse()

    def mixes(t: Tensor, weights: Tensor) -> Tensor:
        made = torch.outer(t, t).to_sparse()
        return torch.sparse.mm(made, torch.sparse.mm(weights, t[:, None]))

    graph, x, handed, y = capture(device, lambda t: eager_on_graph(mixes)(t, held), lambda r: r * 2)
    x.fill_(3)
    graph.replay()
    assert handed.flatten().tolist() == [108.0] * 4
    assert y.flatten().tolist() == [216.0] * 4


def test_a_sparse_result_is_an_error_that_names_the_break(device: str) -> None:
    def makes_sparse(t: Tensor) -> dict[str, Tensor]:
        return {"weights": t.to_sparse()}

    with pytest.raises(
        CaptureError, match=r"^break makes_sparse\['weights'\] returned a sparse tensor \(torch.sparse_coo\)"
    ) as caught:
        capture(device, makes_sparse, lambda r: r["weights"].to_dense())
    assert caught.value.hazard == "S9"
    assert "to_dense()" in (caught.value.hint or "")


def test_a_sparse_tensor_in_a_segment_is_an_error_at_its_line(device: str) -> None:
    with pytest.raises(HostReadError, match=r"to_sparse.*test_results.py:\d+: it makes or takes a sparse tensor"):
        capture(device, lambda t: t, lambda r: r.to_sparse().to_dense())


def test_a_dict_in_another_order_is_an_error(device: str) -> None:
    def ordered(h: Tensor) -> dict[str, Tensor]:
        pairs = [("a", h * 1), ("b", h * 2)]
        return dict(pairs if float(h.sum()) > 4 else pairs[::-1])

    graph, x, _, _ = capture(device, ordered, lambda found: torch.cat(list(found.values())))
    x.fill_(3)
    with pytest.raises(ReplayError, match=r"keys \['a', 'b'\] at replay; .* keys \['b', 'a'\]"):
        graph.replay()


class Marked(Tensor):
    """A subclass without a dispatch of its own."""


def test_a_result_keeps_its_class_and_attributes(device: str) -> None:
    def marked(h: Tensor) -> Tensor:
        result = (h * 2).as_subclass(Marked)
        result.scale = 3.0 if float(h.sum()) < 9 else 4.0  # type: ignore[attr-defined]
        return result

    graph, x, handed, y = capture(device, marked, lambda found: Tensor.as_subclass(found, Tensor) * found.scale)
    assert (type(handed), y.tolist()) == (Marked, [6.0] * 4)
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [12.0] * 4
    x.fill_(3)
    with pytest.raises(ReplayError, match=r"^break marked\.scale returned 4\.0 at replay; at capture it was 3\.0"):
        graph.replay()


def test_a_result_that_holds_itself_is_an_error(device: str) -> None:
    def loops(h: Tensor) -> list[Any]:
        result: list[Any] = [h * 2]
        result.append(result)
        return result

    with pytest.raises(CaptureError, match=r"^break loops\[1\] returned a list that holds itself"):
        capture(device, loops, lambda found: found[0])


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda h: torch.nested.nested_tensor([h, h[:2]]), "nested"),
        (lambda h: torch.quantize_per_tensor(h.cpu(), 0.1, 0, torch.qint8), "quantized"),
    ],
)
def test_a_result_without_one_block_of_memory_is_an_error(
    device: str, make: Callable[[Tensor], Tensor], what: str
) -> None:
    with pytest.raises(CaptureError, match=f"^break <lambda> returned a {what} tensor, which has no fixed address"):
        capture(device, lambda h: make(h), lambda found: found)


def test_a_break_inside_a_transform_of_functions_is_an_error(device: str) -> None:
    doubled = eager_on_graph(lambda h: h * 2)
    with (
        pytest.raises(CaptureError, match=r"^break <lambda> runs inside a transform of torch\.func"),
        torch.no_grad(),
        BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
    ):
        torch.func.vmap(doubled)(torch.ones(2, 4, device=device))


def test_a_gradient_through_a_break_is_an_error(device: str) -> None:
    """It would lack the break's part."""
    bent = eager_on_graph(torch.tanh)
    x = torch.ones(4, device=device)
    with (
        pytest.raises(CaptureError, match=r"^a gradient is asked for through break .*tanh, "),
        BreakableCUDAGraphCapture(BreakableCUDAGraph(device)),
    ):
        point = x.detach().requires_grad_()
        energy = bent(point * 2).pow(2).sum() + point.sum()
        torch.autograd.grad(energy, point)


def test_where_gradients_are_kept_results_may_be_changed_in_place(device: str) -> None:
    weight = torch.ones(4, device=device, requires_grad=True)
    graph, x, _, y = capture(device, lambda h: h * weight, lambda found: found.mul_(3))
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [6.0] * 4
