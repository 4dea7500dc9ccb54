"""What every method must keep, whichever paper it comes from: run for each of `METHODS`."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor

from tomoray.methods import METHODS
from tomoray.picking import predict
from tomoray.training import fit

pytestmark = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def make_batch(make_crops):
    """A function that returns a batch with every stream of a method; `seeds` changes the crops of a stream."""

    def make(method, **seeds: int):
        batch = {}
        for number, stream in enumerate(method.streams):
            crops = make_crops(seed=seeds.get(stream, number))
            batch[stream] = crops if stream == "labelled" else {"volume": crops["volume"]}
        return batch

    return make


def train(method, batches, *, epochs: int, start_epoch: int = 0, stop: int | None = None, optimizer=None, lr: float = 1e-2):
    """Train on a list of batches per epoch and return the optimizer and the losses."""
    optimizer = optimizer or torch.optim.Adam(method.parameters(), lr=lr)
    loaders = {stream: [batch[stream] for batch in batches] for stream in method.streams}
    losses = []
    for epoch in fit(method, optimizer, loaders, epochs=epochs, steps_per_epoch=len(batches), start_epoch=start_epoch):
        losses.append(epoch.metrics["loss"])
        if epoch.index + 1 == stop:
            break
    return optimizer, losses


def weights(picker) -> Tensor:
    """All that an optimiser or an average could have moved; running means move by looking on alone."""
    return torch.cat([p.detach().flatten() for p in picker.parameters()])


def test_loss_is_finite_and_every_weight_gets_a_gradient(name, make_method, make_batch) -> None:
    """Planted: a decoder whose features are detached; logits cut off from the loss by `.data`."""
    method = make_method(name).train()
    loss, metrics = method(make_batch(method), 0.5)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss > 0
    assert metrics
    for key, value in metrics.items():
        assert value.isfinite(), key
        assert not value.requires_grad, f"{key} keeps the graph of every step in memory"
    without = [key for key, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def share_below(picker, crops) -> float:
    """The share of a class's cells that score less than the cells which hold its particles: half for a network that knows nothing."""
    with torch.no_grad():
        scores = copy.deepcopy(picker).eval()(crops["volume"])
    shares = []
    for maps, particles in zip(scores, crops["particles"].long(), strict=True):
        for label, *position in particles.tolist():
            z, y, x = (v // 2 for v in position)
            shares.append((maps[label] < maps[label, z, y, x]).float().mean())
    return float(torch.stack(shares).mean())


def test_training_lowers_the_loss_and_shows_where_particles_lie(name, make_method, make_batch, make_crops) -> None:
    """Planted: a target that stays as it is while its volume is mirrored (0.76); a loss with its sign turned (0.05)."""
    method = make_method(name, width=8)
    batch = make_batch(method)

    def loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(torch.stack([copy.deepcopy(method).train()(batch, 0.5)[0] for _ in range(4)]).mean())

    before = loss()
    assert share_below(method.picker(), make_crops()) < 0.6
    train(method, [batch] * 20, epochs=4, lr=3e-3)  # at 1e-2 a start in three learns nothing; at this rate none of six failed
    assert loss() < 0.8 * before
    assert share_below(method.picker(), make_crops()) > 0.8  # segmentation, whose scores saturate, reaches 0.87; the others 0.96 and more


def test_every_stream_moves_the_picker(name, make_method, make_batch) -> None:
    """Planted: a stream whose term is zero by construction, as between a student and a teacher that share their weights."""
    reference = make_method(name)
    train(reference, [make_batch(reference)] * 2, epochs=3)
    for stream in reference.streams:
        method = make_method(name)
        train(method, [make_batch(method, **{stream: 99})] * 2, epochs=3)
        assert not torch.equal(weights(method.picker()), weights(reference.picker())), stream


def test_a_resumed_run_equals_the_unbroken_one_to_the_bit(name, make_method, make_batch) -> None:
    """Planted: a module kept out of `state_dict`; epochs that go on with whatever random numbers the process is at."""
    unbroken, broken, resumed = (make_method(name, seed=seed) for seed in (0, 0, 7))
    batches = [make_batch(unbroken, **dict.fromkeys(unbroken.streams, seed)) for seed in range(3)]
    _, losses = train(unbroken, batches, epochs=3)

    optimizer, first = train(broken, batches, epochs=3, stop=2)
    file = io.BytesIO()
    torch.save({"method": broken.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(12345)
    resumed.load_state_dict(state["method"])
    optimizer = torch.optim.Adam(resumed.parameters(), lr=1e-2)
    optimizer.load_state_dict(state["optimizer"])
    _, last = train(resumed, batches, epochs=3, start_epoch=2, optimizer=optimizer)

    assert first + last == losses
    for expected, found in ((unbroken, resumed), (unbroken.picker(), resumed.picker())):
        assert expected.state_dict().keys() == found.state_dict().keys()
        for key, value in expected.state_dict().items():
            assert torch.equal(value, found.state_dict()[key]), key
    assert not torch.equal(weights(broken.picker()), weights(resumed.picker()))


def test_the_picker_scores_every_class_between_0_and_1(name, make_method, make_batch, particles) -> None:
    """Planted: logits; a background channel that is passed on."""
    method = make_method(name)
    train(method, [make_batch(method)] * 2, epochs=2)
    picker = method.picker().eval()
    assert picker.stride == 2
    with torch.no_grad():
        scores = picker(torch.randn(2, 1, 32, 24, 40))
    assert scores.shape == (2, len(particles), 16, 12, 20)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.std() > 0


def test_the_picker_is_part_of_the_method(name, make_method, make_batch) -> None:
    """Planted: a picker that is a copy made when the method was, and never trained."""
    method = make_method(name)
    held = {value.data_ptr() for value in method.state_dict().values()}
    assert {value.data_ptr() for value in method.picker().state_dict().values()} <= held
    before = weights(method.picker()).clone()
    train(method, [make_batch(method)], epochs=1)
    assert not torch.equal(weights(method.picker()), before)


def test_what_is_trained_is_in_training_mode_and_a_teacher_never_is(name, make_method, make_batch) -> None:
    """Planted: a teacher that follows `train()`; a teacher that wakes up once it has been used for picking."""
    method = make_method(name)
    method.eval().train()

    def modes() -> dict[str, tuple[bool, bool]]:
        """Whether a module is trained, and whether it is in training mode."""
        own = {key: list(module.parameters(recurse=False)) for key, module in method.named_modules()}
        return {key: (any(p.requires_grad for p in own[key]), module.training) for key, module in method.named_modules() if own[key]}

    train(method, [make_batch(method)], epochs=1)
    predict(method.picker(), np.zeros((16, 16, 16), dtype=np.float32))
    assert any(trained for trained, _ in modes().values())
    assert [key for key, (trained, training) in modes().items() if trained != training] == []
