"""CRATE-MAE: a decoder, a fixed table of positions, and weights that the published network never uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crate_dsl
from crate_dsl.language.diagnostics import UserError
from tests.checkpoints.layouts import (
    CHANNELS,
    CRATE_MAE,
    LAYERS,
    PATCH,
    SINGLE,
    SIZE,
    UNUSED,
    WIDTH,
    computed,
    imported,
    network,
    same_as_published,
)

#: What weights of the wrong orientation or order make of the output, at the least.
WRONG = 1e-2


def test_every_layer_computes_what_is_published(tmp_path: Path) -> None:
    net = network(imported(CRATE_MAE, CRATE_MAE.state(), tmp_path), tmp_path)
    same_as_published(CRATE_MAE, CRATE_MAE.state(), net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_table_in_other_floats_is_the_same_table(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: tensor.to(dtype) for key, tensor in CRATE_MAE.state().items()}
    found = imported(CRATE_MAE, state, tmp_path)
    # The network's own table is exact; so is the one of the reference.
    exact = {"decoder_pos_embed": CRATE_MAE.state()["decoder_pos_embed"]}
    same_as_published(CRATE_MAE, state | exact, network(found, tmp_path))


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.layers.0.1.fn.weight",
        "blocks.1.layers.0.0.fn.qkv.weight",
        "decoder_blocks.0.layers.0.0.fn.weight",
        "decoder_blocks.1.layers.0.1.fn.qkv.weight",
        "decoder_blocks.1.layers.0.1.fn.to_out.0.weight",
        "patch_embed.proj.weight",
        "decoder_pred.weight",
    ],
)
def test_the_test_would_see_a_transposed_or_reordered_weight(tmp_path: Path, key: str) -> None:
    state = CRATE_MAE.state()
    _, right = computed(CRATE_MAE, network(imported(CRATE_MAE, state, tmp_path), tmp_path))
    square = state[key].shape == (WIDTH, WIDTH)
    spoiled = state | {key: state[key].T.contiguous() if square else state[key].flip(0)}
    _, wrong = computed(CRATE_MAE, network(imported(CRATE_MAE, spoiled, tmp_path), tmp_path))
    assert (wrong - right).abs().max() > WRONG


def test_patches_of_a_spec_may_lie_in_another_order(tmp_path: Path) -> None:
    """Those that come out are the spec's as well as those that go in."""
    text = Path(CRATE_MAE.target).read_text()
    spec = tmp_path / "other.crate"
    spec.write_text(text.replace("patchify(patch)", "patchify(patch, order = cpq)"))
    other = replace(CRATE_MAE, target=str(spec))
    ours = computed(other, network(imported(other, other.state(), tmp_path), tmp_path))[1]
    published = computed(CRATE_MAE, network(imported(CRATE_MAE, CRATE_MAE.state(), tmp_path), tmp_path))[1]
    swapped = published.unflatten(2, (PATCH, PATCH, CHANNELS)).permute(0, 1, 4, 2, 3).flatten(2)
    assert (ours - swapped).abs().max() < SINGLE


def test_every_key_is_reported_and_every_slot_filled_once(tmp_path: Path) -> None:
    found = imported(CRATE_MAE, CRATE_MAE.state(), tmp_path)
    assert found.sizes == {"dim": WIDTH, "depth": LAYERS, "patch": PATCH, "channels": 3, "size": SIZE}
    assert {entry.key: entry.shape for entry in found.entries} == CRATE_MAE.shapes
    slots = [entry.slot for entry in found.entries if entry.slot]
    assert sorted(slots) == sorted(found.graph.slots) == sorted(found.weights)
    notes = {entry.key: (entry.status, entry.note) for entry in found.entries if entry.note}
    assert {key for key, (status, _) in notes.items() if status == "unused"} == set(UNUSED)
    assert notes["decoder_pos_embed"] == ("fixed", "equals that of `code.position`")
    assert notes["patch_embed.proj.weight"] == ("permuted", "kernel (d,c,p,q) to rows (d,p,q,c)")
    assert len(notes) == len(UNUSED) + 2


def test_it_exports_and_proves(tmp_path: Path) -> None:
    net = network(imported(CRATE_MAE, CRATE_MAE.state(), tmp_path), tmp_path)
    assert crate_dsl.export(net.graph, net, tmp_path / "mae.onnx").passed


def test_weights_that_nothing_uses_may_be_left_out(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in CRATE_MAE.state().items() if key not in UNUSED}
    assert len(imported(CRATE_MAE, state, tmp_path).weights) == len(CRATE_MAE.graph().slots)


def test_another_table_of_positions_is_an_error(tmp_path: Path) -> None:
    state = CRATE_MAE.state()
    state["decoder_pos_embed"][0, 3, 5] += 1e-3
    with pytest.raises(
        UserError, match=r"`decoder_pos_embed` is not the network's table .* differs by 0.001"
    ):
        imported(CRATE_MAE, state, tmp_path)
    state["decoder_pos_embed"][0, 3, 5] = torch.nan
    with pytest.raises(UserError, match="`decoder_pos_embed` is not the network's table"):
        imported(CRATE_MAE, state, tmp_path)


def test_a_decoder_of_another_depth(tmp_path: Path) -> None:
    state = {k: tensor for k, tensor in CRATE_MAE.state().items() if not k.startswith("decoder_blocks.1")}
    with pytest.raises(UserError, match=r"missing: `decoder_blocks.1.layers.0.0.norm.weight`, ") as caught:
        imported(CRATE_MAE, state, tmp_path)
    assert "`decoder_blocks.1.layers.0.1.fn.to_out.0.bias`" in caught.value.message
