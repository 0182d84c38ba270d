"""A griffe extension that shows the fields of a class as a table, each with its comment or docstring.

Linen modules document their fields with trailing comments, which `--help` shows too. Griffe itself reads no comments.
"""

import io
import tokenize

import griffe


class Fields(griffe.Extension):
    """Moves the fields of Linen modules, dataclasses and named tuples into a table in the class's docstring."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Adds the tables. It needs the complete package, because classes inherit fields."""
        classes = list(_classes(pkg))
        tables = [_fields(cls) for cls in classes]
        for cls, fields in zip(classes, tables, strict=True):
            if fields and cls.docstring:
                sections = cls.docstring.parsed
                after_text = 1 + max(
                    i for i, section in enumerate(sections) if section.kind == griffe.DocstringSectionKind.text
                )
                sections.insert(after_text, griffe.DocstringSectionParameters(list(fields.values()), title="Fields:"))
            for name in [name for name, member in cls.members.items() if _is_field(member)]:
                cls.del_member(name)


def _classes(place: griffe.Module | griffe.Class):
    for member in list(place.members.values()):
        if member.is_alias:
            continue
        if member.is_class:
            yield member
        if member.is_class or member.is_module:
            yield from _classes(member)


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    return (
        not member.is_alias
        and member.is_attribute
        and member.annotation is not None
        and "property" not in member.labels
    )


def _fields(cls: griffe.Class) -> dict[str, griffe.DocstringParameter]:
    """The fields of the class and its base classes by name; those of the base classes come first."""
    fields = {}
    for owner in [*reversed(cls.mro()), cls]:
        comments = _trailing_comments(owner.module.source)
        for name, member in owner.members.items():
            if _is_field(member):
                text = member.docstring.value if member.docstring else comments.get(member.endlineno, "")
                fields[name] = griffe.DocstringParameter(
                    name, description=text, annotation=_without_rules(member.annotation), value=member.value
                )
    return fields


def _without_rules(annotation: griffe.Expr) -> griffe.Expr:
    """The type T of Annotated[T, …], without the range and the rules of the option."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        return annotation.slice.elements[0]
    return annotation


def _trailing_comments(source: str) -> dict[int, str]:
    """The comments that follow code on the same line, by line number from 1."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            comments[token.start[0]] = token.string.removeprefix("#").strip()
    return comments
