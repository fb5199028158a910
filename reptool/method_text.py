"""Methods as text: their signatures, and methods behind a guard or sealed."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from reptool.function_text import behind
from reptool.refusal import Code

if TYPE_CHECKING:
    from reptool.guards import Guard


class CannotCutError(Exception):
    """A method cannot be printed from its trace; the message says why.

    Args:
        message: why.
        code: the kind of refusal it becomes.
    """

    def __init__(self, message: str, code: Code = Code.METHOD) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Method:
    """A regenerated method: its source, what its names mean, and constants its module must hold."""

    name: str
    source: str
    names: tuple[tuple[str, str, str], ...]  # (name in the source, module, qualified name)
    buffers: tuple[str, ...] = ()
    read: frozenset[str] = frozenset()  # paths of the modules whose parameters it reads


def literal(value: Any, name: str) -> str:
    """A constant argument as text."""
    if isinstance(value, enum.Enum) and "<locals>" not in type(value).__qualname__:
        return f"_member({type(value).__module__!r}, {type(value).__qualname__!r}, {value.name!r})"
    if _is_text(value) or (type(value) in (tuple, list) and all(map(_is_text, value))):
        return repr(value)
    if type(value) in (dict, set) and all(map(_is_text, [*value, *value.values()] if type(value) is dict else value)):
        return repr(value)
    raise CannotCutError(f"its argument {name!r} is a {type(value).__name__}")


def _is_text(value: Any) -> bool:
    """Whether a constant is what its `repr` says."""
    return value is None or type(value) in (bool, int, float, str)


def header_of(signature: inspect.Signature) -> str:
    """The parameters of a method as text; the first one becomes ``self``."""
    own, *rest = signature.parameters.values()
    if own.kind in (own.VAR_POSITIONAL, own.VAR_KEYWORD, own.KEYWORD_ONLY) or any(p.name == "self" for p in rest):
        raise CannotCutError("its first parameter is not the module")
    return ", ".join(["self", *(_parameter_text(p) for p in _with_markers(rest))])


def guarded_method(
    cls: type,
    name: str,
    seen: Mapping[str, list[Any]],
    given: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Method | None:
    """The method as it is, behind a check that it is called as it was seen to be.

    Args:
        cls: the class of the module.
        name: of the method.
        seen: arguments that must be among these constants.
        given: optional arguments that must be given, a tuple where their number matters.
        settings: attributes of the module that must be what they were.
    """
    signature, read = inspect.signature(getattr(cls, name)), _reader(getattr(cls, name))
    try:
        known = {n: ", ".join(dict.fromkeys(literal(v, n) for v in values)) for n, values in seen.items()}
        checks = [f"    _expect({n!r}, {read(n)}, {values})" for n, values in known.items()]
        for n, value in given.items():
            count = len(value) if isinstance(value, tuple) else None
            default = "None" if count is not None else literal(signature.parameters[n].default, n)
            checks.append(f"    _expect_given({n!r}, {read(n)}, {default}, {count})")
        checks += [f"    _expect({f'self.{n}'!r}, self.{n}, {literal(v, n)})" for n, v in settings.items()]
        header = header_of(signature)
    except CannotCutError:
        return None
    passed = ", ".join(["self", *(_pass_on(p) for p in list(signature.parameters.values())[1:])])
    if is_decorated(getattr(cls, name)):
        header = passed = _AS_GIVEN
        checks = [_BIND, *checks]
    lines = [f"def {name}({header}):", *checks, f"    return _original({passed})"]
    return Method(name, "\n".join(lines) + "\n", ())


def specialized_method(cls: type, name: str, made: Method | None, guards: Sequence[Guard], training: bool) -> Method:
    """A method behind a check of its arguments that runs as it was where they do not fit.

    Args:
        cls: the module's class.
        name: the method.
        made: what runs where they do, None for the method as it stands.
        guards: the arguments that fit; without any, none do.
        training: whether the module has to be in eval mode.

    Raises:
        CannotCutError: its signature cannot be written down.
    """
    signature = inspect.signature(getattr(cls, name))
    read: Callable[[str], str] = str
    header = header_of(signature)
    given = [_pass_on(p) for p in list(signature.parameters.values())[1:]]
    bind = ""
    if made is None and is_decorated(getattr(cls, name)):
        header, given, read, bind = _AS_GIVEN, ["*args", "**kwargs"], _reader(getattr(cls, name)), f"{_BIND}\n"
    original = f"return _as_it_was(self).{name}({', '.join(given)})"
    if not guards:
        return Method(name, f"def {name}({header}):\n    {original}\n", ())
    plain = "".join(f"{read(n)}, " for n in guards[0].names)
    seen = "".join(f",\n            {g.values!r}" for g in guards)
    lines = "    _expect('training', self.training, False)\n" if training else ""
    lines += f"{bind}    if not _holds(({plain}){seen}):\n        {original}\n"
    if made is None:
        return Method(name, f"def {name}({header}):\n{lines}    return _original({', '.join(['self', *given])})\n", ())
    first, _, rest = made.source.partition("\n")
    return replace(made, source=f"{first}\n{lines}{rest}")


def sealed_method(cls: type, name: str, where: str) -> Method | None:
    """The method as an error: it uses modules that were absorbed in another way than the forward does."""
    try:
        header = header_of(inspect.signature(getattr(cls, name)))
    except CannotCutError:
        return None
    return Method(name, f"def {name}({header}):\n    _sealed({f'{where}.{name}'!r})\n", ())


_AS_GIVEN = "self, *args, **kwargs"
_BIND = "    _given = _bound(self, *args, **kwargs)"


def is_decorated(function: Callable[..., Any]) -> bool:
    """Whether a method runs other functions around it, which may see how an argument is given, or that it is not."""
    return len(behind(function)) > 1


def _reader(function: Callable[..., Any]) -> Callable[[str], str]:
    """How the text of a method that takes its arguments as they are given reads one of them."""
    return (lambda name: f"_given[{name!r}]") if is_decorated(function) else str


_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _pass_on(parameter: inspect.Parameter) -> str:
    prefix = _STARS.get(parameter.kind, "")
    return f"{parameter.name}={parameter.name}" if parameter.kind is parameter.KEYWORD_ONLY else prefix + parameter.name


def _with_markers(parameters: list[inspect.Parameter]) -> list[inspect.Parameter | None]:
    """Insert the bare ``*`` in front of keyword-only parameters."""
    out: list[inspect.Parameter | None] = []
    starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            out.append(None)
            starred = True
        out.append(p)
    return out


def _parameter_text(parameter: inspect.Parameter | None) -> str:
    if parameter is None:
        return "*"
    prefix = _STARS.get(parameter.kind, "")
    return prefix + parameter.name
