"""Co-training piece by piece: views, DropBlock, the teacher's average, pseudo-labels; then whole, alone and on two workers."""

import copy
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tomoray.augment import drop_blocks, random_flips_and_turns
from tomoray.losses import sigmoid_ramp
from tomoray.methods import SUPERVISED, SemiETPicker, Supervised, activation_of, build_method
from tomoray.networks import build_picker
from tomoray.targets import gaussian_heatmaps, heatmap_sigmas
from tomoray.tomogram import CZII_PARTICLES, Particle
from tomoray.training import fit
from tomoray.views import mean_of_views

GOLDEN = Path(__file__).parents[1] / "golden" / "semietpicker.txt"
TWO = (Particle("small", 60.0), Particle("large", 100.0))


def co_training(*, seed: int = 0, width: int = 4, student: dict | None = None, **options) -> SemiETPicker:
    """Co-training on a tiny network, the same weights for the same seed."""
    torch.manual_seed(seed)
    network = build_picker("asymmetric_unet", classes=2, width=width, blocks=(1, 1)).network
    return build_method(network, TWO, 10.0, name="semietpicker", supervised=student, **options)


@pytest.fixture
def make_batch(make_crops):
    """A function that returns a batch of both streams; each number draws other crops."""

    def make(labelled: int = 0, unlabelled: int = 100) -> dict[str, dict[str, Tensor]]:
        return {"labelled": make_crops(labelled), "unlabelled": {"volume": make_crops(unlabelled)["volume"]}}

    return make


def train(method: nn.Module, batches: list, *, optimizer=None, lr: float = 1e-2, epochs: int = 1, **options) -> list[float]:
    """Train on a list of batches per epoch and return the loss of each epoch."""
    optimizer = optimizer or torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=lr)
    loaders = {stream: [batch[stream] for batch in batches] for stream in ("labelled", "unlabelled")}
    return [e.metrics["loss"] for e in fit(method, optimizer, loaders, epochs=epochs, steps_per_epoch=len(batches), **options)]


def differences(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """How far two modules' weights and buffers are from each other, by name."""
    states = one.state_dict(), other.state_dict()
    return {key: float((value.double() - states[1][key].double()).abs().max()) for key, value in states[0].items()}


def weights(module: nn.Module) -> Tensor:
    """All weights in a row; buffers are left out, since running means move by looking on alone."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# views


@pytest.mark.parametrize("views", [4, 8])
def test_views_of_a_pointwise_network_agree(views: int) -> None:
    """Planted: maps that are mirrored along another axis than the volume was."""
    torch.manual_seed(0)
    network, volume = nn.Conv3d(1, 3, 1), torch.randn(2, 1, 6, 8, 10)
    torch.testing.assert_close(mean_of_views(network, volume, views), network(volume))


@pytest.mark.parametrize("views", [1, 4, 8])
def test_a_constant_volume_gives_a_constant_map(views: int) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1, padding_mode="replicate")
    maps = mean_of_views(network, torch.full((1, 1, 6, 8, 10), 0.7), views)
    torch.testing.assert_close(maps, maps[..., :1, :1, :1].expand_as(maps))


@pytest.mark.parametrize(("views", "expected"), [(1, lambda z: z), (4, lambda z: (2 * z + 7) / 4), (8, lambda z: 0 * z + 3.5)])
def test_each_view_is_mirrored_back(views: int, expected) -> None:
    """A network that says the number of the slice, 0 to 7, wherever the volume is: one of four views is mirrored along z, half of eight."""
    z = torch.arange(8.0)[:, None, None].expand(1, 1, 8, 2, 2)
    assert torch.equal(mean_of_views(lambda volume: z, torch.zeros(1, 1, 8, 2, 2), views), expected(z))


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3), (2, 3, 4)])
def test_only_eight_views_answer_a_mirrored_volume_with_a_mirrored_map(axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, volume = nn.Conv3d(1, 2, 3, padding=1), torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        defect = {
            v: float((mean_of_views(network, volume.flip(axes), v) - mean_of_views(network, volume, v).flip(axes)).abs().max()) for v in (1, 4, 8)
        }
    assert defect[8] < 1e-6
    assert defect[4] > 0.1
    assert defect[1] > 0.1


def test_other_numbers_of_views_are_refused() -> None:
    with pytest.raises(ValueError, match="views 2: it must be one of 1, 4, 8"):
        co_training(views=2)


# DropBlock


@pytest.mark.parametrize(("seed", "dropped"), [((4, 5, 6), 27), ((0, 5, 6), 18), ((0, 0, 6), 12), ((0, 0, 0), 8), ((7, 9, 11), 8)])
def test_a_seed_takes_the_cube_around_it(monkeypatch, seed: tuple[int, int, int], dropped: int) -> None:
    drawn = torch.ones(1, 1, 8, 10, 12)
    drawn[0, 0][seed] = 0
    monkeypatch.setattr(torch, "rand_like", lambda like: drawn)
    left = drop_blocks(torch.ones(1, 2, 8, 10, 12), 0.01)
    assert (left == 0).sum().item() == 2 * dropped, "all channels alike"
    cube = tuple(slice(max(i - 1, 0), i + 2) for i in seed)
    assert left[0][:, *cube].count_nonzero() == 0


def test_no_seeds_change_nothing_and_seeds_everywhere_leave_nothing() -> None:
    volume = torch.randn(2, 1, 5, 8, 11)
    before = volume.clone()
    assert torch.equal(drop_blocks(volume, 0.0), volume)
    assert torch.equal(drop_blocks(volume, 1.0), torch.zeros(2, 1, 5, 8, 11))
    assert torch.equal(volume, before)


@pytest.mark.parametrize(("probability", "share"), [(0.0039, 0.1), (0.0082, 0.2), (0.0131, 0.3), (0.0253, 0.5)])
def test_the_share_that_is_dropped(probability: float, share: float) -> None:
    """1 - (1 - p)^27 away from the border. Planted: a stride of the pool, or `p` taken for the share."""
    assert 1 - (1 - probability) ** 27 == pytest.approx(share, abs=2e-3)
    torch.manual_seed(0)
    left = drop_blocks(torch.ones(2, 1, 80, 80, 80), probability)
    assert left.shape == (2, 1, 80, 80, 80)
    dropped = 1 - left[..., 1:-1, 1:-1, 1:-1].mean((1, 2, 3, 4))
    assert dropped.tolist() == pytest.approx([share] * 2, abs=0.01)
    assert not torch.equal(left[0], left[1]), "each crop draws its own"


# the teacher


def test_a_teacher_starts_as_the_student_and_is_another_module() -> None:
    """Planted: `teacher = student`."""
    method = co_training()
    assert set(differences(method.teacher, method.supervised.network).values()) == {0.0}
    places = [{value.data_ptr() for value in network.state_dict().values()} for network in (method.teacher, method.supervised.network)]
    assert places[0].isdisjoint(places[1])


def moved(method: SemiETPicker) -> SemiETPicker:
    """Move every weight and buffer of the student."""
    torch.manual_seed(5)
    for value in method.supervised.network.state_dict().values():
        value.add_(torch.rand_like(value) if value.is_floating_point() else 3)
    return method


def test_rate_1_copies_and_rate_0_freezes() -> None:
    """Planted: batch statistics that stay as they were; a share of an integer counter, which never reaches it."""
    method = moved(co_training(ema_rate=1.0))
    method.after_step(0.5)
    assert set(differences(method.teacher, method.supervised.network).values()) == {0.0}
    method = moved(co_training(ema_rate=0.0))
    before = copy.deepcopy(method.teacher)
    method.after_step(0.5)
    changed = {key for key, by in differences(method.teacher, before).items() if by}
    assert changed == {key for key in before.state_dict() if key.endswith("num_batches_tracked")}


def test_the_distance_to_a_student_that_stands_still_shrinks_by_the_rate() -> None:
    """(1 - alpha)^n, for weights and batch statistics. Planted: the rates of the paper's formula, with their roles swapped."""
    method = moved(co_training(ema_rate=0.1))
    first = differences(method.teacher, method.supervised.network)
    for _ in range(10):
        method.after_step(0.5)
    last = differences(method.teacher, method.supervised.network)
    averaged = {key for key in first if not key.endswith("num_batches_tracked")}
    assert any("running_var" in key for key in averaged)
    for key in first:
        assert last[key] == (pytest.approx(0.9**10 * first[key], rel=1e-4) if key in averaged else 0), key


def test_a_teacher_is_taught_by_the_average_alone(make_batch) -> None:
    """Planted: a teacher whose weights take gradients, and which the optimiser pulls towards the student and decays."""
    method = co_training(ema_rate=0.0, consistency_weight=5.0)
    before = copy.deepcopy(method.teacher)
    train(method, [make_batch()], optimizer=torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.1), epochs=2)
    assert torch.equal(weights(method.teacher), weights(before))
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert not method.pseudo_label(torch.randn(1, 1, 16, 16, 16)).requires_grad


def test_after_training_the_teacher_follows_but_is_no_copy(make_batch) -> None:
    """Planted: one set of weights for both; a teacher that never moves."""
    method = co_training(ema_rate=0.1)
    before = weights(method.teacher).clone()
    train(method, [make_batch()], epochs=4)
    teacher, student = weights(method.teacher), weights(method.supervised.network)
    assert 0 < (teacher - before).norm() < (student - before).norm()
    assert (teacher - student).norm() > 0
    assert torch.equal(weights(method.picker()), teacher), "it is the teacher that picks"


def test_the_teacher_always_evaluates(make_batch) -> None:
    """Planted: `train()` that puts every module into training mode, so that each batch's own statistics normalise it."""
    method = co_training()
    for mode in (True, False, True):
        method.train(mode)
        assert {m.training for m in method.supervised.modules()} == {mode}
        assert not any(m.training for m in method.teacher.modules())
    before = copy.deepcopy(method.teacher)
    method(make_batch(), 0.5)
    assert not any(m.training for m in method.teacher.modules())
    assert set(differences(method.teacher, before).values()) == {0.0}, "a look at a batch moves its statistics"


@pytest.mark.parametrize("name", SUPERVISED)
def test_every_method_from_labels_can_be_the_student(name: str, make_batch) -> None:
    """Its scores are those of the classes, its candidates are found as without co-training, and unlabelled crops give it a gradient.

    Planted: a teacher that is asked for one map too many.
    """
    torch.manual_seed(0)
    network = build_picker("asymmetric_unet", classes=2, activation=activation_of(name=name), width=4, blocks=(1, 1)).network
    method = build_method(network, TWO, 10.0, name="semietpicker", supervised={"name": name})
    assert type(method.supervised) is SUPERVISED[name]
    assert method.finder == SUPERVISED[name].finder
    for mode in ("soft", "floor", "peaks"):
        method.pseudo_mode = mode
        assert method.pseudo_label(torch.randn(2, 1, 16, 16, 16)).shape == (2, 2, 8, 8, 8)
    batch = make_batch()
    loss, metrics = method(batch, 1.0)
    (slope,) = torch.autograd.grad(loss, method.supervised.network.head.weight)
    assert metrics["consistency_loss"] > 0
    assert slope.isfinite().all()
    assert slope.any()


# the loss


def test_the_ramp() -> None:
    for progress, value in ((0.0, math.exp(-5)), (0.1, math.exp(-1.25)), (0.2, 1.0), (0.7, 1.0), (1.0, 1.0)):
        assert sigmoid_ramp(progress, 0.2) == pytest.approx(value)
    assert sigmoid_ramp(0.0, 0.0) == 1


def test_the_loss_is_the_supervised_one_and_the_ramped_consistency(make_batch) -> None:
    batch = make_batch()
    for progress, ramp in ((0.05, math.exp(-5 * 0.75**2)), (0.5, 1.0)):
        torch.manual_seed(2)
        loss, metrics = co_training(consistency_weight=3.0)(batch, progress)
        assert metrics["consistency_weight"].item() == pytest.approx(3 * ramp)
        assert metrics["consistency_loss"] > 0
        assert loss.item() == pytest.approx((metrics["supervised_loss"] + 3 * ramp * metrics["consistency_loss"]).item(), rel=1e-5)
        torch.manual_seed(2)
        alone, _ = co_training().supervised({"labelled": batch["labelled"]}, progress)
        assert metrics["supervised_loss"].item() == pytest.approx(alone.item(), rel=1e-6)


def test_unlabelled_crops_move_student_and_teacher(make_batch) -> None:
    """Planted: a consistency term that is detached; a student that is compared with itself, so that the term is always zero."""
    pickers, students = {}, {}
    for weight in (1.0, 0.0):
        for unlabelled in (100, 200):
            method = co_training(consistency_weight=weight, ramp_fraction=0.0, ema_rate=0.01)
            start = weights(method.teacher).clone()
            train(method, [make_batch(0, unlabelled)])
            students[weight, unlabelled] = weights(method.supervised.network)
            pickers[weight, unlabelled] = weights(method.picker())
            assert not torch.equal(pickers[weight, unlabelled], start)
    for found in (students, pickers):
        assert not torch.equal(found[1.0, 100], found[1.0, 200])
        assert not torch.equal(found[1.0, 100], found[0.0, 100])
        assert torch.equal(found[0.0, 100], found[0.0, 200])


class Pointwise(nn.Module):
    """A network that says of each cell what its voxels' mean is: mirrored and turned volumes give mirrored and turned maps."""

    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(1, 2, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.mix(nn.functional.avg_pool3d(volume, 2))


@pytest.mark.parametrize("views", [1, 4, 8])
def test_volume_and_pseudo_label_are_turned_together(monkeypatch, make_batch, views: int) -> None:
    """A student that equals its teacher and sees no other change agrees with it, however a crop is turned, but only if the label is, too."""
    torch.manual_seed(0)
    method = SemiETPicker(Supervised(Pointwise(), TWO, 10.0, intensity_strength=0.0), TWO, 10.0, views=views, drop_probability=0.0)
    batch = make_batch()
    for seed in range(5):
        torch.manual_seed(seed)
        assert method(batch, 0.5)[1]["consistency_loss"] < 1e-10

    def volume_alone(volume: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return random_flips_and_turns(volume, label)[0], label

    monkeypatch.setattr("tomoray.methods.semietpicker.random_flips_and_turns", volume_alone)
    assert method(batch, 0.5)[1]["consistency_loss"] > 1e-5, "this test could not fail"


def inputs_of(module: nn.Module) -> list[Tensor]:
    """A list that every volume shown to a network will be added to."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    return seen


def test_only_the_student_sees_dropped_blocks_and_only_in_unlabelled_crops(make_batch) -> None:
    """Planted: blocks that are cut out of the teacher's crop, which then has nothing more to tell."""
    method, batch = co_training(drop_probability=1.0, student={"intensity_strength": 1.0}), make_batch()
    student, teacher = inputs_of(method.supervised.network), inputs_of(method.teacher)
    method(batch, 0.5)
    labelled, unlabelled = student
    assert unlabelled.count_nonzero() == 0
    assert labelled.count_nonzero() > 0.99 * labelled.numel()
    volume = batch["unlabelled"]["volume"]
    assert len(teacher) == 4
    assert all(sum(torch.equal(seen, volume.flip(axes)) for seen in teacher) == 1 for axes in ((), (2,), (3,), (4,)))


@pytest.mark.parametrize(("strength", "same"), [(0.0, True), (1.0, False)])
def test_the_student_sees_unlabelled_crops_in_other_light(make_batch, strength: float, same: bool) -> None:
    """However it is turned, a crop keeps its values; contrast, brightness and noise change them."""
    method, batch = co_training(drop_probability=0.0, student={"intensity_strength": strength}), make_batch()
    student = inputs_of(method.supervised.network)
    method(batch, 0.5)
    assert torch.equal(student[1].flatten(1).sort().values, batch["unlabelled"]["volume"].flatten(1).sort().values) is same


def test_mean_teacher_is_one_view_without_dropped_blocks(make_batch) -> None:
    """The consistency between the student and one look of the teacher, written out."""
    method, batch = co_training(views=1, drop_probability=0.0, student={"intensity_strength": 0.0}), make_batch()
    student, teacher = inputs_of(method.supervised.network), inputs_of(method.teacher)
    torch.manual_seed(7)
    _, metrics = method(batch, 0.5)
    volume = batch["unlabelled"]["volume"]
    assert [len(student), len(teacher)] == [2, 1]
    assert torch.equal(teacher[0], volume)

    torch.manual_seed(7)
    method.supervised(batch, 0.5)
    with torch.no_grad():
        seen, label = random_flips_and_turns(volume, method.teacher(volume).sigmoid())
        scores = method.supervised.network(seen).sigmoid()
    far = (label - scores).square()
    expected = (label * far).sum() / label.sum() + 4 * ((1 - label) * far).sum() / (1 - label).sum()
    assert torch.equal(student[1], seen)
    assert metrics["consistency_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


# pseudo-labels


class Says(nn.Module):
    """A teacher that says the same maps whatever it sees."""

    stride = 2

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, volume: Tensor) -> Tensor:
        return self.maps.logit(1e-6)


POINTS = torch.tensor([[[0, 9.0, 13.0, 21.0], [1, 23.0, 19.0, 7.0]]])  # at the centre of their cells
HAZE = 0.05


def hazy(**options) -> tuple[SemiETPicker, Tensor, Tensor]:
    """A method whose teacher says Gaussians of height 0.8 in haze, the Gaussians of height 1, and a crop to ask it about."""
    method = co_training(views=1, **options)
    clean = method.supervised.target(POINTS, (32, 32, 32))
    method.teacher = Says(torch.maximum(0.8 * clean, torch.tensor(HAZE)))
    return method, clean, torch.zeros(1, 1, 32, 32, 32)


@pytest.mark.parametrize("mode", ["auto", "soft"])
def test_soft_takes_the_map_as_it_is(mode: str) -> None:
    method, clean, volume = hazy(pseudo_mode=mode)
    torch.testing.assert_close(method.pseudo_label(volume), (0.8 * clean).clamp_min(HAZE))


def test_floor_sets_haze_to_0_and_leaves_the_rest() -> None:
    method, clean, volume = hazy(pseudo_mode="floor", pseudo_floor=0.1)
    label = method.pseudo_label(volume)
    assert set(label[0.8 * clean < 0.0999].tolist()) == {0.0}
    above = 0.8 * clean > 0.1001
    torch.testing.assert_close(label[above], 0.8 * clean[above])


def test_peaks_redraws_the_gaussians_where_they_were() -> None:
    """Planted: peaks at the corners of their cells, which land one cell off where rounding is unlucky; haze that is drawn as a particle."""
    method, clean, volume = hazy(pseudo_mode="peaks")
    label = method.pseudo_label(volume)
    assert torch.equal(label, clean)
    assert label[0].flatten(1).argmax(1).tolist() == [np.ravel_multi_index(cell, (16, 16, 16)) for cell in ((4, 6, 10), (11, 9, 3))]


def test_peaks_are_held_against_the_threshold_of_their_class() -> None:
    """Planted: the lowest threshold for all; the first class's."""
    for thresholds, kept in (({"small": 0.9}, [False, True]), ({"small": 0.1, "large": 0.81}, [True, False]), ({"large": 0.79}, [True, True])):
        method, clean, volume = hazy(pseudo_mode="peaks", peak_thresholds=thresholds)
        label = method.pseudo_label(volume)
        assert label.amax((0, 2, 3, 4)).tolist() == kept
        assert torch.equal(label[:, kept], clean[:, kept])


def test_faint_haze_outweighs_all_particles_unless_it_is_taken_out() -> None:
    """The figures of the crop that the paper trains on, 90 voxels, with one particle of each of the five scored classes."""
    scored = [p for p in CZII_PARTICLES if p.metric_weight]
    assert len(scored) == 5
    points = torch.tensor([[[CZII_PARTICLES.index(p), 45.0, 45.0, 45.0] for p in scored]])
    maps = gaussian_heatmaps(points, heatmap_sigmas(CZII_PARTICLES, 10.0), (90, 90, 90))
    assert maps.sum().item() == pytest.approx(2209, rel=0.01)
    for haze, share in ((0.02, 0.83), (0.01, 0.71), (0.002, 0.33)):
        mass = haze * maps.numel()
        assert mass / (mass + maps.sum().item()) == pytest.approx(share, abs=0.005)
    method = co_training(views=1, pseudo_mode="floor")
    method.teacher = Says((maps + 0.02).clamp_max(1))
    left = method.pseudo_label(torch.zeros(1, 1, 90, 90, 90))
    assert left[maps < 0.05].sum() == 0
    assert left.sum() < 1.1 * maps.sum()


# the whole


def test_a_resumed_run_equals_the_unbroken_one_to_the_bit(make_batch) -> None:
    """Planted: a teacher that is kept out of `state_dict` and starts anew from the student."""
    batches = [make_batch(i, 100 + i) for i in range(2)]
    unbroken, broken, resumed = co_training(ema_rate=0.05), co_training(ema_rate=0.05), co_training(ema_rate=0.05, seed=9)
    losses = train(unbroken, batches, epochs=4)

    optimizer = torch.optim.Adam([p for p in broken.parameters() if p.requires_grad], lr=1e-2)
    loaders = {stream: [batch[stream] for batch in batches] for stream in broken.streams}
    epochs = fit(broken, optimizer, loaders, epochs=4, steps_per_epoch=2)
    first = [next(epochs).metrics["loss"] for _ in range(2)]
    file = io.BytesIO()
    torch.save({"method": broken.state_dict(), "optimizer": optimizer.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    torch.rand(3)
    resumed.load_state_dict(state["method"])
    optimizer = torch.optim.Adam([p for p in resumed.parameters() if p.requires_grad], lr=1e-2)
    optimizer.load_state_dict(state["optimizer"])
    assert first + train(resumed, batches, optimizer=optimizer, epochs=4, start_epoch=2) == losses
    assert set(differences(resumed, unbroken).values()) == {0.0}
    assert any(differences(resumed.teacher, resumed.supervised.network).values())


def test_the_loss_curve_is_the_one_on_file(make_batch) -> None:
    """A change of views, DropBlock, ramp, average, target, loss or network shows here. Where it is meant, write the new curve into the file."""
    method = co_training(width=8, ema_rate=0.05)
    batches = [make_batch(i, 100 + i) for i in range(4)]
    loaders = {stream: [batch[stream] for batch in batches] for stream in method.streams}
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    curve = [epoch.metrics["loss"] for epoch in fit(method, optimizer, loaders, epochs=20, steps_per_epoch=1)]
    found = "\n".join(f"{loss:.6f}" for loss in curve)
    np.testing.assert_allclose(curve, np.loadtxt(GOLDEN), rtol=1e-3, err_msg=f"the curve is now:\n{found}")


def replica(rank: int, folder: str) -> None:
    """Train one of two workers, once on batches that both see and once on its own, and leave what it found in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    batches = torch.load(f"{folder}/batches.pt", weights_only=True)
    found = {}
    for case, mine, seed in (("same", batches[0], 0), ("own", batches[rank], rank)):
        method = co_training(ema_rate=0.05)
        losses = train(DistributedDataParallel(method), mine, epochs=3, seed=seed)
        found[case] = {"losses": losses, "method": method.state_dict()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_agree(make_batch, tmp_path: Path) -> None:
    """Planted: `fit` that calls the method within its wrapper, which averages no gradients, so that replicas drift apart in silence."""
    batches = [[make_batch(i, 100 + i)] for i in range(2)]
    torch.save(batches, tmp_path / "batches.pt")
    torch.multiprocessing.spawn(replica, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    learnt = {name for name, _ in co_training().named_parameters()}
    assert any(name.startswith("teacher.") for name in learnt)
    for case in ("same", "own"):
        for name in learnt:
            assert torch.equal(one[case]["method"][name], other[case]["method"][name]), (case, name)
    assert one["own"]["losses"] != other["own"]["losses"]

    alone = co_training(ema_rate=0.05)
    losses = train(alone, batches[0], epochs=3)
    assert one["same"]["losses"] == other["same"]["losses"] == pytest.approx(losses, rel=1e-5)
    for name, value in alone.state_dict().items():  # of Adam's step of 1e-2 a hundredth: rounding decides where a gradient is almost nothing
        torch.testing.assert_close(one["same"]["method"][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
