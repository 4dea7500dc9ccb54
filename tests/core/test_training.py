"""The training loop: streams, learning rate, progress, faults, and a curve that must not change by itself."""

import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tomoray.methods import Batch, Method
from tomoray.training import autocast_dtype, fit, plateau

GOLDEN = Path(__file__).parents[1] / "golden" / "supervised.txt"


class Slope(Method):
    """One weight on a slope of 1, so that under plain SGD it falls by the learning rate; it notes all that the loop does to it."""

    streams = ("labelled", "unlabelled")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.seen: list[tuple[float, ...]] = []
        self.progress: list[float] = []
        self.after: list[tuple[float, float]] = []
        self.drawn: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch: Batch, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        volumes = [batch[name]["volume"] for name in self.streams]
        self.seen.append(tuple(float(v.flatten()[0]) for v in volumes))
        self.dtypes |= {v.dtype for v in volumes}
        self.progress.append(progress)
        self.drawn.append(float(torch.rand(())))
        return 1 * self.weight, {"twice": 2 * self.weight.detach()}

    def after_step(self, progress: float) -> None:
        self.after.append((progress, float(self.weight.detach())))


def numbered(count: int) -> list[Mapping[str, torch.Tensor]]:
    """Batches that are told apart by their one value, in the type that crops travel in."""
    return [{"volume": torch.full((1, 1, 2, 2, 2), float(i), dtype=torch.float16)} for i in range(count)]


def run(method: nn.Module, loaders: Mapping[str, list[Mapping[str, torch.Tensor]]] | None = None, *, lr: float = 1.0, **options):
    """Train with plain SGD and return the epochs."""
    loaders = loaders or {"labelled": numbered(3), "unlabelled": numbered(2)}
    return list(fit(method, torch.optim.SGD(method.parameters(), lr=lr), loaders, **options))


def test_streams_restart_each_when_it_runs_out() -> None:
    """Planted: an epoch that ends with its shortest stream; streams that begin anew with every epoch."""
    method = Slope()
    epochs = run(method, epochs=2, steps_per_epoch=4)
    assert method.seen == [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1), (0, 0), (1, 1)]
    assert [(e.index, e.steps) for e in epochs] == [(0, 4), (1, 4)]
    assert method.dtypes == {torch.float32}


def test_missing_and_empty_streams_are_named() -> None:
    with pytest.raises(ValueError, match="stream 'unlabelled' is missing; the method needs it, the loaders are: labelled"):
        run(Slope(), {"labelled": numbered(1)}, epochs=1, steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"stream 'labelled' is missing.*the loaders are: none"):
        next(fit(Slope(), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), {}, epochs=1, steps_per_epoch=1))
    with pytest.raises(ValueError, match="stream 'unlabelled' is empty; it must hold at least one batch: check the splits"):
        run(Slope(), {"labelled": numbered(1), "unlabelled": []}, epochs=1, steps_per_epoch=1)


def test_progress_runs_from_0_towards_1_and_after_step_sees_the_new_weights() -> None:
    """Planted: a teacher that is moved before the student has stepped."""
    method = Slope()
    run(method, epochs=2, steps_per_epoch=3)
    assert method.progress == pytest.approx([i / 6 for i in range(6)])
    rates = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [p for p, _ in method.after] == method.progress
    assert [w for _, w in method.after] == pytest.approx(list(10 - np.cumsum(rates)), rel=1e-5)


def test_the_learning_rate_falls_along_a_cosine_and_goes_on_where_it_stopped() -> None:
    method = Slope()
    optimizer = torch.optim.SGD([{"params": [method.weight], "lr": 0.5}])
    loaders = {"labelled": numbered(1), "unlabelled": numbered(1)}
    rates = [optimizer.param_groups[0]["lr"] for _ in fit(method, optimizer, loaders, epochs=4, steps_per_epoch=1)]
    assert rates == pytest.approx([0.5 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])

    again = torch.optim.SGD([method.weight], lr=0.1)
    again.load_state_dict(optimizer.state_dict())  # holds the last rate, and the first as `initial_lr`
    rates = [again.param_groups[0]["lr"] for _ in fit(method, again, loaders, epochs=4, steps_per_epoch=1, start_epoch=2)]
    assert rates == pytest.approx([0.25, 0.5 * 0.5 * (1 + math.cos(math.pi * 3 / 4))])


def rates_on_plateaus(values: list[float], *, start: int = 0, state: dict | None = None) -> tuple[list[float], dict]:
    """Train epoch by epoch from `start`, stepping a plateau with each epoch's value; return the rates and what a checkpoint keeps."""
    method = Slope()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.004)
    schedule = plateau(optimizer)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    loaders = {"labelled": numbered(1), "unlabelled": numbered(1)}
    rates = []
    for epoch in fit(method, optimizer, loaders, epochs=len(values), steps_per_epoch=1, start_epoch=start, cosine=False):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(values[epoch.index])
    return rates, {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


def test_the_learning_rate_is_halved_on_a_plateau_and_never_below_its_floor() -> None:
    """The best at epoch 1, then none better: halved after five of these, and every five more. Planted: a cosine beside it; mode "min"."""
    rates, _ = rates_on_plateaus([0.1, 0.5, *[0.5 - 0.01 * i for i in range(5)], *[0.4] * 60])
    assert rates[:7] == [0.004] * 7
    assert rates[7:17] == [0.002] * 5 + [0.001] * 5
    assert rates[-1] == 1e-5
    rising, _ = rates_on_plateaus([0.01 * i for i in range(20)])
    assert rising == [0.004] * 20


def test_a_plateau_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """In the middle of a row of validations that were not better. Planted: a schedule whose count of these begins anew."""
    values = [0.5, 0.6, *[0.3] * 12]
    unbroken, _ = rates_on_plateaus(values)
    for stop in (3, 5, 8):
        first, state = rates_on_plateaus(values[:stop])
        torch.save(state, tmp_path / "state.pt")
        again, _ = rates_on_plateaus(values, start=stop, state=torch.load(tmp_path / "state.pt", weights_only=True))
        assert first + again == unbroken, f"stopped after {stop}"
    assert len(set(unbroken)) == 3


def test_metrics_are_means_over_the_epoch() -> None:
    method = Slope()
    (epoch,) = run(method, epochs=1, steps_per_epoch=4)
    before = [10.0, *(w for _, w in method.after[:-1])]
    assert epoch.metrics == {"loss": pytest.approx(np.mean(before), rel=1e-5), "twice": pytest.approx(2 * np.mean(before), rel=1e-5)}


def test_waiting_for_data_is_told_from_working() -> None:
    class Slow(list):
        def __iter__(self):
            for item in super().__iter__():
                time.sleep(0.02)
                yield item

    (epoch,) = run(Slope(), {"labelled": Slow(numbered(3)), "unlabelled": numbered(1)}, epochs=1, steps_per_epoch=3)
    assert 0.06 <= epoch.wait_s <= epoch.wall_s
    (epoch,) = run(Slope(), epochs=1, steps_per_epoch=3)
    assert epoch.wait_s < 0.06


def test_each_epoch_draws_its_own_numbers_from_the_seed() -> None:
    """Planted: one seed for all epochs; numbers that depend on what ran before."""
    drawn = {}
    for seed, start in itertools.product((0, 1), (0, 1)):
        torch.rand(17)
        method = Slope()
        run(method, epochs=3, steps_per_epoch=2, seed=seed, start_epoch=start)
        drawn[seed, start] = method.drawn
    assert drawn[0, 1] == drawn[0, 0][2:]
    assert len({*drawn[0, 0], *drawn[1, 0]}) == 12


class Broken(Slope):
    """A loss that is no number from the third step on."""

    def forward(self, batch, progress):
        loss, metrics = super().forward(batch, progress)
        return loss * (float("nan") if len(self.seen) > 2 else 1), metrics


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match="epoch 1: the loss is nan; lower the learning rate, or train in float32"):
        run(Broken(), epochs=3, steps_per_epoch=2)


def test_a_wrapped_method_is_trained_through_its_wrapper() -> None:
    """As DistributedDataParallel wraps it: the loss goes through the wrapper, the rest to the method within."""

    class Wrapper(nn.Module):
        def __init__(self, module: Method) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *arguments):
            self.calls += 1
            return self.module(*arguments)

    wrapper = Wrapper(Slope())
    run(wrapper, epochs=1, steps_per_epoch=3)
    assert wrapper.calls == len(wrapper.module.after) == 3


def test_training_in_bf16_keeps_weights_and_loss_in_float32(make_method, make_crops) -> None:
    method, types = make_method(), set()
    method.network.head.register_forward_hook(lambda module, given, answer: types.add(answer.dtype))
    epochs = run(method, {"labelled": [make_crops()]}, lr=0.01, epochs=1, steps_per_epoch=2, precision="bf16")
    assert types == {torch.bfloat16}
    assert math.isfinite(epochs[0].metrics["loss"])
    assert {p.dtype for p in method.parameters()} == {torch.float32}


def test_precision_names_a_type() -> None:
    assert autocast_dtype("float32", "cpu") is None
    assert autocast_dtype("bf16", "cpu") is torch.bfloat16
    assert autocast_dtype("auto", "cpu") in (None, torch.bfloat16)


def test_the_method_is_put_into_training_mode(make_method, make_crops) -> None:
    method = make_method().eval()
    before = method.network.stem[0][1].running_mean.clone()
    run(method, {"labelled": [make_crops()]}, epochs=1, steps_per_epoch=1)
    assert method.training
    assert not torch.equal(method.network.stem[0][1].running_mean, before)


def supervised_curve(make_method, make_crops) -> list[float]:
    """The loss at each of 20 steps, float32, one thread."""
    method = make_method(width=8)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    loaders = {"labelled": [make_crops(seed) for seed in range(4)]}
    return [epoch.metrics["loss"] for epoch in fit(method, optimizer, loaders, epochs=20, steps_per_epoch=1)]


def test_the_loss_curve_is_the_one_on_file(make_method, make_crops) -> None:
    """A change of target, loss, augmentation, network or schedule shows here. Where it is meant, write the new curve into the file."""
    curve = supervised_curve(make_method, make_crops)
    found = "\n".join(f"{loss:.6f}" for loss in curve)
    np.testing.assert_allclose(curve, np.loadtxt(GOLDEN), rtol=1e-3, err_msg=f"the curve is now:\n{found}")
