"""The networks that SemiETPicker's is compared with: their published sizes, the shared interface, and a gradient for every weight."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tomoray.networks import FPN, DeepFinder, VNet, build_network
from tomoray.networks.deepfinder import Raise
from tomoray.networks.padding import crop_to_volume, pad_to_multiple

SMALL = {"fpn": {"width": 4, "blocks": (1, 1)}, "vnet": {}, "deepfinder": {}}


def weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("classes", "expected"), [(4, 903_060), (15, 903_423)])
def test_deepfinder_has_the_published_size(classes: int, expected: int) -> None:
    """Table 3 of SaSi; with a bottleneck of 64 x 6^3 = 13,824 features for its crops of 24^3."""
    with torch.device("meta"):
        network = DeepFinder(classes)
        assert weights(network) == expected
        shapes: list[torch.Size] = []
        network.deep.register_forward_hook(lambda module, given, answer: shapes.append(answer.shape))
        assert network(torch.zeros(1, 1, 24, 24, 24)).shape == (1, classes, 24, 24, 24)
    assert shapes == [(1, 64, 6, 6, 6)]


@pytest.mark.parametrize(("name", "expected"), [("fpn", 63_544_742), ("vnet", 45_613_942)])
def test_sizes_of_the_others_are_recorded(name: str, expected: int) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=6)
        assert weights(network) == expected
        assert network(torch.zeros(1, 1, 96, 96, 96)).shape == (1, 6, 48, 48, 48)
        assert network(torch.zeros(1, 1, 90, 90, 90)).shape == (1, 6, 45, 45, 45)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(18, 22, 34), (16, 2, 10), (17, 5, 9)])
def test_every_size_gives_its_share_rounded_up(name: str, shape: tuple[int, int, int]) -> None:
    """Planted: sizes that are cut down where they should be filled up; a crop that forgets the stride."""
    with torch.device("meta"):
        network = build_network(name, classes=3, **SMALL[name]).eval()
        logits = network(torch.zeros(2, 1, *shape))
    assert logits.shape == (2, 3, *(math.ceil(n / network.stride) for n in shape))
    assert network.stride == (1 if name == "deepfinder" else 2)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_gets_a_gradient(name: str) -> None:
    """Planted: a lateral connection left out of the sum; a decoder that forgets its skip connection."""
    torch.manual_seed(0)
    network = build_network(name, classes=2, **SMALL[name]).train()
    logits = network(torch.randn(2, 1, 16, 16, 16))
    (logits * torch.randn_like(logits)).sum().backward()
    assert logits.isfinite().all()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("name", "multiple"), [("vnet", 16), ("deepfinder", 4)])
def test_what_is_filled_up_lies_behind_the_volume_and_is_cut_off_again(name: str, multiple: int) -> None:
    """Planted: padding on both sides, which shifts every particle."""
    torch.manual_seed(0)
    network = build_network(name, classes=1).eval()
    volume = torch.randn(1, 1, 14, 10, 6)
    with torch.no_grad():
        found = network(volume)
        whole = network(nn.functional.pad(volume, [amount for n in (6, 10, 14) for amount in (0, -n % multiple)]))
    assert torch.equal(found, crop_to_volume(whole, (14, 10, 6), network.stride))
    assert found.std() > 0


def test_deepfinder_raises_maps_without_moving_them() -> None:
    """Keras adds what a 2^3 kernel lacks behind: the kernel's first value looks at the cell itself. Planted: added in front."""
    layer = Raise(1)
    nn.init.zeros_(layer.mix.weight)
    nn.init.zeros_(layer.mix.bias)
    with torch.no_grad():
        layer.mix.weight[0, 0, 0, 0, 0] = 1.0
        x = torch.rand(1, 1, 2, 3, 4)
        assert torch.equal(layer(x)[..., ::2, ::2, ::2], x)
        assert torch.equal(layer(x)[..., 1::2, 1::2, 1::2], x)


def test_deepfinder_joins_what_it_saw_on_the_way_down() -> None:
    """Planted: a skip connection times zero, which every weight survives with some gradient."""
    torch.manual_seed(0)
    network = DeepFinder(2).eval()
    seen: dict[str, Tensor] = {}
    for name in ("fine", "middle"):
        getattr(network, name).register_forward_hook(lambda module, given, answer, name=name: seen.update({name: answer}))
        getattr(network, f"join_{name}").register_forward_hook(lambda module, given, answer, name=name: seen.update({f"join_{name}": given[0]}))
    with torch.no_grad():
        network(torch.randn(1, 1, 8, 8, 8))
    for name, width in (("fine", 48), ("middle", 64)):
        assert torch.equal(seen[f"join_{name}"][:, width:], seen[name])
        assert seen[name].any()


def test_a_fresh_deepfinder_sees_what_it_is_shown() -> None:
    """Planted: torch's own start, with which its dozen layers without normalisation answer the same to everything."""
    torch.manual_seed(0)
    network = DeepFinder(3).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 16, 16, 16)).std((2, 3, 4)).min() > 0.015


def test_pooled_logits_equal_pooled_features() -> None:
    """Why V-Net's stride of 2 adds nothing: its last layer is linear and looks at one cell at a time."""
    torch.manual_seed(0)
    network = VNet(3).eval()
    last = network.body.out_tr.conv2
    seen: list[Tensor] = []
    last.register_forward_hook(lambda module, given, answer: seen.append(given[0]))
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 16, 16, 16))
        pooled = last(nn.functional.avg_pool3d(seen[0], 2))
    assert torch.allclose(logits, pooled, atol=1e-5)
    assert logits.std() > 0


def test_a_pyramid_adds_levels_and_joins_nothing() -> None:
    network = FPN(classes=2, width=4, blocks=(1, 1, 1))
    assert [(lateral.in_channels, lateral.out_channels) for lateral in network.laterals] == [(4, 4), (4, 4), (8, 4), (16, 4)]
    assert network.smooth[0].in_channels == 4


@pytest.mark.parametrize("name", ["fpn", "vnet"])
def test_fresh_networks_expect_few_particles(name: str) -> None:
    network = build_network(name, classes=3, **SMALL[name])
    head = network.head if name == "fpn" else network.body.out_tr.conv2
    assert head.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)


def test_padding_and_cropping_undo_each_other() -> None:
    volume = torch.randn(1, 1, 5, 8, 13)
    padded = pad_to_multiple(volume, 4)
    assert padded.shape == (1, 1, 8, 8, 16)
    assert torch.equal(crop_to_volume(padded, volume.shape[2:], 1), volume)
    assert not padded[..., 5:, :, :].any()
    assert crop_to_volume(padded, (5, 8, 13), 2).shape == (1, 1, 3, 4, 7)


def test_monai_waits_until_vnet_is_wanted() -> None:
    program = "import sys, tomoray.networks as n; n.build_network('fpn', classes=1, width=2, blocks=(1,)); print('monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
