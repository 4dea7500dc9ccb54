"""Networks: the published size, every input size, how far they see, and how logits become scores."""

import math
import weakref

import pytest
import torch

from tomoray.networks import NETWORKS, AsymmetricUNet, Picker, build_network, unet
from tomoray.networks.unet import join


def test_full_width_is_the_published_network() -> None:
    with torch.device("meta"):
        network = AsymmetricUNet(classes=6)
    assert sum(p.numel() for p in network.parameters()) == 70_617_350
    assert [stage[-1].second[0].out_channels for stage in network.stages] == [64, 128, 256, 512]
    assert [len(stage) for stage in network.stages] == [3, 4, 6, 3]


def test_published_crops_are_halved() -> None:
    """At the odd sizes 45, 23, 12, 6, 3 of a 90^3 crop, too, where padding in place of resizing fails."""
    network = AsymmetricUNet(classes=6, width=2).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 90, 90, 90)).shape == (1, 6, 45, 45, 45)
        assert network(torch.zeros(1, 1, 96, 96, 96)).shape == (1, 6, 48, 48, 48)
        maps = network.features(torch.zeros(1, 1, 90, 90, 90))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, n, n, n) for c, n in ((2, 45), (2, 23), (4, 12), (8, 6), (16, 3))]


@pytest.mark.parametrize("shape", [(17, 23, 31), (16, 18, 50), (33, 2, 9), (1, 2, 3)])
def test_every_size_gives_half_of_it_rounded_up(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = AsymmetricUNet(classes=3, width=4).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 1, *shape))
    assert logits.shape == (2, 3, *(math.ceil(n / 2) for n in shape))
    assert logits.isfinite().all()


@pytest.mark.parametrize(("width", "blocks", "classes"), [(2, (1,), 1), (8, (2, 1), 6), (6, (1, 1, 1), 2)])
def test_smaller_networks_keep_their_interface(width: int, blocks: tuple[int, ...], classes: int) -> None:
    network = build_network("asymmetric_unet", classes=classes, width=width, blocks=blocks)
    volume = torch.randn(2, 1, 24, 16, 32)
    assert network(volume).shape == (2, classes, 12, 8, 16)
    assert [m.shape[1] for m in network.features(volume)] == [width, *(width * 2**stage for stage in range(len(blocks)))]


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_what_is_joined_lies_in_memory_as_the_skip_does(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece and in slabs. Planted: raised features in the layout in which 1^3 convolutions leave them, so that all maps were copied."""
    joined: list[torch.Tensor] = []

    def noting(narrow: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        joined.append(join(narrow, skip))
        return joined[-1]

    monkeypatch.setattr(unet, "join", noting)
    decoder = unet.Decoder(deep=4, skip=6, outputs=3).eval()
    for depth, pieces in ((7, 1), (70, 3)):
        deep, skip = (
            torch.randn(1, channels, *shape).contiguous(memory_format=layout) for channels, shape in ((4, (depth, 4, 2)), (6, (depth, 7, 4)))
        )
        with torch.inference_mode():
            decoder(deep, [skip])
        assert [one.is_contiguous(memory_format=layout) for one in joined] == [True] * pieces
        joined.clear()


@pytest.mark.parametrize("depths", [(64, 32), (65, 33), (71, 36), (96, 48), (127, 64), (131, 66)])
def test_slabs_give_what_one_piece_gives(depths: tuple[int, int]) -> None:
    """Planted: slabs without a plane more on either side; raised planes counted from where a slab begins."""
    torch.manual_seed(0)
    decoder = unet.Decoder(deep=4, skip=6, outputs=3).eval()
    skip, deep = torch.randn(2, 6, depths[0], 9, 8), torch.randn(2, 4, depths[1], 5, 4)
    whole = decoder(deep, [skip])  # with gradients, so in one piece
    with torch.no_grad():
        torch.testing.assert_close(decoder(deep, [skip]), whole.detach())
        normed = decoder.train()(deep, [skip])
    torch.testing.assert_close(normed, decoder(deep, [skip]).detach(), msg="batch norms that learn must see the whole")


def test_maps_are_let_go_of_once_they_are_joined() -> None:
    """At half resolution what is joined is as large as all else of a pass. Planted: a skip that is held until all is mixed."""
    network = AsymmetricUNet(classes=3, width=8, blocks=(1, 1)).eval()
    stem: list[weakref.ref[torch.Tensor]] = []
    gone: list[bool] = []
    network.stem.register_forward_hook(lambda _module, _inputs, output: stem.append(weakref.ref(output)))
    last = network.decoders[-1].mix
    assert isinstance(last, torch.nn.Sequential)
    last[1].register_forward_pre_hook(lambda _module, _inputs: gone.append(stem[0]() is None))
    with torch.inference_mode():
        network(torch.randn(1, 1, 24, 16, 32))
    assert gone == [True]


def faces_seen(blocks: tuple[int, ...], size: int) -> list[bool]:
    """Whether the cell in the middle depends on each of the six faces of a cube; slopes everywhere 1, so that only reach counts."""
    torch.manual_seed(0)
    network = AsymmetricUNet(classes=1, width=4, blocks=blocks).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.abs())  # with positive weights and input no ReLU is ever closed
    volume = torch.ones(1, 1, size, size, size, requires_grad=True)
    network(volume)[(0, 0, *[size // 4] * 3)].backward()
    assert volume.grad is not None
    grad = volume.grad[0, 0]
    return [bool(grad.select(axis, end).any()) for axis in range(3) for end in (0, -1)]


def test_a_deep_network_sees_to_the_border_and_a_shallow_one_does_not() -> None:
    """Planted: an encoder whose deep features never reach the decoder."""
    assert all(faces_seen((3, 4, 6, 3), 64))
    assert not any(faces_seen((1,), 96))


def test_a_fresh_network_expects_few_particles() -> None:
    torch.manual_seed(0)
    network = AsymmetricUNet(classes=6, width=4)
    assert network.head.bias is not None
    assert network.head.bias.sigmoid().tolist() == pytest.approx([0.01] * 6)


@pytest.mark.parametrize("width", [0, 1, 3, 63, -4])
def test_widths_that_cannot_be_halved_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"network width {width}: it must be an even number.*64 is the published one"):
        AsymmetricUNet(classes=6, width=width)


def test_unknown_networks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"network 'unet_3000' is not known; it must be one of {', '.join(sorted(NETWORKS))}"):
        build_network("unet_3000", classes=6)


class Fixed(torch.nn.Module):
    """Answer the same logits, `(b, 3, ...)`, whatever it is shown."""

    stride = 2
    logits = torch.tensor([2.0, -1.0, 0.5]).reshape(1, 3, 1, 1, 1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(volume), 3, *(n // 2 for n in volume.shape[2:]))


def test_sigmoid_scores_stand_alone_and_softmax_scores_share_with_the_background() -> None:
    volume = torch.zeros(2, 1, 4, 4, 4)
    alone = Picker(Fixed(), "sigmoid")(volume)
    assert alone.shape == (2, 3, 2, 2, 2)
    assert alone[0, :, 0, 0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (2, -1, 0.5)])
    shared = Picker(Fixed(), "softmax")(volume)
    whole = sum(math.exp(v) for v in (2, -1, 0.5))
    assert shared.shape == (2, 2, 2, 2, 2)
    assert shared[0, :, 0, 0, 0].tolist() == pytest.approx([math.exp(2) / whole, math.exp(-1) / whole])
    assert Picker(Fixed()).stride == 2
