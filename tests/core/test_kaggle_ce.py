"""The challenge's winning recipe: its loss by hand, targets of single cells with a background, MixUp, and a network with one more output."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tomoray.augment import mixup
from tomoray.config import ConfigError, read_settings_text
from tomoray.jobs import TrainJob
from tomoray.losses import weighted_cross_entropy, without_weights
from tomoray.methods import METHODS, KaggleCE, activation_of, build_method
from tomoray.networks import build_picker
from tomoray.targets import gaussian_heatmaps, pad_particles, single_cell_targets, with_background
from tomoray.tomogram import Particle
from tomoray.training import fit

TWO = (Particle("small", 60.0), Particle("large", 100.0))


def new_method(*, name: str = "kaggle_ce", seed: int = 0, **options):
    """A method on a tiny network, the same weights for the same seed."""
    torch.manual_seed(seed)
    network = build_picker("asymmetric_unet", classes=2, activation=activation_of(name=name, **options), width=4, blocks=(1, 1)).network
    return build_method(network, TWO, 10.0, name=name, **options)


def points(*rows: tuple[float, float, float, float]) -> Tensor:
    """One crop's particles: class, z, y, x in voxels."""
    return torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 4)


def one_cell(channel: int, channels: int, cells: int) -> Tensor:
    """A target whose first cell belongs to one channel and all others to the last."""
    target = torch.zeros(1, channels, 1, 1, cells)
    target[:, -1] = 1
    target[:, :, 0, 0, 0] = torch.eye(channels)[channel]
    return target


def test_the_loss_of_a_network_that_knows_nothing() -> None:
    """Planted: a mean over the channels too; weights that are normalised."""
    target = one_cell(2, 7, 10_000)
    assert weighted_cross_entropy(torch.zeros_like(target), target).item() == pytest.approx(1.99553, abs=1e-5)
    assert weighted_cross_entropy(torch.zeros_like(target), target, class_weight=1.0).item() == pytest.approx(math.log(7), rel=1e-5)


def test_the_loss_by_hand() -> None:
    """Two classes and background over four cells: p is 1/2, 1/4, 1/4 in every cell."""
    logits = torch.tensor([1 / 2, 1 / 4, 1 / 4]).log().reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
    for channel, expected in ((0, 10 * math.log(2) / 4 + 3 * 3 * math.log(4) / 4), (1, 10 * math.log(4) / 4 + 3 * 3 * math.log(4) / 4)):
        loss = weighted_cross_entropy(logits, one_cell(channel, 3, 4), class_weight=10.0, background_weight=3.0)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    half = torch.full((1, 2, 1, 1, 1), 0.5)
    assert weighted_cross_entropy(torch.zeros_like(half), half, class_weight=2.0).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_a_sure_and_right_network_has_no_loss_and_a_sure_and_wrong_one_a_finite_one() -> None:
    target = one_cell(0, 3, 8)
    assert weighted_cross_entropy(200 * target, target).item() == pytest.approx(0, abs=1e-6)
    assert weighted_cross_entropy(-200 * target, target).isfinite()


def test_a_target_must_have_the_background_too() -> None:
    with pytest.raises(ValueError, match=r"logits \(1, 3, 1, 1, 8\) and target \(1, 2, 1, 1, 8\) must have the same shape, background last"):
        weighted_cross_entropy(torch.zeros(1, 3, 1, 1, 8), torch.zeros(1, 2, 1, 1, 8))


def test_a_particle_is_the_cell_that_holds_it() -> None:
    """Planted: positions that are rounded, where 7.9 lies in cell 3 and not in 4."""
    target = single_cell_targets(points((0, 0, 2.5, 7.9), (1, 15.99, 1.99, 4), (1, 15.5, 0, 5)), 2, (16, 10, 9))
    assert target.shape == (1, 2, 8, 5, 5)
    assert target.nonzero().tolist() == [[0, 0, 0, 1, 3], [0, 1, 7, 0, 2]]
    assert target.sum() == 2


def test_it_is_the_cell_where_a_heat_map_is_1() -> None:
    torch.manual_seed(0)
    particles = torch.cat([torch.randint(0, 2, (2, 9, 1)), 24 * torch.rand(2, 9, 3)], dim=2)
    maps = gaussian_heatmaps(particles, [1.5, 1.5], (24, 24, 24))
    assert torch.equal(single_cell_targets(particles, 2, (24, 24, 24)) > 0, maps == 1)


def test_points_outside_and_padding_leave_no_trace() -> None:
    """Planted: negative cells that count from the far end; padding of class -1 that lands in the last class."""
    outside = [(0, -0.5, 3, 3), (0, 3, -9, 3), (1, 3, 3, 16), (1, 17, 3, 3), (-1, 3, 3, 3)]
    particles = pad_particles([torch.tensor(outside), torch.empty(0, 4), torch.tensor([[1.0, 3, 3, 3]])])
    assert single_cell_targets(particles, 2, (16, 16, 16)).nonzero().tolist() == [[2, 1, 1, 1, 1]]
    assert single_cell_targets(pad_particles([]), 2, (16, 16, 16)).shape == (0, 2, 8, 8, 8)


def test_a_cell_of_two_classes_is_shared_and_every_cell_sums_to_1() -> None:
    target = single_cell_targets(points((0, 2, 2, 2), (1, 3, 3, 3), (0, 3, 2, 2), (1, 6, 6, 6)), 2, (8, 8, 8))
    assert target[0, :, 1, 1, 1].tolist() == [0.5, 0.5]
    assert target[0, :, 3, 3, 3].tolist() == [0, 1]
    whole = with_background(target)
    assert whole.shape == (1, 3, 4, 4, 4)
    assert torch.equal(whole.sum(1), torch.ones(1, 4, 4, 4))
    assert whole[0, 2].sum() == 4**3 - 2


def test_background_is_what_the_classes_leave() -> None:
    torch.manual_seed(0)
    softmax = torch.randn(2, 4, 3, 3, 3).softmax(1)
    torch.testing.assert_close(with_background(softmax[:, :-1]), softmax)
    too_much = with_background(torch.full((1, 4, 1, 1, 1), 0.5)).flatten()
    assert too_much.tolist() == [0.25, 0.25, 0.25, 0.25, 0]


def test_mixup_blends_volume_and_target_alike() -> None:
    """One number per crop, in volume and target: whatever is blended, they must stay the same.

    Planted: partners drawn twice, once for volumes and once for targets.
    """
    torch.manual_seed(0)
    number = torch.arange(8.0).reshape(8, 1, 1, 1, 1)
    volume, target = mixup(number.expand(8, 1, 4, 4, 4), number.expand(8, 3, 2, 2, 2))
    assert torch.equal(volume[:, :, :2, :2, :2].expand(8, 3, 2, 2, 2), target)
    assert len(volume.unique()) > 4
    assert number.flatten().tolist() == list(range(8))


def test_every_crop_is_partner_once_and_shares_are_even() -> None:
    """Planted: one share for the whole batch; Beta(0.2, 0.2), as for photographs, which hardly mixes."""
    torch.manual_seed(0)
    n = 400
    identity = torch.eye(n).reshape(n, n, 1, 1, 1)
    _, target = mixup(torch.zeros(n, 1, 1, 1, 1), identity)
    table = target[:, :, 0, 0, 0]
    torch.testing.assert_close(table.sum(1), torch.ones(n))
    others = table - torch.diag(table.diag())
    assert ((others > 0).sum(0) <= 1).all()
    assert ((others > 0).sum(1) <= 1).all()
    shares = table.diag()[others.sum(1) > 0].sort().values
    assert len(shares) > n - 10
    assert (shares - torch.linspace(0, 1, len(shares))).abs().max() < 1.63 / math.sqrt(n), "Kolmogorov and Smirnov, 1 in 100"


def test_targets_sum_to_1_under_mixup_too(make_crops) -> None:
    """Planted: a background that is made before and not blended."""
    torch.manual_seed(0)
    method, crops = new_method(), make_crops(count=6)
    _, target = method.augment(crops["volume"], method.target(crops["particles"], crops["volume"].shape[2:]))
    assert ((target > 0) & (target < 1)).any()
    torch.testing.assert_close(with_background(target).sum(1), torch.ones(6, 16, 16, 16))


def test_a_batch_of_one_stays_as_it_is() -> None:
    volume, target = torch.randn(1, 1, 4, 4, 4), torch.rand(1, 2, 2, 2, 2)
    mixed = mixup(volume, target)
    assert torch.equal(mixed[0], volume)
    assert torch.equal(mixed[1], target)


@pytest.mark.parametrize("on", [True, False])
def test_mixup_can_be_turned_off(make_crops, on: bool) -> None:
    crops, method = make_crops(count=4), new_method(mixup=on)
    torch.manual_seed(3)
    _, target = method.augment(crops["volume"], method.target(crops["particles"], (32, 32, 32)))
    assert (set(target.unique().tolist()) == {0, 1}) is not on


def share_below(picker, crops) -> float:
    """The share of a class's cells that score less than the cells which hold its particles."""
    with torch.no_grad():
        scores = copy.deepcopy(picker).eval()(crops["volume"])
    cells = single_cell_targets(crops["particles"], 2, crops["volume"].shape[2:]).nonzero()
    return float(torch.stack([(scores[b, c] < scores[b, c, z, y, x]).float().mean() for b, c, z, y, x in cells.tolist()]).mean())


def train(method, streams, *, steps: int, lr: float = 1e-2) -> list[float]:
    """Train with Adam and return the loss of every step."""
    optimizer = torch.optim.Adam(method.parameters(), lr=lr)
    return [epoch.metrics["loss"] for epoch in fit(method, optimizer, streams, epochs=steps, steps_per_epoch=1)]


def test_training_shows_where_particles_lie_and_co_training_keeps_to_it(make_crops) -> None:
    """Planted: a background that comes first, so that the picker drops a class and passes the background on; `loss` for `consistency`, where
    half of the crop is particles after as few as 30 steps.
    """
    method, crops, unlabelled = new_method(), make_crops(), make_crops(1)
    assert share_below(method.picker(), crops) < 0.7
    losses = train(method, {"labelled": [crops]}, steps=60)
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    assert share_below(method.picker(), crops) > 0.9

    both = build_method(method.network, TWO, 10.0, name="semietpicker", supervised={"name": "kaggle_ce"}, ema_rate=0.2, ramp_fraction=0.0)
    train(both, {"labelled": [crops], "unlabelled": [unlabelled]}, steps=30, lr=3e-3)
    assert share_below(both.picker(), crops) > 0.95
    with torch.no_grad():
        scores = both.picker()(unlabelled["volume"])
    assert scores.shape == (2, 2, 16, 16, 16)
    assert 0 < (scores.sum(1) > 0.5).float().mean() < 0.1, "most of a crop is background"


def test_what_a_teacher_says_is_the_best_that_a_student_can_say() -> None:
    """Planted: scores taken for truth, which the weight of particles raises again at every turn; scores without their background."""
    method = new_method()
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    scores = logits.detach().softmax(1)[:, :-1]
    least = method.consistency(logits, scores)
    (slope,) = torch.autograd.grad(least, logits)
    assert slope.abs().max() < 1e-6
    assert method.consistency(logits.detach() + 0.1 * torch.randn_like(logits), scores) > least
    (slope,) = torch.autograd.grad(method.loss(logits, scores), logits)
    assert slope.abs().max() > 0.01, "the loss of labels is not the least there"


def test_a_student_that_equals_its_teacher_is_not_moved_by_it(make_crops) -> None:
    """The same within co-training, for a network without batch norm. Planted: `loss` for `consistency`, the first step towards nothing
    but particles.
    """

    class Pointwise(nn.Sequential):
        stride = 2

    crops, slopes = make_crops(), []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network = Pointwise(nn.AvgPool3d(2), nn.Conv3d(1, 3, 1))
        options = {"supervised": {"name": "kaggle_ce"}, "drop_probability": 0.0, "pseudo_mode": "soft", "consistency_weight": weight}
        method = build_method(network, TWO, 10.0, name="semietpicker", **options)
        loss, _ = method({"labelled": crops, "unlabelled": crops}, 1.0)
        slopes += torch.autograd.grad(loss, network[1].weight)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


def test_sure_scores_are_labels() -> None:
    """Redrawn peaks are 0 or 1, and weigh what labels weigh."""
    method = new_method()
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 4, 4, 4), method.target(points((0, 1, 2, 3), (1, 6, 6, 6)), (8, 8, 8))
    assert method.consistency(logits, target).item() == pytest.approx(method.loss(logits, target).item(), rel=1e-6)


def test_weights_are_taken_out_of_scores_by_bayes() -> None:
    """A chance of 1 in 257 is what a network with weight 256 calls one half."""
    said = torch.tensor([0.5, 0.0, 0.5]).reshape(1, 3, 1, 1, 1)
    assert without_weights(said).flatten().tolist() == pytest.approx([1 / 257, 0, 256 / 257])
    assert torch.equal(without_weights(said, class_weight=3.0, background_weight=3.0), said)


def test_co_training_takes_haze_from_pseudo_labels_and_gives_it_to_the_background() -> None:
    method = new_method(name="semietpicker", supervised={"name": "kaggle_ce"})
    assert isinstance(method.supervised, KaggleCE)
    assert (method.pseudo_mode, method.pseudo_floor) == ("floor", 0.1)
    torch.manual_seed(0)
    method.teacher.head.weight.data *= 30
    method.teacher.head.bias.data[:] = torch.tensor([0.0, 0.0, 2.0])  # about 0.1, 0.1, 0.8
    pseudo = method.pseudo_label(torch.randn(2, 1, 16, 16, 16))
    assert pseudo.shape == (2, 2, 8, 8, 8)
    assert 0 < (pseudo == 0).float().mean() < 1
    assert pseudo[pseudo > 0].min() >= 0.1
    assert with_background(pseudo).sum(1).allclose(torch.ones(2, 8, 8, 8))


@pytest.mark.parametrize(
    ("method", "outputs"),
    [
        ({"name": "supervised"}, 2),
        ({"name": "kaggle_ce"}, 3),
        ({"name": "semietpicker"}, 2),
        ({"name": "semietpicker", "supervised": {}}, 2),
        ({"name": "semietpicker", "supervised": {"name": "kaggle_ce"}, "views": 1}, 3),
    ],
)
def test_a_network_has_an_output_for_the_background_where_the_method_needs_one(method: dict, outputs: int) -> None:
    activation = activation_of(**method)
    picker = build_picker("asymmetric_unet", classes=2, activation=activation, width=2, blocks=(1,))
    assert picker.network(torch.zeros(1, 1, 16, 16, 16)).shape[1] == outputs
    assert picker(torch.zeros(1, 1, 16, 16, 16)).shape[1] == 2
    assert build_method(picker.network, TWO, 10.0, **method).picker().activation == activation


def test_a_job_file_asks_for_it_alone_or_beneath_co_training() -> None:
    job = read_settings_text(TrainJob, '[method]\nname = "kaggle_ce"\nclass_weight = 64', "job")
    assert job.method.model_dump() == {"name": "kaggle_ce", "class_weight": 64, "mixup": True, "intensity_strength": 0}
    job = read_settings_text(TrainJob, '[method]\nname = "semietpicker"\n[method.supervised]\nname = "kaggle_ce"', "job")
    assert job.method.supervised.name == "kaggle_ce"
    assert (
        read_settings_text(TrainJob, '[method]\nname = "semietpicker"\nsupervised.reduce = "per_class"', "job").method.supervised.name == "supervised"
    )
    with pytest.raises(ConfigError, match=r"unknown key 'method.supervised.clas_weight'; did you mean 'class_weight'\?"):
        read_settings_text(TrainJob, '[method]\nname = "semietpicker"\n[method.supervised]\nname = "kaggle_ce"\nclas_weight = 1', "job")
    assert set(METHODS) >= {"supervised", "kaggle_ce", "semietpicker"}
