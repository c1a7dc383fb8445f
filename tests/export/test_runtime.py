"""Sessions: what they give, and what they say of inputs that do not fit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crate_dsl.compiler import runtime
from crate_dsl.compiler.build import build
from crate_dsl.compiler.export import export
from crate_dsl.compiler.runtime import Session, open_session
from crate_dsl.language.diagnostics import UserError
from tests.export.specs import graph_of, images, text

#: Float32 sums of some hundred numbers of size one, in two orders.
FLOAT32 = 1e-5
IMAGE = np.random.default_rng(0).standard_normal((2, 3, 4, 6), dtype=np.float32)
IDS = np.array([[3, 1, 16, 0], [5, 5, 2, 1], [0, 0, 0, 16]])
KEPT = np.array([[True] * 4, [True, True, False, False], [True, False, True, True]])
NOISE = np.random.default_rng(1).standard_normal((3, 4, 10), dtype=np.float32)


@pytest.fixture(scope="module")
def image_session(exported: Path) -> Session:
    return open_session(exported / "images.onnx")


@pytest.fixture(scope="module")
def text_session(exported: Path) -> Session:
    return open_session(exported / "text.onnx")


def test_by_name_and_by_position(image_session: Session) -> None:
    expected = images()[1](torch.from_numpy(IMAGE)).detach().numpy()
    for result in (image_session(image=IMAGE), image_session(IMAGE), image_session(torch.from_numpy(IMAGE))):
        assert list(result) == ["logits"]
        np.testing.assert_allclose(result["logits"], expected, atol=FLOAT32)
    assert image_session.provider == "cpu"
    assert image_session.outputs == ("logits",) and list(image_session.inputs) == ["image"]
    assert image_session.metadata.extra["scaling"] == '{"mean": 0.5}'


def test_several_inputs_and_outputs(text_session: Session) -> None:
    expected = text()[1](
        ids=torch.from_numpy(IDS), kept=torch.from_numpy(KEPT), noise=torch.from_numpy(NOISE)
    )
    result = text_session(IDS.astype(np.int32), kept=KEPT, noise=NOISE.astype(np.float64))
    for name in ("logits", "words"):
        np.testing.assert_allclose(result[name], expected[name].detach().numpy(), atol=FLOAT32)


def test_declared_draws_are_drawn(exported: Path) -> None:
    def twice(seed: int) -> list[np.ndarray]:
        session = open_session(exported / "text.onnx", seed=seed)
        return [session(IDS, KEPT)["logits"] for _ in range(2)]

    first, second = twice(0)
    assert (first != second).any()
    np.testing.assert_array_equal(twice(0), [first, second])
    assert (twice(1)[0] != first).any()


@pytest.mark.parametrize(
    ("arrays", "named", "message"),
    [
        ((), {}, "`image` is missing\nhelp: image = an array of float[batch, 3, 4, 6]"),
        ((), {"imgae": IMAGE}, "there is no input `imgae`\nhelp: did you mean `image`?"),
        ((), {"pixels": IMAGE}, "there is no input `pixels`\nhelp: the inputs are image"),
        ((IMAGE, IMAGE), {}, "2 arrays are given, and there are 1 inputs: image"),
        ((IMAGE,), {"image": IMAGE}, "`image` is given twice, by position and by name"),
        (
            (IMAGE[0],),
            {},
            "`image` wants float[batch, 3, 4, 6], and is given shape [3, 4, 6]\n"
            "help: the first axis is the batch: image[None] is a batch of one",
        ),
        ((IMAGE[:, :, :2],), {}, "`image` wants float[batch, 3, 4, 6], and is given shape [2, 3, 2, 6]"),
        ((IMAGE[..., None],), {}, "`image` wants float[batch, 3, 4, 6], and is given shape [2, 3, 4, 6, 1]"),
        ((IMAGE[:0],), {}, "`image` holds no sample: its batch is empty"),
        (
            (IMAGE.astype(np.uint8),),
            {},
            "`image` wants float32, and is given uint8\nhelp: scale pixels as in training before they are given",
        ),
        ((IMAGE * np.nan,), {}, "`image` holds numbers that are not finite (NaN or infinite)"),
        ((IMAGE * np.float64(1e300),), {}, "`image` holds numbers that are not finite (NaN or infinite)"),
        (
            (["cat"],),
            {},
            "`image` wants float32, and is given <U3\nhelp: scale pixels as in training before they are given",
        ),
    ],
)
def test_images_that_do_not_fit(
    image_session: Session, arrays: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        image_session(*arrays, **named)
    assert str(caught.value) == message
    assert caught.value.exit_code == 1


def test_what_is_no_array(image_session: Session) -> None:
    with pytest.raises(UserError, match="`image` is not an array"):
        image_session([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": IDS[:2]}, "the inputs hold different numbers of samples: `ids` 2, `kept` 3"),
        ({"kept": KEPT[:, :3]}, "`kept` wants bool[batch, n], where n is 4, and is given shape [3, 3]"),
        (
            {"ids": np.zeros((3, 10), int), "kept": np.ones((3, 10), bool)},
            "`ids` is given shape [3, 10]: n is 10, and may be 1 to 9",
        ),
        (
            {"ids": np.zeros((3, 0), int), "kept": np.ones((3, 0), bool)},
            "`ids` is given shape [3, 0]: n is 0, and may be 1 to 9",
        ),
        ({"ids": IDS + 1}, "`ids` wants indices from 0 to 16, and is given 1 to 17"),
        ({"ids": IDS - 1}, "`ids` wants indices from 0 to 16, and is given -1 to 15"),
        ({"ids": IDS * 1.0}, "`ids` wants int64, and is given float64\nhelp: array.astype(np.int64)"),
        ({"kept": KEPT * 1}, "`kept` wants bool, and is given int64\nhelp: array.astype(bool)"),
    ],
)
def test_texts_that_do_not_fit(text_session: Session, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        text_session(**{"ids": IDS, "kept": KEPT} | given)
    assert str(caught.value) == message


def test_a_draw_whose_length_nobody_says(tmp_path: Path) -> None:
    graph = graph_of("model m { input x : float[n <= 4, 3] = normal  y = x -> linear(2)  output y }")
    export(graph, build(graph), tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    assert session(np.zeros((2, 3, 3), np.float32))["y"].shape == (2, 3, 2)
    with pytest.raises(UserError, match="`x` cannot be drawn: no input says how long n is"):
        session()


def test_an_unknown_provider(exported: Path) -> None:
    with pytest.raises(UserError, match="there is no provider `gpu`"):
        open_session(exported / "images.onnx", provider="gpu")  # type: ignore[arg-type]


@pytest.mark.skipif(runtime.cuda_problem() is None, reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error(exported: Path) -> None:
    with pytest.raises(
        UserError, match=r"CUDA cannot be used here: (there is no NVIDIA driver|this onnxruntime)"
    ):
        open_session(exported / "images.onnx", provider="cuda")
    assert open_session(exported / "images.onnx", provider="auto").provider == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(runtime.cuda_problem() is not None, reason="there is no GPU here")
def test_cuda_computes_the_same(exported: Path) -> None:
    session = open_session(exported / "images.onnx", provider="cuda")
    assert session.provider == "cuda"
    expected = images()[1](torch.from_numpy(IMAGE)).detach().numpy()
    # TF32 keeps ten bits of each factor.
    np.testing.assert_allclose(session(IMAGE)["logits"], expected, atol=1e-2)
    larger = np.concatenate([IMAGE, IMAGE[::-1], IMAGE])
    np.testing.assert_allclose(session(larger)["logits"][:2], expected, atol=1e-2)


def test_bound_inputs_and_outputs_are_those_of_a_plain_run(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU is fed by, here on the CPU: all kinds, sizes that change, arrays that are not contiguous."""
    session = open_session(exported / "text.onnx", provider="cpu")
    calls = [(IDS, KEPT, NOISE), (IDS[:2], KEPT[:2], NOISE[:2]), (IDS[:, ::2], KEPT[:, ::2], NOISE[:, ::2])]
    plain = [session(*arrays) for arrays in calls]
    monkeypatch.setattr(Session, "provider", "cuda")
    bound = [session(*arrays) for arrays in calls]
    for one, other in zip(plain, bound, strict=True):
        assert list(one) == list(other) == list(session.outputs)
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
    # What was given out stays as it was.
    np.testing.assert_array_equal(bound[0]["logits"], plain[0]["logits"])


def test_the_callers_arithmetic_stays_as_it_is(exported: Path) -> None:
    """Making the first session of a process, onnxruntime lets that thread take the smallest numbers for zero."""
    code = (
        "import numpy as np; from crate_dsl.compiler.runtime import open_session\n"
        f"session = open_session({str(exported / 'text.onnx')!r}, provider='cpu')\n"
        "session([[1, 2]], [[True, True]])\n"
        "assert (np.full(4, 1e-40, np.float32) * np.float32(0.5) > 0).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_do_not_spin_after_a_run(exported: Path) -> None:
    """A session uses no processor time while nothing is asked of it: threads left alone spin for 25 ms."""
    session = open_session(exported / "images.onnx", provider="cpu")
    many = np.repeat(IMAGE, 500, axis=0)
    spun = []
    for _ in range(5):
        session(many)
        before = time.process_time()
        time.sleep(0.05)
        spun.append(time.process_time() - before)
    assert min(spun) < 5e-3


class _Part:
    """What onnxruntime says of where it runs a part of a network."""

    def __init__(self, provider: str, *steps: str) -> None:
        self.ep_name = provider
        self._steps = steps

    def get_nodes(self) -> list[Any]:
        return [type("Step", (), {"op_type": step}) for step in self._steps]


class _Placed:
    def __init__(self, providers: list[str], *parts: _Part) -> None:
        self._providers, self._parts = providers, parts

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> tuple[_Part, ...]:
        return self._parts


def test_on_a_gpu_only_arithmetic_on_sizes_stays_on_the_cpu() -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    runtime._require_cuda(
        _Placed(both, _Part(both[0], "MatMul", "Attention"), _Part(both[1], "Gather", "Concat"))
    )
    with pytest.raises(UserError, match="would run Attention on the CPU"):
        runtime._require_cuda(_Placed(both, _Part(both[0], "MatMul"), _Part(both[1], "Attention", "Concat")))
    with pytest.raises(UserError, match="not the CUDA libraries"):
        runtime._require_cuda(_Placed(both[1:]))


def test_sessions_import_no_torch(exported: Path) -> None:
    code = (
        "import sys; from crate_dsl.compiler.runtime import open_session\n"
        f"open_session({str(exported / 'text.onnx')!r})([[1, 2]], [[True, True]])\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
