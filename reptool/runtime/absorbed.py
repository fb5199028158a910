"""`Absorbed`: what stands in the place of a module whose work another layer does after deploying.

It hands its input on where deployed code still runs it, and answers for the plain attributes that the module
had. Whatever would have no effect any more raises: hooks, other attributes, other weights, old weights that are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn
from torch._C import _get_tracing_state
from torch.compiler import is_compiling

from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.runtime.gates.check import check
from reptool.runtime.gates.marker import Marker, names_read, tell_of_norms

_NORMS = (nn.modules.batchnorm._NormBase,)
_TORCHS_OWN = frozenset(["training", "forward", "qconfig"])
"""Public attributes that torch itself writes on every module of a model."""
_EXCLUDE = "exclude it (deploy(model, exclude=...)), use the original model, or reptool.release(deployed) first"


class GoneError(SpecializedError, AttributeError):
    """An attribute of a module that deploy() absorbed; to `hasattr` and `getattr` it is missing."""


class Absorbed(Marker):
    """Stands for a module whose work a fused layer does.

    Args:
        module: what was absorbed.
        place: its path in the model.
        layer: the path of the layer that does its work, "" where nothing does.
        asked: names of attributes that other code asked it for.
    """

    def __init__(self, module: nn.Module, place: str, layer: str = "", asked: Collection[str] = ()) -> None:
        super().__init__()
        own = self.__dict__
        own["training"] = False
        own["__module__"] = nn.Identity.__module__  # tracers of fx open no module of torch.nn
        own["_place"], own["_layer"] = place, layer
        own["_stands_for"] = module._stands_for if isinstance(module, Absorbed) else type(module).__name__
        own["_is_norm"] = module._is_norm if isinstance(module, Absorbed) else isinstance(module, _NORMS)
        plain = plain_attributes(module)
        gone = module._gone if isinstance(module, Absorbed) else frozenset(names_lost(module))
        own["_gone"] = gone - plain.keys()
        read = names_read(type(module))
        free = frozenset() if read is None else plain.keys() - read - {*asked}
        own["_free"] = module._free - {*asked} if isinstance(module, Absorbed) else free
        own["_inside"] = module.__dict__.get("_inside", frozenset(module._modules))
        own["_indexed"] = module._indexed if isinstance(module, Absorbed) else hasattr(type(module), "__getitem__")
        own.update({n: v for n, v in plain.items() if n not in own})

    if TYPE_CHECKING:  # torch.jit.script reads what a class is annotated with
        _stands_for: str
        _gone: frozenset[str]
        _free: frozenset[str]
        _inside: frozenset[str]
        _indexed: bool

    def extra_repr(self) -> str:
        """What it stands for, and where that is done now."""
        return f"{self._stands_for}, in {self._layer!r}" if self._layer else self._stands_for

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the input on, where the calls around it are those that were traced."""
        if is_compiling():
            return super().__call__(*args, **kwargs)
        plain = len(args) == 1 and not kwargs and type(args[0]) is Tensor
        if not plain and not any(issubclass(type(v), Tensor) for v in (*args, *kwargs.values())):
            return super().__call__(*args, **kwargs)  # code that is followed
        check(self, args)
        return args[0] if plain and _get_tracing_state() is None else super().__call__(*args, **kwargs)

    # --- what would have no effect
    def _refuse(self, what: str) -> NoReturn:
        raise SpecializedError(f"{self._name()} {what}; {_EXCLUDE}")

    def _name(self) -> str:
        by = f" into {self._layer!r}" if self._layer else ""
        return f"{self._place!r} ({self._stands_for}) was absorbed{by} by deploy():"

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_of_the_original(name):
            held = self.__dict__.get(name, self)
            if type(held) is type(value) and repr(held) == repr(value):  # True is not 1 to all code
                return  # as it is already
            self._refuse(f"setting its {name!r} would change nothing")
        super().__setattr__(name, value)

    def _is_of_the_original(self, name: str) -> bool:
        """Whether code may have read a name; what neither it nor other code read decides nothing."""
        if name in self.__dict__.get("_free", ()):
            return False
        return (not name.startswith("_") and name not in _TORCHS_OWN) or name in self.__dict__.get("_gone", ())

    def __delattr__(self, name: str) -> None:
        if self._is_of_the_original(name):
            self._refuse(f"deleting its {name!r} would change nothing")
        super().__delattr__(name)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_inside", ()):
            self._refuse(f"the module {name!r} in it is gone")
        if name in self.__dict__.get("_gone", ()):
            raise GoneError(f"{self._name()} its {name!r} is gone; {_EXCLUDE}")
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        if not self._indexed:
            raise TypeError(f"'{self._stands_for}' object is not subscriptable")
        self._refuse("the modules in it are gone")

    def __len__(self) -> int:
        if not self._indexed:
            raise TypeError(f"object of type '{self._stands_for}' has no len()")
        self._refuse("the modules in it are gone")

    def __iter__(self) -> Iterator[Any]:
        if not self._indexed:
            raise TypeError(f"'{self._stands_for}' object is not iterable")
        self._refuse("the modules in it are gone")

    def __bool__(self) -> bool:
        return True

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Nothing can be put into it."""
        self._refuse(f"a module {name!r} in it would not run")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Nothing can be put into it."""
        self._refuse(f"a parameter {name!r} of it would change nothing")

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Nothing can be put into it."""
        self._refuse(f"a buffer {name!r} of it would change nothing")

    def _no_hooks(self, *_: Any, **__: Any) -> Any:
        self._refuse("a hook on it would not see the values of the original")

    register_forward_hook = register_forward_pre_hook = _no_hooks
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _no_hooks

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any, **__: Any) -> None:
        found = sorted(k for k in state_dict if k.startswith(prefix))
        if found:
            raise AbsorbedStateError(
                f"the checkpoint holds {found[0]!r} of a {self._stands_for} that deploy() absorbed; "
                "load it into the original model and deploy that again"
            )

    # --- modes
    def train(self, mode: bool = True) -> Absorbed:
        """Follow the mode of the module around it; by itself it has none."""
        caller = sys._getframe(1)
        outer = _outermost(caller)
        if outer is None and mode and not self.training:
            self._refuse("train() on it would change nothing")
        if mode and self._is_norm and isinstance(outer, nn.Module):
            tell_of_norms(outer)
        self.__dict__["training"] = mode
        return self


def _outermost(frame: FrameType | None) -> Any:
    """The module whose `train` was called first, None where the caller is no `train`."""
    found = None
    while frame is not None and frame.f_code.co_name == "train":
        found = frame.f_locals.get("self", found)
        frame = frame.f_back
    return found


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are numbers, words, or tuples of numbers."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", "forward") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return plain or (isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value))


def names_lost(module: nn.Module) -> Iterator[str]:
    """Names that a module answers for and an identity does not."""
    held = (vars(module), module._parameters, module._buffers, module._modules, dir(type(module)))
    others = vars(nn.Identity()).keys()
    for name in dict.fromkeys(n for names in held for n in names):
        if not name.startswith(("__", "_reptool")) and name not in others and not hasattr(nn.Identity, name):
            yield name
