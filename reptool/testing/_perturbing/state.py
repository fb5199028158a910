"""Changes of what a model is made of: modes, weights, hooks, modules in other places, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import torch
from torch import Tensor, nn

from reptool.testing._perturbing.change import module_text, parts_of
from reptool.testing._perturbing.sources import Source, one_of

_HOOKS = (
    "{}.register_forward_hook(lambda module, args, output: hooked(output))",
    "{}.register_forward_pre_hook(lambda module, args: hooked(args))",
    "{}.register_forward_hook(lambda module, args, output: look(output))",
)


def states(model: nn.Module, deployed: nn.Module) -> Iterator[Source]:
    """Every change of the state of a model."""
    yield one_of("mode", "m.training", "m.train()", "m.train(); m.eval()", weight=2)
    yield one_of("copy", "m", "m = copy.copy(m)", "m = copy.deepcopy(m)", "m = pickle.loads(pickle.dumps(m))", weight=8)
    yield one_of("grad", "m", "m.requires_grad_(False)", "m.requires_grad_(True)")
    yield _loaded("", model)
    for path, module in parts_of(model):
        here = module_text(path)
        yield one_of("hook", here, *(text.format(here) for text in _HOOKS), *_removed(here, module))
        if not path:
            continue
        yield one_of("mode", f"{here}.training", f"{here}.train()")
        renewed = f"renewed({path!r}, {{}})"
        parent, _, name = path.rpartition(".")
        put = f"setattr({module_text(parent)}, {name!r}, {{}})"
        yield one_of(
            "replace", here, put.format("nn.Identity()"), *(put.format(renewed.format(s)) for s in range(3)), weight=2
        )
        if module.state_dict():
            yield _loaded(path, module)
    yield from _weights(model, deployed)


def _removed(here: str, module: nn.Module) -> list[str]:
    names = ("_forward_hooks", "_forward_pre_hooks")
    return [f"{here}.{name}.clear()" for name in names if getattr(module, name)] * 3


def _loaded(path: str, module: nn.Module) -> Source:
    here, keys = module_text(path), list(module.state_dict())

    def draw(random: Random) -> str:
        seed = random.randrange(3)
        if random.random() < 0.4 or not keys:
            return f"{here}.load_state_dict(weights({path!r}, {seed}), strict={random.random() < 0.5})"
        some = random.sample(keys, random.randint(1, min(3, len(keys))))
        return f"{here}.load_state_dict(weights({path!r}, {seed}, {some!r}), strict=False)"

    return Source("load", f"{here}.state_dict()", draw)


def _weights(model: nn.Module, deployed: nn.Module) -> Iterator[Source]:
    """Tensors by name: those of modules that mean the same on both sides, and those that the deployed one has not."""
    others = dict(deployed.named_modules(remove_duplicate=False))
    for path, module in parts_of(model):
        here, other = module_text(path), others.get(path)
        same = other is not None and _means_the_same(module, other)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            read = f"{here}.{name}"
            if isinstance(tensor, nn.Parameter):
                yield one_of("grad", read, f"{read}.requires_grad_({not tensor.requires_grad})")
            if same and tensor.is_floating_point():
                yield Source("weight", read, _edited(read))
            if other is None or not isinstance(getattr(other, name, None), Tensor):
                yield one_of("read", read, f"out.append({read})")
                made = f"torch.zeros({list(tensor.shape)}, dtype={tensor.dtype})"
                yield one_of(
                    "weight",
                    read,
                    f"{read} = nn.Parameter({made})" if tensor.is_floating_point() else f"{read} = {made}",
                )


def _edited(read: str) -> Callable[[Random], str]:
    texts = (
        "with torch.no_grad(): {0}.mul_(0.5)",
        "{0}.data = {0}.data * 2",
        "{0}.data.zero_()",
    )
    return lambda random: random.choice(texts).format(read)


def _means_the_same(module: nn.Module, other: nn.Module) -> bool:
    a, b = dict(module.named_parameters(recurse=False)), dict(other.named_parameters(recurse=False))
    c, d = dict(module.named_buffers(recurse=False)), dict(other.named_buffers(recurse=False))
    return a.keys() == b.keys() and c.keys() == d.keys() and all(
        mine.shape == theirs.shape and bool(torch.equal(mine, theirs))
        for these, those in ((a, b), (c, d))
        for mine, theirs in zip(these.values(), those.values(), strict=True)
    )  # fmt: skip
