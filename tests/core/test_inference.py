"""Pickers made ready to pick: the same answers from fewer operations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tomoray.inference import for_inference, trusted
from tomoray.networks import Picker, build_picker
from tomoray.picking import predict
from tomoray.tiles import Window


def trained(name: str, seed: int = 0, **options: object) -> Picker:
    """A network whose batch norms have seen data."""
    torch.manual_seed(seed)
    picker = build_picker(name, classes=2, **options)
    for module in picker.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    with torch.no_grad():
        picker.train()(torch.randn(2, 1, 32, 32, 32) * 2 + 1)
    return picker.eval()


@pytest.mark.parametrize("name", ["asymmetric_unet", "fpn"])
def test_folding_batch_norms_changes_no_score_and_leaves_the_picker_alone(name: str) -> None:
    """Planted: batch norms dropped instead of folded; the picker itself folded, so that training could not go on."""
    picker = trained(name, width=4, blocks=(1, 2))
    before = {key: value.clone() for key, value in picker.state_dict().items()}
    lean = for_inference(picker)
    assert sum(isinstance(m, nn.BatchNorm3d) for m in picker.modules()) > 5
    assert not any(isinstance(m, nn.BatchNorm3d) for m in lean.modules())
    volume = torch.randn(1, 1, 32, 40, 48)
    with torch.no_grad():
        torch.testing.assert_close(lean(volume), picker(volume))
    assert all(torch.equal(value, before[key]) for key, value in picker.state_dict().items())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("float32", torch.float32)])
def test_weights_have_the_precision_and_scores_are_float32(precision, dtype) -> None:
    """Planted: a sigmoid in bf16, which knows eight scores between 0.97 and 1, so that every good peak is a plateau."""
    picker = trained("asymmetric_unet", width=4, blocks=(1, 1))
    nn.init.constant_(picker.network.head.bias, 4.0)
    lean = for_inference(picker, precision)
    assert {p.dtype for p in lean.parameters()} == {dtype}
    volume = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float16)
    scores = predict(lean, volume)
    assert scores.dtype == torch.float32
    assert len(scores[scores > 0.97].unique()) > 30


class Greedy(nn.Module):
    """A picker on a device that has memory for few voxels."""

    stride = 2

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.gain = nn.Parameter(torch.ones(()))
        self.refused = 0

    def forward(self, volume: Tensor) -> Tensor:
        if volume.numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.sigmoid(nn.functional.avg_pool3d(volume, 2) * self.gain)


def test_without_memory_for_a_tile_smaller_ones_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    """Planted: giving up; the same tiles again; saying nothing."""
    volume = np.random.default_rng(0).normal(size=(64, 128, 128)).astype(np.float32)
    expected = predict(Greedy(10**9), volume)
    picker = Greedy(300_000)
    torch.testing.assert_close(predict(picker, volume, window=Window(budget_vox=64 * 128 * 128)), expected)
    assert picker.refused == 2
    assert "going on with smaller ones" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        predict(Greedy(100), volume)


def test_a_precision_that_changes_picks_is_not_chosen_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Planted: refusing what somebody asks for by name; trusting every network."""
    assert trusted("auto", 0.995) == "auto"
    assert trusted("bf16", 0.5) == "bf16"
    assert not caplog.text
    assert trusted("auto", 0.9) == "float32"
    assert "agree with those of float32 by 0.900" in caplog.text
