"""Weights of deployed models under the authors' names."""

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import InputError
from reptool.name_maps import NAME_MAPS, load_deployed, renamed
from reptool.testing import randomize


def conv_norm(kernel: int, first: str, second: str) -> nn.Module:
    """A convolution and its norm under an author's names."""
    pair = nn.Sequential()
    pair.add_module(first, nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False))
    pair.add_module(second, nn.BatchNorm2d(4))
    return pair


class Branches(nn.Module):
    """A block that trains with two branches, and is one layer of another name in its deployed form."""

    def __init__(self, dense: str, other: str, merged: str, deploy: bool, names: tuple[str, str] = ("conv", "bn")):
        super().__init__()
        self.names = (merged,) if deploy else (dense, other)
        if deploy:
            self.add_module(merged, nn.Conv2d(4, 4, 3, padding=1))
        else:
            self.add_module(dense, conv_norm(3, *names))
            self.add_module(other, conv_norm(1, *names))

    def forward(self, x: Tensor) -> Tensor:
        """All branches."""
        parts = [getattr(self, n)(x) for n in self.names]
        return torch.relu(sum(parts[1:], start=parts[0]))


class Scaled(nn.Module):
    """MobileOne's layout: a list of branches and a pointwise one."""

    def __init__(self, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.reparam_conv = nn.Conv2d(4, 4, 3, padding=1)
        else:
            self.rbr_scale = conv_norm(1, "conv", "bn")
            self.rbr_conv = nn.ModuleList(conv_norm(3, "conv", "bn") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """All branches."""
        if self.deploy:
            return torch.relu(self.reparam_conv(x))
        out = self.rbr_scale(x)
        for branch in self.rbr_conv:
            out = out + branch(x)
        return torch.relu(out)


class Normed(nn.Module):
    """RepNeXt's layout: a norm in front of a convolution, which the author's own deployed form keeps."""

    def __init__(self, deploy: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        plain = nn.Conv2d(4, 6, 1)
        self.mixer = plain if deploy else nn.Sequential()
        if not deploy:
            self.mixer.add_module("conv", nn.Conv2d(4, 6, 1, bias=False))
            self.mixer.add_module("norm", nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        """Norm, then convolution."""
        return torch.relu(self.mixer(self.norm(x)))


BLOCKS = {
    "RepVGG": lambda d: Branches("rbr_dense", "rbr_1x1", "rbr_reparam", d),
    "RepVGG of YOLOv7": lambda d: Branches("rbr_dense", "rbr_1x1", "rbr_reparam", d, ("0", "1")),
    "DiverseBranchBlock": lambda d: Branches("dbb_origin", "dbb_1x1", "dbb_reparam", d),
    "MobileOne": Scaled,
    "RepNeXt": Normed,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_deploy_made_runs_in_the_authors_deployed_form(name: str) -> None:
    train = nn.Sequential(BLOCKS[name](False), nn.Conv2d(6 if name == "RepNeXt" else 4, 5, 1))
    theirs = nn.Sequential(BLOCKS[name](True), nn.Conv2d(6 if name == "RepNeXt" else 4, 5, 1))
    train, theirs = randomize(train.eval()).double(), randomize(theirs.eval()).double()
    load_deployed(theirs, reptool.deploy(train), name.split(" ")[0])
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), train(x), rtol=1e-10, atol=1e-10)


def test_every_map_matches_names_and_leaves_others() -> None:
    names = {
        "RepVGG": ("s.0.rbr_dense.conv.bias", "s.0.rbr_reparam.bias"),
        "ACNet": ("s.square_conv.weight", "s.fused_conv.weight"),
        "DiverseBranchBlock": ("dbb_origin.conv.weight", "dbb_reparam.weight"),
        "MobileOne": ("s.rbr_conv.0.conv.weight", "s.reparam_conv.weight"),
        "RepViT": ("f.1.token_mixer.0.conv.c.weight", "f.1.token_mixer.0.weight"),
        "RepNeXt": ("s.0.token_mixer.conv_m.conv_7_7.bias", "s.0.token_mixer.conv_m.bias"),
    }
    assert set(names) == set(NAME_MAPS)
    for author, (old, new) in names.items():
        assert set(renamed({old: torch.zeros(1), "linear.weight": torch.ones(1)}, author)) == {new, "linear.weight"}


def test_heads_for_training_are_left_out() -> None:
    assert not renamed({"stage3_first_aux.0.conv.weight": torch.zeros(1)}, "RepVGG")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("RepVG", "no name map 'RepVG'"),
        ([(r"^.*$", "one")], "two tensors would be called 'one'"),
        ((), "is not in the deployed model"),
        ([(r"rbr_dense\.conv", "rbr_reparam"), (r"^0\.", "1.")], "is not in the deployed model"),
    ],
)
def test_names_that_do_not_fit_are_said_and_nothing_is_written(names: object, message: str) -> None:
    train, theirs = nn.Sequential(BLOCKS["RepVGG"](False)).eval(), nn.Sequential(BLOCKS["RepVGG"](True)).eval()
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_deployed(theirs, reptool.deploy(train), names)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(nn.Conv2d(4, 2, 1)), "is not in the deployed model"),
        (lambda m: m.__setitem__(1, nn.Conv2d(4, 7, 1)), r"is \(5, 4, 1, 1\), and the author's is \(7, 4, 1, 1\)"),
        (lambda m: m.__delitem__(1), "the author's model has no 1.weight, 1.bias"),
    ],
)
def test_a_model_of_another_structure_is_refused(change: object, message: str) -> None:
    train = nn.Sequential(BLOCKS["RepVGG"](False), nn.Conv2d(4, 5, 1)).eval()
    theirs = nn.Sequential(BLOCKS["RepVGG"](True), nn.Conv2d(4, 5, 1)).eval()
    change(theirs)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        load_deployed(theirs, reptool.deploy(train), "RepVGG")
