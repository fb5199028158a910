"""Terms are left out only where the rest of the sum goes on as it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.refusal import Code
from reptool.testing import randomize


class Two(nn.Module):
    def __init__(self, join: Callable[["Two", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, torch.relu(x), torch.tanh(x))


def writes_into_another(m: Two, z: Tensor, r: Tensor) -> Tensor:
    a = m.a(z)
    a += r  # without `a` this would be `r` itself
    b = m.b(z)
    b += a
    return b * r


def writes_into_both(m: Two, z: Tensor, r: Tensor) -> Tensor:
    a, b = m.a(z), m.b(z)
    a += r
    b += torch.tanh(r)
    a += b
    a += b.relu()
    return a * r


@pytest.mark.parametrize(
    ("join", "layers", "code"),
    [
        (lambda m, z, r: r - m.a(z) - m.b(z), 1, None),
        (lambda m, z, r: (m.a(z) - r) - (m.b(z) - 2 * r.sin()) * 1.0, 2, None),
        (lambda m, z, r: torch.add(r, torch.add(m.a(z), r.sin(), alpha=2), alpha=3) - m.b(z), 1, None),
        (lambda m, z, r: r - (z - m.b(z)) * m.a(r).mean((2, 3), keepdim=True), 2, None),
        (lambda m, z, r: r - (z.sin() - m.b(r)), 2, Code.METHOD),
        (writes_into_another, 1, None),
        (writes_into_both, 2, None),
    ],
)
def test_what_is_left_is_right(join: Callable[[Two, Tensor, Tensor], Tensor], layers: int, code: Code | None) -> None:
    model, x = randomize(Two(join).eval(), 1), torch.randn(2, 3, 8, 7)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    report = reptool.report(deployed)
    assert report.layers[1] == layers
    assert code is None or code in {r.code for r in report.refusals}
