"""What docs/privacy.md says about secure aggregation, held against the installed Flower."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")
import flwr.client.mod
import flwr.clientapp.mod
from flwr.app import Context, RecordDict
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow

from clues.model.merging import aggregate

CLIP, STEPS, MODULUS = 8.0, 1 << 22, 1 << 32  # Flower's defaults


def test_flower_still_offers_it_only_for_its_legacy_workflow():
    assert not [n for n in flwr.clientapp.mod.__all__ if "sec" in n.lower()], (
        "Flower has it for the Message API now: docs/privacy.md is out of date"
    )
    assert "secaggplus_mod" in flwr.client.mod.__all__
    workflow = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
    context = Context(0, 0, {}, RecordDict(), {})
    with pytest.raises(TypeError, match="LegacyContext"):
        workflow(None, context)  # pyright: ignore[reportArgumentType]


def test_under_ffa_a_masked_sum_is_all_that_the_coordinator_needs():
    """Silos mask w B with Flower's own parts; only the sum is unmasked, and it is the average."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 6, generator=generator)
    weights = (10, 30, 20)
    adapters = [
        {"m.lora_A.weight": a, "m.lora_B.weight": torch.randn(5, 2, generator=generator)}
        for _ in weights
    ]
    expected = aggregate(adapters, weights, method="ffa").adapter["m.lora_B.weight"].numpy()
    share = [w / sum(weights) for w in weights]
    masked = [
        quantize([s * x["m.lora_B.weight"].numpy()], CLIP, STEPS)
        for s, x in zip(share, adapters, strict=True)
    ]
    plain = [x[0].copy() for x in masked]
    for one, other in itertools.combinations(range(len(weights)), 2):
        [mask] = pseudo_rand_gen(bytes([one, other, 1, 1]), MODULUS, [(5, 2)])
        masked[one] = parameters_mod(parameters_addition(masked[one], [mask]), MODULUS)
        masked[other] = parameters_mod(parameters_addition(masked[other], [-mask]), MODULUS)
    assert all((x[0] != y).all() for x, y in zip(masked, plain, strict=True)), "nothing is hidden"
    total = parameters_mod([np.sum([x[0] for x in masked], axis=0)], MODULUS)
    [found] = dequantize(total, CLIP, STEPS)
    found = found - (len(weights) - 1) * CLIP  # each silo's numbers were moved up by CLIP
    assert np.abs(found - expected).max() < len(weights) * 2 * CLIP / STEPS
