"""Linear layers whose weights were rearranged compute what they did before."""

import pytest
import torch
from torch import nn

from headway.executor import loader
from headway.executor.packed_linear import PackedLinear, can_pack, pack_linears

needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch or this processor has none")


@needs_packing
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 24), (1, 7, 24), (64, 24), (2, 3, 100, 24)])
@torch.inference_mode()
def test_it_computes_the_same(shape, bias):
    torch.manual_seed(0)
    linear, rows = nn.Linear(24, 50, bias=bias), torch.randn(shape)
    packed = PackedLinear(linear)
    torch.testing.assert_close(packed(rows), linear(rows), atol=1e-5, rtol=1e-5)
    strided = torch.randn(*shape[:-1], 48)[..., ::2]  # not one after the other in memory
    torch.testing.assert_close(packed(strided), linear(strided), atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.weight, linear.weight)
    assert (packed.in_features, packed.out_features) == (24, 50)


@needs_packing
def test_only_what_is_exactly_a_linear_layer_in_float32_is_replaced():
    class Doubled(nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    module = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4), nn.Linear(4, 4).bfloat16(), nn.Sequential(nn.Linear(4, 2)))
    assert pack_linears(module) == 2
    kinds = [type(child) for child in module.modules() if not isinstance(child, nn.Sequential)]
    assert kinds == [PackedLinear, Doubled, nn.Linear, PackedLinear]


@needs_packing
def test_a_loaded_model_keeps_no_second_copy_of_its_weights(make_executor):
    module = make_executor("llama")._model.module
    packed = [child for child in module.modules() if isinstance(child, PackedLinear)]
    assert len(packed) == 3 * 7 + 1  # of each layer, and the head
    assert not any(isinstance(child, nn.Linear) for child in module.modules())
    names = [name for name, parameter in module.named_parameters() if parameter.dim() == 2]
    assert names == ["model.embed_tokens.weight"]


def test_where_it_is_not_there_a_model_is_left_as_it_is(make_executor, monkeypatch):
    monkeypatch.setattr(loader, "can_pack", lambda: False)
    module = make_executor("llama")._model.module
    assert sum(type(child) is nn.Linear for child in module.modules()) == 22


def test_half_precision_is_left_as_it_is(make_executor):
    module = make_executor("llama", dtype="bfloat16")._model.module
    assert not any(isinstance(child, PackedLinear) for child in module.modules())
