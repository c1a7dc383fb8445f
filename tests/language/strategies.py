"""Random syntax trees: of every node, and no node where the grammar would want parentheses."""

from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from crate_dsl.language import syntax
from crate_dsl.language.place import KEYWORDS
from crate_dsl.language.source import Source, Span

NOWHERE = Span(Source("random", ""), 0, 0)

words = st.from_regex(r"[a-z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(lambda word: word not in KEYWORDS)


def node(kind: type[syntax.Node], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, span=st.just(NOWHERE), **fields)


def some(strategy: st.SearchStrategy[Any], least: int = 0, most: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def number(text: str) -> syntax.Number:
    return syntax.Number(span=NOWHERE, text=text, value=Fraction(text))


identifiers = node(syntax.Identifier, text=words)
names = node(syntax.Name, text=words)
numbers = st.from_regex(r"([0-9]{1,4}(\.[0-9]{1,3})?|\.[0-9]{1,3})(e-?[0-9]{1,2})?", fullmatch=True).map(
    number
)
strings = node(
    syntax.String,
    value=st.text(st.characters(exclude_characters="\"'\r\n", codec="utf-8"), max_size=8)
    | st.sampled_from(['a "b" c', "it's"]),
)


def atoms(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    called = node(syntax.Step, name=identifiers, arguments=some(arguments(inner)), body=st.none())
    return st.one_of(
        names,
        numbers,
        strings,
        called,
        node(syntax.Parenthesis, value=inner),
        node(syntax.List, items=some(inner)),
        node(syntax.Index, value=identifiers, index=inner),
        node(syntax.Attribute, value=identifiers, attribute=identifiers),
        node(syntax.Learn, arguments=some(arguments(inner))),
    )


def arguments(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return node(syntax.Argument, name=maybe(identifiers), value=inner)


def steps(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return node(syntax.Step, name=identifiers, arguments=maybe(some(arguments(inner))), body=st.none())


def operators(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every operator, each with operands that bind tighter."""

    def terms(signs: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return some(node(syntax.Term, operator=st.sampled_from(signs), value=values), least=1)

    atom = atoms(inner)
    signed = atom | node(syntax.Negative, value=atom)
    product = signed | node(syntax.Product, first=signed, rest=terms("*/", signed))
    total = product | node(syntax.Sum, first=product, rest=terms("+-", product))
    marks = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    comparison = total | node(syntax.Comparison, operator=marks, left=total, right=total)
    conjunction = comparison | node(syntax.And, values=some(comparison, least=2))
    disjunction = conjunction | node(syntax.Or, values=some(conjunction, least=2))
    return disjunction | node(syntax.Pipe, value=atom, steps=some(steps(inner), least=1, most=8))


expressions = st.recursive(names | numbers, operators, max_leaves=6)
runs = some(steps(expressions), least=1)


def bodies(statement: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return node(syntax.Chain, lines=some(runs, least=1)) | node(
        syntax.Graph, statements=some(statement, least=1)
    )


def with_bodies(statement: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    step = node(
        syntax.Step,
        name=identifiers,
        arguments=maybe(some(arguments(expressions))),
        body=maybe(bodies(statement)),
    )
    return st.one_of(
        node(syntax.Stage, name=identifiers, body=bodies(statement)),
        node(
            syntax.Stage, name=identifiers, body=node(syntax.Chain, lines=some(some(step, least=1), least=1))
        ),
        node(
            syntax.Binding,
            names=some(identifiers, least=1),
            value=node(syntax.Pipe, value=names, steps=some(step, least=1, most=4)),
        ),
    )


dimensions = names | numbers | node(syntax.Bounded, name=identifiers, bound=names | numbers)
types = node(
    syntax.Type,
    name=identifiers,
    arguments=maybe(some(arguments(expressions))),
    dimensions=maybe(some(dimensions, least=1)),
)
settings = some(node(syntax.Setting, name=identifiers, value=expressions))
inner_statements = st.one_of(
    node(syntax.Input, name=identifiers, type=st.none(), source=st.none()),
    node(syntax.Input, name=identifiers, type=types, source=maybe(expressions)),
    node(syntax.LearnStatement, name=identifiers, type=types, initial=maybe(expressions)),
    node(syntax.Binding, names=some(identifiers, least=1), value=expressions),
    node(syntax.Output, values=some(expressions, least=1)),
)
graph_statements = st.recursive(inner_statements, with_bodies, max_leaves=4)
statements = st.one_of(
    graph_statements,
    node(syntax.Target, name=identifiers, type=types),
    node(syntax.Objective, value=expressions),
    node(syntax.Variant, name=identifiers, settings=settings),
    node(syntax.Train, settings=settings),
)
parameters = some(node(syntax.Parameter, name=identifiers, default=maybe(expressions)))
items = st.one_of(
    node(syntax.Import, path=strings),
    node(syntax.Block, name=identifiers, parameters=parameters, body=bodies(graph_statements)),
    node(syntax.Model, name=identifiers, parameters=parameters, statements=some(statements, most=6)),
)
files = node(syntax.File, items=some(items))
