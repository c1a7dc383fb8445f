"""Running exported files in onnxruntime: sessions that say what they want, in the spec's words. No torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from crate_dsl.compiler.draws import Draw, from_data
from crate_dsl.compiler.metadata import Metadata
from crate_dsl.compiler.onnx_files import read_metadata, read_model
from crate_dsl.compiler.types import TensorType
from crate_dsl.language.diagnostics import UserError, did_you_mean

Provider = Literal["auto", "cpu", "cuda"]

#: What onnxruntime raises: its own classes, which have no common base, and what its bindings make of C++ exceptions and
#: of messages that quote a damaged file.
ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    IndexError,
    OverflowError,
    MemoryError,
)

#: onnxruntime's names of what runs a network.
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
#: numpy's element type by kind, and the kinds of array that become it without loss of meaning.
DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "index": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}
ELEMENTS = {"float": "tensor(float)", "index": "tensor(int64)", "bool": "tensor(bool)"}
ACCEPTED = {"float": "f", "index": "iu", "bool": "b"}
#: What onnxruntime may keep on the CPU beside a GPU: arithmetic on sizes.
SHAPE_ARITHMETIC = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Range",
        "ReduceProd",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    ]
)
#: onnxruntime's own level of messages: everything that matters arrives as an exception.
FATAL = 4


#: How the threads of a session spend their time, by onnxruntime's names.
THREADS = {
    # Threads that sleep whenever a step leaves them nothing to do cost up to a third of the time where steps are short;
    # so do threads that are stopped with each run, and have to be woken for the next. Threads that spin on for long
    # starve what else shares the cores. So they spin for a millisecond, and then sleep.
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "1000",
    # Attention that is sure of itself is full of numbers below 1e-38, and products of those take ten times as long.
    "session.set_denormal_as_zero": "1",
}


def options() -> onnxruntime.SessionOptions:
    """Session options: threads that work while a run lasts, and errors that are raised rather than printed."""
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = FATAL
    for name, value in THREADS.items():
        chosen.add_session_config_entry(name, value)
    return chosen


def bare_session(
    path: str | PathLike[str], *providers: str, chosen: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session without checks, for files that are trusted; on the CPU where no provider is named.

    onnxruntime's own retry on the CPU, with a message on standard output, is turned off. And the thread that makes a
    process's first session takes the smallest numbers for zero from then on, with all that it computes: here it is a
    thread of its own, so that the caller's arithmetic stays as it is.
    """
    with ThreadPoolExecutor(1) as maker:
        return maker.submit(
            onnxruntime.InferenceSession,
            fspath(path),
            chosen or options(),
            providers=list(providers or [CPU]),
            enable_fallback=0,
        ).result()


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here; None if it can.

    onnxruntime lists CUDA as available wherever it was built in, and then runs on the CPU: so the driver is asked.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without CUDA"
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"there is no NVIDIA driver ({library})"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not answer"
    return None if count.value else "the NVIDIA driver knows no device"


def _require_cuda(session: onnxruntime.InferenceSession) -> None:
    """Raise `UserError` unless the session computes on the GPU: shape arithmetic alone may stand beside it.

    `session.disable_cpu_ep_fallback` says no to any network of unknown batch size: onnxruntime keeps the sums of sizes
    on the CPU by design.
    """
    if CUDA not in session.get_providers():
        raise UserError(
            "onnxruntime found the GPU, but not the CUDA libraries that it needs",
            "pip install onnxruntime-gpu[cuda,cudnn]",
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise UserError(
            "this onnxruntime cannot say what it runs on the GPU", "pip install --upgrade onnxruntime-gpu"
        )
    on_cpu = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
    }
    if strays := sorted(on_cpu - SHAPE_ARITHMETIC):
        raise UserError(
            f"onnxruntime would run {', '.join(strays)} on the CPU: it has no CUDA kernel for them",
            "provider auto",
        )


class Session:
    """A running exported file. Calling it with arrays by input name (or by position) gives arrays by output name.

    Inputs with a declared draw may be left out: they are drawn, one after another from the session's seed.

    >>> import crate_dsl
    >>> graph = crate_dsl.load("specs/crate.crate@fashion")
    >>> proof = crate_dsl.export(graph, crate_dsl.build(graph), "fashion.onnx")
    >>> session = crate_dsl.open_session("fashion.onnx", provider="cpu")
    >>> session(image=np.zeros((2, 1, 28, 28), np.float32))["logits"].shape
    (2, 10)
    """

    def __init__(
        self, native: onnxruntime.InferenceSession, metadata: Metadata, name: str, seed: int
    ) -> None:
        self.metadata = metadata
        self.name = name
        self.inputs: dict[str, TensorType] = metadata.inputs
        self.outputs: tuple[str, ...] = tuple(output.name for output in native.get_outputs())
        self.draws = _draws(metadata, name)
        self._native = native
        self._generator = np.random.default_rng(seed)
        problems = [draw.check(self.inputs[name]) for name, draw in self.draws.items()]
        if problem := next(filter(None, [_disagreement(native, metadata), *problems]), None):
            raise UserError(f"`{name}` is damaged: {problem}")

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """What it runs on."""
        return "cuda" if CUDA in self._native.get_providers() else "cpu"

    @property
    def native(self) -> onnxruntime.InferenceSession:
        """The session of onnxruntime, for what holds tensors from one run to the next. It checks nothing."""
        return self._native

    @property
    def precision(self) -> str:
        """Of the file's matrices: `float32`, `float16`, `bfloat16` or `int8`. What goes in and comes out is float32."""
        return self.metadata.extra.get("precision", "float32")

    def __call__(self, /, *arrays: ArrayLike, **named: ArrayLike) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Raises:
            UserError: an input is missing, unknown, of the wrong kind or shape, not finite, or out of range.
        """
        given = _by_name(self.inputs, arrays, named)
        feeds = {name: _array(name, self.inputs[name], value) for name, value in given.items()}
        batch, lengths = _sizes(self.inputs, feeds)
        for name, wanted in self.inputs.items():
            if name not in feeds:
                feeds[name] = self._drawn(name, wanted, batch, lengths)
        try:
            results = self._run(feeds)
        except ONNXRUNTIME_ERRORS as problem:
            raise UserError(f"`{self.name}` cannot run on these inputs: {problem}") from problem
        return dict(zip(self.outputs, results, strict=True))

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in order. To a GPU and back, every array is copied once, and nothing between them is."""
        if self.provider == "cpu":
            found: list[NDArray[Any]] = self._native.run(list(self.outputs), feeds)
            return found
        binding = self._native.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in self.outputs:
            binding.bind_output(name)  # in the host's memory, of the size that comes out
        self._native.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def _drawn(self, name: str, wanted: TensorType, batch: int, lengths: Mapping[str, int]) -> NDArray[Any]:
        if name not in self.draws:
            raise UserError(f"`{name}` is missing", f"{name} = an array of {_written(wanted)}")
        if unknown := [d.symbol.name for d in wanted.shape if d.symbol and d.symbol.name not in lengths]:
            raise UserError(f"`{name}` cannot be drawn: no input says how long {unknown[0]} is")
        return self.draws[name].sample(wanted, batch, lengths, self._generator)


def open_session(path: str | PathLike[str], provider: Provider = "auto", seed: int = 0) -> Session:
    """Open an exported file.

    Args:
        path: A file that `export` wrote.
        provider: `cuda` runs on the GPU or fails, `cpu` on the CPU; `auto` takes the GPU where a driver answers.
        seed: Where the declared draws of inputs that are not given start from.

    Raises:
        UserError: the file cannot be read, is damaged, or was not written by crate-dsl; `cuda` where there is none.
    """
    name = fspath(path)
    if provider not in ("auto", "cpu", "cuda"):
        raise UserError(f"there is no provider `{provider}`", "auto, cpu or cuda")
    _, metadata = read_model(path)
    problem = None if provider == "cpu" else cuda_problem()
    if provider == "cuda" and problem is not None:
        raise UserError(f"CUDA cannot be used here: {problem}", "provider cpu, or auto")
    chosen = options()
    providers = [CPU]
    if provider != "cpu" and problem is None:
        onnxruntime.preload_dlls()  # the CUDA libraries that come with torch or as packages of their own
        providers = [CUDA, CPU]
        chosen.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        native = bare_session(name, *providers, chosen=chosen)
    except ONNXRUNTIME_ERRORS as error:
        raise UserError(f"onnxruntime cannot open `{name}`: {error}") from error
    if provider == "cuda":
        _require_cuda(native)
    return Session(native, metadata, name, seed)


# ------------------------------------------------------------------ what is wanted, and what is given


def _draws(metadata: Metadata, file: str) -> dict[str, Draw]:
    try:
        return {name: from_data(data) for name, data in metadata.draws.items() if name in metadata.inputs}
    except ValueError as problem:
        raise UserError(f"`{file}` is damaged: its draws cannot be read") from problem


def _disagreement(native: onnxruntime.InferenceSession, metadata: Metadata) -> str | None:
    """Where the metadata and the network do not speak of the same inputs."""
    actual = {item.name: (item.type, item.shape[1:]) for item in native.get_inputs()}
    declared = {
        name: (ELEMENTS[wanted.kind], [str(dim) if dim.symbol else dim.offset for dim in wanted.shape])
        for name, wanted in metadata.inputs.items()
    }
    if actual != declared:
        return f"its metadata do not describe its inputs, {', '.join(actual)}"
    dims = [dim for wanted in metadata.inputs.values() for dim in wanted.shape]
    return "a length has no scale" if any(dim.symbol and dim.scale < 1 for dim in dims) else None


def _by_name(
    inputs: Mapping[str, TensorType], arrays: tuple[ArrayLike, ...], named: Mapping[str, ArrayLike]
) -> dict[str, ArrayLike]:
    """The given arrays by input name."""
    if len(arrays) > len(inputs):
        raise UserError(
            f"{len(arrays)} arrays are given, and there are {len(inputs)} inputs: {', '.join(inputs)}"
        )
    given = dict(zip(inputs, arrays, strict=False))
    for name, value in named.items():
        if name not in inputs:
            near = did_you_mean(name, inputs)
            known = f"did you mean `{near}`?" if near else f"the inputs are {', '.join(inputs)}"
            raise UserError(f"there is no input `{name}`", known)
        if name in given:
            raise UserError(f"`{name}` is given twice, by position and by name")
        given[name] = value
    return given


def _written(wanted: TensorType) -> str:
    """A type with its batch axis: `float[batch, 3, 224, 224]`."""
    sample = str(wanted)
    return sample.replace("[", "[batch, ", 1) if wanted.shape else f"{sample}[batch]"


_CONVERSIONS: dict[str, tuple[str, ...]] = {
    "float": ("scale pixels as in training before they are given",),
    "index": ("array.astype(np.int64)",),
    "bool": ("array.astype(bool)",),
}


def _array(name: str, wanted: TensorType, value: ArrayLike) -> NDArray[Any]:
    """One input as onnxruntime takes it, held against its type; the sizes of its axes come later."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise UserError(f"`{name}` is not an array: {problem}") from problem
    if array.dtype.kind not in ACCEPTED[wanted.kind]:
        raise UserError(
            f"`{name}` wants {DTYPES[wanted.kind]}, and is given {array.dtype}", *_CONVERSIONS[wanted.kind]
        )
    if array.ndim != wanted.rank + 1:
        only_batch_missing = array.ndim == wanted.rank
        raise UserError(
            f"`{name}` wants {_written(wanted)}, and is given shape {list(array.shape)}",
            *([f"the first axis is the batch: {name}[None] is a batch of one"] if only_batch_missing else []),
        )
    if array.shape[0] == 0:
        raise UserError(f"`{name}` holds no sample: its batch is empty")
    with np.errstate(over="ignore"):  # what grows infinite is refused next
        array = array.astype(DTYPES[wanted.kind], order="C", copy=False)
    if wanted.kind == "float" and not np.isfinite(array).all():
        raise UserError(f"`{name}` holds numbers that are not finite (NaN or infinite)")
    if wanted.classes is not None and array.size and not (array.min() >= 0 and array.max() < wanted.classes):
        raise UserError(
            f"`{name}` wants indices from 0 to {wanted.classes - 1}, and is given {array.min()} to {array.max()}"
        )
    return array


def _sizes(inputs: Mapping[str, TensorType], feeds: Mapping[str, NDArray[Any]]) -> tuple[int, dict[str, int]]:
    """The batch size and the lengths that the given arrays agree on."""
    batches = {name: array.shape[0] for name, array in feeds.items()}
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"`{name}` {size}" for name, size in batches.items())
        raise UserError(f"the inputs hold different numbers of samples: {sizes}")
    lengths: dict[str, int] = {}
    for name, array in feeds.items():
        for dim, size in zip(inputs[name].shape, array.shape[1:], strict=True):
            length, rest = divmod(size - dim.offset, dim.scale) if dim.symbol else (0, size - dim.offset)
            known = lengths.get(dim.symbol.name, length) if dim.symbol else 0
            if rest or length != known:
                wanted = _written(inputs[name])
                where = f", where {dim.symbol.name} is {known}" if dim.symbol and length != known else ""
                raise UserError(f"`{name}` wants {wanted}{where}, and is given shape {list(array.shape)}")
            if dim.symbol and not dim.symbol.least <= length <= dim.symbol.bound:
                raise UserError(
                    f"`{name}` is given shape {list(array.shape)}: {dim.symbol.name} is {length}, and may be"
                    f" {dim.symbol.least} to {dim.symbol.bound}"
                )
            if dim.symbol:
                lengths[dim.symbol.name] = length
    return next(iter(batches.values()), 1), lengths


__all__ = ["Session", "cuda_problem", "open_session", "read_metadata"]
