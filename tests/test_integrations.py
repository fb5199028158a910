"""Other libraries' own ways with a model, after it was deployed: the same outputs, or an error that says what to do.

``make integrations`` runs them against the real packages; one that is not installed is skipped.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import SpecializedError
from reptool.testing import randomize

pytestmark = pytest.mark.integrations


def close(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


# --- transformers
def resnet() -> Any:
    """A small ResNet of transformers, with random statistics."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return randomize(transformers.AutoModelForImageClassification.from_config(config)).eval()


@torch.no_grad()
def test_transformers_keep_their_outputs_and_are_saved_by_recipe(tmp_path: Path) -> None:
    model, images = resnet(), torch.randn(2, 3, 32, 32)
    deployed = reptool.deploy(model, {"pixel_values": images})
    assert reptool.report(deployed).norms == (6, 0)
    close(deployed(images).logits, model(images).logits)
    reptool.save(deployed, tmp_path / "m.safetensors")
    config = copy.deepcopy(model.config)
    loaded = reptool.load(tmp_path / "m.safetensors", into=lambda: type(model)(config))
    assert torch.equal(loaded(images).logits, deployed(images).logits)


def test_transformers_own_saving_says_what_to_use(tmp_path: Path) -> None:
    deployed = reptool.deploy(resnet())
    with pytest.raises(SpecializedError, match=r"save_pretrained writes weights .* reptool\.save"):
        deployed.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SpecializedError, match="from_pretrained builds the layers"):
        type(deployed).from_pretrained(tmp_path)


# --- Lightning
@torch.no_grad()
def test_lightning_deploys_a_copy_at_the_end_of_fit(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Digits(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(RepVGGBlock(1, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Ship(lightning.Callback):  # type: ignore[name-defined,misc]
        """Deploys and exports a validated copy when training ends."""

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            images = torch.randn(2, 1, 8, 8)
            net = copy.deepcopy(module.net).cpu().eval()
            self.deployed = reptool.deploy(net, images)
            self.made = reptool.export(self.deployed, images, tmp_path / "m.pt2", original=net)

    data = torch.utils.data.TensorDataset(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,)))
    ship, module = Ship(), Digits()
    with torch.enable_grad():
        trainer = lightning.Trainer(
            max_epochs=1, callbacks=[ship], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, 8))
    assert reptool.report(ship.deployed).norms == (2, 0)
    x = torch.randn(2, 1, 8, 8)
    close(ship.deployed(x), module.eval()(x))
    assert ship.made.error < 1e-5


# --- timm and torchvision
@torch.no_grad()
def test_timm_goes_on_with_a_deployed_model() -> None:
    timm = pytest.importorskip("timm")
    model = randomize(timm.create_model("test_resnet", num_classes=5)).eval()
    images = torch.randn(1, 3, 64, 64)
    deployed = reptool.deploy(model, images)
    assert reptool.report(deployed).norms[1] == 0
    close(deployed.forward_features(images), model.forward_features(images))
    deployed.reset_classifier(3)
    assert deployed(images).shape == (1, 3)


@torch.no_grad()
def test_torchvision_extracts_features_of_a_deployed_model() -> None:
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = randomize(torchvision.models.resnet18(num_classes=5)).eval()
    images = torch.randn(1, 3, 64, 64)
    deployed = reptool.deploy(model, images)
    found, wanted = (create_feature_extractor(m, ["layer2", "layer4"])(images) for m in (deployed, model))
    for name, value in wanted.items():
        close(found[name], value)


# --- ultralytics
@torch.no_grad()
def test_ultralytics_fuses_nothing_that_is_fused() -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = randomize(ultralytics.YOLO("yolov8n.yaml").model.float()).eval()
    images = torch.randn(1, 3, 64, 64)
    deployed = reptool.deploy(model, images)
    assert deployed.is_fused()
    wanted = model(images)
    close(deployed(images)[0], wanted[0])
    assert deployed.fuse() is deployed
    close(deployed(images)[0], wanted[0])


# --- what takes a collapsed program
def collapsed() -> tuple[nn.Module, Tensor, torch.export.ExportedProgram]:
    """A model, images, and the program of three layers that it is."""
    torch.manual_seed(0)
    stages = RepVGGBlock(3, 8, stride=2), DiverseBranchBlock(8, 8, activation=nn.ReLU)
    model = randomize(nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))).eval()
    images = torch.randn(2, 3, 16, 16)
    made = reptool.deploy(torch.export.export(model, (images,)))
    assert reptool.report(made).layers[1] == 3
    return model, images, made


@torch.no_grad()
def test_a_quantizer_of_torchao_takes_every_layer() -> None:
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    model, images, program = collapsed()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = pt2e.prepare_pt2e(program.module(), quantizer)
    for _ in range(4):
        prepared(torch.randn(2, 3, 16, 16))
    made = pt2e.convert_pt2e(prepared)
    weights = [n for n in made.graph.nodes if "dequantize_per_channel" in str(n.target)]
    assert len(weights) == 3
    assert float((made(images) - model(images)).abs().max()) <= 0.05 * float(model(images).abs().max())


@torch.no_grad()
def test_executorch_lowers_a_collapsed_program(tmp_path: Path) -> None:
    exir = pytest.importorskip("executorch.exir")
    partitioner = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    runtime = pytest.importorskip("executorch.runtime")
    model, images, program = collapsed()
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    (tmp_path / "m.pte").write_bytes(lowered.to_executorch().buffer)
    loaded = runtime.Runtime.get().load_program(tmp_path / "m.pte")
    close(loaded.load_method("forward").execute([images])[0], model(images))


@torch.no_grad()
def test_aot_inductor_compiles_a_collapsed_program(tmp_path: Path) -> None:
    model, images, program = collapsed()
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    close(torch._inductor.aoti_load_package(file)(images), model(images))


@torch.no_grad()
def test_torch_compile_runs_what_the_pass_collapsed() -> None:
    model, images, _ = collapsed()
    torch._dynamo.reset()
    with torch._inductor.config.patch(freezing=True, joint_custom_pre_pass=reptool.compile_pass):
        close(torch.compile(model)(images), model(images))
