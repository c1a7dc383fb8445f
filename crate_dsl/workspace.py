"""A file and its imports, read and checked: the one analysis that the command line, editors and Python share.

Imports no torch, onnx or numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_dsl.compiler.elaborate import check_block, elaborate
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.meanings import POISON, BlockMeaning, Namespace
from crate_dsl.compiler.reserved import is_step
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, Label, Report, SpecError, did_you_mean
from crate_dsl.language.parser import parse
from crate_dsl.language.reading import read_source
from crate_dsl.language.source import Source, Span

if TYPE_CHECKING:
    from crate_dsl.compiler.metadata import Metadata


@dataclass(frozen=True, slots=True)
class Target:
    """`file.crate:model@variant`: what a command works on."""

    path: str
    model: str | None = None
    variant: str | None = None

    @staticmethod
    def of(text: str) -> Target:
        """Read a target as it is written on a command line.

        >>> Target.of("specs/crate.crate@tiny")
        Target(path='specs/crate.crate', model=None, variant='tiny')
        """
        path, at, variant = text.rpartition("@")
        if not at or "/" in variant or variant.endswith(".crate"):
            path, variant = text, ""
        stem, colon, model = path.rpartition(":")
        if not colon or not stem.endswith(".crate"):
            stem, model = path, ""
        return Target(stem, model or None, variant or None)


@dataclass(frozen=True, slots=True)
class Program:
    """A root file, read: its tree, the blocks that it sees, every text that it consists of."""

    source: Source
    tree: syntax.File
    blocks: Namespace
    sources: tuple[Source, ...]

    def model(self, name: str | None, report: Report) -> syntax.Model | None:
        """The model of that name; the only one, where none is named."""
        models = {model.name.text: model for model in self.tree.models}
        if name is not None and name not in models:
            near = did_you_mean(name, models)
            message = f"{self.source.name} has no model `{name}`"
            known = f"its models are {', '.join(models)}" if models else "it has no model"
            report.add(
                Diagnostic(
                    code="E0214", message=message, help=(f"did you mean `{near}`?" if near else known,)
                )
            )
            return None
        if name is None and len(models) != 1:
            message = (
                f"{self.source.name} has {len(models) or 'no'} models"
                if models
                else f"{self.source.name} has no model"
            )
            help = tuple([f"name one: {self.source.name}:{next(iter(models))}"] if models else [])
            report.add(Diagnostic(code="E0215", message=message, help=help))
            return None
        return models[name] if name is not None else next(iter(models.values()))


def read_program(source: Source, report: Report, texts: Mapping[str, str] | None = None) -> Program:
    """Parse a file and what it imports; every mistake goes to `report`.

    `texts` stands in for the file system where a run or an ONNX file carries its spec: file name -> text.
    """
    return _Reader(source, report, texts).program()


class _Reader:
    def __init__(self, root: Source, report: Report, texts: Mapping[str, str] | None) -> None:
        self.root, self.report, self.texts = root, report, texts
        self.folder = Path(root.name).resolve().parent
        self.sources: list[Source] = [root]
        self._read: dict[str, tuple[syntax.File, Namespace] | None] = {}

    def program(self) -> Program:
        tree, blocks = self._file(self.root, Path(self.root.name).resolve(), ())
        return Program(self.root, tree, blocks, tuple(self.sources))

    def _file(self, source: Source, path: Path, chain: tuple[Path, ...]) -> tuple[syntax.File, Namespace]:
        parsed = parse(source)
        self.report.extend(parsed.diagnostics)
        names = Namespace()
        imported: dict[str, syntax.Import] = {}
        for item in parsed.tree.items:
            match item:
                case syntax.Import():
                    self._import(item, path, (*chain, path), names, imported)
                case syntax.Block():
                    self._define(item, names, names, item.name)
                case syntax.BrokenItem():
                    self._broken(item, names)
        models: dict[str, syntax.Identifier] = {}
        for model in parsed.tree.models:
            name = model.name.text
            first = models.get(name)
            defined = names.own.get(name)
            if first is not None or defined is not None:
                span = first.span if first is not None else defined.span if defined is not None else None
                self._twice(model.name, name, span)
            models.setdefault(name, model.name)
        return parsed.tree, names

    def _broken(self, item: syntax.BrokenItem, names: Namespace) -> None:
        """What is left of a block or import that could not be read: its name, or that there may be names."""
        names.incomplete |= not item.names
        for name in item.names:
            names.define(name.text, "block", POISON, name.span)

    def _define(self, block: syntax.Block, home: Namespace, names: Namespace, where: syntax.Node) -> None:
        """Enter a block into the names of a file; `where` is what brings it in: its own name, or an import."""
        name = block.name.text
        if name in names.own:
            self._twice(where, name, names.own[name].span)
            return
        if is_step(name) and where is block.name:
            self._error("E0204", where, f"`{name}` is a step of the language, and cannot be a name")
        names.define(name, "block", BlockMeaning(block, home), block.name.span)

    def _import(
        self,
        item: syntax.Import,
        importer: Path,
        chain: tuple[Path, ...],
        names: Namespace,
        imported: dict[str, syntax.Import],
    ) -> None:
        read = self._imported(item, importer, chain, imported)
        if read is None:
            names.incomplete = True
            return
        tree, home = read
        names.incomplete |= home.incomplete
        for block in tree.blocks:
            self._define(block, home, names, item.path)
        for broken in tree.items:
            if isinstance(broken, syntax.BrokenItem):
                self._broken(broken, names)

    def _imported(
        self, item: syntax.Import, importer: Path, chain: tuple[Path, ...], imported: dict[str, syntax.Import]
    ) -> tuple[syntax.File, Namespace] | None:
        """The file that is imported; None after reporting why it cannot be."""
        written = item.path.value
        try:
            path = (importer.parent / written).resolve()
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as problem:  # a circle of links, a name that no file can have
            self._error("E0520", item.path, f"cannot import `{written}`: {problem}")
            return None
        if not path.is_relative_to(self.folder):
            message = (
                f"an import stays inside the folder of the spec that is opened, and `{written}` leaves it"
            )
            self._error("E0518", item.path, message)
            return None
        key = path.relative_to(self.folder).as_posix()
        if key in imported:
            self._error("E0203", item.path, f"`{written}` is imported twice", imported[key].path.span)
            return None
        imported[key] = item
        if path in chain:
            own = "itself" if path == importer else "the file that it is imported by"
            self._error("E0519", item.path, f"a circle: this file imports {own}")
            return None
        if key not in self._read:
            self._read[key] = None
            source = self._source(item, key)
            if source is not None:
                self.sources.append(source)
                self._read[key] = self._file(source, path, chain)
        return self._read[key]

    def _source(self, item: syntax.Import, key: str) -> Source | None:
        written = item.path.value
        if self.texts is not None:
            if key in self.texts:
                return Source(key, self.texts[key])
            self._error("E0520", item.path, f"`{written}` is not among the texts that came along")
            return None
        try:
            return read_source(str(Path(self.root.name).parent / key))
        except SpecError as problem:
            self._error("E0520", item.path, f"cannot import `{written}`: {problem.diagnostics[0].message}")
            return None

    def _twice(self, where: syntax.Node, name: str, first: Span | None) -> None:
        by = ", the second time by this import" if isinstance(where, syntax.String) else ""
        self._error("E0203", where, f"`{name}` is defined twice{by}", first)

    def _error(self, code: str, node: syntax.Node, message: str, first: Span | None = None) -> None:
        also = (Label(span=first, text="first here"),) if first is not None else ()
        self.report.add(Diagnostic(code=code, message=message, where=Label(span=node.span), also=also))


# ------------------------------------------------------------------ what tools ask


def load(target: str, set: Mapping[str, Any] | None = None, *, strict: bool = False) -> ModelGraph:
    """The checked graph of a spec.

    Args:
        target: `file.crate`, `file.crate@variant`, or `file.crate:model@variant`.
        set: parameter values that override the variant's, as numbers, booleans, words or lists.
        strict: warnings are errors.

    Raises:
        SpecError: with every diagnostic.

    >>> load("specs/crate.crate@tiny").parameters
    6090856
    """
    wanted = Target.of(target)
    return load_source(read_source(wanted.path), wanted, set, strict=strict)


def load_source(
    source: Source,
    wanted: Target,
    set: Mapping[str, Any] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    strict: bool = False,
) -> ModelGraph:
    """`load` for a text that is at hand already."""
    report = Report()
    program = read_program(source, report, texts)
    report.raise_errors()
    model = program.model(wanted.model, report)
    report.raise_errors()
    assert model is not None
    graph = elaborate(
        model, program.blocks, variant=wanted.variant, overrides=set, sources=program.sources, report=report
    )
    report.raise_errors()
    assert graph is not None
    if strict and report.warnings:
        raise SpecError(report.warnings)
    return graph


def load_exported(metadata: Metadata) -> ModelGraph:
    """The graph of an exported file, from the texts that it carries.

    Raises:
        SpecError: this version reads them otherwise than the one that exported.
    """
    root, *_ = metadata.spec
    wanted = Target(root.name, metadata.target.model, metadata.target.variant)
    texts = {source.name: source.text for source in metadata.spec}
    return load_source(Source(root.name, root.text), wanted, metadata.target.settings, texts=texts)


def check(target: str, set: Mapping[str, Any] | None = None) -> tuple[list[Diagnostic], list[ModelGraph]]:
    """Every diagnostic of a target: all models and variants of the file where none is named; and the sound graphs.

    Raises:
        SpecError: where there is no text to check.
    """
    wanted = Target.of(target)
    return check_source(read_source(wanted.path), wanted, set)


def check_source(
    source: Source, wanted: Target, set: Mapping[str, Any] | None = None
) -> tuple[list[Diagnostic], list[ModelGraph]]:
    """`check` for a text that is at hand already."""
    report = Report()
    program = read_program(source, report)
    unread = any(isinstance(item, syntax.BrokenItem) for item in program.tree.items)
    graphs: list[ModelGraph] = []
    if wanted.model is not None and unread:
        runs = [(m, wanted.variant) for m in program.tree.models if m.name.text == wanted.model]
    elif wanted.model is not None or wanted.variant is not None or set:
        model = program.model(wanted.model, report)
        runs = [(model, wanted.variant)] if model is not None else []
    else:
        runs = [(model, variant) for model in program.tree.models for variant in _variants(model)]
        if not program.tree.models and not program.tree.blocks and not report.errors:
            report.add(Diagnostic(code="E0215", message=f"{source.name} has no model and no block"))
    for model, variant in runs:
        own = Report()
        graph = elaborate(
            model, program.blocks, variant=variant, overrides=set, sources=program.sources, report=own
        )
        report.extend(own)
        if graph is not None:
            graphs.append(graph)
    for definition in program.blocks.own.values():
        meaning = definition.meaning
        own_file = definition.span is not None and definition.span.source is source
        if isinstance(meaning, BlockMeaning) and own_file and not definition.used:
            check_block(meaning.block, program.blocks, report)
    return list(report), graphs


def _variants(model: syntax.Model) -> Iterator[str | None]:
    """The model as it stands, then each of its variants. One whose variants complete it does not stand alone."""
    names = dict.fromkeys(s.name.text for s in model.statements if isinstance(s, syntax.Variant))
    if not names or all(parameter.default is not None for parameter in model.parameters):
        yield None
    yield from names


def check_text(name: str, text: str) -> list[Diagnostic]:
    """Every diagnostic of a text."""
    return check_source(Source(name, text), Target(name))[0]
