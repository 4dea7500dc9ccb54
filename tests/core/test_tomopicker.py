"""TomoPicker: shares by counting, which risk a class gets, its grid and its picks, and a toy on which few clicks are enough."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tomoray.config import ConfigError, read_settings_text
from tomoray.jobs import TrainJob
from tomoray.methods import TomoPicker, build_method
from tomoray.networks import AsymmetricUNet, Picker, ResUNet
from tomoray.patches import cut, grid_corners
from tomoray.picking import pick, predict
from tomoray.preprocessing import clip_outliers
from tomoray.risks import gamma_of, ge_binomial_risk, kl_risk, pn_risk, pu_risk
from tomoray.targets import ball_cells, ball_masks, covered_share, pad_particles
from tomoray.tiles import Window
from tomoray.tomogram import Particle
from tomoray.training import fit

TWO = (Particle("small", 60.0), Particle("large", 100.0))
BALL = {1: {"small": 925, "large": 4169}, 2: {"small": 123, "large": 515}}  # cells at 10 angstrom and stride
SOME = {"expected_particles": {"small": 40, "large": 30}, "labelled_particles": {"small": 4, "large": 3}, "tomogram_vox": 128**3}


class Pointwise(nn.Sequential):
    """A network that looks at single cells."""

    stride = 2


def new_method(**options) -> TomoPicker:
    """A method whose network is next to nothing."""
    torch.manual_seed(0)
    method = build_method(Pointwise(nn.AvgPool3d(2), nn.Conv3d(1, 2, 1)), TWO, 10.0, name="tomopicker", **options)
    assert isinstance(method, TomoPicker)
    return method


def points(*rows: tuple[float, float, float, float]) -> Tensor:
    """One crop's particles: class, z, y, x in voxels."""
    return torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 4)


# balls and shares


@pytest.mark.parametrize(("radius", "cells"), [(0, 1), (1, 7), (3, 123), (5, 515), (7, 1419), (10, 4169), (12, 7153), (15, 14147)])
def test_a_marked_particle_has_as_many_voxels_as_its_ball(radius: int, cells: int) -> None:
    """Planted: `<` for `<=`; balls around positions between voxels, which have now more, now fewer."""
    mask = ball_masks(points((1, 15.2, 16.9, 17.5)), [3.0, radius], (32, 34, 36), stride=1)
    assert len(ball_cells(radius)) == mask.sum() == mask[0, 1].sum() == cells
    assert mask.nonzero()[:, 2:].float().mean(0).tolist() == pytest.approx([15, 16, 17])


def test_balls_of_a_class_are_joined_cut_at_the_border_and_apart_from_those_of_others() -> None:
    """Planted: negative cells that count from the far end; padding that is drawn; balls that are added up."""
    particles = pad_particles([points((0, 0, 0, 0), (0, 2, 0, 0), (1, 0, 0, 0), (1, -3, 8, 8))[0], torch.empty(0, 4), points((0, 17, 8, 8))[0]])
    masks = ball_masks(particles, [1.0, 1.5], (16, 16, 16))
    assert masks.shape == (3, 2, 8, 8, 8)
    assert masks.unique().tolist() == [0, 1]
    assert masks[0, 0].nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [2, 0, 0]]
    assert masks[0, 1].sum() == 1 + 3 + 3, "no further than 1.5 from the corner; the ball of cell -2 does not reach in"
    assert not masks[1].any()
    assert masks[2].nonzero().tolist() == [[0, 7, 4, 4]], "a particle outside reaches in"


def test_the_share_of_the_paper_s_ribosomes() -> None:
    """2,500 expected and 100 marked in 500 x 928 x 960 voxels, filled up to sub-volumes of 24."""
    cells = len(grid_corners((500, 928, 960), 24)) * 24**3
    assert covered_share(2500, 12, cells) == pytest.approx(0.0395, abs=5e-5)
    assert covered_share(100, 12, cells) == pytest.approx(0.0016, abs=5e-5)


def test_the_union_of_balls_by_throwing_them() -> None:
    """Where balls lie anywhere, their sum is too much. Planted: `exp(number * ball)` without its sign; the sum under another name."""
    size, number, radius, torus = 24, 40, 4, torch.Generator().manual_seed(0)
    shares = []
    for _ in range(30):
        free = torch.ones(size, size, size)
        zyx = (torch.randint(size, (number, 1, 3), generator=torus) + ball_cells(radius)) % size
        free[tuple(zyx.reshape(-1, 3).T)] = 0
        shares.append(1 - free.mean().item())
    assert covered_share(number, radius, size**3, union=True) == pytest.approx(np.mean(shares), rel=0.02)
    assert covered_share(number, radius, size**3) > 1.3 * np.mean(shares)
    assert covered_share(1, radius, size**3, union=True) == pytest.approx(covered_share(1, radius, size**3))


@pytest.mark.parametrize("stride", [1, 2])
def test_shares_are_those_of_cells_at_any_stride(stride: int) -> None:
    """Planted: voxels of a tomogram for cells at stride 2; the radius in angstrom rounded down."""
    network = ResUNet(2, width=2, levels=1) if stride == 1 else AsymmetricUNet(2, width=2, blocks=(1,))
    method = TomoPicker(network, TWO, 10.0, **SOME)
    cells = (128 / stride) ** 3
    assert method.expected == pytest.approx([40 * BALL[stride]["small"] / cells, 30 * BALL[stride]["large"] / cells])
    assert method.observed == pytest.approx([0.1 * share for share in method.expected])
    assert TomoPicker(ResUNet(1, width=2, levels=1), [Particle("ribosome", 150.0)], 13.48).radii == [12]


# which risk


def marked_crop() -> tuple[Tensor, Tensor]:
    """Logits of two classes, and where two particles of the first and one of the second are marked."""
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 16, 16, 16)
    return logits, new_method(**SOME).target(pad_particles([points((0, 8, 8, 8), (1, 20, 20, 20))[0], points((0, 16, 9, 5))[0]]), (32, 32, 32))


@pytest.mark.parametrize("gamma", ["code", "paper", "one"])
@pytest.mark.parametrize("risk", ["pn", "pu", "kl", "ge_binomial"])
def test_each_class_has_its_own_risk(risk: str, gamma: str) -> None:
    """Planted: the prior of the first class for all; 10 for every risk whatever the code has; KL with what is marked in its prior."""
    logits, target = marked_crop()
    method = new_method(**SOME, risk=risk, gamma=gamma)
    weight = {"pn": 10.0, "pu": 1.0, "kl": 100.0, "ge_binomial": 100.0}[risk] if gamma == "code" else 10.0
    risks = {"pn": pn_risk, "pu": lambda *given, **options: pu_risk(*given, **options)[0], "kl": kl_risk, "ge_binomial": ge_binomial_risk}
    torch.manual_seed(1)
    expected = []
    for label, (all_of_them, marked) in enumerate(zip(method.expected, method.observed, strict=True)):
        of_class = target[:, label]
        prior = all_of_them - marked if risk in ("kl", "ge_binomial") else all_of_them
        expected.append(risks[risk](logits[:, label], of_class, prior, gamma=1.0 if gamma == "one" else gamma_of(of_class, weight)))
    torch.manual_seed(1)
    assert method.loss(logits, target).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_paper_and_code_can_be_told_apart() -> None:
    """Planted: an option that is taken and forgotten."""
    logits, target = marked_crop()
    options = [{"risk": "pn"}, {"risk": "pn", "pi_mode": "observed"}, {"kl_direction": "paper"}, {"prior_from": "union"}, {}]
    options += [{"risk": "pn", "gamma": "paper"}, {"gamma": "paper"}, {"gamma": "one"}]
    losses = [round(new_method(**SOME, **option).loss(logits, target).item(), 5) for option in options]
    assert losses[0] == losses[5], "10 in both"
    assert len(set(losses)) == len(losses) - 1


@pytest.mark.parametrize("risk", ["pu", "kl", "ge_binomial"])
def test_where_all_are_marked_what_is_not_is_background(risk: str, caplog: pytest.LogCaptureFixture) -> None:
    """The code's way out where no more are expected than are marked. Planted: KL with a prior of 0, whose loss is not finite."""
    logits, target = marked_crop()
    numbers = {"small": 4, "large": 3}
    with caplog.at_level(logging.WARNING):
        method = new_method(expected_particles=numbers, labelled_particles=numbers, tomogram_vox=128**3, risk=risk)
    assert [message.split(":")[0] for message in caplog.messages] == ["small", "large"]
    each = [pn_risk(logits[:, i], target[:, i], p, gamma=gamma_of(target[:, i], 10.0)) for i, p in enumerate(method.observed)]
    assert method.loss(logits, target).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    each = [pn_risk(logits[:, i], target[:, i], target[:, i].mean(), gamma=gamma_of(target[:, i], 10.0)) for i in range(2)]
    assert new_method(risk=risk).loss(logits, target).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5), "nobody counted"


def test_the_clip_is_counted(make_crops) -> None:
    """With nnPU's own gamma the clip is active once marked particles are known by heart, with the code's it is not.

    Planted: a clip counted for a class whose particles are all marked; a counter that is not told to the training loop.
    """
    logits, target = marked_crop()
    by_heart = torch.where(target == 1, 2.0, -2.0)
    for gamma, given, share in (("one", by_heart, 0.5), ("one", logits, 0.0), ("code", by_heart, 0.0)):
        method = new_method(expected_particles={"small": 400}, tomogram_vox=64**3 * 8, risk="pu", gamma=gamma)
        assert method.risks(given, target)[1].item() == share
    _, metrics = method({"labelled": make_crops()}, 0.0)
    assert metrics["clipped"] == 0
    assert 0 < metrics["unlabelled_share"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tomogram_vox": 0.0}, "small: 40 particles in a tomogram of 0 voxels; give tomogram_vox"),
        ({"expected_particles": {"large": 1e6}}, "large: 1e.06 particles cover .* they must leave some of it: expect fewer"),
    ],
)
def test_shares_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    """Planted: a share of more than 1, whose logarithm is not a number."""
    with pytest.raises(ValueError, match=message):
        new_method(**{**SOME, **options})


def test_a_job_file_says_how_many_there_are() -> None:
    """Planted: a name that is no class, and so a class without a prior."""
    particles = '[[particles]]\nname = "small"\nradius_angstrom = 60\n'
    job = read_settings_text(TrainJob, f'{particles}[method]\nname = "tomopicker"\nexpected_particles = {{small = 40}}', "job")
    assert job.method.expected_particles == {"small": 40}
    for table in (
        'name = "tomopicker"',
        'name = "tomopicker"\nexpected_particles = {smal = 40}',
        'name = "semietpicker"\nsupervised.name = "tomopicker"',
    ):
        with pytest.raises(ConfigError, match="tomopicker needs expected_particles, roughly how many lie in one tomogram, of some of small"):
            read_settings_text(TrainJob, f"{particles}[method]\n{table}", "job")


# as a student


def test_what_a_teacher_says_is_the_best_that_a_student_can_say() -> None:
    """Planted: a risk for `consistency`, which has a slope where both agree."""
    method = new_method(**SOME)
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    scores = logits.detach().sigmoid()
    (slope,) = torch.autograd.grad(method.consistency(logits, scores), logits)
    assert slope.abs().max() < 1e-7
    (slope,) = torch.autograd.grad(method.loss(logits, (scores > 0.9).float()), logits)
    assert slope.abs().max() > 1e-4, "a risk is not the least there"


def test_co_training_builds_on_it(make_crops) -> None:
    """Point by point what `semietpicker` asks of a student. Planted: a clip counter that is lost on the way; a finder that is."""
    torch.manual_seed(0)
    network = AsymmetricUNet(2, width=4, blocks=(1, 1))
    of_labels = {"name": "tomopicker", "risk": "pu", "finder": "peaks", **SOME}
    method = build_method(network, TWO, 10.0, name="semietpicker", supervised=of_labels)
    assert method.finder == "peaks"
    loss, metrics = method({"labelled": make_crops(), "unlabelled": {"volume": make_crops(1)["volume"]}}, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx((metrics["supervised_loss"] + metrics["consistency_loss"]).item(), rel=1e-5)
    assert metrics["clipped"] == 0


# the volume, its grid, and its picks


def test_augmentation_is_off_until_asked_for(make_crops) -> None:
    """As in the authors' code. Planted: flips of volumes alone."""
    crops = make_crops(count=4)
    target = new_method().target(crops["particles"], (32, 32, 32))
    volume, same = new_method().augment(crops["volume"], target)
    assert volume is crops["volume"]
    assert same is target
    turned, moved = new_method(flips_and_turns=True).augment(crops["volume"], target)
    assert not torch.equal(moved, target)
    inside, before = ((nn.functional.avg_pool3d(v, 2) * t.amax(1, keepdim=True)).sum() for v, t in ((turned, moved), (volume, target)))
    assert before < 0, "balls are dark, and targets lie on them"
    assert inside.item() == pytest.approx(before.item(), rel=1e-4)


def test_outliers_are_clipped_between_two_z_scores() -> None:
    """Planted: the second z-score left out, or the first."""
    values = np.random.default_rng(0).normal(size=(20, 21, 22)) * 1e-5 + 3
    values.flat[::500] = 4.0  # gold
    clipped = clip_outliers(values)
    assert clipped.dtype == np.float32
    assert clipped.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert clipped.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    noise = 5 * np.random.default_rng(0).normal(size=(20, 21, 22)) + 1
    assert 3 < np.abs(clip_outliers(noise)).max() < 3.1
    assert (clip_outliers(noise, at_sd=1.0) == clip_outliers(noise, at_sd=1.0).max()).mean() == pytest.approx(0.159, abs=0.01)


def test_the_grid_covers_a_volume_once() -> None:
    """Planted: a last row that is moved inside, and so seen twice."""
    volume = np.arange(1, 1 + 10 * 7 * 16, dtype=np.float32).reshape(10, 7, 16)
    corners = grid_corners(volume.shape, 4)
    cubes = np.stack([cut(volume, corner, 4) for corner in corners])
    assert corners.shape == (3 * 2 * 4, 3)
    assert sorted(cubes[cubes > 0].tolist()) == volume.flatten().tolist()
    assert len(grid_corners((500, 928, 960), 24)) == 21 * 39 * 40


class Echo(nn.Module):
    """A network, and a picker, that return what they are given."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, volume: Tensor) -> Tensor:
        return self.gain * volume


@pytest.mark.parametrize("shape", [(48, 24, 72), (30, 25, 61)])
def test_windows_side_by_side_make_the_volume_again(shape: tuple[int, int, int]) -> None:
    """Planted: windows put down in another order; borders filled up that are not cut off."""
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scores = predict(Echo(), volume, window=Window(24, overlap=0.0))
    np.testing.assert_allclose(scores[0].numpy(), volume, rtol=1e-5, atol=1e-6)


def test_picks_are_greedy_and_a_radius_apart() -> None:
    """Planted: radii in voxels for cells; a window of peaks, half as wide."""
    volume = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    picker = Picker(Pointwise(nn.AvgPool3d(2), nn.Conv3d(1, 1, 1)))
    found = pick(picker, volume, TWO[:1], (10.0,) * 3, run="TS_1", floor=0.0, finder="greedy")
    distances = np.linalg.norm(found.positions_zyx[:, None] - found.positions_zyx, axis=-1) + 1e9 * np.eye(len(found))
    assert len(found) > 50
    assert 60 < distances.min() < 80
    assert (np.diff(found.scores) <= 0).all()
    free = np.linalg.norm((np.moveaxis(np.indices((20, 20, 20)), 0, -1)[..., None, :] + 0.5) * 20 - found.positions_zyx, axis=-1).min(-1)
    assert free.max() <= 60, "no cell that is left lies further from all picks"


@pytest.mark.parametrize(("finder", "least", "most"), [("greedy", 2, 9), ("peaks", 1, 1)])
def test_where_scores_are_high_all_over_a_particle_greedy_finds_several(finder: str, least: int, most: int) -> None:
    """The highest cell lies at the rim, and others of the particle are further from it than a radius. Planted: an option that is forgotten."""
    z, y, x = np.indices((24, 24, 24)) - 11.5
    volume = np.where(z**2 + y**2 + x**2 <= 4**2, 2 + x / 100, -2).astype(np.float32)
    method = build_method(Echo(), [Particle("ball", 40.0)], 10.0, name="tomopicker", finder=finder)
    found = pick(method.picker(), volume, method.particles, (10.0,) * 3, run="TS_1", floor=0.5, finder=method.finder)
    assert least <= len(found) <= most


def two_in_each() -> dict[str, Tensor]:
    """Four crops of 16 voxels with two dark balls each, in any order."""
    rng, axis = np.random.default_rng(0), np.arange(16) + 0.5
    volume, particles = 0.3 * rng.normal(size=(4, 1, 16, 16, 16)), np.zeros((4, 2, 4))
    for crop, two in zip(volume[:, 0], particles, strict=True):
        two[:, 1:] = rng.permutation([rng.uniform(3, 7, 3), rng.uniform(9, 13, 3)])
        for _, z, y, x in two:
            crop -= 2.0 * ((axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2 < 9)
    return {"volume": torch.tensor(volume, dtype=torch.float32), "particles": torch.tensor(particles, dtype=torch.float32)}


@pytest.mark.parametrize("risk", ["kl", "pu"])
def test_thirty_steps_raise_what_nobody_marked(risk: str) -> None:
    """One of two particles is marked in two of four crops. The others' scores come to 1.0 (KL) and 0.19 (PU), those of background to 0.16 and 0.01.

    Planted: the unmarked cells left to `pn`, which ends at 0.02 for both; targets with all particles, of which none is then hidden.
    """
    crops = two_in_each()
    marked = {**crops, "particles": crops["particles"].clone()}
    marked["particles"][:2, 1, 0] = marked["particles"][2:, :, 0] = -1
    torch.manual_seed(0)
    numbers = {"expected_particles": {"ball": 2}, "labelled_particles": {"ball": 0.5}, "tomogram_vox": 16**3}
    method = build_method(ResUNet(1, width=8, levels=2), [Particle("ball", 30.0)], 10.0, name="tomopicker", risk=risk, **numbers)
    for _ in fit(method, torch.optim.Adam(method.parameters(), lr=1e-2), {"labelled": [marked]}, epochs=1, steps_per_epoch=30, cosine=False):
        pass
    with torch.no_grad():
        scores = method.picker().eval()(crops["volume"])
    all_of_them, clicked = (method.target(some["particles"], (16,) * 3) for some in (crops, marked))
    hidden = scores[all_of_them > clicked].mean().item()
    assert hidden > max(0.05, 3 * scores[all_of_them == 0].mean().item())


@pytest.mark.slow
@pytest.mark.parametrize(("risk", "gamma"), [("kl", "code"), ("pu", "one")])
def test_few_clicks_show_where_the_others_lie(make_crops, risk: str, gamma: str) -> None:
    """One particle in four is marked; the others must score higher than background.

    Planted: the unmarked cells left to `pn`; the code's weights for PU, whose scores stay near 0.
    """
    torch.manual_seed(0)
    crops = make_crops(count=8)
    marked = {"volume": crops["volume"], "particles": crops["particles"].clone()}
    marked["particles"][:, 1:, 0] = -1
    truth = torch.bincount(crops["particles"][..., 0].long().flatten(), minlength=2).tolist()
    clicks = [(marked["particles"][..., 0] == label).sum().item() for label in (0, 1)]
    numbers = {"expected_particles": dict(zip(("small", "large"), truth, strict=True))}
    numbers["labelled_particles"] = dict(zip(("small", "large"), clicks, strict=True))
    method = build_method(
        AsymmetricUNet(2, width=8, blocks=(1, 1)), TWO, 10.0, name="tomopicker", risk=risk, gamma=gamma, tomogram_vox=8 * 32**3, **numbers
    )
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss, _ = method({"labelled": marked}, 0.0)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = method.picker().eval()(crops["volume"])
    hidden = method.target(crops["particles"], (32,) * 3) - method.target(marked["particles"], (32,) * 3)
    background = 1 - method.target(crops["particles"], (32,) * 3).amax(1, keepdim=True)
    for label in (0, 1):
        inside, outside = scores[:, label][hidden[:, label] == 1], scores[:, label][background[:, 0] == 1]
        assert math.isfinite(inside.mean())
        assert inside.mean() > 2 * outside.mean()
