"""Syntax tree and comments -> canonical text. One style, no options.

Where a line is broken depends on the tree alone; comments and single blank lines stay where they stand. What
neighbouring lines have in common stands one below the other: colons, signs of equality, settings of variants, comments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, TypeVar

from crate_dsl.language.diagnostics import SpecError
from crate_dsl.language.layout import (
    INDENT,
    WIDTH,
    Break,
    Comment,
    Doc,
    Fill,
    Newline,
    Text,
    group,
    hang,
    nest,
    render,
    text,
)
from crate_dsl.language.parser import parse
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import (
    And,
    Argument,
    Attribute,
    Binding,
    Block,
    Bounded,
    Chain,
    Comparison,
    Expression,
    File,
    Graph,
    Identifier,
    Import,
    Index,
    Input,
    Learn,
    LearnStatement,
    List,
    Model,
    Name,
    Negative,
    Node,
    Number,
    Objective,
    Or,
    Output,
    Parameter,
    Parenthesis,
    Pipe,
    Product,
    Setting,
    Stage,
    Step,
    String,
    Sum,
    Target,
    Train,
    Type,
    Variant,
)

N = TypeVar("N", bound=Node)


def format_text(source: Source) -> str:
    """The canonical text of a file.

    Raises:
        SpecError: the text has a mistake; what cannot be read is not rearranged.
    """
    parsed = parse(source)
    if parsed.diagnostics:
        raise SpecError(parsed.diagnostics)
    return format_tree(parsed.tree, parsed.comments)


def format_tree(tree: File, comments: Iterable[Span] = ()) -> str:
    """The canonical text of a whole tree, and of the comments of the text from which it was read."""
    return render(_Formatter(tree.span.source, comments).file(tree))


def _kind(node: Node) -> type[Node]:
    """Statements that are written alike: inputs, targets and what is learned are of one kind."""
    return Input if isinstance(node, Input | LearnStatement | Target) else type(node)


def _keyword(node: Input | LearnStatement | Target) -> str:
    return {Input: "input", LearnStatement: "learn", Target: "target"}[type(node)]


class _Formatter:
    """Makes documents in the order of the text. A comment is put before the first word that stands after it."""

    def __init__(self, source: Source, comments: Iterable[Span]) -> None:
        self.source = source
        self.comments = deque(sorted(comments, key=lambda span: span.start))
        self.spans = tuple(self.comments)
        # How many spaces behind a keyword, a name, a value bring neighbours below each other; by id of the node.
        self.rooms: dict[str, dict[int, int]] = {"keyword": {}, "name": {}, "value": {}}

    @cached_property
    def bare(self) -> str:
        """The source's text with spaces for comments, in which marks can be looked for."""
        pieces, position = [], 0
        for span in self.spans:
            pieces += [self.source.text[position : span.start], " " * (span.end - span.start)]
            position = span.end
        return "".join(pieces) + self.source.text[position:]

    # -------------------------------------------------------------- words, marks, comments

    def word(self, written: str, start: int) -> Doc:
        """A word or mark that stands at `start`, and the comments before it."""
        before = self.comments_before(start)
        return text(*before, written) if before else Text(written)

    def mark(self, written: str, after: int) -> Doc:
        """A mark that comes next after a place, whatever spaces and comments lie between."""
        return self.word(written, self.find(written.strip(), after))

    def name(self, name: Identifier) -> Doc:
        return self.word(name.text, name.span.start)

    def find(self, mark: str, after: int) -> int:
        return self.bare.find(mark, after)

    def comments_before(self, start: int) -> list[Doc]:
        found: list[Doc] = []
        while self.comments and self.comments[0].start < start:
            span = self.comments.popleft()
            found.append(Comment(span.text.rstrip(), own_line=self.on_own_line(span)))
        return found

    def on_own_line(self, span: Span) -> bool:
        line = self.source.text.rfind("\n", 0, span.start) + 1
        return not self.source.text[line : span.start].strip(" \t\r\f\ufeff")

    # -------------------------------------------------------------- lines and lists

    def lines(
        self,
        nodes: Sequence[N],
        doc: Callable[[N], Doc],
        start: int,
        end: int,
        apart: Callable[[N], bool] | None = None,
    ) -> list[Doc]:
        """What stands between two offsets: nodes on lines of their own, comments, and the empty lines between them.

        Those that are `apart` have an empty line before them in any case.
        """
        self.align(nodes)
        found: list[Doc] = []
        previous = start
        for node in nodes:
            force = apart is not None and apart(node)
            previous, force = self.comment_lines(found, previous, node.span.start, force)
            found += [self.new_line(found, previous, node.span.start, force), doc(node)]
            previous = node.span.end
        self.comment_lines(found, previous, end, force=False)
        return found

    def comment_lines(self, found: list[Doc], previous: int, start: int, force: bool) -> tuple[int, bool]:
        """Add the comments before an offset. Returns where the last one ends, and whether `force` is left to do."""
        while self.comments and self.comments[0].start < start:
            span = self.comments[0]
            if self.on_own_line(span):
                found.append(self.new_line(found, previous, span.start, force))
                force = False
            found.extend(self.comments_before(span.end))
            previous = span.end
        return previous, force

    def new_line(self, found: list[Doc], previous: int, start: int, force: bool) -> Newline:
        """A new line, after an empty one if there is one in the source; never at the start of a body."""
        return Newline(blank=bool(found) and (force or self.source.text.count("\n", previous, start) > 1))

    def braced(self, nodes: Sequence[N], doc: Callable[[N], Doc], start: int, end: int) -> Doc:
        """Nodes between braces, each on a line of its own; `{}` where there is nothing."""
        opener = self.mark("{", start)
        lines = self.lines(nodes, doc, self.find("{", start), end - 1)
        return text(opener, nest(*lines), *([Newline()] if lines else []), self.word("}", end - 1))

    def listed(self, marks: str, items: Sequence[N], doc: Callable[[N], Doc], start: int) -> Doc:
        """Items between brackets that open after an offset: as many on a line as fit, the lines below each other."""
        opener = self.mark(marks[0], start)
        parts = self.with_commas(items, doc)
        closer = self.mark(marks[1], items[-1].span.end if items else self.find(marks[0], start) + 1)
        if parts and closer.width is not None:  # it fits together with the last one, or not at all
            parts[-1], closer = text(parts[-1], closer), Text("")
        return text(opener, hang(Fill(tuple(parts), indent=0)) if parts else "", closer)

    def with_commas(self, items: Sequence[N], doc: Callable[[N], Doc]) -> list[Doc]:
        """Items, each but the last with a comma."""
        return [self.followed(doc(item), ",", number + 1 < len(items)) for number, item in enumerate(items)]

    # -------------------------------------------------------------- columns

    def align(self, nodes: Sequence[Node]) -> None:
        """Note how many spaces bring neighbours of a kind below each other."""
        for kind, run in self.runs(nodes):
            if kind is Binding:
                alone = [node for node in run if len(node.names) == 1]
                self.widen("name", alone, lambda node: len(node.names[0].text))
            elif kind is Setting:
                self.widen("name", run, lambda node: len(node.name.text))
            elif kind is Variant:
                self.widen("name", run, lambda node: len(node.name.text))
                for _, same in groupby(run, lambda node: [setting.name.text for setting in node.settings]):
                    self.align_settings(list(same))
            elif kind is Input:
                self.widen("keyword", run, lambda node: len(_keyword(node)))
                for _, same in groupby(run, _keyword):
                    self.widen("name", [node for node in same if node.type], lambda node: len(node.name.text))

    def runs(self, nodes: Sequence[Node]) -> Iterator[tuple[type[Node], list[Any]]]:
        """Neighbours of a kind, with no line between them that is empty or a comment."""
        run: list[Node] = []
        for node in nodes:
            if run and (
                _kind(node) is not _kind(run[-1])
                or self.source.text.count("\n", run[-1].span.end, node.span.start) > 1
            ):
                yield _kind(run[0]), run
                run = []
            run.append(node)
        if run:
            yield _kind(run[0]), run

    def align_settings(self, variants: Sequence[Variant]) -> None:
        """Variants of the same names: each setting below the other, where all variants fit on one line."""
        plain = _Formatter(self.source, ())
        columns = list(zip(*(variant.settings for variant in variants), strict=True))
        widths = {id(setting): plain.setting(setting).width or 0 for column in columns for setting in column}
        head = max(len(f"variant {node.name.text}") + len(self.room("name", node)) for node in variants)
        settings = sum(max(widths[id(setting)] for setting in column) + len(", ") for column in columns)
        if INDENT + head + len(" { ") + settings + len("}") <= WIDTH:
            for column in columns:
                self.widen("value", column, lambda setting: widths[id(setting)])

    def widen(self, what: str, nodes: Sequence[N], width: Callable[[N], int]) -> None:
        widths = {id(node): width(node) for node in nodes}
        for key, own in widths.items():
            self.rooms[what][key] = max(widths.values()) - own

    def room(self, what: str, node: Node) -> str:
        return " " * self.rooms[what].get(id(node), 0)

    # -------------------------------------------------------------- files

    def file(self, file: File) -> Doc:
        together = {
            id(after)
            for before, after in pairwise(file.items)
            if isinstance(before, Import) and isinstance(after, Import)
        }
        end = len(self.source.text) + 1
        return text(*self.lines(file.items, self.item, 0, end, lambda item: id(item) not in together))

    def item(self, item: Node) -> Doc:
        if isinstance(item, Import):
            return text(self.word("import ", item.span.start), self.expression(item.path))
        if isinstance(item, Block):
            head = (self.word("block ", item.span.start), self.name(item.name))
            parameters = self.listed("()", item.parameters, self.setting, item.name.span.end)
            return text(*head, parameters, " ", self.body(item.body))
        if isinstance(item, Model):
            return self.model(item)
        raise TypeError(f"{type(item).__name__} has no canonical text")

    def model(self, model: Model) -> Doc:
        head: list[Doc] = [self.word("model ", model.span.start), self.name(model.name)]
        start = model.name.span.end
        if model.parameters:
            head.append(self.listed("()", model.parameters, self.setting, start))
            start = self.find(")", model.parameters[-1].span.end)
        return text(*head, " ", self.braced(model.statements, self.statement, start, model.span.end))

    def setting(self, node: Parameter | Setting | Argument) -> Doc:
        """`name = value`, either of which may be missing."""
        value = node.default if isinstance(node, Parameter) else node.value
        if node.name is None or value is None:
            return self.name(node.name) if node.name else self.expression(value) if value else Text("")
        name, equals = self.name(node.name), self.mark("= ", node.name.span.end)
        return text(name, self.room("name", node) + " ", equals, self.expression(value))

    # -------------------------------------------------------------- statements

    def statement(self, node: Node) -> Doc:
        if isinstance(node, Input):
            return self.declared(node, node.type, node.source)
        if isinstance(node, LearnStatement):
            return self.declared(node, node.type, node.initial)
        if isinstance(node, Target):
            return self.declared(node, node.type, None)
        if isinstance(node, Stage):
            head = text(self.word("stage ", node.span.start), self.name(node.name), " ")
            equals = self.mark("= ", node.name.span.end)
            body = node.body
            if isinstance(body, Chain) and len(body.lines) == 1 and body.span.text[:1] != "{":
                return text(head, equals, self.run(body.steps))
            return text(head, equals, self.body(body))
        if isinstance(node, Binding):
            names = Fill(tuple(self.with_commas(node.names, self.name)))
            equals = self.mark("= ", node.names[-1].span.end)
            return text(names, self.room("name", node) + " ", equals, self.expression(node.value))
        if isinstance(node, Output):
            keyword = self.word("output ", node.span.start)
            return text(keyword, Fill(tuple(self.with_commas(node.values, self.expression))))
        if isinstance(node, Objective):
            return text(self.word("objective ", node.span.start), self.expression(node.value))
        if isinstance(node, Variant):
            return self.variant(node)
        if isinstance(node, Train):
            return self.train(node)
        raise TypeError(f"{type(node).__name__} has no canonical text")

    def followed(self, doc: Doc, mark: str, wanted: bool) -> Doc:
        return text(doc, mark) if wanted else doc

    def declared(
        self, node: Input | LearnStatement | Target, type: Type | None, value: Expression | None
    ) -> Doc:
        keyword = self.word(_keyword(node) + self.room("keyword", node) + " ", node.span.start)
        parts = [keyword, self.name(node.name)]
        if type is not None:
            parts += [
                Text(self.room("name", node) + " "),
                self.mark(": ", node.name.span.end),
                self.type(type),
            ]
        if type is not None and value is not None:
            parts += [Text(" "), self.mark("= ", type.span.end), self.expression(value)]
        return text(*parts)

    def type(self, type: Type) -> Doc:
        parts = [self.name(type.name)]
        end = type.name.span.end
        if type.arguments is not None:
            parts.append(self.listed("()", type.arguments, self.setting, end))
            end = type.arguments[-1].span.end if type.arguments else end
        if type.dimensions is not None:
            parts.append(self.listed("[]", type.dimensions, self.expression, end))
        return text(*parts)

    def variant(self, node: Variant) -> Doc:
        """Settings on one line if they fit, else on lines of their own."""
        head = text(
            self.word("variant ", node.span.start), self.name(node.name), self.room("name", node) + " "
        )
        if not node.settings:
            return text(head, self.braced((), self.setting, node.name.span.end, node.span.end))
        opener = self.mark("{", node.name.span.end)
        parts = [
            text(setting, self.room("value", given))
            for setting, given in zip(
                self.with_commas(node.settings, self.setting), node.settings, strict=True
            )
        ]
        settings = nest(Break(), Fill(tuple(parts), indent=0))
        return text(head, group(opener, settings, Break(), self.word("}", node.span.end - 1)))

    def train(self, node: Train) -> Doc:
        """Each setting on its line, unless there is one alone."""
        keyword = self.word("train ", node.span.start)
        start = node.span.start + len("train")
        if node.variant is not None:
            keyword = text(keyword, self.name(node.variant), " ")
            start = node.variant.span.end
        if len(node.settings) == 1 and not self.has_comments(node):
            return text(keyword, group("{", nest(Break(), self.setting(node.settings[0])), Break(), "}"))
        return text(keyword, self.braced(node.settings, self.setting, start, node.span.end))

    def has_comments(self, node: Node) -> bool:
        return bool(self.comments) and self.comments[0].start < node.span.end

    # -------------------------------------------------------------- steps and bodies

    def body(self, body: Chain | Graph) -> Doc:
        start, end = body.span.start, body.span.end
        if isinstance(body, Graph):
            return self.braced(body.statements, self.statement, start, end)
        if len(body.lines) == 1 and not self.has_comments(body):
            return group("{", nest(Break(), self.run(body.lines[0])), Break(), "}")
        runs = [_Run(span=line[0].span.to(line[-1].span), steps=line) for line in body.lines]
        return self.braced(runs, lambda run: self.run(run.steps), start, end)

    def run(self, steps: Sequence[Step]) -> Doc:
        """Steps joined by arrows."""
        first, *others = steps
        return self.piped(self.step(first), self.arrows(others, first.span.end))

    def piped(self, first: Doc, arrows: Sequence[Doc]) -> Doc:
        """What goes through steps: the lines below the first arrow, or further in where a step has lines of its own."""
        if not arrows or first.width is None or any(arrow.tall for arrow in arrows):
            return Fill((first, *arrows))
        return text(first, " ", hang(Fill(tuple(arrows), indent=0)))

    def arrows(self, steps: Sequence[Step], end: int) -> list[Doc]:
        found: list[Doc] = []
        for step in steps:
            found.append(text(self.mark("-> ", end), self.step(step)))
            end = step.span.end
        return found

    def step(self, step: Step) -> Doc:
        parts = [self.name(step.name)]
        if step.arguments is not None:
            parts.append(self.listed("()", step.arguments, self.setting, step.name.span.end))
        if step.body is not None:
            parts += [Text(" "), self.body(step.body)]
        return text(*parts)

    # -------------------------------------------------------------- expressions

    def expression(self, node: Expression) -> Doc:
        start = node.span.start
        if isinstance(node, Name | Number):
            return self.word(node.text, start)
        if isinstance(node, String):
            quote = "'" if '"' in node.value else '"'
            return self.word(f"{quote}{node.value}{quote}", start)
        if isinstance(node, Step):
            return self.step(node)
        if isinstance(node, Pipe):
            return self.piped(self.expression(node.value), self.arrows(node.steps, node.value.span.end))
        if isinstance(node, Sum | Product):
            pairs = [(term.operator, term.value, term.span.start) for term in node.rest]
            return self.chain(self.expression(node.first), pairs)
        if isinstance(node, And | Or):
            return self.joined("and" if isinstance(node, And) else "or", node.values)
        if isinstance(node, Comparison):
            place = self.find(node.operator, node.left.span.end)
            return self.chain(self.expression(node.left), [(node.operator, node.right, place)])
        if isinstance(node, Negative):
            return text(self.word("-", start), self.expression(node.value))
        if isinstance(node, Bounded):
            return text(
                self.name(node.name), " ", self.mark("<= ", node.name.span.end), self.expression(node.bound)
            )
        if isinstance(node, Attribute):
            return text(self.name(node.value), self.mark(".", node.value.span.end), self.name(node.attribute))
        return self.bracketed(node)

    def bracketed(self, node: Expression) -> Doc:
        start, end = node.span.start, node.span.end
        if isinstance(node, Parenthesis):
            inner = (self.word("(", start), nest(Break(""), self.expression(node.value)), Break(""))
            return group(*inner, self.word(")", end - 1))
        if isinstance(node, List):
            return self.listed("[]", node.items, self.expression, start)
        if isinstance(node, Learn):
            return text(self.word("learn", start), self.listed("()", node.arguments, self.setting, start))
        if isinstance(node, Index):
            head = text(self.name(node.value), self.mark("[", node.value.span.end))
            return text(head, self.expression(node.index), self.word("]", end - 1))
        raise TypeError(f"{type(node).__name__} has no canonical text")

    def chain(self, first: Doc, rest: Iterable[tuple[str, Expression, int]]) -> Doc:
        """Operands with an operator before each but the first."""
        parts = [
            nest(Break(), self.word(f"{operator} ", place), self.expression(value))
            for operator, value, place in rest
        ]
        return group(first, *parts)

    def joined(self, operator: str, values: Sequence[Expression]) -> Doc:
        doc = self.expression(values[0])
        others = (
            (operator, value, self.find(operator, before.span.end)) for before, value in pairwise(values)
        )
        return self.chain(doc, others)


class _Run(Node):
    """A line of a chain."""

    steps: tuple[Step, ...]
