"""Checkpoints of every family become networks that compute what the published ones do, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import crate_dsl
from crate_dsl.checkpoints.families import FAMILIES, layer_of
from crate_dsl.checkpoints.importing import import_checkpoint
from crate_dsl.language.diagnostics import UserError
from tests.checkpoints.layouts import (
    CHANNELS,
    CRATE,
    CRATE_ALPHA,
    LAYERS,
    PATCH,
    WIDTH,
    Layout,
    State,
    computed,
    imported,
    network,
    same_as_published,
)

#: What weights of the wrong orientation or order make of the output, at the least.
WRONG = 1e-2

LAYOUTS = {layout.family: layout for layout in (CRATE, CRATE_ALPHA)}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def file(layout: Layout, tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    torch.save(layout.state(), path)
    return path


def test_every_layer_computes_what_is_published(layout: Layout, file: Path, tmp_path: Path) -> None:
    net = network(import_checkpoint(file, layout.graph()), tmp_path)
    same_as_published(layout, layout.state(), net)


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_test_would_see_a_transposed_or_reordered_weight(family: str, tmp_path: Path) -> None:
    """Square weights fit both ways, and pixels in any order: only numbers tell."""
    layout = LAYOUTS[family]
    net = network(imported(layout, layout.state(), tmp_path), tmp_path)
    (_, right) = computed(layout, net)
    for key in ("transformer.layers.0.0.fn.qkv.weight", "transformer.layers.1.1.fn.weight", *PIXELS[family]):
        spoiled = layout.state()
        if key in spoiled:
            weight = spoiled[key]
            spoiled[key] = weight.flip(1) if key in PIXELS[family] else weight.T.contiguous()
            net = network(imported(layout, spoiled, tmp_path), tmp_path)
            assert (computed(layout, net)[1] - right).abs().max() > WRONG, key


#: The weights that know the order of pixels.
PIXELS = {"CRATE": ["to_patch_embedding.2.weight"], "CRATE-alpha": ["conv1.weight"]}


def test_patches_of_a_spec_may_lie_in_another_order(layout: Layout, file: Path, tmp_path: Path) -> None:
    """Pixels are brought into the spec's order, whichever that is."""
    text = Path(layout.target).read_text()
    other = "patchify(patch)" if "order = cpq" in text else "patchify(patch, order = cpq)"
    spec = tmp_path / "other.crate"
    spec.write_text(
        text.replace("patchify(patch, order = cpq)", "patchify(patch)").replace("patchify(patch)", other)
    )
    found = import_checkpoint(file, crate_dsl.load(str(spec), set=layout.settings))
    same_as_published(layout, layout.state(), network(found, tmp_path))
    assert {entry.note for entry in found.entries} == {
        "CRATE": {"", "pixels (p,q,c) to (c,p,q)"},
        "CRATE-alpha": {"", "kernel (d,c,p,q) to rows (d,p,q,c)"},
    }[layout.family]


# ------------------------------------------------------------------ every key, every slot


def test_every_key_is_reported_and_every_slot_filled_once(layout: Layout, file: Path) -> None:
    found = import_checkpoint(file, layout.graph())
    assert [entry.key for entry in found.entries] == list(layout.shapes)
    assert {entry.key: entry.shape for entry in found.entries} == layout.shapes
    slots = [entry.slot for entry in found.entries if entry.slot]
    assert sorted(slots) == sorted(found.graph.slots) == sorted(found.weights)
    permuted = {entry.key: entry.note for entry in found.entries if entry.status == "permuted"}
    assert (
        permuted
        == {
            "CRATE": {},
            "CRATE-alpha": {"conv1.weight": "kernel (d,c,p,q) to rows (d,c,p,q)"},
        }[layout.family]
    )


def test_family_and_sizes_are_recognised(layout: Layout, file: Path) -> None:
    found = import_checkpoint(file, layout.graph())
    assert found.family.name == layout.family
    known = {name: size for name, size in layout.settings.items() if name != "subspaces"}
    assert found.sizes == known
    assert "heads, steps and penalties are not in the file: they are the spec's" in found.notes


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_two_rows_mean_the_same(family: Any) -> None:
    for names in ([row.key for row in family.rows], [row.slot for row in family.weights]):
        instances = [name.replace("{i}", "7") for name in names]
        assert all(sum(layer_of(name, one) is not None for name in names) == 1 for one in instances)


# ------------------------------------------------------------------ how files are wrapped

WRAPPED: dict[str, Callable[[State], Any]] = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "best_acc1": torch.tensor(0.5)},
    "twice": lambda state: {"model": {"state_dict": state}},
    "module": lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    "parameters": lambda state: {key: torch.nn.Parameter(tensor) for key, tensor in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_are_opened(layout: Layout, tmp_path: Path, wrapper: str) -> None:
    found = imported(layout, WRAPPED[wrapper](layout.state()), tmp_path)
    plain = imported(layout, layout.state(), tmp_path)
    assert all(torch.equal(weight, plain.weights[slot]) for slot, weight in found.weights.items())
    told = {
        "model": "read from `model`; not read: `epoch`",
        "state_dict": "read from `state_dict`; not read: `best_acc1`",
        "twice": "read from `model`|read from `state_dict`",
        "module": "read from `state_dict`|`module.` is stripped from every key",
        "parameters": "",
    }[wrapper]
    assert "|".join(found.checkpoint.notes) == told


def test_a_training_script_s_arguments_may_lie_beside_the_weights(layout: Layout, tmp_path: Path) -> None:
    from argparse import Namespace

    state = {"model": layout.state(), "args": Namespace(lr=1e-3)}
    assert imported(layout, state, tmp_path).checkpoint.notes == ("read from `model`; not read: `args`",)


def test_other_ways_to_write_a_file(layout: Layout, tmp_path: Path) -> None:
    state = layout.state()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    for path in (tmp_path / "old.pt", tmp_path / "new.safetensors"):
        found = import_checkpoint(path, layout.graph())
        assert len(found.weights) == len(found.graph.slots)
        same_as_published(layout, state, network(found, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(layout: Layout, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: tensor.to(dtype) for key, tensor in layout.state().items()}
    found = imported(layout, state, tmp_path)
    assert {weight.dtype for weight in found.weights.values()} == {torch.float32}
    assert f"{str(dtype).removeprefix('torch.')} made float32" in found.notes
    same_as_published(layout, state, network(found, tmp_path))


def test_the_written_file_says_where_it_is_from(layout: Layout, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    import_checkpoint(file, layout.graph()).save(path)
    with safe_open(path, "pt") as written:
        about = written.metadata()
    assert about["crate_dsl.family"] == layout.family
    assert about["crate_dsl.checkpoint"] == "published.pth"
    assert f'"spec":"{Path(layout.target).name}"' in about["crate_dsl.target"]
    assert f'"dim":{WIDTH}' in about["crate_dsl.target"]


# ------------------------------------------------------------------ what does not fit


def refused(match: str, path: Path, layout: Layout, **settings: int) -> UserError:
    with pytest.raises(UserError, match=match) as caught:
        import_checkpoint(path, crate_dsl.load(layout.target, set=layout.settings | settings))
    return caught.value


def test_all_that_is_missing_unknown_or_misshapen_is_named(layout: Layout, tmp_path: Path) -> None:
    state = layout.state()
    del state["mlp_head.0.bias"], state["transformer.layers.1.0.norm.weight"]
    state |= {"extra.thing": torch.zeros(2), "transformer.layers.1.2.norm.weight": torch.zeros(2)}
    for i in range(LAYERS):
        state[f"transformer.layers.{i}.0.fn.to_out.0.weight"] = torch.zeros(WIDTH, WIDTH + 1)
    torch.save(state, tmp_path / "spoiled.pth")
    message = refused("does not fill", tmp_path / "spoiled.pth", layout).message
    for part in (
        "missing: `transformer.layers.1.0.norm.weight`, `mlp_head.0.bias`",
        "not known: `extra.thing`, `transformer.layers.1.2.norm.weight`",
        f"`transformer.layers.0-1.0.fn.to_out.0.weight` is [{WIDTH}, {WIDTH + 1}], but must be [{WIDTH}, {WIDTH}]",
    ):
        assert part in message


def test_another_size_is_told_with_what_would_fit(layout: Layout, file: Path) -> None:
    problem = refused(f"has dim {2 * WIDTH}, classes 9", file, layout, dim=2 * WIDTH, classes=9)
    assert problem.message.startswith(
        f"`{file}` is {layout.family} with dim {WIDTH}, depth {LAYERS}, patch {PATCH}, channels {CHANNELS}"
    )
    assert problem.help[0] == f"--set dim={WIDTH} --set classes=7"
    assert "heads" in problem.help[1]


def test_a_variant_that_fits_is_named(layout: Layout, file: Path, tmp_path: Path) -> None:
    settings = ", ".join(f"{name} = {value}" for name, value in layout.settings.items())
    text = (
        Path(layout.target)
        .read_text()
        .replace("variant base ", f"variant mine {{ {settings} }}\n variant base ", 1)
    )
    spec = tmp_path / "own.crate"
    spec.write_text(text)
    with pytest.raises(UserError) as caught:
        import_checkpoint(file, crate_dsl.load(f"{spec}@base"))
    assert caught.value.help[0] == f"--as {spec}@mine"


def test_another_family_s_spec_is_told_with_the_slots_that_nothing_fills(layout: Layout, file: Path) -> None:
    (other,) = set(LAYOUTS) - {layout.family}
    message = refused("is not: ", file, LAYOUTS[other]).message
    unfilled, absent = {
        "CRATE": ("nothing fills `encoder.0-1.sparsify.decode`", "there is no `tokens.norm.weight`"),
        "CRATE-alpha": ("nothing fills `tokens.norm.weight`", "there is no `encoder.*.sparsify.decode`"),
    }[layout.family]
    assert unfilled in message
    assert absent in message


def test_another_network_is_of_no_family(layout: Layout, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "other.pth")
    refused(
        "is no checkpoint of CRATE, CRATE-alpha, CRATE-MAE: its keys are `weight`, `bias`",
        tmp_path / "other.pth",
        layout,
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers(layout: Layout, tmp_path: Path, number: float) -> None:
    state = {key: tensor.double() for key, tensor in layout.state().items()}
    state["mlp_head.1.bias"][3] = number
    torch.save(state, tmp_path / "spoiled.pth")
    refused("holds NaN, infinity, .* in `mlp_head.1.bias`", tmp_path / "spoiled.pth", layout)
