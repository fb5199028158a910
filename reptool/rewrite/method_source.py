"""Methods as source text: signatures, methods behind a guard, methods that raise."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.jit.annotations import try_ann_to_type

from reptool.pysource.functions import behind, function_of
from reptool.rewrite.constants import CannotCutError, Constants, is_text
from reptool.runtime.method import ORIGINAL, Method

if TYPE_CHECKING:
    from reptool.rewrite.guard_inference import Guard


@dataclass
class Check:
    """A value that a method must find as it was when it was written.

    Args:
        name: what it is, as errors name it.
        read: the expression that reads it, or what makes it.
        seen: what it may be.
        exact: whether `seen` is a snapshot, with which the value is compared.
        argument: the argument that `read` reads, where it is one.
    """

    name: str
    read: str | Callable[[Constants], str]
    seen: tuple[Any, ...]
    exact: bool = False
    argument: str | None = None

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        read = self.read if isinstance(self.read, str) else self.read(constants)
        if self.exact:
            (seen,) = self.seen
            return f"_expect_same({self.name!r}, {read}, {repr(seen) if is_text(seen) else constants.keep(seen, '_s')})"
        seen = ", ".join(dict.fromkeys(constants.text(v, f"its argument {self.name!r}") for v in self.seen))
        return f"_expect({self.name!r}, {read}, {seen})"

    def holds(self, constants: Constants) -> str:
        """The expression that says whether a snapshot holds."""
        read = self.read if isinstance(self.read, str) else self.read(constants)
        return f"_same({read}, {constants.keep(self.seen[0], '_s')})"

    def scripted(self) -> str | None:
        """The same as an expression of TorchScript; None where it has none."""
        if not isinstance(self.read, str) or "(" in self.read or self.read.count(".") > 1:
            return None
        if not all(v is None or type(v) in (bool, int, float, str) for v in self.seen):
            return None
        tests = dict.fromkeys(f"{self.read} is None" if v is None else f"{self.read} == {v!r}" for v in self.seen)
        return " or ".join(tests)


class FusedCheck(Check):
    """That the layer which stands for a region is where it was put.

    Args:
        read: the expression for the layer.
        path: of the layer below the module of the method.
    """

    def __init__(self, read: str, path: str) -> None:
        super().__init__(read, read, ())
        self.path = path

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        steps = "".join(f", {step!r}" for step in self.path.split(".") if step)
        return f"_expect_fused({self.name!r}, self{steps})"

    def scripted(self) -> None:
        """A script cannot be given another module."""


class WideCheck(Check):
    """That a layer which took up a tensor of a dtype that stays computes in no narrower one.

    Args:
        read: the expression for the layer's weight.
        wide: the dtype.
    """

    def __init__(self, read: str, wide: torch.dtype) -> None:
        super().__init__(read, read, (wide,))

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        return f"_expect_wide({self.read}, {constants.text(self.seen[0], '_wide')})"

    def scripted(self) -> None:
        """A script is not converted any more."""


class AbsorbedCheck(Check):
    """That the modules whose work a method does itself are where they were.

    Args:
        paths: of them, below the module of the method.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__("absorbed", "self", (tuple(tuple(p.split(".")) for p in paths),))

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        return f"_expect_absorbed(self, {constants.keep(self.seen[0], '_absorbed')})"

    def scripted(self) -> None:
        """A script cannot be given another module."""


class CalledCheck(Check):
    """That a method which is a part of a region is called by the code that runs all of it."""

    def __init__(self, method: str) -> None:
        super().__init__("called", "self", (method,))

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        return f"_expect_called(self, {self.seen[0]!r})"

    def scripted(self) -> None:
        """A script is the code that was traced."""


def checks(wanted: Sequence[Check], constants: Constants) -> list[str]:
    """Statements that raise where one of the values is another."""
    if not wanted:
        return []
    eager = [f"        {check.text(constants)}" for check in wanted]
    scripted = [f"        assert {text}" for check in wanted if (text := check.scripted())]
    head = f"{constants.function(torch.jit.is_scripting)}()"
    if not scripted:
        return [f"    if not {head}:", *eager]
    return [f"    if {head}:", *scripted, "    else:", *eager]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A method's signature, with annotations as what they name where they can be found."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # an annotation is any expression, which nobody may have evaluated yet
        return inspect.signature(function)


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
    settings: Sequence[Check] = (),
) -> Method | None:
    """The method as it is, behind a check that it is called as it was seen to be.

    Args:
        cls: the class of the module.
        name: of the method.
        seen: arguments that must be among these constants.
        given: optional arguments that must be given, a tuple where their number matters.
        settings: what else must be what it was.
    """
    signature, read = signature_of(getattr(cls, name)), _reader(getattr(cls, name))
    constants = Constants([*signature.parameters, "self"])
    wanted = [Check(n, read(n), tuple(values)) for n, values in seen.items()]
    for check in settings:
        check.read = check.read if check.argument is None else read(check.argument)
        wanted.append(check)
    try:
        lines = checks(wanted, constants)
        for n, value in given.items():
            count = len(value) if isinstance(value, tuple) else None
            default = "None" if count is not None else constants.text(signature.parameters[n].default, n)
            lines.append(f"    _expect_given({n!r}, {read(n)}, {default}, {count})")
        header = header_of(signature)
    except CannotCutError:
        return None
    passed = ", ".join(_pass_on(p) for p in list(signature.parameters.values())[1:])
    if is_decorated(getattr(cls, name)):
        header, passed = _AS_GIVEN, "*args, **kwargs"
        lines = [_BIND, *lines]
    return _method(name, [f"def {name}({header}):", *lines, f"    return self.{ORIGINAL}{name}({passed})"], constants)


def _method(name: str, lines: Sequence[str], constants: Constants) -> Method:
    return Method(name, "\n".join(lines) + "\n", constants.names, constants=constants.values)


def specialized_method(
    cls: type,
    name: str,
    made: Method | None,
    guards: Sequence[Guard],
    training: bool,
    settings: Sequence[Check] = (),
) -> Method:
    """A method behind a check of its arguments that runs as it was where they do not fit.

    Args:
        cls: the module's class.
        name: the method.
        made: what runs where they do, None for the method as it stands.
        guards: the arguments that fit; without any, none do.
        training: whether the module has to be in eval mode.
        settings: what else must be what it was.

    Raises:
        CannotCutError: its signature cannot be written down.
    """
    signature = signature_of(getattr(cls, name))
    read: Callable[[str], str] = str
    header = header_of(signature)
    given = [_pass_on(p) for p in list(signature.parameters.values())[1:]]
    lines: list[str] = []
    if made is None and is_decorated(getattr(cls, name)):
        header, given, read = _AS_GIVEN, ["*args", "**kwargs"], _reader(getattr(cls, name))
        lines = [_BIND]
    original = f"return _as_it_was(self).{name}({', '.join(given)})"
    if not guards:
        return Method(name, f"def {name}({header}):\n    {original}\n")
    constants = Constants({*signature.parameters, "self", *re.findall(r"\w+", made.source if made else "")})
    if training:
        lines = [*checks([Check("training", "self.training", (False,))], constants), *lines]
    plain = "".join(f"{read(n)}, " for n in guards[0].names)
    seen = "".join(f", {constants.keep(g.values, '_g')}" for g in guards)
    others = "".join(f" or not {c.holds(constants)}" for c in settings)
    lines += [f"    if not _holds(({plain}){seen}){others}:", f"        {original}"]
    if made is None:
        last = f"    return self.{ORIGINAL}{name}({', '.join(given)})"
        return _method(name, [f"def {name}({header}):", *lines, last], constants)
    first, _, rest = made.source.partition("\n")
    return replace(
        made,
        source="\n".join([first, *lines, rest]),
        names=tuple(dict.fromkeys((*made.names, *constants.names))),
        constants=(*made.constants, *constants.values),
    )


def sealed_method(cls: type, name: str, where: str) -> Method | None:
    """The method as an error: it uses modules that were absorbed in another way than the forward does."""
    try:
        header = header_of(signature_of(function_of(cls, name)))
    except CannotCutError:
        return None
    return Method(name, f"def {name}({header}):\n    _sealed({f'{where}.{name}'!r})\n")


def only_checks(method: Method) -> bool:
    """Whether a method does what it did, behind checks."""
    return f"self.{ORIGINAL}{method.name}(" in method.source


def refusing_methods(names: Sequence[str], own: Sequence[str] = ()) -> tuple[Method, Method]:
    """``__setattr__`` and ``__getattr__`` of a module that has names no more: to set them would change nothing.

    Args:
        names: that are gone, or that say something else now.
        own: those of a tensor that the layer's own code alone may read.
    """
    setting = (
        "def __setattr__(self, name, value):\n    _not_set(self, name, _names)\n    _original(self, name, value)\n"
    )
    asked = "    _not_read(self, name, _own, _names)\n" if own else ""
    reading = (
        f"def __getattr__(self, name):\n{asked}    try:\n        return _original(self, name)\n"
        "    except AttributeError:\n        _not_there(self, name, _names)\n        raise\n"
    )
    held = (("_names", tuple(names)), *((("_own", tuple(own)),) if own else ()))
    return Method("__setattr__", setting, constants=held[:1]), Method("__getattr__", reading, constants=held)


def refusing_conversion(name: str) -> Method:
    """A conversion of the module's own that does more than to convert."""
    return Method(name, f"def {name}(self, *args, **kwargs):\n    _not_converted(self, {name!r})\n")


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
    kind = None if prefix else scripted_annotation(parameter.annotation)
    return prefix + parameter.name + (f": {kind}" if kind else "")


_SCRIPTED = {"Tensor", "int", "float", "bool", "str", "complex", "Device", "Optional", "List", "Dict", "Tuple", "Union"}


def scripted_annotation(annotation: Any) -> str | None:
    """An annotation in the words of `torch.jit.script`, which reads it in the source; None if it has none for it."""
    if annotation in (inspect.Parameter.empty, Tensor):
        return None
    try:
        kind = try_ann_to_type(annotation, None)
    except Exception:  # whatever torch raises for annotations that are none of its types
        return None
    text: str = "" if kind is None else kind.annotation_str
    return text if text and set(re.findall(r"\w+", text)) <= _SCRIPTED else None
