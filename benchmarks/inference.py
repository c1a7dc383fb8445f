"""Inference: every way in which a user could run the same network, in one process, and two ViTs beside it.

What an engine computes is compared with what the published network computes in torch: `error`, in parts of the
largest logit. `flops` are the operations that a way's algebra asks for, 2 for a multiply-add, and `share` is how
much of the measured matrix-product peak of its precision they make.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import crate_dsl
from benchmarks import exported, networks, peak
from benchmarks.algebra import operations
from benchmarks.measure import Effort, error, interleaved, rows
from benchmarks.published import with_weights_of
from benchmarks.sessions import Call, missing, onnxruntime_call, openvino_call
from crate_dsl.compiler.network import Network

REFERENCE = "published, torch"
#: What torch.compile compiles: whose network, in which precision.
COMPILED: dict[str, tuple[str, str]] = {
    "published, torch.compile": ("published", "float32"),
    "published, torch.compile bf16": ("published", "bfloat16"),
    "crate-dsl, torch.compile": ("crate-dsl", "float32"),
    "crate-dsl, torch.compile bf16": ("crate-dsl", "bfloat16"),
}
#: The same network by other engines: held to this error, so that no wrong answer is timed. bfloat16 keeps 8 bits.
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a batch. `same` says whether it is the published network, whose logits it must give."""

    run: Callable[[Tensor], Any]
    flops: int
    precision: str = "float32"
    same: bool = True


def measured(
    network: str,
    batches: Sequence[int],
    effort: dict[str, Any],
    folder: str,
    compiled: Collection[str] = tuple(COMPILED),
) -> dict[str, Any]:
    """Rows of every way by batch, the peak, and what was left out and why. Exported files are kept in `folder`."""
    spent = Effort(**effort)
    ways, left_out = ways_of(network, Path(folder), compiled)
    peaks = peak.measured(Effort(2.0, spent.least, spent.most))
    found: dict[str, Any] = {"peak": peaks, "left_out": left_out, "batches": {}}
    settings = networks.sizes(networks.crate(network))
    for batch in batches:
        image_bchw = images(settings, batch)
        with torch.no_grad():
            wanted = ways[REFERENCE].run(image_bchw)
            errors = {
                name: error(_plain(way.run(image_bchw)), wanted) for name, way in ways.items() if way.same
            }
            for name, off in errors.items():
                assert off <= ALLOWED[ways[name].precision], f"{network}: {name} is off by {off:.1e}"
            runs = {name: partial(way.run, image_bchw) for name, way in ways.items()}
            table = rows(interleaved(runs, spent), REFERENCE)
        for name, row in table.items():
            row["flops"] = ways[name].flops
            row["share"] = batch * ways[name].flops / row["median"] / peaks[ways[name].precision]
            if name in errors:
                row["error"] = errors[name]
        found["batches"][str(batch)] = table
    return found


def images(settings: dict[str, int], batch: int) -> Tensor:
    """Normal noise of a network's input size; the same for the same batch size."""
    generator = torch.Generator().manual_seed(batch)
    size, channels = settings["size"], settings["channels"]
    return torch.randn(batch, channels, size, size, generator=generator)


def ways_of(network: str, folder: Path, compiled: Collection[str]) -> tuple[dict[str, Way], dict[str, str]]:
    """Every way to run a network, and what is left out: why, by name."""
    left_out: dict[str, str] = {}
    graph = networks.crate(network)
    settings = networks.sizes(graph)
    net = crate_dsl.build(graph, seed=0).eval()
    published = with_weights_of(net, settings).eval()
    lowered = crate_dsl.lower(net)
    as_published, ours = operations(published, images(settings, 1)), lowered.graph.flops

    found = {REFERENCE: Way(published, as_published)}
    nets: dict[str, nn.Module] = {"float32": published, "bfloat16": _ByAutocast(published).eval()}
    found |= _compiled("published", nets, as_published, compiled, left_out)
    name = "published, onnxruntime"
    if (reason := missing("onnxscript")) is None:
        path = folder / f"{network}-published.onnx"
        exported.write(published, images(settings, 2), path)
        found[name] = Way(_of_arrays(onnxruntime_call(path)), as_published)
    else:
        left_out[name] = reason

    found["crate-dsl, torch"] = Way(lowered, ours)
    nets = {"float32": lowered, "bfloat16": crate_dsl.lower(net, precision="bfloat16")}
    found |= _compiled("crate-dsl", nets, ours, compiled, left_out)
    file = _file(net, folder / f"{network}-crate.onnx")
    found["crate-dsl, onnxruntime"] = Way(_of_arrays(onnxruntime_call(file)), ours)
    for name, hint, precision in (
        ("crate-dsl, OpenVINO", "f32", "float32"),
        ("crate-dsl, OpenVINO bf16", "bf16", "bfloat16"),
    ):
        if (reason := missing("openvino")) is None:
            found[name] = Way(_of_arrays(openvino_call(file, hint)), ours, precision)
        else:
            left_out[name] = reason

    for name, spec in (
        ("ViT of equal width", networks.vit_of_equal_width(network)),
        ("ViT of equal parameters", networks.vit_of_equal_parameters(network)),
    ):
        vit = crate_dsl.build(spec, seed=0).eval()
        file = _file(vit, folder / f"{network}-{name.replace(' ', '-')}.onnx")
        found[f"{name}, torch"] = Way(vit, spec.flops, same=False)
        flops = crate_dsl.lower(vit).graph.flops
        found[f"{name}, onnxruntime"] = Way(_of_arrays(onnxruntime_call(file)), flops, same=False)
    return found, left_out


def _compiled(
    whose: str,
    nets: dict[str, nn.Module],
    flops: int,
    wanted: Collection[str],
    left_out: dict[str, str],
) -> dict[str, Way]:
    """The network of each precision compiled, a program for each batch size, with its weights frozen in."""
    found = {}
    for name, (owner, precision) in COMPILED.items():
        if owner != whose:
            continue
        if name not in wanted:
            left_out[name] = "not asked for"
            continue
        ready = torch.compile(nets[precision], dynamic=False, options={"freezing": True})
        found[name] = Way(ready, flops, precision)
    return found


class _ByAutocast(nn.Module):
    """A network's products in bfloat16, as torch's autocast does it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image_bchw: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Tensor = self.net(image_bchw)
        return found


def _of_arrays(call: Call) -> Callable[[Tensor], Any]:
    return lambda image_bchw: call({"image": image_bchw.numpy()})


def _file(net: Network, path: Path) -> Path:
    """A network's proved file, written once: weights come from a seed, and are the same in every process."""
    if not path.exists():
        crate_dsl.export(net.graph, net, path)
    return path


def _plain(output: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return output.float().numpy() if isinstance(output, Tensor) else output
