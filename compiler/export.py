"""Export: write aside, prove, rename. A file that carries its final name has passed its proof."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from crate_dsl.compiler import contractions
from crate_dsl.compiler.emit import emit, write
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.judge import AGREEMENT, ReducedProof, Samples, judge
from crate_dsl.compiler.lower import Lowered, chosen, lower_graph
from crate_dsl.compiler.lower.calibrate import calibrate
from crate_dsl.compiler.lower.precision import PRECISIONS, Precision, reduced, store
from crate_dsl.compiler.metadata import PREFIX, json_text
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import Proof, ProofError, cases, compare, perturb
from crate_dsl.compiler.stepping import step_graph
from crate_dsl.compiler.weights import plain_weights
from crate_dsl.language.diagnostics import UserError

#: Weights above this many bytes lie in a file of their own beside the model: one protobuf holds less than 2 GiB.
EXTERNAL_BYTES = int(1.9 * 2**30)
#: Weights smaller than this stay in the model's file even so.
SMALL_BYTES = 1024
#: What the weights' own file is called: the model's name and this.
DATA_SUFFIX = ".data"


def export(
    graph: ModelGraph,
    net: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] = {},
    lower: str = "all",
    precision: Precision = "float32",
    samples: Samples | None = None,
    agreement: float = AGREEMENT,
    cache: bool = False,
) -> Proof:
    """Write a network as ONNX, if the file computes what the network computes.

    Args:
        graph: The network as elaborated.
        net: The module built from it, float32, in any mode and on any device; it is left as it is.
        path: The file; one that is already there is replaced when the proof has passed, and only then. Weights above
            1.9 GiB go to a file beside it, `PATH.data`.
        metadata: Further entries of the file's metadata.
        lower: The exact rewrites that the file is made with: `all`, `none`, `fold,norm`, `-demand`.
        precision: Of the matrices, and of the products with them; what goes in and comes out is float32.
        samples: Real data, which a file in fewer bits is made with and judged by. float32 needs none.
        agreement: The least share of the test samples for which a file in fewer bits must say what float32 says.
        cache: Write the network for the next tokens alone, as `stepped` makes it. It is held against the network on all
            tokens; the metadata's `cache` names what it is given and gives beside them.

    Returns:
        The proof; a `ReducedProof` where the precision is not float32.

    Raises:
        ProofError: the file does not compute the same, or is not valid; nothing was written.
        UserError: the path cannot be written, the weights are not float32 and finite, or there is no such rewrite or
            precision, or nothing to judge by; with `cache`, the network is not causal.

    Warns:
        NotCertified: `mode = fixed_point(m)`, and at these weights nothing says that its iterations converge.
    """
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        what = (
            "is a folder" if target.is_dir() else f"cannot be written: there is no folder `{target.parent}`"
        )
        raise UserError(f"`{target}` {what}")
    check_precision(precision, samples, agreement)
    if graph.cache is not None:
        raise UserError("this network is one for the next tokens: export what it was made of", "cache = True")
    if cache and samples is not None:
        raise UserError("a network with a cache is exported in float32 alone", exit_code=2)
    written = step_graph(graph) if cache else graph
    if written.cache is not None:
        metadata = {**metadata, "cache": json_text(written.cache.model_dump())}
    weights = plain_weights(written, net)
    if isinstance(net, Network):
        contractions.warn(net)
    with _aside(target) as file:
        exact = file if samples is None else file.parent / "float32" / file.name
        exact.parent.mkdir(exist_ok=True)
        save(lowered_model(written, weights, lower, metadata), exact)
        check(exact)
        proof = prove(graph, net, exact, metadata, lower, written)
        if not proof.passed:
            raise ProofError(
                f"`{target}` is not written: it does not compute what torch computes", proof=proof
            )
        if samples is not None:
            lowered = lower_graph(graph, weights, lower)
            save(reduced_model(lowered, precision, samples, lower, metadata), file)
            check(file)
            proof = judged = prove_reduced(graph, net, proof, exact, file, precision, samples, agreement)
            if not judged.agrees:
                raise ProofError(f"`{target}` is not written: {judged.complaint}", judged.remedy, proof=proof)
        del weights
        _add_metadata(file, "proof", json_text(proof.as_data()))
        data = file.with_name(file.name + DATA_SUFFIX)
        if data.exists():
            data.replace(target.with_name(data.name))
        file.replace(target)
    return proof


def lowered_model(
    graph: ModelGraph, weights: Mapping[str, NDArray[np.float32]], lower: str, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The ONNX model of a network, lowered by these rewrites; its metadata say by which."""
    rewrites = chosen(lower)
    if not rewrites:
        return emit(graph, weights, metadata)
    lowered = lower_graph(graph, weights, lower)
    return emit(lowered.graph, lowered.weights, {**metadata, "lowered": ",".join(rewrites)})


def check_precision(precision: Precision, samples: Samples | None, agreement: float) -> None:
    """That there is such a precision, and something to judge it by.

    Raises:
        UserError: there is not.
    """
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision `{precision}`", ", ".join(PRECISIONS), exit_code=2)
    if precision == "float32" and samples is not None:
        raise UserError("a file in float32 is not judged by data", "precision float16, bfloat16 or int8")
    if precision != "float32" and samples is None:
        raise UserError(f"what {precision} costs is measured on real data, and there are none", "samples = …")
    if not 0 <= agreement <= 1:
        raise UserError(f"an agreement is a share from 0 to 1, not {agreement:g}", exit_code=2)


def reduced_model(
    lowered: Lowered, precision: Precision, samples: Samples, lower: str, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The ONNX model of a lowered network in fewer bits; its metadata say so."""
    ranges = calibrate(lowered, samples.batches()) if precision == "int8" else {}
    small, weights = reduced(lowered.graph, lowered.weights, precision, ranges)
    entries = {**metadata, "lowered": ",".join(chosen(lower)), "precision": precision}
    return store(emit(small, weights, entries), small)


def prove_reduced(
    graph: ModelGraph,
    net: nn.Module,
    proof: Proof,
    exact: Path,
    file: Path,
    precision: Precision,
    samples: Samples,
    agreement: float,
) -> ReducedProof:
    """Compare a file in fewer bits with the one in float32, which is proved.

    On random inputs it must run, at every size, and give finite numbers; how near they are is left to the real data.

    Raises:
        ProofError: it does not.
    """
    reference = copy.deepcopy(net).cpu().eval()
    for row in compare(graph, reference, file, [case for case in cases(graph) if case.weights == "given"]):
        if not isfinite(row.error):
            raise ProofError(f"in {precision}, `{row.output}` is not finite for inputs × {row.case.scale:g}")
    judged, losses = judge(reference, exact, file, samples)
    return ReducedProof(proof.rows, precision, samples.count, samples.source, agreement, judged, losses)


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a model; weights too large for one protobuf go to a file beside it. The model is used up."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= EXTERNAL_BYTES:
        write(model, file)
        return
    onnx.save_model(
        model,
        str(file),
        format="protobuf",
        save_as_external_data=True,
        location=file.name + DATA_SUFFIX,
        size_threshold=SMALL_BYTES,
    )


def check(file: Path) -> None:
    """Hold a file against ONNX's own rules, every shape inferred.

    Raises:
        ProofError: the checker's complaint.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ProofError(f"the ONNX checker refuses the exported file: {problem}") from problem


def prove(
    graph: ModelGraph,
    net: nn.Module,
    file: Path,
    metadata: Mapping[str, str] = {},
    lower: str = "none",
    written: ModelGraph | None = None,
) -> Proof:
    """Compare a written file with the network, and then the same export at perturbed weights (which is not kept).

    `written` is what the file was made of, where that is the network for the next tokens.

    Raises:
        ProofError: onnxruntime cannot run it at all; differences are in the proof's rows.
    """
    written = written or graph
    reference = copy.deepcopy(net).cpu().eval()
    wanted = cases(graph)
    given = [case for case in wanted if case.weights == "given"]
    rows = [*compare(graph, reference, file, given, cache=written.cache)]
    perturb(reference, graph.slots)
    with TemporaryDirectory(dir=file.parent) as folder:
        perturbed = Path(folder) / file.name
        save(lowered_model(written, plain_weights(written, reference), lower, metadata), perturbed)
        moved = [case for case in wanted if case.weights == "perturbed"]
        rows += compare(graph, reference, perturbed, moved, cache=written.cache)
    return Proof(tuple(rows))


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A file of the same name in a hidden folder beside it, which is gone afterwards.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            yield Path(folder) / target.name
    except OSError as problem:
        raise UserError(f"`{target}` cannot be written: {problem.strerror or problem}") from problem


def _add_metadata(file: Path, name: str, text: str) -> None:
    """Add an entry to a written model: two protobufs in a row are one with the fields of both."""
    entry = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=PREFIX + name, value=text)])
    with file.open("ab") as stream:
        stream.write(entry.SerializeToString())
