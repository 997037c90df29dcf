"""A layer beside its plain twin: results and gradients, in float64 and in the contract's budget."""

import torch
from agreement import assert_agree

from accel.contracts import LINEAR

F64 = torch.float64


def drawn(*shape, seed=0, dtype=F64):
    """Numbers that every dtype has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator).to(torch.bfloat16).to(dtype)


def plain(in_features, out_features, bias=True, dtype=F64):
    """An ``nn.Linear`` of such numbers."""
    made = torch.nn.Linear(in_features, out_features, bias, dtype=dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters(), 2):
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return made


def results(function, *leaves):
    """The result for leaves of these values, and the gradients of those that need one, of a sum
    weighted unevenly."""
    own = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves]
    y = function(*own)
    needing = [leaf for leaf in own if leaf.requires_grad]
    grads = torch.autograd.grad(y, needing, drawn(*y.shape, seed=9, dtype=y.dtype))
    return (y.detach(), *grads)


def of_module(module, x):
    """As :func:`results`, of a module's input and parameters by name."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    grad = drawn(*y.shape, seed=9, dtype=y.dtype)
    names, parameters = zip(*[(n, p) for n, p in module.named_parameters() if p.requires_grad])
    dx, *grads = torch.autograd.grad(y, (x, *parameters), grad)
    return y.detach(), dx, dict(zip(names, grads))


def assert_twins(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert_agree(one, other)


def assert_within_budget(found, wanted, dtype, roundings=1):
    """Within linear's budget for the dtype, of float64, or rounded to it once; where independent
    ``roundings`` follow each other, within as many of their budgets, added as errors are."""
    allowed, chain = LINEAR.tolerance[dtype], roundings**0.5
    for one, other in zip(found, wanted, strict=True):
        error, rounding = ((t.double() - other).abs() for t in (one, other.to(dtype)))
        unit = _rms(other)
        assert error.max() <= max(chain * allowed.peak * unit, rounding.max())
        assert _rms(error) <= max(chain * allowed.rms * unit, 1.01 * _rms(rounding))


def _rms(values):
    return float(values.square().mean().sqrt())
