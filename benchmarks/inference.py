"""Inference: every way in which a user could run the same network, in one process, and two ViTs beside it.

What an engine computes is compared with what the published network computes in torch: `error`, in parts of the largest
logit. `flops` are the operations that a variant's algebra asks for, 2 for a multiply-add, and `share` is how much of the
measured matrix-product peak of its precision they make.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import crate_dsl
from benchmarks import exported, networks, peak
from benchmarks.measure import Effort, error, interleaved, rows
from benchmarks.published import with_weights_of
from benchmarks.sessions import missing, openvino_runner, runner
from crate_dsl.compiler.network import Network

REFERENCE = "published, torch"
#: The same network by other engines: held to this error, so that no wrong answer is timed. bfloat16 keeps 8 bits.
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run one batch. `same` says whether it is the published network, whose logits it must give."""

    run: Callable[[], Any]
    flops: int
    precision: str = "float32"
    same: bool = True


def measured(
    network: str, batches: Sequence[int], effort: dict[str, Any], folder: str, compile: bool = True
) -> dict[str, Any]:
    """Rows of every variant by batch, the peak, and what was left out and why. Exported files are kept in `folder`."""
    torch.manual_seed(0)
    spent = Effort(**effort)
    ways = Ways(network, Path(folder), compile)
    peaks = peak.measured(Effort(2.0, spent.least, spent.most), peak.SIZES if compile else peak.FEW_SIZES)
    found: dict[str, Any] = {"peak": peaks, "batches": {}}
    for batch in batches:
        variants, left_out = ways.at(batch)
        with torch.no_grad():
            wanted = variants[REFERENCE].run()
            errors = {name: error(_plain(v.run()), wanted) for name, v in variants.items() if v.same}
            for name, off in errors.items():
                assert off <= ALLOWED[variants[name].precision], f"{network}: {name} is off by {off:.1e}"
            times = interleaved({name: variant.run for name, variant in variants.items()}, spent)
        table = rows(times, REFERENCE)
        for name, row in table.items():
            variant = variants[name]
            row["flops"] = variant.flops
            row["share"] = batch * variant.flops / row["median"] / peaks[variant.precision]
            if name in errors:
                row["error"] = errors[name]
        found["batches"][str(batch)] = table
        found["left_out"] = left_out
    return found


class Ways:
    """The variants of one network, made once for all batches."""

    def __init__(self, network: str, folder: Path, compile: bool) -> None:
        self.network, self.folder, self.compile = network, folder, compile
        graph = networks.crate(network)
        self.settings = networks.sizes(graph)
        self.net = crate_dsl.build(graph, seed=0).eval()
        self.published = with_weights_of(self.net, self.settings).eval()
        self.lowered = crate_dsl.lower(self.net)
        self.file = self._exported(self.net, "crate")
        self.vits = {
            "ViT of equal width": crate_dsl.build(networks.vit_of_equal_width(network), seed=0).eval(),
            "ViT of equal parameters": crate_dsl.build(
                networks.vit_of_equal_parameters(network), seed=0
            ).eval(),
        }

    def at(self, batch: int) -> tuple[dict[str, Variant], dict[str, str]]:
        """Every variant at a batch size, and what is left out: why, by name."""
        left_out: dict[str, str] = {}
        image_bchw = self._images(batch)
        feeds = {"image": image_bchw.numpy()}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.published(image_bchw)
        as_published, ours = counter.get_total_flops() // batch, self.lowered.graph.flops
        found = {
            REFERENCE: Variant(lambda: self.published(image_bchw), as_published),
            "crate-dsl, torch": Variant(lambda: self.lowered(image_bchw), ours),
            "crate-dsl, onnxruntime": Variant(runner(self.file, feeds), ours),
        }
        if self.compile:
            for name, net, flops in (
                ("published, torch.compile", self.published, as_published),
                ("crate-dsl, torch.compile", self.lowered, ours),
            ):
                found[name] = Variant(compiled(net, image_bchw), flops)
                half = compiled(net, image_bchw, torch.bfloat16)
                found[f"{name} bf16"] = Variant(half, flops, "bfloat16")
        else:
            left_out["torch.compile"] = "not asked for"
        if (reason := missing("onnxscript")) is None:
            path = self.folder / f"{self.network}-published.onnx"
            exported.write(self.published, self._images(2), path)
            found["published, onnxruntime"] = Variant(runner(path, feeds), as_published)
        else:
            left_out["published, onnxruntime"] = reason
        if (reason := missing("openvino")) is None:
            found["crate-dsl, OpenVINO"] = Variant(openvino_runner(self.file, feeds, "f32"), ours)
            half = openvino_runner(self.file, feeds, "bf16")
            found["crate-dsl, OpenVINO bf16"] = Variant(half, ours, "bfloat16")
        else:
            left_out["OpenVINO"] = reason
        for name, vit in self.vits.items():
            file = self._exported(vit, name.replace(" ", "-"))
            lowered = crate_dsl.lower(vit)
            run = _called(vit, image_bchw)
            found[f"{name}, torch"] = Variant(run, vit.graph.flops, same=False)
            found[f"{name}, onnxruntime"] = Variant(runner(file, feeds), lowered.graph.flops, same=False)
        return found, left_out

    def _images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        size, channels = self.settings["size"], self.settings["channels"]
        return torch.randn(batch, channels, size, size, generator=generator)

    def _exported(self, net: Network, name: str) -> Path:
        """A network's proved file, written once: weights come from a seed, and are the same in every process."""
        path = self.folder / f"{self.network}-{name}.onnx"
        if not path.exists():
            crate_dsl.export(net.graph, net, path)
        return path


def compiled(net: nn.Module, image_bchw: Tensor, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """A network compiled for one batch size, its weights frozen into the code; products in `dtype` by autocast."""
    ready = torch.compile(net, dynamic=False, options={"freezing": True})

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return ready(image_bchw)

    return run


def _called(net: nn.Module, image_bchw: Tensor) -> Callable[[], Tensor]:
    return lambda: net(image_bchw)


def _plain(output: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return output.float().numpy() if isinstance(output, Tensor) else output
