"""Operations that pick channels, and products with constant matrices, against the model itself."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.testing import randomize

Pieces = Callable[[Tensor], tuple[Tensor, Tensor]]


def first_two(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """By number: unpacking would ask how many there are."""
    return pieces[0], pieces[1]


PIECES: dict[str, Pieces] = {
    "narrow": lambda x: (x.narrow(1, 0, 2), x.narrow(1, -2, 2)),
    "tensor_split": lambda x: first_two(torch.tensor_split(x, 2, 1)),
    "tensor_split at": lambda x: first_two(x.tensor_split((2,), dim=1)),
    "list": lambda x: (x[:, [0, 1]], x[:, [-2, 3], ...]),
    "index_select": lambda x: (torch.index_select(x, 1, torch.tensor([0, 1])), x.index_select(1, torch.tensor([2, 3]))),
    "slices": lambda x: (x[:, 0:2:1], x[:, 2:4]),
}


class Grouped(nn.Module):
    """Two convolutions of two halves of the input."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.pieces = pieces
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """A norm behind both."""
        first, second = self.pieces(x)
        return self.norm(torch.cat((self.a(first), self.b(second)), axis=1))


@pytest.mark.parametrize("name", PIECES)
def test_halves_become_groups(name: str) -> None:
    model = randomize(Grouped(PIECES[name]).eval()).double()
    deployed = reptool.deploy(model, torch.randn(2, 4, 7, 5, dtype=torch.float64))
    (conv,) = [m for m in deployed.modules() if isinstance(m, nn.Conv2d)]
    assert conv.groups == 2
    for size in ((7, 5), (1, 2), (3, 9)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


class Product(nn.Module):
    """A product with a constant matrix, then a linear layer."""

    def __init__(self, product: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product
        self.matrix, self.vector = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.last(self.product(self, x))


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "@": lambda self, x: x @ self.matrix,
    "mm": lambda self, x: torch.mm(x, self.matrix),
    "addmm": lambda self, x: torch.addmm(self.vector, x, self.matrix),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_constant_is_a_linear_layer(name: str) -> None:
    model = Product(PRODUCTS[name]).eval().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


SHIFTED: dict[str, Callable[..., Tensor]] = {
    "addcmul": lambda self, x: torch.addcmul(self.b(x), self.a(x), self.scale, value=2),
    "addcdiv": lambda self, x: torch.addcdiv(self.scale, self.a(x), self.scale, value=2),
    "addcdiv of a value": lambda self, x: torch.addcdiv(self.b(x), self.a(x), self.scale),
    "integers": lambda self, x: self.a(x) * self.counts + self.counts,
}


class Shifted(nn.Module):
    """Two convolutions and constants."""

    def __init__(self, form: Callable[..., Tensor]) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.register_buffer("counts", torch.arange(6).reshape(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """What `form` says."""
        return self.form(self, x)


@pytest.mark.parametrize("name", SHIFTED)
def test_scaled_values_are_summed(name: str) -> None:
    model = Shifted(SHIFTED[name]).eval().double()
    deployed = reptool.deploy(model)
    assert len(reptool.report(deployed).regions) == 1
    for size in ((7, 5), (1, 2)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


def test_bytes_of_an_image_are_left_to_the_division() -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x / 255)

    model, image = Image().eval(), torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(reptool.deploy(model, image)(image), model(image))


class Projected(nn.Module):
    """Two products with transposed parameters, and a parameter that has the usual name already."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        """Both are read by something that is no layer."""
        x = (x * self.weight).relu()
        a, b = x @ self.rows.transpose(-1, -2), x.transpose(1, 2) @ self.columns.transpose(-1, -2)
        return a.reshape(-1, x.shape[1], self.rows.shape[0]).relu() + b.sigmoid() * self.weight[0]


@pytest.mark.parametrize("shown", [False, True])
def test_two_computed_weights_of_one_module_do_not_overwrite_each_other(shown: bool) -> None:
    model, x = Projected().eval(), torch.randn(2, 8, 8)
    deployed = reptool.deploy(model, x if shown else None, verify=False)
    assert torch.allclose(deployed(x), model(x), atol=1e-5)


def test_all_pieces_between_the_places_of_a_tensor_split_are_seen() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.norm(self.conv(x))
            return [p.relu() for p in torch.tensor_split(y, (1, 2), dim=1)] + [p.tanh() for p in y.tensor_split(2, 1)]

    model, x = Cut().eval().double(), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for deployed in (reptool.deploy(model), reptool.deploy(model, flatten=True)):
        assert len(deployed(x)) == 5
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
