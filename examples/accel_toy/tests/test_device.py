"""The toy device behaves as a torch device should, and shows mistakes that others hide.

Registering a device changes the process for good: run these tests in a pytest process of their own.
"""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from accel_toy import dispatch, memory

toy = dispatch.register()
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quiet_device():
    toy.synchronize()
    toy.manual_seed(0)
    toy.reset_peak_memory_stats()
    yield
    toy.synchronize()


def run_script(text: str) -> None:
    """Run `text` in a fresh process, which must succeed and say nothing."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- registration


def test_registering_again_changes_nothing():
    assert dispatch.refusal() is None
    assert dispatch.register() is toy is torch.get_device_module("toy")
    assert torch.accelerator.current_accelerator() == torch.device("toy")


def test_importing_does_not_register():
    run_script(
        "import torch; from accel_toy import dispatch\n"
        "assert dispatch.refusal() is None and not hasattr(torch, 'toy')"
    )


def test_a_torch_without_the_means_is_a_reason_to_refuse(monkeypatch):
    monkeypatch.delattr(torch._C, "_acc")
    assert "cannot register a device written in Python" in dispatch.refusal()


def test_another_private_device_is_a_reason_to_refuse():
    run_script(
        "import torch; torch.utils.rename_privateuse1_backend('other')\n"
        "from accel_toy import dispatch; assert \"'other' is registered\" in dispatch.refusal()"
    )


def test_there_is_one_device():
    assert toy.is_available()
    assert (toy.device_count(), toy.current_device()) == (1, 0)
    with toy.device("toy:0"), pytest.raises(RuntimeError, match="no device toy:1"):
        toy.set_device(1)
    with pytest.raises(RuntimeError, match="no device toy:1"):
        torch.ones(2, device="toy:1")


# --- streams and events


def test_nothing_runs_before_somebody_waits():
    x = torch.ones(3, device="toy") + 1
    assert memory.host_alias(x).isnan().all()
    assert not toy.current_stream().query()
    toy.synchronize()
    assert memory.host_alias(x).tolist() == [2, 2, 2]
    assert toy.current_stream().query()


def wait_for_event(consumer, producer):
    consumer.wait_event(producer.record_event())


def wait_for_stream(consumer, producer):
    consumer.wait_stream(producer)


def let_the_event_wait(consumer, producer):
    producer.record_event().wait(consumer)


def let_the_host_wait(consumer, producer):
    producer.record_event().synchronize()


def do_not_wait(consumer, producer):
    pass


@pytest.mark.parametrize("finish", [toy.Stream.synchronize, lambda stream: toy.synchronize()])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "wait", [wait_for_event, wait_for_stream, let_the_event_wait, let_the_host_wait, do_not_wait]
)
def test_streams_are_ordered_by_waiting_and_by_nothing_else(wait, swap, finish):
    producer, consumer = toy.Stream(), toy.default_stream()
    if swap:
        producer, consumer = consumer, producer
    x = torch.zeros(4, device="toy")
    toy.synchronize()
    with toy.stream(producer):
        y = x + 1
    wait(consumer, producer)
    with toy.stream(consumer):
        z = y * 2
    finish(consumer)
    values = memory.host_alias(z)
    assert values.isnan().all() if wait is do_not_wait else values.tolist() == [2, 2, 2, 2]


def test_writing_before_another_stream_has_read_shows_too():
    x = torch.zeros(1, device="toy")
    toy.synchronize()
    side = toy.Stream()
    with toy.stream(side):
        y = x + 1
    x.fill_(5)
    toy.synchronize()
    assert y.item() == 6


def test_an_event_recorded_again_leaves_older_waits_alone():
    first, second, event = toy.Stream(), toy.Stream(), toy.Event()
    with toy.stream(first):
        event.record()
        second.wait_event(event)
        x = torch.ones(1, device="toy")
        event.record()
    second.synchronize()
    assert memory.host_alias(x).isnan()
    event.synchronize()
    assert memory.host_alias(x) == 1


def test_polling_an_event_ends():
    x = torch.ones(1, device="toy") + 1
    event = toy.current_stream().record_event()
    polls = [event.query()]
    while not polls[-1]:
        polls.append(event.query())
    assert len(polls) > 1
    assert memory.host_alias(x) == 2
    assert toy.Event().query()


def test_event_times_are_monotone():
    events = [toy.Event(enable_timing=True) for _ in range(3)]
    x = torch.ones(400, 400, device="toy")
    for event in events:
        event.record()
        x = x @ x
    with pytest.raises(RuntimeError, match="synchronize"):
        events[0].elapsed_time(events[2])
    toy.synchronize()
    first, second = events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])
    assert min(first, second) > 0
    assert events[0].elapsed_time(events[2]) == pytest.approx(first + second)
    assert events[2].elapsed_time(events[0]) < 0
    with pytest.raises(RuntimeError, match="enable_timing"):
        toy.Event().elapsed_time(events[0])


def test_an_error_on_the_device_is_raised_where_the_host_waits():
    x = torch.ones(3, device="toy")
    bad = x[torch.tensor([7], device="toy")]
    with pytest.raises(IndexError):
        toy.synchronize()
    toy.synchronize()
    assert (x + 1).tolist() == [2, 2, 2]
    assert bad.isnan().all()


def test_a_full_queue_makes_the_host_wait():
    x = torch.zeros(1, device="toy")
    for _ in range(toy.QUEUE_DEPTH + 1):
        x.add_(1)
    assert memory.host_alias(x) > 0


# --- memory


def test_memory_is_counted_to_the_byte():
    before = toy.memory_allocated()
    x = torch.empty(MIB, device="toy")
    y = x[10:].view(-1, 2).t()
    z = torch.empty(3, 5, dtype=torch.bfloat16, device="toy")
    assert toy.memory_allocated() - before == 4 * MIB + 30
    assert toy.mem_get_info() == (memory.TOTAL - toy.memory_allocated(), memory.TOTAL)
    del x
    assert toy.memory_allocated() - before == 4 * MIB + 30  # its view lives
    del y, z
    assert toy.memory_allocated() == before
    assert toy.max_memory_allocated() - before == 4 * MIB + 30
    assert toy.memory_stats()["allocated_bytes.all.current"] == before == toy.memory_reserved()
    assert (
        toy.memory_stats()["allocated_bytes.all.peak"]
        == before + 4 * MIB + 30
        == toy.max_memory_reserved()
    )
    toy.reset_peak_memory_stats()
    assert toy.max_memory_allocated() == before


def test_what_training_allocates_is_given_back():
    before = toy.memory_allocated()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).to("toy")
    model(torch.ones(4, 8, device="toy")).sum().backward()
    assert toy.memory_allocated() > before
    del model
    toy.synchronize()
    assert toy.memory_allocated() == before


def test_memory_runs_out():
    before = toy.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError, match=rf"{memory.TOTAL + 4} bytes"):
        torch.empty(memory.TOTAL // 4 + 1, device="toy")
    assert toy.memory_allocated() == before
    assert torch.ones(2, device="toy").tolist() == [1, 1]


def test_fresh_memory_is_nan():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert torch.empty(5, dtype=dtype, device="toy").float().isnan().all()


# --- random numbers


def test_seeds_repeat_and_leave_the_cpu_alone():
    def draw():
        x = torch.rand(3, device="toy")
        return [
            *x.tolist(),
            *torch.randn(2, device="toy").tolist(),
            *torch.randperm(5, device="toy").tolist(),
        ]

    toy.manual_seed(3)
    cpu = torch.get_rng_state()
    first = draw()
    assert draw() != first
    assert torch.equal(torch.get_rng_state(), cpu)
    torch.manual_seed(3)  # seeds every device
    assert toy.initial_seed() == 3
    assert draw() == first


def test_random_numbers_belong_to_the_call_not_to_the_time_it_runs():
    def draw(finish):
        toy.manual_seed(1)
        side = toy.Stream()
        with toy.stream(side):
            x = torch.empty(4, device="toy").normal_()
        finish()
        y = F.dropout(torch.ones(64, device="toy"))
        toy.synchronize()
        return x.tolist() + y.tolist()

    assert draw(toy.synchronize) == draw(lambda: None)


def test_the_state_round_trips():
    state = toy.get_rng_state()
    first = torch.rand(4, device="toy")
    toy.set_rng_state(state, "toy:0")
    assert torch.equal(torch.rand(4, device="toy"), first)
    with torch.random.fork_rng(device_type="toy"):
        inside = torch.rand(4, device="toy")
    assert torch.equal(torch.rand(4, device="toy"), inside)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(4, device="toy", generator=generator)
    assert torch.equal(x, torch.rand(4, device="toy", generator=generator.manual_seed(5)))


# --- tensors


def test_views_share_storage_and_keep_strides():
    x = torch.arange(24.0, device="toy").view(2, 3, 4)
    views = [
        x.transpose(0, 2),
        x[:, 1:, ::2],
        x.unfold(2, 2, 1),
        x.diagonal(),
        x.expand(2, 2, 3, 4),
        x.view(torch.int32),
    ]
    on_cpu = x.cpu()
    same = [on_cpu.transpose(0, 2), on_cpu[:, 1:, ::2], on_cpu.unfold(2, 2, 1), on_cpu.diagonal()]
    for view, expected in zip(
        views, [*same, on_cpu.expand(2, 2, 3, 4), on_cpu.view(torch.int32)], strict=True
    ):
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert (view.stride(), view.storage_offset()) == (
            expected.stride(),
            expected.storage_offset(),
        )
        assert torch.equal(view.cpu(), expected)


def test_writing_through_views():
    x = torch.zeros(3, 4, device="toy", requires_grad=True)
    y = x * 1
    y[:, 1].add_(2)
    y.t()[2] = 3
    y[y > 2] *= 2
    assert y[0].tolist() == [0, 2, 6, 0]
    y.sum().backward()
    assert x.grad[0].tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    "index",
    [
        lambda x: x[torch.tensor([2, 0], device=x.device)],
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x[x > 5],
        lambda x: x[..., None, -1],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill(x > 3, -1).gather(
            1, torch.zeros(3, 1, dtype=torch.long, device=x.device)
        ),
        lambda x: torch.cat([x, x[:1]]).unique(dim=0, return_counts=True)[1],
        lambda x: x.clone().index_put_((torch.tensor([1], device=x.device),), torch.tensor(9.0)),
        lambda x: torch.where(x > 2, x, 0.0).argmax(-1),
        lambda x: x.long().remainder_(3),
        lambda x: torch.fft.fft(x).conj().real,
        lambda x: torch.add(x, x, out=torch.empty(0, device=x.device)),
        lambda x: x.clone().resize_(4, 3)[:3],
        lambda x: x.clone().resize_(5, 4)[:3],
    ],
)
def test_operations_agree_with_the_cpu(index):
    x = torch.arange(12.0).view(3, 4)
    result = index(x.to("toy"))
    assert result.device == torch.device("toy:0")
    assert_close(result.cpu(), index(x))


def test_copies_to_the_host_wait():
    x = torch.ones(2, device="toy") + 1
    assert x.to("cpu", torch.int32, non_blocking=True).tolist() == [2, 2]
    y = torch.zeros(3, 2)
    assert y.copy_(x).tolist() == [[2, 2]] * 3


def test_host_values_are_taken_when_the_operation_is_called():
    host, scalar = torch.ones(2), torch.tensor(3.0)
    x = host.to("toy") * scalar
    host.zero_(), scalar.zero_()
    assert x.tolist() == [3, 3]


def test_tensors_print_compare_copy_and_pickle():
    x = torch.tensor([1.5, 2.0], device="toy")
    assert repr(x) == "tensor([1.5000, 2.0000], device='toy:0')"
    assert_close(x, torch.tensor([1.5, 2.0], device="toy"))
    with pytest.raises(AssertionError):
        assert_close(x, x + 1)
    model = nn.Linear(2, 2).to("toy")
    twin = copy.deepcopy(model)
    twin.weight.data.zero_()
    assert twin.weight.device == model.weight.device == torch.device("toy:0")
    assert (model.weight.any(), twin.weight.any()) == (True, False)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert_close(torch.load(file)["weight"], model.weight.data)


def test_what_the_device_cannot_do_raises():
    x = torch.ones(2, 2, device="toy")
    with pytest.raises(RuntimeError, match="at least one is on cpu"):
        x @ torch.ones(2, 2)
    with torch.library._scoped_library("accel_toy_test", "FRAGMENT") as library:
        library.define("only_on_cpu(Tensor x) -> Tensor")
        library.impl("only_on_cpu", torch.neg, "CPU")
        with pytest.raises(NotImplementedError, match="no kernel for the toy device"):
            torch.ops.accel_toy_test.only_on_cpu(x)


def test_modes_of_the_caller_do_not_reach_queued_work():
    x, w = torch.ones(2, 3, device="toy"), torch.full((3, 3), 1 + 2**-10, device="toy")
    with torch.inference_mode():
        y = x + 1
    z = x @ w
    with torch.autocast("cpu", torch.bfloat16), torch.device("toy"):
        toy.synchronize()
        assert y.add(torch.ones(3)).tolist() == [[3, 3, 3], [3, 3, 3]]
    assert_close(z.cpu(), torch.full((2, 3), 3 + 3 * 2**-10), rtol=0, atol=0)


# --- modules, gradients, transforms


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


# --- processes

FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, in newer Pythons
import torch
from accel_toy import dispatch
def compute():
    x = torch.ones(512, 512, device="toy")
    return ((x @ x).sum() / 512**3).item()
{before}
child = os.fork()
if child == 0:
    {inside}
    os._exit(0 if compute() == 1 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
{after}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_a_device():
    run_script(
        FORK.format(
            before="",
            inside="dispatch.register()",
            after="dispatch.register(); assert compute() == 1",
        )
    )
    run_script(
        FORK.format(
            before="dispatch.register(); assert compute() == 1",
            inside="",
            after="assert compute() == 1",
        )
    )


def test_a_process_ends_well_with_tensors_alive_and_work_queued():
    run_script(
        "import torch; from accel_toy import dispatch; toy = dispatch.register()\n"
        "x = torch.ones(3, device='toy', requires_grad=True)\n"
        "class Cycle: pass\n"
        "cycle = Cycle(); cycle.self = cycle; cycle.kept = (x * 2).sum(); cycle.kept.backward()\n"
        "torch.kept = x + 1"
    )
