"""Programs of torch.export: the rows of the network they came from, its names, and errors that say how to export."""

from __future__ import annotations

import io
import os
import zipfile

import narrow
import pytest
import torch
from helpers import assert_tells, class_folders, fresh_python, resolved
from torch import nn
from torch.export import Dim, ExportedProgram, export
from torchvision.models import resnet18

import featx
from featx.backbones import Backbone, Preprocessing, TappedNetwork, describe, resolve_taps
from featx.backbones.programs import load_program
from featx.backbones.trace import trace_of
from featx.errors import BackboneError, LayerError, ProgramWarning

SMALL = Preprocessing(crop=(64, 64), resize=64)
CPU = torch.device("cpu")
ANY = {0: Dim("batch")}
pytestmark = pytest.mark.filterwarnings("ignore::featx.errors.ProgramWarning")  # every file here is our own


class Constants(nn.Module):
    """A program's tensors outside of the state dict: non-persistent buffers, constants, tensors made while it runs."""

    def __init__(self, factor: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 2)
        self.register_buffer("scale", torch.full((4,), factor), persistent=False)
        self.offset = torch.full((4,), offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.act(self.conv(x)) - 0.2)
        return self.fc(
            x.mean((2, 3)) * self.scale + self.offset + torch.arange(4.0) + torch.zeros(4, dtype=torch.float32)
        )


def exported(module: nn.Module, size: int = 64, dynamic: dict | None = ANY, n: int = 2) -> ExportedProgram:
    return export(module.eval(), (torch.zeros(n, 3, size, size),), dynamic_shapes=(dynamic,) if dynamic else None)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    net = narrow.seeded(resnet18)
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


@pytest.fixture(scope="module")
def program(network) -> ExportedProgram:
    return exported(network)


@pytest.fixture
def constants() -> ExportedProgram:
    return exported(Constants())


def images(n: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def rows(made: Backbone, layers, pool: str = "none", precision: str = "float32") -> dict[str, torch.Tensor]:
    taps, _ = resolve_taps(made, layers, pool)
    return TappedNetwork(made, taps, CPU, precision)(images(size=made.preprocessing.size[0]))


def error_of(made: Backbone) -> BaseException:
    with pytest.raises(BackboneError) as error:
        _ = made.module
    return error.value


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_network_has_the_layers_and_the_rows_of_the_network(network, program, decomposed):
    made = Backbone(program.run_decompositions() if decomposed else program, preprocessing=SMALL)
    original = Backbone(network, preprocessing=SMALL)
    assert made.name == "export:ResNet"
    layers = ["conv1", "layer2.0.bn1", "layer2.0.downsample", "stages", "penultimate", "output"]
    found, expected = rows(made, layers), rows(original, layers)
    stages = [f"layer{i}" for i in (1, 2, 3, 4)]
    assert [name.partition(":")[0] for name in found][3:7] == stages
    for got, true in zip(found.values(), expected.values(), strict=True):
        assert (got - true).norm() <= 1e-4 * true.norm()


def test_an_operation_is_named_by_its_module_and_function(program):
    made = Backbone(program, preprocessing=SMALL)
    nodes = list(trace_of(made).nodes)
    assert nodes[:3] == ["conv1.conv2d", "bn1.batch_norm", "relu.relu"]
    assert {"layer3.0.relu.relu", "layer3.0.relu.relu_1", "layer3.0.add", "flatten", "fc.linear"} <= set(nodes)
    with pytest.raises(LayerError, match=r"layer 'layer9' is not in export:ResNet; close: 'layer4'"):
        resolve_taps(made, "layer9", "avg")


@pytest.mark.parametrize(
    "make, stages, penultimate, tokens",
    [
        (narrow.vit_b_32, [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)], "select", 1),
        (narrow.vgg_11, [f"features.{i}.max_pool2d" for i in (2, 5, 10, 15, 20)], "classifier.4.relu", 0),
    ],
)
def test_other_families_have_their_layers_too(make, stages, penultimate, tokens):
    trace = trace_of(Backbone(exported(make()), preprocessing=SMALL))
    assert trace.prefix_tokens == tokens
    if make is narrow.vgg_11:
        assert [trace.last(stage) for stage in trace.stages()] == stages
    else:
        assert trace.stages() == stages
    assert trace.penultimate().startswith(penultimate)


def test_every_listed_layer_can_be_tapped_and_has_the_listed_shape(constants):
    made = Backbone(constants, preprocessing=SMALL)
    listed = describe(made)
    found = rows(made, [row.name for row in listed])
    assert len(listed) > 5 and all(found[f"{row.name}:none"].shape[1:] == row.shape for row in listed)


def test_a_program_runs_in_other_number_types(constants):
    made = Backbone(constants, preprocessing=SMALL)
    (exact,), (fast,) = (rows(made, "output", precision=kind).values() for kind in ("float32", "bfloat16"))
    torch.testing.assert_close(exact, Constants()(images()))
    assert 0 < (fast - exact).norm() < 0.03 * exact.norm()


def test_a_program_runs_on_another_device_than_its_export(constants):
    trace = trace_of(Backbone(constants, preprocessing=SMALL))
    network = trace.tapped([trace.output()], [nn.Identity()]).to("meta")
    (found,) = network(images().to("meta"))
    assert found.device.type == "meta" and found.shape == (3, 2)


@pytest.mark.parametrize("change", ["weight", "factor", "offset", "none"])
def test_the_fingerprint_covers_weights_and_constants(constants, change):
    other = Constants(factor=3.0 if change == "factor" else 2.0, offset=3.0 if change == "offset" else 1.0)
    if change == "weight":
        with torch.no_grad():
            other.fc.weight[0, 0] += 1
    two = (Backbone(found, preprocessing=SMALL).weights_sha256 for found in (constants, exported(other)))
    assert (len(set(two)) == 1) == (change == "none")


def test_training_the_program_later_does_not_change_its_backbone(constants):
    made = Backbone(constants, preprocessing=SMALL)
    before = (
        rows(made, "output")["output:none"] if "output:none" in rows(made, "output") else rows(made, "fc")["fc:none"]
    )
    with torch.no_grad():
        for tensor in [*constants.state_dict.values(), *constants.constants.values()]:
            tensor.add_(1)
    assert torch.equal(rows(made, "fc")["fc:none"], before)


@pytest.mark.parametrize(
    "make, preprocessing, words",
    [
        (lambda: exported(Constants(), dynamic=None), SMALL, ["batches of 2 images", "torch.export.Dim('batch')"]),
        (
            lambda: exported(Constants(), dynamic={0: Dim("b", max=8)}),
            SMALL,
            ["batches of 0 to 8 images", "Dim('batch')"],
        ),
        (
            lambda: exported(Constants()),
            Preprocessing(crop=(32, 48), resize=64),
            ["images of 64 x 64", "gives 32 x 48", "featx.Preprocessing(crop=(64, 64), ...)"],
        ),
        (
            lambda: exported(Constants(), dynamic={**ANY, 2: Dim("h", min=40, max=80), 3: Dim("w", min=40, max=80)}),
            Preprocessing(crop=(32, 32), resize=32),
            ["images of 40 to 80 x 40 to 80", "gives 32 x 32"],
        ),
    ],
)
def test_a_program_for_another_size_is_refused_with_the_export_command(make, preprocessing, words):
    assert_tells(error_of(Backbone(make(), preprocessing=preprocessing)), "export:Constants: ", *words)


def test_a_program_of_any_size_takes_any():
    program = exported(Constants(), dynamic={**ANY, 2: Dim("h", min=16), 3: Dim("w", min=16)})
    made = Backbone(program, preprocessing=Preprocessing((40, 40), 40))
    torch.testing.assert_close(*rows(made, "output").values(), Constants()(images(size=40)))


def test_a_program_in_training_mode_is_refused():
    for net in (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())):
        program = export(net.train(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(ANY,))
        assert_tells(error_of(Backbone(program, preprocessing=SMALL)), "in training mode", "model.eval()")


def test_a_program_that_does_not_take_images_is_refused():
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    x = torch.zeros(2, 3, 64, 64)
    assert_tells(error_of(Backbone(export(Two(), (x, x)), preprocessing=SMALL)), "takes 2 inputs")
    for other in (x.half(), x[:, :1], x[0]):
        wrong = Backbone(export(nn.ReLU(), (other,)), preprocessing=SMALL)
        assert_tells(error_of(wrong), "float32 images; it takes", str(tuple(other.shape)))


def test_a_program_and_a_file_need_their_preprocessing(constants):
    with pytest.raises(BackboneError) as error:
        Backbone(constants)
    assert_tells(
        error.value,
        "an exported program needs its preprocessing, which is given in Python: featx.Backbone(program, preprocessing=",
    )
    with pytest.raises(BackboneError) as error:
        Backbone("net.pt2")
    assert_tells(
        error.value,
        "an exported program needs its preprocessing",
        "in Python: featx.Backbone('net.pt2', preprocessing=",
    )


@pytest.fixture
def file(constants, tmp_path):
    torch.export.save(constants, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def test_a_file_is_the_program_in_it(constants, file):
    from_file, from_object = Backbone(file, preprocessing=SMALL), Backbone(constants, preprocessing=SMALL)
    assert from_file.name == "export:net" and from_file.weights == str(file) and from_file.seed is None
    assert from_file.weights_sha256 == from_object.weights_sha256
    assert list(trace_of(from_file).nodes) == list(trace_of(from_object).nodes)
    for got, expected in zip(*(rows(made, ["conv", "fc"]).values() for made in (from_file, from_object)), strict=True):
        assert torch.equal(got, expected)


def test_a_file_is_not_opened_before_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lazy = Backbone("gone.pt2", preprocessing=SMALL)
    assert lazy.weights == str(tmp_path / "gone.pt2")
    assert_tells(error_of(lazy), f"there is no file {tmp_path / 'gone.pt2'}")
    (tmp_path / "gone.pt2").write_text("a program, honestly")
    assert_tells(error_of(Backbone("gone.pt2", preprocessing=SMALL)), "gone.pt2 is not a program")


def test_a_program_must_be_passed_and_is_not_opened_for_a_recipe(constants, file):
    for made, named in (
        (Backbone(constants, preprocessing=SMALL), "program"),
        (Backbone(file, preprocessing=SMALL), file),
    ):
        with pytest.raises(BackboneError) as error:
            resolved(made.name, made.weights, made.weights_sha256, SMALL)
        assert_tells(
            error.value,
            "pass it, if you trust it: featx.load(path, weights='FILE.pt2')",
            f"(it was {str(named)!r})" if named is file else "",
        )
        assert resolved(made.name, made.weights, made.weights_sha256, SMALL, made) is made


def test_opening_a_program_warns_and_unpickles_nothing_but_tensors(file, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    payload = io.BytesIO()
    torch.save(_Runs(marker), payload)
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(evil, "w") as written:
        names = [name for name in good.namelist() if "sample_inputs" in name]
        assert names
        for name in good.namelist():
            written.writestr(name, payload.getvalue() if name in names else good.read(name))
    with pytest.warns(ProgramWarning, match="can run its author's code"), pytest.raises(BackboneError):
        load_program(str(evil))
    assert not marker.exists()
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with pytest.warns(ProgramWarning):
        load_program(str(file))
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


class _Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_renamed_file_is_the_same_program_and_another_is_refused(file, tmp_path):
    made = Backbone(file, preprocessing=SMALL)
    sha256 = made.weights_sha256
    renamed = Backbone(file.rename(tmp_path / "renamed.pt2"), preprocessing=SMALL)
    assert resolved(made.name, made.weights, sha256, SMALL, renamed) is renamed
    other = Backbone(exported(Constants(factor=3.0)), preprocessing=SMALL)
    with pytest.raises(BackboneError, match=f"the recorded network is export:net with weights sha256 {sha256[:12]}"):
        resolved(made.name, made.weights, sha256, SMALL, other)


def test_features_come_from_a_file_and_a_second_run_returns_them(file, tmp_path):
    photos = class_folders(tmp_path / "photos")
    made = Backbone(file, preprocessing=SMALL)
    store = featx.extract(photos, tmp_path / "out.h5", made, layers=["conv", "penultimate"], progress=False)
    again = featx.extract(photos, tmp_path / "out.h5", made, layers=["conv", "penultimate"], progress=False)
    assert store.recipe.backbone == "export:net" and len(store.layers) == 2
    assert (again["conv:avg"] == store["conv:avg"]).all()


def test_a_store_like_that_of_a_program_takes_the_program_only_from_the_user(file, constants, tmp_path):
    photos = class_folders(tmp_path / "photos")
    made = Backbone(file, preprocessing=SMALL)
    store = featx.extract(photos, tmp_path / "a.h5", made, layers="conv", device="cpu", progress=False)
    options = {"like": store.path, "device": "cpu", "progress": False}
    with pytest.raises(
        BackboneError,
        match=r"a.h5: .* an exported program, net \(it was .*\). Give the backbone or its weights beside like=\.\.\.",
    ):
        featx.extract(photos, tmp_path / "b.h5", **options)
    renamed = file.rename(tmp_path / "renamed.pt2")
    for number, handed in enumerate([constants, renamed, str(renamed), Backbone(renamed, preprocessing=SMALL)]):
        again = featx.extract(photos, tmp_path / f"{number}.h5", handed, **options)
        assert store.recipe.differences(again.recipe) == [] and (again["conv"] == store["conv"]).all()
    with pytest.raises(BackboneError, match="the recorded network is export:net with weights sha256"):
        featx.extract(photos, tmp_path / "c.h5", exported(Constants(factor=3.0)), **options)


def test_the_users_program_is_left_alone(program):
    before = {name: tensor.detach().clone() for name, tensor in program.state_dict.items()}
    rows(Backbone(program, preprocessing=SMALL), ["stages"], "avg")
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state_dict.items())


@pytest.mark.slow
def test_the_fingerprint_of_a_file_is_the_same_in_another_process(file):
    sha256 = fresh_python(
        "import json, featx; made = featx.Backbone"
        f"({str(file)!r}, preprocessing=featx.Preprocessing(crop=(64, 64), resize=64)); "
        "print(json.dumps(made.weights_sha256))"
    )
    assert sha256 == Backbone(file, preprocessing=SMALL).weights_sha256
