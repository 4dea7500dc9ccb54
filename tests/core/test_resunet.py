"""TomoPicker's network: the published sizes, every input size, and a gradient for every weight."""

import pytest
import torch

from tomoray.networks import ResUNet, build_network


@pytest.mark.parametrize(("levels", "expected"), [(4, 10_944_225), (3, 2_650_081)])
def test_it_has_the_published_size(levels: int, expected: int) -> None:
    """For sub-volumes of 32, and of 16 or 24. Planted: a kernel of 2 to raise maps; convolutions without bias; a projected shortcut."""
    with torch.device("meta"):
        network = ResUNet(1, levels=levels)
        assert sum(p.numel() for p in network.parameters()) == expected
        assert network(torch.zeros(1, 1, 24, 24, 24)).shape == (1, 1, 24, 24, 24)


@pytest.mark.parametrize("shape", [(18, 22, 34), (16, 2, 10), (17, 5, 9)])
def test_every_size_gives_a_logit_for_every_voxel(shape: tuple[int, int, int]) -> None:
    """Planted: sizes that are cut down where they should be filled up."""
    with torch.device("meta"):
        network = build_network("resunet", classes=3, width=4)
        assert network(torch.zeros(2, 1, *shape)).shape == (2, 3, *shape)
    assert network.stride == 1


def test_every_weight_gets_a_gradient_and_every_skip_is_used() -> None:
    """But biases before a batch norm, which takes them away. Planted: a deep block that is not raised; a skip connection left out."""
    torch.manual_seed(0)
    network = ResUNet(2, width=2, levels=3).train()
    logits = network(torch.randn(2, 1, 8, 8, 8))
    (logits * torch.randn_like(logits)).sum().backward()
    assert [key for key, p in network.named_parameters() if p.dim() > 1 and (p.grad is None or not p.grad.any())] == []
    for block in network.join:
        assert all(half.any() for half in block.first[0].weight.grad.chunk(2, dim=1)), "the skip connection, and what was raised"
    assert network.head.bias.sigmoid().tolist() == pytest.approx([0.01] * 2)


def test_a_block_corrects_its_first_convolution() -> None:
    """Planted: a shortcut from the input, as in other residual networks."""
    torch.manual_seed(0)
    block = ResUNet(1, width=2, levels=1).down[0].eval()
    x = torch.randn(1, 1, 4, 4, 4)
    with torch.no_grad():
        block.third[1].weight.zero_()
        assert torch.equal(block(x), block.first(x).relu())
