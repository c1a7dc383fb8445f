"""What a step declares: its arguments, its formula, its type rule, its weights, its cost, its inverse. No torch.

A step of the language is one family folder under `steps/` with three faces:

- `operator.py`: an `Operator` subclass. Its pydantic fields are its arguments, in positional order;
- `module.py`: a `StepModule` of the same class name, what it does in torch;
- `onnx.py`: a function named by the operator's `word`, what it is in ONNX.

Nothing else is registered anywhere: arguments, documentation, completion, counts and drawings follow from the
declaration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.types import TensorType

if TYPE_CHECKING:
    from crate_dsl.compiler.graph import Node

# ------------------------------------------------------------------ what an argument may be

#: A whole number of at least one: a count or a width.
Whole = Annotated[int, Field(ge=1)]
#: The most iterations of one step. A contraction that needs more has c > 0.996: a slip, or a step that is too long.
MOST_ITERATIONS = 10_000
#: How often a step repeats itself.
Iterations = Annotated[int, Field(ge=1, le=MOST_ITERATIONS)]
#: A number above zero.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: A number of at least zero.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: A share of a whole: 0 <= x < 1.
Fraction01 = Annotated[float, Field(ge=0, lt=1)]
#: A share of a whole, or all of it: 0 < x <= 1.
Part = Annotated[float, Field(gt=0, le=1)]

#: The spacing of float32 at 1, the arithmetic of exported files: what is smaller is lost beside a number of size 1.
FLOAT32_SPACING, FLOAT64_SPACING = 2.0**-23, 2.0**-52


#: What a weight may be held to.
Constraint = Literal["none", "orthonormal"]


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor handed to a step by an argument: one more input of the step, known by the argument's name."""

    type: TensorType


@dataclass(frozen=True, slots=True)
class Learned:
    """`learn(1.0)` or `learn(1e-5, shape = [dim])`: a fresh learned number, or tensor of equal numbers,
    owned by the step.
    """

    initial: float
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Weight:
    """A `learn` of the spec, named as an argument (`prepend(class_token)`, `fill = mask_token`).

    Where a step needs it constrained, `constraint` says so, and it is so for every step that reads it.
    """

    name: str
    type: TensorType
    constraint: Constraint = "none"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The name of a segment of the token axis (`select(class_token)`)."""

    name: str


@dataclass(frozen=True, slots=True)
class Inside:
    """The name of a stage, as an argument of a loss that reads what its steps compute (`sparse_rate(encoder)`)."""

    name: str
    path: str


#: A number, a fresh learned number, a `learn` of the spec, or a tensor.
Scalar = float | InstanceOf[Learned] | InstanceOf[Weight] | InstanceOf[Port]
#: The same, where a number must be above zero; what is learned or computed is not checked.
PositiveScalar = Positive | Learned | Weight | Port
#: The same, where a number must be at least zero.
NonNegativeScalar = NonNegative | Learned | Weight | Port


class Form(BaseModel):
    """An argument that is a word with arguments of its own: `leaky(0.9)`, `normal(0.02)`, `relative(0.5)`.

    Fields are its arguments in positional order; the bare word means all defaults, if every field has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    word: ClassVar[str]


# ------------------------------------------------------------------ initial values


class Normal(Form):
    """Normally distributed around zero with standard deviation `std`."""

    word: ClassVar[str] = "normal"
    std: Positive = 0.02


class Uniform(Form):
    """Uniform in [-limit, limit]."""

    word: ClassVar[str] = "uniform"
    limit: Positive = 0.02


class Zeros(Form):
    """Every entry 0."""

    word: ClassVar[str] = "zeros"


class Ones(Form):
    """Every entry 1."""

    word: ClassVar[str] = "ones"


class Constant(Form):
    """Every entry the same number."""

    word: ClassVar[str] = "constant"
    value: float


Initial = Normal | Uniform | Zeros | Ones | Constant


def linear_initial(fan_in: int) -> Uniform:
    """The usual initial value of a linear map and its bias: uniform in ±1/√fan_in (torch's `nn.Linear`)."""
    return Uniform(limit=1 / sqrt(fan_in))


def kaiming_initial(fan_in: int) -> Uniform:
    """He et al. 2015 with gain √2: uniform in ±√(6/fan_in); what the published dictionaries start from."""
    return Uniform(limit=sqrt(6 / fan_in))


# ------------------------------------------------------------------ weights


@dataclass(frozen=True, slots=True)
class Slot:
    """A weight that a step (or a `learn`) owns: shape, initial value, constraint.

    Where it is not `trained`, it is a state that the step itself keeps, such as a running average.
    """

    shape: tuple[int, ...]
    initial: Initial
    constraint: Constraint = "none"
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Ref:
    """A weight that a step reads: the path of a slot, and how it is seen."""

    slot: str
    view: Literal["same", "transpose", "detached"] = "same"


# ------------------------------------------------------------------ the operator


@dataclass(frozen=True, slots=True)
class Guard:
    """A warning of a type rule: the step means something, but not what its derivation promises. `at` is the argument
    that is to blame.
    """

    code: str
    message: str
    help: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Typing:
    """What a type rule says of one use of a step.

    `weights` names what the step owns (`Slot`) or borrows (`Weight`); `facts` is plain frozen data that the torch and
    ONNX faces need to know of the input's type or layout (a position, a grid), None where the arguments say it all;
    `flops` counts 2 for each multiply-add, for one sample, at the bound of symbolic lengths; `guards` are told as
    warnings at the step's place.
    """

    outputs: tuple[TensorType, ...]
    weights: Mapping[str, Slot | Weight] = field(default_factory=dict)
    facts: Any = None
    flops: int = 0
    guards: tuple[Guard, ...] = ()

    @property
    def output(self) -> TensorType:
        return self.outputs[0]

    @property
    def slots(self) -> dict[str, Slot]:
        """The weights that the step owns."""
        return {name: slot for name, slot in self.weights.items() if isinstance(slot, Slot)}


class Mistake(Exception):
    """What a type rule found wrong: the elaborator adds the place.

    `at` names the argument that is to blame (its text is underlined); None blames the step itself. `code` must be a
    string literal where it is raised.
    """

    def __init__(self, code: str, message: str, *help: str, at: str | None = None, label: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help
        self.at = at
        self.label = label


# ------------------------------------------------------------------ inverses


class LearnedInverse(Form):
    """The order is reversed; the weights are the inverse's own. How well it inverts is measured, not promised."""

    word: ClassVar[str] = "learned"


class TiedInverse(Form):
    """The same weights, to first order: the error falls by four when the steps halve."""

    word: ClassVar[str] = "tied"


class FixedPoint(Form):
    """The step's own map, inverted by so many iterations. It converges where the step's branch is a contraction."""

    word: ClassVar[str] = "fixed_point"
    iterations: Iterations


class CertifiedInverse(Form):
    """A bijection for every input: what breaks that is an error."""

    word: ClassVar[str] = "certified"


#: What `inverse(stage, mode = …)` promises.
Mode = LearnedInverse | TiedInverse | FixedPoint | CertifiedInverse


@dataclass(frozen=True, slots=True)
class Inverse:
    """The step that undoes another one.

    `shared` are its weights that are the other step's own: {name in this operator: name in the other}.
    """

    operator: Operator
    shared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoInverse:
    """Why a step cannot be undone, as a sentence about it goes on: `it forgets the mean of the tokens`. `help` says
    what would have to be written.
    """

    reason: str
    help: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """That a step is a bijection whatever its input and (within their constraints) its weights are.

    `stretch` is the Lipschitz constant of its inverse: by how much an error that goes in may have grown when it comes
    out. `reason` says where it comes from, with numbers.
    """

    stretch: float
    reason: str


# ------------------------------------------------------------------ one token after another


@dataclass(frozen=True, slots=True)
class Stepped:
    """The form of a step for the next tokens alone, given what it holds of those before.

    `operator` takes the next tokens, float[m, dim], how many were before, `past`, index() for each sample, and the
    `state`; it gives what the step gives for these tokens, and then the state after them. A state with the length
    `past` (`types.held`) grows by a row for each token, and has none at first; any other is zero at first.
    """

    operator: Operator
    state: tuple[TensorType, ...] = ()


@dataclass(frozen=True, slots=True)
class NotStepped:
    """Why a step has no such form, as a sentence goes on that begins with it: `averages over all tokens`. `help` says
    what would have to be written.
    """

    reason: str
    help: str = ""


#: Who writes an operator, and so which faces it has. `language`: users, as a step of a pipeline. `expression`: users,
#: as arithmetic; it has no `module.py`, since generated code holds it as plain Python. `objective`: users, as a loss.
#: `training`: users, a random step while training. `lowered`: the compiler alone. Losses and random steps are never
#: exported, and have no `onnx.py`.
OperatorKind = Literal["language", "expression", "objective", "training", "lowered"]


class Operator(BaseModel):
    """A step as declared: its fields are its arguments, in positional order, and its docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    #: How the language spells it.
    word: ClassVar[str]
    kind: ClassVar[OperatorKind] = "language"
    #: LaTeX, with ``source`` naming the paper and equation.
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    #: True where the step does nothing once trained (dropout): it may stand in an exported part.
    identity_at_inference: ClassVar[bool] = False
    #: The slot that `transpose(stage)` reads backwards, where the step is a linear map and so has one.
    transposable: ClassVar[str | None] = None

    @property
    def taps(self) -> tuple[str, ...]:
        """The tensors beside its result that a reader of the step asks for; the torch face's `explain` gives them."""
        return ()

    @property
    def exact_zeros(self) -> bool:
        """Whether the tap `code`, where there is one, has entries that are exactly zero."""
        return "code" in self.taps

    @property
    def tokenwise(self) -> bool:
        """Whether each token of the result depends on that token alone of what is given: float[…, dim] of any axes."""
        return False

    @property
    def narrows(self) -> bool:
        """Whether it can give some tokens of its result alone, while it reads all that it is given: its torch face then
        takes `read = slice(…)`.
        """
        return False

    def items(self, given: int) -> int:
        """How many items of each sample lie in the batch axis of the results, where `given` lie in that of the input.

        It is 1 outside of `each { … }`.
        """
        return given

    def infer(self, *inputs: TensorType) -> Typing:
        """The type rule. `inputs` are the piped value(s); tensors given by argument are `Port` fields.

        Raises:
            Mistake: where the inputs or arguments do not fit.
        """
        raise NotImplementedError

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        """The step that undoes this one where it was applied to `inputs`, as `mode` promises; or why there is none."""
        return NoInverse("it declares no inverse")

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """That `mode = certified` holds where the step is applied to `inputs`; or why it does not."""
        return NoInverse("nothing certifies that it can be undone for every input")

    def stepped(self, *inputs: TensorType) -> Stepped | NotStepped:
        """The same step for the next tokens alone, where it was applied to `inputs`; or why there is none.

        Folding it over tokens in portions of any sizes equals the step on all of them. Steps that act token by token
        (`tokenwise`) are their own form, and are not asked.
        """
        return NotStepped("says nothing of the next tokens alone")

    def terms(self, steps: Sequence[Node]) -> list[tuple[Operator, dict[str, Node]]]:
        """Of a loss that is given the name of a stage (`Inside`): a loss for each place where it looks, with the steps
        whose results that one takes, by argument. What is minimised is their mean.

        `steps` are the uses of the stage's steps, in order.

        Raises:
            Mistake: there is nothing in the stage for it to look at.
        """
        raise NotImplementedError

    @classmethod
    def family(cls) -> str:
        """The package that holds this operator's faces."""
        return cls.__module__.rpartition(".")[0]


def every_weight(operator: Operator, *inputs: TensorType) -> dict[str, str]:
    """All weights of a step under their own names, for an inverse that shares them."""
    return {name: name for name in operator.infer(*inputs).weights}


def learned_slots(operator: Operator) -> dict[str, Slot | Weight]:
    """The weights that come in by argument, each named by it: `learn(…)` is owned, the name of a `learn` is
    borrowed.
    """
    found: dict[str, Slot | Weight] = {}
    for name in type(operator).model_fields:
        value = getattr(operator, name)
        if isinstance(value, Learned):
            found[name] = Slot(value.shape, Constant(value=value.initial))
        elif isinstance(value, Weight):
            found[name] = value
    return found


def check_scalar(operator: Operator, argument: str, width: int) -> None:
    """An argument that scales tokens: a number, a learned one for all or for each of `width` channels, or one a sample.

    Raises:
        Mistake: E0314 where a learned one has another shape, E0410 where a tensor is not one number for each sample.
    """
    value = getattr(operator, argument)
    if isinstance(value, Port) and (value.type.kind, value.type.rank) != ("float", 0):
        raise Mistake(
            "E0410",
            f"`{argument}` takes one number for each sample, float, but is given {value.type}",
            at=argument,
            label=str(value.type),
        )
    if isinstance(value, Learned | Weight):
        shape = value.shape if isinstance(value, Learned) else tuple(dim.bound for dim in value.type.shape)
        if shape not in ((), (width,)):
            raise Mistake(
                "E0314",
                f"a learned `{argument}` here is one number, or {width} of them, but has the shape {list(shape)}",
                at=argument,
            )


def ports(operator: Operator) -> dict[str, Port]:
    """The arguments of this use that are tensors, or rules that read one, in the order of the fields."""
    found = {}
    for name in type(operator).model_fields:
        value = getattr(operator, name)
        if isinstance(value, Port):
            found[name] = value
        elif isinstance(value, Rule) and value.kept is not None:
            found[name] = Port(value.kept)
    return found


def with_ports(operator: Operator, types: Mapping[str, TensorType]) -> Operator:
    """The same operator, handed tensors of these types."""
    given: dict[str, Port | Rule] = {}
    for name, type_ in types.items():
        value = getattr(operator, name)
        given[name] = replace(value, kept=type_) if isinstance(value, Rule) else Port(type_)
    return operator.model_copy(update=given)


def handed_over(operator: Operator) -> NoInverse | None:
    """Why a step that is handed a tensor by argument cannot be undone: the tensor is not there then."""
    for name in ports(operator):
        return NoInverse(f"`{name}` is handed over to it, and nobody hands it to its inverse")
    return None
