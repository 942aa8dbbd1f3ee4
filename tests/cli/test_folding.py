"""Folding of repeated layers in the map of a bucket."""

from __future__ import annotations

from bcg_cli.views.folding import Fold, Step, fold_map


def steps_of(*rows: tuple[str, ...]) -> list[Step]:
    """Makes steps from rows of (kind, module, …), numbered per kind."""
    counts: dict[str, int] = {}
    steps = []
    for kind, *modules in rows:
        steps.append(Step(f"{kind}:{counts.setdefault(kind, 0)}", "", tuple(modules)))
        counts[kind] += 1
    return steps


def transformer(num_layers: int) -> list[Step]:
    rows: list[tuple[str, ...]] = [("segment", "embed_tokens", "rotary_emb", "layers.0.q_proj")]
    for layer in range(num_layers):
        rows.append(("break", f"layers.{layer}.self_attn"))
        after = "norm" if layer == num_layers - 1 else f"layers.{layer + 1}.q_proj"
        rows.append(("segment", f"layers.{layer}.o_proj", f"layers.{layer}.mlp", after))
    return steps_of(*rows)


def described(steps: list[Step]) -> list[str]:
    return [row.key if isinstance(row, Step) else str(row) for row in fold_map(steps)]


def test_layers_of_a_transformer_are_shown_once() -> None:
    assert described(transformer(36)) == [
        "segment:0",
        "break:0",
        "segment:1",
        "layers.1–34: as layers.0",
        "break:35",
        "segment:36",
    ]


def test_the_fold_counts_what_it_hides() -> None:
    (fold,) = [row for row in fold_map(transformer(36)) if isinstance(row, Fold)]
    assert fold.num_steps == 68
    assert len(transformer(36)) == 5 + 68


def test_two_layers_have_nothing_to_fold() -> None:
    assert described(transformer(2)) == [step.key for step in transformer(2)]


def test_one_repetition_is_folded_when_it_saves_two_steps() -> None:
    assert "layers.1: as layers.0" in described(transformer(3))


def test_no_steps() -> None:
    assert fold_map([]) == []


def test_a_block_of_several_layers_is_one_period() -> None:
    rows: list[tuple[str, ...]] = []
    for layer in range(16):
        kind = "attention" if layer % 4 == 3 else "mixer"
        rows += [("segment", f"layers.{layer}.norm"), ("break", f"layers.{layer}.{kind}")]
    assert described(steps_of(*rows)) == [
        *[f"{kind}:{index}" for index in range(4) for kind in ("segment", "break")],
        "layers.4–15: as layers.0–3",
    ]


def test_an_odd_layer_in_the_middle_is_shown() -> None:
    rows = [("break", f"layers.{layer}.{'other' if layer == 4 else 'attn'}") for layer in range(9)]
    assert described(steps_of(*rows)) == [
        "break:0",
        "layers.1–3: as layers.0",
        "break:4",
        "break:5",
        "layers.6–8: as layers.5",
    ]


def test_a_longer_run_that_starts_later_wins() -> None:
    rows = [("break", name) for name in ("a.0", "a.1", "b.1", "a.2", "b.2", "a.3", "b.3", "a.4", "b.4")]
    assert described(steps_of(*rows)) == ["break:0", "break:1", "break:2", "a.2–4: as a.1"]


def test_equal_paths_without_numbers_are_no_layers() -> None:
    rows = [("segment", "a"), ("break", "b")] * 4
    assert described(steps_of(*rows)) == [step.key for step in steps_of(*rows)]


def test_shared_modules_do_not_hinder() -> None:
    rows: list[tuple[str, ...]] = []
    for layer in range(5):
        rows += [("segment", "rotary", f"layers.{layer}.q"), ("break", "shared.attention")]
    assert described(steps_of(*rows)) == ["segment:0", "break:0", "layers.1–4: as layers.0"]


def test_only_the_layer_number_may_differ() -> None:
    rows = [("break", f"layers.{layer}.experts.{layer}") for layer in range(6)]
    assert described(steps_of(*rows)) == [f"break:{index}" for index in range(6)]
    rows = [("break", f"layers.{layer}.experts.5") for layer in range(6)]
    assert described(steps_of(*rows)) == ["break:0", "layers.1–5: as layers.0"]


def test_layers_that_run_twice_are_not_folded_into_each_other() -> None:
    rows = [("break", f"layers.{layer}.attn") for layer in (0, 1, 2, 0, 1, 2)]
    assert described(steps_of(*rows)) == [
        "break:0",
        "layers.1–2: as layers.0",
        "break:3",
        "layers.1–2: as layers.0",
    ]


def test_labels_must_be_equal() -> None:
    steps = [Step(f"segment:{i}", "7 operations" if i < 4 else "8 operations", (f"layers.{i}.mlp",)) for i in range(8)]
    assert described(steps) == [
        "segment:0",
        "layers.1–3: as layers.0",
        "segment:4",
        "layers.5–7: as layers.4",
    ]


def test_the_path_of_nested_layer_lists_is_kept() -> None:
    rows = [("break", f"model.decoder.layers.{layer}.attn") for layer in range(4)]
    assert described(steps_of(*rows)) == ["break:0", "model.decoder.layers.1–3: as model.decoder.layers.0"]


def test_a_long_map_is_folded_quickly() -> None:
    rows = [("break", f"layers.{layer}.{'ab'[layer * layer % 7 % 2]}") for layer in range(1000)]
    assert len(fold_map(steps_of(*rows))) < 1000
