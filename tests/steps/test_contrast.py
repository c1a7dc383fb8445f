"""Losses of features without labels, against their formulas in float64, and what they are least for."""

from __future__ import annotations

from math import exp, log
from typing import Literal

import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Mistake, Operator, Port, Weight
from crate_dsl.compiler.steps.contrast.operator import Cosine, Dino, Distance, Gaussian, InfoNce, Match, Rate
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

#: Float64 sums of some hundred numbers of size one, in two orders; distances come by a square root and a square.
FLOAT64 = 1e-12
#: bfloat16 keeps 8 bits: what is computed in it is off by some thousandths, what is computed in float32 is not.
SINGLE = 1e-5
WIDTH = 6
N = Dim.symbolic(Symbol("n", 64))
TAU = Weight("tau", floats())


def info_nce(
    a: TensorType,
    b: TensorType | None = None,
    temperature: float | Weight | None = None,
    kernel: Cosine | Gaussian | None = None,
) -> InfoNce:
    return InfoNce(a=Port(a), b=Port(b or a), temperature=temperature, kernel=kernel or Cosine())


def match(
    student: TensorType,
    teacher: TensorType,
    omitted: Literal["none", "same"] = "none",
    by: Distance | Dino | None = None,
) -> Match:
    return Match(student=Port(student), teacher=Port(teacher), except_=omitted, by=by or Distance())


def rate(features: TensorType, eps: float = 0.5) -> Rate:
    return Rate(features=Port(features), eps=eps)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


# ------------------------------------------------------------------ info_nce


def found_by(alike: Tensor) -> float:
    """The mean over both ways of -log softmax in the place of each sample's own, from the formula."""
    rows = [list(map(float, row)) for row in alike]
    total = 0.0
    for table in (rows, [list(column) for column in zip(*rows, strict=True)]):
        for i, row in enumerate(table):
            total -= row[i] - log(sum(map(exp, row)))
    return total / (2 * len(rows))


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("temperature", [None, 0.5, "learned"])
def test_info_nce_by_cosine(batch: int, temperature: float | str | None) -> None:
    a, b = 3 * normal(batch, WIDTH), normal(batch, WIDTH, seed=1)
    tau = {None: 0.1, "learned": 0.3}.get(temperature, temperature)  # type: ignore[call-overload]
    given = {"temperature": torch.tensor(0.3, dtype=torch.float64)} if temperature == "learned" else {}
    operator = info_nce(floats(WIDTH), temperature=TAU if temperature == "learned" else temperature)  # type: ignore[arg-type]
    item = step(operator)
    loss = item.module(a=a, b=b, **given)
    assert loss.shape == () == item.typing.output.shape
    assert abs(float(loss) - found_by(unit(a) @ unit(b).T / tau)) < FLOAT64


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_info_nce_by_distance(batch: int) -> None:
    a, b = 3 * normal(batch, WIDTH), normal(batch, WIDTH, seed=1)
    alike = torch.tensor([[-float((x - y).square().sum()) / (2 * 1.7**2) for y in b] for x in a])
    loss = step(info_nce(floats(WIDTH), kernel=Gaussian(sigma=1.7))).module(a=a, b=b)
    assert abs(float(loss) - found_by(alike.double())) < 1e-6  # the list is read in float32
    assert abs(float(loss) - found_by(-(a[:, None] - b).square().sum(-1) / (2 * 1.7**2))) < FLOAT64


@pytest.mark.parametrize("kernel", [Cosine(), Gaussian(sigma=0.7)], ids=lambda kernel: kernel.word)
def test_one_sample_has_nothing_to_be_told_from(kernel: Cosine | Gaussian) -> None:
    a = normal(1, WIDTH).requires_grad_()
    loss = step(info_nce(floats(WIDTH), kernel=kernel)).module(a=a, b=normal(1, WIDTH, seed=1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert a.grad is not None and not a.grad.any()


def test_features_of_zeros_have_finite_gradients() -> None:
    a = torch.zeros(3, WIDTH, requires_grad=True)
    for kernel in (Cosine(), Gaussian(sigma=1)):
        loss = step(info_nce(floats(WIDTH), kernel=kernel)).module(a=a, b=torch.zeros(3, WIDTH))
        (gradient,) = torch.autograd.grad(loss, a)
        assert abs(float(loss.detach()) - log(3)) < SINGLE
        assert gradient.isfinite().all()


#: How far the Gram of what was learned may be from a function of the mutual information. Both are least of the same
#: loss, so that only the iterations left off are between them.
LEARNED = 1e-3


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_the_kernel_that_is_learned_is_the_mutual_information(kernel: str) -> None:
    """A world of 6 things on a ring, of which those that stand near each other are seen together more often.

    Every pair is given as often as it is seen, so that the batch is the world. What is learned is a point for each
    thing; at the optimum, k(a, b) = log p(a, b) / (p(a) p(b)) + c, and the loss is log B less what one tells of the
    other.
    """
    things = 6
    near = torch.arange(things).sub(torch.arange(things)[:, None]) * (2 * torch.pi / things)
    waves = 0.6 * near.cos() + 0.3 * (2 * near).cos() + 0.2 * (3 * near).cos()
    counts = (12 * waves.exp()).round().long()
    seen = [(i, j) for i in range(things) for j in range(things) for _ in range(int(counts[i, j]))]
    first, second = torch.tensor(seen).T
    joint = counts.double() / counts.sum()
    information = (joint / (joint.sum(0) * joint.sum(1)[:, None])).log()

    points = (0.5 * normal(things, things)).requires_grad_()
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    operator = info_nce(floats(things), kernel=Gaussian(sigma=0.8))
    learned, given = [points], {}
    if kernel == "cosine":
        operator = info_nce(floats(things), temperature=TAU)
        learned, given = [points, tau], {"temperature": tau}
    module = step(operator).module
    optimizer = torch.optim.LBFGS(learned, max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        return module(a=points[first], b=points[second], **given)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        if kernel == "cosine":
            alike = unit(points) @ unit(points).T / tau
        else:
            alike = -(points[:, None] - points).square().sum(-1) / (2 * 0.8**2)
        both = torch.stack([alike.flatten(), information.flatten()])
        assert 1 - torch.corrcoef(both)[0, 1] < LEARNED
        shift = alike - information
        assert shift.max() - shift.min() < LEARNED, "not correlated alone: equal up to a constant"
        told = log(len(seen)) - (joint * information).sum()
        assert abs(loss() - told) < LEARNED


# ------------------------------------------------------------------ match


def compared(student: Tensor, teacher: Tensor, omitted: str, by: Distance | Dino) -> float:
    """The mean over pairs of views and over samples, pair by pair."""
    centre = teacher.flatten(0, 1).mean(0)
    terms = []
    for s_vd, t_wd in zip(student, teacher, strict=True):
        for v, s in enumerate(s_vd):
            for w, t in enumerate(t_wd):
                if omitted == "same" and v == w:
                    continue
                if isinstance(by, Distance):
                    terms.append(0.5 * (unit(t) - unit(s)).square().sum())
                else:
                    told = ((t - centre) / by.teacher).exp()
                    guess = (s / by.student).exp()
                    terms.append(-(told / told.sum() * (guess / guess.sum()).log()).sum())
    return float(torch.stack(terms).mean())


@pytest.mark.parametrize("views", [(2, 2), (5, 2), (1, 3)])
@pytest.mark.parametrize("omitted", ["none", "same"])
@pytest.mark.parametrize("by", [Distance(), Dino(), Dino(student=0.7, teacher=0.3)], ids=str)
def test_match(views: tuple[int, int], omitted: Literal["none", "same"], by: Distance | Dino) -> None:
    student, teacher = normal(3, views[0], WIDTH), 2 * normal(3, views[1], WIDTH, seed=1)
    item = step(match(floats(views[0], WIDTH), floats(views[1], WIDTH), omitted, by))
    loss = item.module(student=student, teacher=teacher)
    assert loss.shape == () == item.typing.output.shape
    assert abs(float(loss) - compared(student, teacher, omitted, by)) < FLOAT64 * (1 + abs(float(loss)))


@pytest.mark.parametrize("by", [Distance(), Dino()], ids=str)
def test_one_view_needs_no_axis(by: Distance | Dino) -> None:
    student, teacher = normal(3, WIDTH), normal(3, 2, WIDTH, seed=1)
    plain = step(match(floats(WIDTH), floats(2, WIDTH), by=by)).module(student=student, teacher=teacher)
    axis = step(match(floats(1, WIDTH), floats(2, WIDTH), by=by)).module(
        student=student[:, None], teacher=teacher
    )
    assert torch.equal(plain, axis)


@pytest.mark.parametrize("by", [Distance(), Dino()], ids=str)
def test_the_teacher_gets_no_gradient(by: Distance | Dino) -> None:
    student, teacher = (normal(3, 2, WIDTH, seed=k).requires_grad_() for k in (0, 1))
    step(match(floats(2, WIDTH), floats(2, WIDTH), by=by)).module(student=student, teacher=teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.any()


def test_features_that_agree_are_at_distance_zero() -> None:
    student = normal(3, 2, WIDTH).requires_grad_()
    teacher = (2 * student[:, :1]).detach()
    loss = step(match(floats(2, WIDTH), floats(1, WIDTH), "none")).module(
        student=student[:, :1].expand(-1, 2, -1), teacher=teacher
    )
    loss.backward()
    assert float(loss.detach()) < FLOAT64
    assert student.grad is not None and student.grad.abs().max() < 1e-6


# ------------------------------------------------------------------ rate


@pytest.mark.parametrize("shape", [(9, WIDTH), (4, WIDTH), (9, 3, WIDTH)])
def test_rate(shape: tuple[int, ...]) -> None:
    z = 3 * normal(*shape)
    features = floats(*shape[1:])
    loss = step(rate(features, eps=0.3)).module(features=z)
    views = unit(z).reshape(shape[0], -1, WIDTH).unbind(1)
    scale = WIDTH / (shape[0] * 0.3**2)
    rates = [0.5 * torch.logdet(torch.eye(WIDTH) + scale * v.T @ v) for v in views]
    assert loss.shape == ()
    assert abs(float(loss) - float(torch.stack(rates).mean())) < FLOAT64 * 10


def test_one_point_takes_least() -> None:
    module = step(rate(floats(WIDTH))).module
    one = module(features=normal(1, WIDTH).expand(9, -1))
    assert abs(float(one) - 0.5 * log(1 + WIDTH / 0.5**2)) < FLOAT64
    assert module(features=normal(9, WIDTH)) > one


def test_the_published_loss_is_match_less_a_share_of_rate() -> None:
    """SimDINO's code: -cosine over pairs, less γ ½ log det(I + d/(B eps) ZᵀZ), γ = (d + B)/(d B), eps = ε² = 0.5."""
    batch, crops = 8, 5
    student, teacher = unit(normal(batch, crops, WIDTH)), unit(normal(batch, 2, WIDTH, seed=1))
    pairs = [(t, s) for t in range(2) for s in range(crops) if t != s]
    cosine = sum((teacher[:, t] * student[:, s]).sum(-1).mean() for t, s in pairs) / len(pairs)
    grams = [student[:, v].T @ student[:, v] for v in range(2)]
    log_dets = [
        torch.linalg.cholesky(torch.eye(WIDTH) + WIDTH / (batch * 0.5) * g).diagonal().log().sum()
        for g in grams
    ]
    gamma = (WIDTH + batch) / (WIDTH * batch)
    published = -cosine - gamma * sum(log_dets) / 2
    matched = step(match(floats(crops, WIDTH), floats(2, WIDTH), "same")).module(
        student=student, teacher=teacher
    )
    coded = step(rate(floats(2, WIDTH), eps=0.5**0.5)).module(features=student[:, :2])
    assert abs(float(matched - gamma * coded - 1 - published)) < FLOAT64


# ------------------------------------------------------------------ gradients and precision


def losses() -> dict[str, tuple[Operator, list[str], list[Tensor]]]:
    pair, views = floats(WIDTH), floats(3, WIDTH)
    two = [normal(4, WIDTH), normal(4, WIDTH, seed=1)]
    return {
        "cosine": (info_nce(pair), ["a", "b"], two),
        "temperature": (
            info_nce(pair, temperature=TAU),
            ["a", "b", "temperature"],
            [*two, torch.tensor(0.3).double()],
        ),
        "gaussian": (info_nce(pair, kernel=Gaussian(sigma=1.3)), ["a", "b"], two),
        "distance": (match(views, pair), ["student", "teacher"], [normal(4, 3, WIDTH), two[0]]),
        "dino": (
            match(views, pair, by=Dino(student=0.5, teacher=0.5)),
            ["student", "teacher"],
            [normal(4, 3, WIDTH), two[0]],
        ),
        "rate": (rate(views), ["features"], [normal(4, 3, WIDTH)]),
    }


@pytest.mark.parametrize("loss", losses())
def test_the_gradient_is_that_of_the_loss(loss: str) -> None:
    operator, names, given = losses()[loss]
    module = step(operator).module
    given = [x.requires_grad_(name != "teacher") for name, x in zip(names, given, strict=True)]
    assert torch.autograd.gradcheck(lambda *x: module(**dict(zip(names, x, strict=True))), given)


@pytest.mark.parametrize("loss", losses())
def test_in_half_precision_it_is_the_loss_of_float32(loss: str) -> None:
    operator, names, given = losses()[loss]
    half = {name: x.bfloat16() for name, x in zip(names, given, strict=True)}
    module = step(operator).module
    with torch.autocast("cpu", torch.bfloat16):
        value = module(**half)
    exact = module(**{name: x.double() for name, x in half.items()})
    assert value.dtype == torch.float32
    assert abs(float(value) - float(exact)) < SINGLE


# ------------------------------------------------------------------ types


def bools(*shape: int) -> TensorType:
    return TensorType("bool", tuple(map(Dim.of, shape)))


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        ("E0474", info_nce(floats(4), floats(5))),
        ("E0474", info_nce(floats(3, 4))),
        ("E0474", info_nce(floats())),
        ("E0474", info_nce(bools(4))),
        ("E0305", info_nce(floats(4), temperature=0.1, kernel=Gaussian(sigma=1))),
        ("E0314", info_nce(floats(4), temperature=Weight("tau", floats(4)))),
        ("E0475", match(floats(2, 4), floats(2, 5))),
        ("E0475", match(floats(2, 3, 4), floats(2, 4))),
        ("E0475", match(floats(N, 4), floats(2, 4))),
        ("E0475", match(bools(2, 4), floats(2, 4))),
        ("E0476", match(floats(4), floats(1, 4), "same")),
        ("E0477", rate(floats(2, 3, 4))),
        ("E0477", rate(floats(N, 4))),
        ("E0477", rate(floats())),
        ("E0477", rate(bools(4))),
    ],
)
def test_mistakes(code: str, operator: Operator) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer()
    assert found.value.code == code
