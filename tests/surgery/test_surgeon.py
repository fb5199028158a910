"""What is handed out is the user's model: other methods, flags, copies, checkpoints, conversions, exports, training."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import reptool
from reptool.errors import AbsorbedStateError, ReptoolError, SpecializedError, UnsupportedModelError
from reptool.testing import randomize
from tests.traps import Branches, ConvBN, assert_same, check, codes, image, norms, ready


# --- other methods of the model -------------------------------------------------------------------------------------
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, 3)

    def stem(self, x: Any) -> Any:
        return F.relu(self.bn1(self.conv1(x)))

    def forward_features(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layers(F.relu(self.bn2(self.conv2(x))))

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Any) -> Any:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(self, x: Any, indices: Any = None, intermediates_only: bool = False) -> Any:
        outs = []
        x = self.conv1(x)
        x = F.relu(self.bn1(x))
        outs.append(x)
        x = F.relu(self.bn2(self.conv2(x)))
        outs.append(x)
        x = self.layers(x)
        return outs if intermediates_only else (x, outs)

    def encode(self, x: Any) -> Any:
        return self.forward_features(x) * 2

    def walk(self, x: Any) -> Any:
        x = F.relu(self.bn2(self.conv2(self.stem(x))))
        for layer in self.layers:
            x = layer(x)
        return x

    def sliced(self, x: Any) -> Any:
        return self.layers[:3](F.relu(self.bn2(self.conv2(self.stem(x)))))

    def before_bn(self, x: Any) -> Any:
        return self.conv1(x)

    def without_bn2(self, x: Any) -> Any:
        return self.conv2(self.stem(x))

    def every_layer(self, x: Any) -> Any:
        x, outs = F.relu(self.bn2(self.conv2(self.stem(x)))), []
        for layer in self.layers:
            x = layer(x)
            outs.append(x)
        return outs

    def sliced_short(self, x: Any) -> Any:
        return self.layers[:1](F.relu(self.bn2(self.conv2(self.stem(x)))))

    def by_name(self, x: Any, name: str = "conv1") -> Any:
        return getattr(self, name)(x)

    def by_size(self, x: Any) -> Any:
        return self.conv1(x) if x.shape[0] > 1 else self.stem(x)

    def by_path(self, x: Any) -> Any:
        return self.get_submodule("conv1")(x)


SAME = ["forward", "forward_features", "forward_intermediates", "encode", "walk", "sliced", "stem"]
OTHER = ["before_bn", "without_bn2", "every_layer", "sliced_short", "by_name", "by_size", "by_path"]


def test_methods_with_the_same_wiring_keep_working() -> None:
    calls = {n: lambda m, x, n=n: getattr(m, n)(x) for n in SAME}
    calls["only"] = lambda m, x: m.forward_intermediates(x, intermediates_only=True)
    calls["logits"] = lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True)
    calls["one by one"] = lambda m, x: m.layers(m.bn1(m.conv1(x)))
    deployed, report = check(ready(Encoder()), calls=calls, raises=["one by one"])
    assert norms(deployed) == 0
    assert len(report.regions) == 3


@pytest.mark.parametrize("name", OTHER)
def test_methods_with_another_wiring_raise(name: str) -> None:
    deployed, _ = check(ready(Encoder()), calls={name: lambda m, x: getattr(m, name)(x)}, raises=[name])
    assert norms(deployed) == 0
    with pytest.raises(SpecializedError, match="was fused by deploy"):
        getattr(deployed, name)(image())


class Pair(nn.Module):
    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: Any) -> Any:
        return self.two(self.one(x))


class Stages(nn.Module):
    """The last layer of a stage and the first one of the next would become one; nothing names them."""

    def __init__(self) -> None:
        super().__init__()
        first, second = Pair(nn.ReLU(), nn.Conv2d(3, 4, 1)), Pair(nn.Conv2d(4, 16, 1), nn.ReLU())
        self.stages = nn.Sequential(nn.Sequential(first), nn.Sequential(second))

    def forward(self, x: Any) -> Any:
        return self.stages(x)

    def forward_intermediates(self, x: Any) -> Any:
        outs = []
        for stage in self.stages:
            x = stage(x)
            outs.append(x)
        return outs


def test_values_between_stages_that_are_run_one_by_one_stay() -> None:
    calls = {n: lambda m, x, n=n: getattr(m, n)(x) for n in ("forward", "forward_intermediates")}
    _, report = check(ready(Stages()), calls=calls)
    assert codes(report) == {"read-elsewhere"}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 3, 1), Branches()

    def forward(self, x: Any) -> Any:
        return self.block(F.relu(self.first(x)))

    def branch(self, x: Any) -> Any:
        return self.block.a(F.relu(self.first(x)))

    def inner(self, x: Any) -> Any:
        return [m(x) for n, m in self.named_modules() if n == "block.b"]


def test_methods_of_a_parent_that_reach_into_a_block_raise() -> None:
    calls = {n: lambda m, x, n=n: getattr(m, n)(x) for n in ("forward", "branch", "inner")}
    _, report = check(ready(Outer()), calls=calls, raises=["branch", "inner"])
    assert len(report.regions) == 1


def test_modules_used_by_themselves() -> None:
    model = ready(Outer())
    deployed = reptool.deploy(model)
    x = image()
    assert_same(model.block(x), deployed.block(x))
    assert_same(model.first(x), deployed.first(x))


# --- flags ----------------------------------------------------------------------------------------------------------
class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bns = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Any, i: int = 0) -> Any:
        return self.bns[i](self.conv(x))


class Optional(ConvBN):
    def forward(self, x: Any, normed: bool = True) -> Any:
        y = self.conv(x)
        return self.bn(y) if normed else y


class Masked(ConvBN):
    def forward(self, x: Any, mask: Any = None) -> Any:
        y = self.conv(x)
        return self.bn(y) if mask is None else y * mask


class Mode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Choice()

    def forward(self, x: Any, mode: str = "first") -> Any:
        return self.inner(x, {"first": 0, "second": 1}[mode])


class Depth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Any, *, depth: int | None = None) -> Any:
        for i, layer in enumerate(self.layers):
            if depth is not None and i >= depth:
                break
            x = layer(x)
        return x


class Reaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ConvBN()

    def forward(self, x: Any, early: bool = False) -> Any:
        return self.block.conv(x) if early else self.block(x)


FLAGS = [
    (Choice, lambda m, x: m(x, 1)), (Optional, lambda m, x: m(x, normed=False)), (Masked, lambda m, x: m(x, x[:, :1])),
    (Mode, lambda m, x: m(x, "second")), (Depth, lambda m, x: m(x, depth=1)), (Reaches, lambda m, x: m(x, True)),
]  # fmt: skip


@pytest.mark.parametrize(("model", "other"), FLAGS)
def test_another_flag_is_right_or_raises(model: type[nn.Module], other: Any) -> None:
    calls = {"as shown": lambda m, x: m(x), "other": other}
    x = image() if model is not Masked else image(2, 3, 8, 8)
    deployed, report = check(ready(model()), x, calls, raises=["other"], shown=[True])
    assert len(report.regions) == 1
    with pytest.raises(SpecializedError):
        other(deployed, x)
    _, report = check(ready(model()), x, calls, raises=["other"], shown=[False])
    assert report.regions or "specialized" in codes(report)


def test_a_flag_that_changes_nothing_inside_needs_no_guard() -> None:
    class Harmless(ConvBN):
        def forward(self, x: Any, features: bool = False, scale: Any = None) -> Any:
            y = self.bn(self.conv(x)).relu()
            y = y if scale is None else y * scale
            return (y, y.mean()) if features else y

    calls = {
        "plain": lambda m, x: m(x),
        "features": lambda m, x: m(x, True),
        "scale": lambda m, x: m(x, scale=x.mean()),
    }
    _, report = check(ready(Harmless()), calls=calls)
    assert len(report.regions) == 1


def test_a_method_written_anew_checks_its_arguments_and_its_mode() -> None:
    class Dropped(Branches):
        def forward(self, x: Any, *, scale: float = 1.0, **rest: Any) -> Any:
            return F.dropout(self.bn(self.a(x) + self.b(x)), 0.5, self.training) * scale

    model = ready(Dropped())
    deployed = reptool.deploy(model, {"x": image(), "scale": 2.0})
    assert len(reptool.report(deployed).regions) == 1
    assert_same(model(image(), scale=2.0), deployed(image(), scale=2.0))
    for kwargs in ({}, {"scale": 2.0, "other": 1}):
        with pytest.raises(SpecializedError):
            deployed(image(), **kwargs)
    with pytest.raises(SpecializedError, match="training"):
        deployed.train()(image(), scale=2.0)


def test_a_branch_on_a_size_is_never_wrong() -> None:
    class Sized(ConvBN):
        def forward(self, x: Any) -> Any:
            return self.bn(self.conv(x)) if x.shape[-1] > 8 else self.conv(x)

    check(ready(Sized()), image(1, 3, 9, 12))
    check(ready(Sized()), image(1, 3, 9, 5))


def test_state_that_decides_is_never_wrong() -> None:
    class Alternates(Choice):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Any) -> Any:
            y = self.bns[self.calls % 2](self.conv(x))
            self.calls += 1
            return y

    check(ready(Alternates()), calls={"twice": lambda m, x: (m(x), m(x))})


# --- what regeneration would lose -----------------------------------------------------------------------------------
class Within(Branches):
    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.bn(self.a(x) + self.b(x))


class Tries(Branches):
    def forward(self, x: Any) -> Any:
        try:
            return self.bn(self.a(x) + self.b(x))
        except RuntimeError:
            return x


class Writes(Branches):
    def forward(self, x: Any) -> Any:
        self.last = self.bn(self.a(x) + self.b(x))
        return self.last


class GradMode(Branches):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.a(x) + self.b(x))
        return y if torch.is_grad_enabled() else y * 2


@pytest.mark.parametrize("model", [Within, Tries, Writes, GradMode])
def test_code_that_would_lose_something_is_not_written_anew(model: type[nn.Module]) -> None:
    _, report = check(ready(model()))
    assert codes(report) & {"method", "specialized"}
    assert len(report.regions) == 2  # each branch by itself


def test_a_with_block_around_a_substitution_stays() -> None:
    class NoGrad(ConvBN):
        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                return self.bn(self.conv(x))

    deployed, report = check(ready(NoGrad()))
    assert len(report.regions) == 1
    assert not deployed(image().requires_grad_()).requires_grad


# --- the model handed out -------------------------------------------------------------------------------------------
class Rep(Branches):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        self.deploy = False

    def forward(self, x: Any) -> Any:
        if self.deploy:
            return self.conv(x).relu()
        return self.bn(self.a(x) + self.b(x) + x).relu()

    def switch_to_deploy(self) -> None:
        a, b = (fuse_conv_bn_eval(*branch) for branch in (self.a, self.b))
        a.weight.data += F.pad(b.weight.data, [1] * 4) + nn.init.dirac_(torch.empty_like(a.weight))
        a.bias.data += b.bias.data
        self.conv, self.deploy = fuse_conv_bn_eval(a, self.bn), True
        del self.a, self.b, self.bn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.rep, self.plain = Rep(6), ConvBN(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1))
        self.fa, self.fb, self.fbn = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.names = ["a", "b"]

    def forward(self, x: Any) -> Any:
        x = self.plain(self.rep(self.stem((x - self.mean).relu()))).relu()
        return self.fbn(self.fa(x) + self.fb(x)).sigmoid()

    def fuse(self) -> nn.Module:
        for module in self.modules():
            if isinstance(module, ConvBN) and not isinstance(module.bn, nn.Identity):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        return self


@pytest.fixture
def model() -> nn.Module:
    return ready(Net())


def test_it_is_the_users_model(model: nn.Module) -> None:
    deployed, report = check(model)
    assert len(report.regions) == 4
    assert norms(deployed) == 0
    assert isinstance(deployed, Net)
    assert (type(deployed).__qualname__, type(deployed).__module__) == ("Net", Net.__module__)
    assert deployed.names == ["a", "b"]
    assert torch.equal(deployed.mean, model.mean)
    assert set(deployed.state_dict()) <= set(model.state_dict())


def test_copies_and_pickles_are_the_same_model(model: nn.Module, tmp_path: Path) -> None:
    deployed, x = reptool.deploy(model), image()
    stored = io.BytesIO()
    torch.save(deployed, stored)
    stored.seek(0)
    made = [copy.deepcopy(deployed), copy.copy(deployed), torch.load(stored, weights_only=False)]
    made += [pickle.loads(pickle.dumps(deployed, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in made:
        assert type(other) is type(deployed)
        assert torch.equal(other(x), deployed(x))
        assert len(reptool.report(other).regions) == 4


def test_a_pickle_is_read_by_another_process(model: nn.Module, tmp_path: Path) -> None:
    deployed, x = reptool.deploy(model), image()
    torch.save((deployed, x, deployed(x)), tmp_path / "model.pt")
    code = (
        "import sys, torch; m, x, y = torch.load(sys.argv[1], weights_only=False); "
        "assert (m(x) - y).abs().max() < 1e-12; print(type(m).__name__)"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True, cwd=root, check=False
    )
    assert run.stdout.strip() == "Net", run.stderr


def test_deploying_again_changes_nothing_and_two_runs_give_the_same_bits(model: nn.Module) -> None:
    first, second = reptool.deploy(model), reptool.deploy(model, image())
    again = reptool.deploy(first, image())
    for other in (second, again):
        assert list(other.state_dict()) == list(first.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), first.state_dict().values(), strict=True)
        )


def test_inplace_changes_the_model_itself(model: nn.Module) -> None:
    wanted = model(image())
    assert reptool.deploy(model, inplace=True) is model
    assert_same(wanted, model(image()))
    assert norms(model) == 0


@pytest.mark.parametrize("strict", [True, False])
def test_an_old_checkpoint_raises(model: nn.Module, strict: bool) -> None:
    deployed = reptool.deploy(model)
    outer, old = nn.ModuleDict({"m": deployed}), nn.ModuleDict({"m": model})
    for target, state in ((deployed, model), (pickle.loads(pickle.dumps(deployed)), model), (outer, old)):
        with pytest.raises(AbsorbedStateError, match="absorbed"):
            target.load_state_dict(state.state_dict(), strict=strict)


def test_a_deployed_checkpoint_loads_into_a_deployed_model(model: nn.Module) -> None:
    deployed, other = reptool.deploy(model), reptool.deploy(ready(Net()))
    other.load_state_dict(deployed.state_dict())
    assert torch.equal(other(image()), deployed(image()))


class Pretrained(nn.Module):
    """Builds itself from a directory, as the models of transformers do, and leaves what is missing random."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    @classmethod
    def from_pretrained(cls, path: str) -> Pretrained:
        model = cls()
        model.load_state_dict(torch.load(path), strict=False)
        return model.eval()


def test_a_deployed_class_does_not_rebuild_the_original_layers(tmp_path: Path) -> None:
    model = ready(Pretrained())
    deployed = reptool.deploy(model)
    torch.save(deployed.state_dict(), tmp_path / "weights")
    assert isinstance(deployed, Pretrained)
    with pytest.raises(SpecializedError, match=r"from_pretrained builds the layers that deploy\(\) fused"):
        type(deployed).from_pretrained(str(tmp_path / "weights"))
    other = copy.deepcopy(deployed)
    nn.init.zeros_(other.body[0].weight)
    other.load_state_dict(torch.load(tmp_path / "weights"))
    assert torch.equal(other(image()), deployed(image()))
    assert type(Pretrained.from_pretrained(str(tmp_path / "weights"))) is Pretrained


def test_the_models_own_conversions_do_nothing_any_more(model: nn.Module) -> None:
    deployed, x = reptool.deploy(model), image()
    wanted = model(x)
    assert deployed.fuse() is deployed
    for module in deployed.modules():
        for name in ("fuse", "reparameterize", "switch_to_deploy"):
            if hasattr(module, name):
                getattr(module, name)()
    assert_same(wanted, deployed(x))


def test_train_and_eval_and_a_step_of_fine_tuning(model: nn.Module) -> None:
    deployed, x = reptool.deploy(model), image()
    wanted = model(x)
    assert_same(wanted, deployed.train()(x))
    deployed(x).square().mean().backward()
    assert all(p.grad is not None for p in deployed.parameters())
    torch.optim.SGD(deployed.parameters(), 0.1).step()
    assert float((deployed(x) - wanted).detach().abs().max()) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout_and_gradients_asked_for_are_kept(dtype: torch.dtype) -> None:
    model = ready(Net()).to(dtype).to(memory_format=torch.channels_last)
    for p in model.stem.parameters():
        p.requires_grad_(False)
    deployed = reptool.deploy(model, image().to(dtype))
    for name, p in deployed.named_parameters():
        assert p.dtype == dtype
        assert p.requires_grad != name.startswith("stem")
        assert p.dim() != 4 or p.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports(model: nn.Module) -> None:
    model = model.float()
    x, other = image().float(), image(3, 3, 17, 21).float()
    deployed = reptool.deploy(model, x)
    wanted = model(other)
    sizes = {0: torch.export.Dim("n", min=2, max=64), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    exported = torch.export.export(deployed, (x,), dynamic_shapes={"x": sizes}).module()
    for made in (exported, torch.jit.trace(deployed, x), torch.compile(deployed, backend="eager", fullgraph=True)):
        torch.testing.assert_close(made(other), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx(model: nn.Module, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = model.float()
    deployed, other, file = reptool.deploy(model), image(5, 3, 10, 8).float(), str(tmp_path / "net.onnx")
    torch.onnx.export(deployed, (image().float(),), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    kinds = {n.op_type for n in onnx.load(file).graph.node}
    assert "Conv" in kinds
    assert not kinds & {"BatchNormalization", "Add", "Identity"}
    (given,) = runtime.InferenceSession(file).run(None, {"x": other.numpy()})
    torch.testing.assert_close(torch.tensor(given), model(other).detach(), rtol=1e-4, atol=1e-5)


# --- what comes in --------------------------------------------------------------------------------------------------
def test_wrappers_are_taken_off(model: nn.Module) -> None:
    wanted = model(image())
    averaged = torch.optim.swa_utils.AveragedModel(model).eval()
    for outer in (nn.DataParallel(model).eval(), averaged, torch.compile(model, backend="eager")):
        deployed = reptool.deploy(outer, image())
        assert isinstance(deployed, Net)
        assert_same(wanted, deployed(image()))


def test_a_graph_module_keeps_being_one(model: nn.Module) -> None:
    graph = torch.fx.symbolic_trace(model)
    deployed, report = check(graph)
    assert len(report.regions) == 4
    assert isinstance(deployed, torch.fx.GraphModule)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert_same(model(image()), other(image()))
    deployed.recompile()
    assert_same(model(image()), deployed(image()))


def test_the_model_keeps_what_example_inputs_would_change() -> None:
    class Batch(ConvBN):
        def forward(self, x: Any) -> Any:
            self.seen = [*getattr(self, "seen", ()), 1]
            return self.bn(self.conv(x))

    model = ready(Batch())
    model.bn.train()
    before = copy.deepcopy(model.state_dict())
    deployed = reptool.deploy(model, image())
    assert "training-norm" in codes(reptool.report(deployed))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not hasattr(model, "seen")
    assert not hasattr(deployed, "seen")


class Tagged(Tensor):
    pass


def test_what_cannot_be_read_or_copied_is_named(model: nn.Module) -> None:
    model.cached = [model(image())]  # a result that is no leaf
    assert_same(model(image()), reptool.deploy(model)(image()))
    locked = copy.deepcopy(ready(Net()))
    locked.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match="cannot be copied"):
        reptool.deploy(locked)
    tagged = ready(Net())
    tagged.stem[0].weight = nn.Parameter(tagged.stem[0].weight.detach().as_subclass(Tagged))
    with pytest.raises(UnsupportedModelError, match="Tagged"):
        reptool.deploy(tagged)
    assert issubclass(UnsupportedModelError, ReptoolError)


class Generated(nn.Module):
    """Two layers whose kernels are computed from what modules inside hold, as OREPA's large kernels are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def kernel(self) -> Tensor:
        """A kernel of a kernel."""
        return F.conv2d(self.one.weight.transpose(0, 1), self.mix.weight, padding=1).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        y = torch.relu(self.norm(F.conv2d(x, self.kernel(), padding=2)))
        return torch.relu(self.last(F.conv2d(y, self.two.weight, padding=1)))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("example", [True, False])
def test_a_kernel_made_of_what_modules_inside_hold_is_kept_by_the_module_that_uses_it(
    nested: bool, example: bool
) -> None:
    model = randomize((nn.Sequential(Generated(), nn.ReLU()) if nested else Generated()).eval()).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x) if example else reptool.deploy(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    for d in (deployed, pickle.loads(pickle.dumps(deployed))):
        torch.testing.assert_close(d(x), model(x), rtol=1e-10, atol=1e-10)


class Borrowed(nn.Module):
    """A kernel that lies in a sibling, which also runs with it."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.owner = Uses(), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The kernel twice."""
        y: Tensor = self.user(x, self.owner.weight) + self.owner(x).relu()
        return y


class Uses(nn.Module):
    """A convolution with a kernel it is given, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolution and norm."""
        y: Tensor = self.norm(F.conv2d(x, weight)).relu()
        return y


def test_a_kernel_that_lies_elsewhere_is_left_where_it_is() -> None:
    model = randomize(Borrowed().eval()).double()
    refusals = [r for r in reptool.explain(model).refusals if r.code is reptool.Code.METHOD]
    assert any("held by another module" in r.sentence for r in refusals)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(reptool.deploy(model)(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_deployed_class_does_not_save_what_its_original_would_read_wrongly(tmp_path: Path) -> None:
    class Saving(Pretrained):
        def save_pretrained(self, path: str) -> None:
            torch.save(self.state_dict(), path)

    deployed = reptool.deploy(ready(Saving()))
    with pytest.raises(SpecializedError, match=r"save_pretrained writes weights .* reptool\.save"):
        deployed.save_pretrained(str(tmp_path / "weights"))
    assert not (tmp_path / "weights").exists()
