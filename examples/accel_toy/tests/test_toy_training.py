"""Modules, gradients and transforms on the toy device agree with the CPU.

Registering a device changes the process for good: run these tests in a pytest process of their own.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from accel_toy import dispatch

toy = dispatch.register()
MIB = 1 << 20


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1))


def train(device):
    model = make_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x = torch.linspace(-1, 1, 60).view(10, 6).to(device)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(checkpoint(model, x, use_reentrant=False), x.sum(1, keepdim=True)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


def test_training_agrees_with_the_cpu():
    assert_close(train("toy"), train("cpu"))


def test_attention_and_convolution_agree_with_the_cpu():
    def gradients(device):
        q = (
            torch.linspace(-2, 2, 48, dtype=torch.float64)
            .view(1, 2, 4, 6)
            .to(device)
            .requires_grad_()
        )
        kernel = (
            torch.linspace(-1, 1, 36, dtype=torch.float64)
            .view(2, 2, 3, 3)
            .to(device)
            .requires_grad_()
        )
        y = F.conv2d(F.scaled_dot_product_attention(q, q, q, is_causal=True), kernel, padding=1)
        return [g.cpu() for g in torch.autograd.grad(y.square().sum(), (q, kernel))]

    assert_close(gradients("toy"), gradients("cpu"))


def test_layer_norm_in_half_precision_is_rounded_once_as_on_the_cpu():
    x, w, b = torch.randn(4, 40), torch.randn(40), torch.randn(40)
    for dtype in (torch.float16, torch.bfloat16):
        host = [t.to(dtype) for t in (x, w, b)]
        device = [t.to("toy") for t in host]
        assert torch.equal(
            F.layer_norm(device[0], (40,), *device[1:]).cpu(),
            F.layer_norm(host[0], (40,), *host[1:]),
        )


def test_gradcheck():
    def function(x, w):
        y = x.clone()
        y[:, 0].mul_(w[0])
        return torch.tanh(y @ w.outer(w)).softmax(-1)

    x = torch.rand(2, 3, dtype=torch.float64, device="toy", requires_grad=True)
    w = torch.rand(3, dtype=torch.float64, device="toy", requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


def test_custom_operations():
    with torch.library._scoped_library("accel_toy_test", "FRAGMENT") as library:
        library.define("scale(Tensor x, float by) -> Tensor")
        library.impl("scale", lambda x, by: x * by, "CompositeExplicitAutograd")
        torch.library.register_fake(
            "accel_toy_test::scale", lambda x, by: torch.empty_like(x), lib=library
        )
        torch.library.register_autograd(
            "accel_toy_test::scale",
            lambda ctx, grad: (grad * ctx.by, None),
            setup_context=lambda ctx, inputs, output: setattr(ctx, "by", inputs[1]),
            lib=library,
        )
        op = torch.ops.accel_toy_test.scale
        x = torch.ones(3, device="toy", requires_grad=True)
        tests = (
            "test_schema",
            "test_faketensor",
            "test_aot_dispatch_dynamic",
        )  # the fourth knows no private device
        torch.library.opcheck(op.default, (x, 3.0), test_utils=tests)
        op(x, 3.0).sum().backward()
        assert x.grad.tolist() == [3, 3, 3]


def test_functional_transforms():
    def loss(w, x):
        return torch.tanh(x @ w).sum()

    w, x = torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 12).view(4, 3)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    assert_close(per_sample(w.to("toy"), x.to("toy")).cpu(), per_sample(w, x))


def test_autocast():
    x, w = torch.ones(2, 3, device="toy"), torch.ones(3, 3, device="toy", requires_grad=True)
    with torch.autocast("toy", torch.bfloat16):
        y = x @ w
        assert y.dtype == nn.Linear(3, 3, device="toy")(x).dtype == torch.bfloat16
        assert (x + 1).dtype == y.softmax(-1).dtype == torch.float32
        with torch.autocast("toy", enabled=False):
            assert (x @ w).dtype == torch.float32
    y.sum().backward()
    assert w.grad.dtype == torch.float32
    assert w.grad[0].tolist() == [2, 2, 2]


def test_compile():
    model = make_model().to("toy")
    x = torch.linspace(-1, 1, 60, device="toy").view(10, 6)
    model(x).sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert_close([p.grad for p in model.parameters()], expected)
