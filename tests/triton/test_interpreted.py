"""Every Triton kernel under the repaired interpreter, by the conformance suite: against float64,
whole numbers, NaN and infinity, bad input, and rows that have the bits they have alone."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from interpreter import backend

import accel
from accel import testing
from accel.contracts import CONTRACTS
from accel.triton_kernels import BACKWARDS, FORWARDS, KERNELS
from accel_conformance.selection import Selection
from accel_conformance.session import prepare
from accel_conformance.subject import installed_too
from accel_conformance.suite import regroup
from accel_conformance.suite.rows import ROWS, cancelling
from accel_conformance.target import each, same_bits

IMPL = "interpreted.triton"
QUICK = {"ops", "integers", "special", "bad_inputs", "guards"}
OWN_GRADIENT = {"gradients"}
# A million sums ("large") take the interpreter an hour; the engine is driven by a test of its own.
EVERY_SAMPLE = {*QUICK, *OWN_GRADIENT, "builders", "drawn"}
FIRST_SAMPLE = {"rows", "torch"}


def run(op, level, areas):
    """The results of conformance's cases of one op's kernel."""
    with installed_too((backend.plugin(),)):
        session = prepare("interpreted", Selection(ops=[op], impls=[IMPL], level=level))
        return [session.run(case) for case in session.cases if case.area in areas]


def judge(results):
    assert not [result.message() for result in results if result.outcome.bad]
    assert [result for result in results if result.outcome.value == "passed"]


@pytest.mark.parametrize("op", KERNELS)
def test_a_kernel_conforms(op):
    own = OWN_GRADIENT if op in BACKWARDS or op in FORWARDS else set()
    # The layer's pieces are judged by themselves.
    judge(run(op, "smoke", own | ({"ops"} if op == "transformer_layer" else QUICK)))


WIDER = "out_fp32"  # the sample whose result is wider than its arguments


def has_wider_result(op):
    return any(sample.name == WIDER for sample in CONTRACTS[op].samples())


@pytest.mark.parametrize("op", [op for op in KERNELS if has_wider_result(op)])
def test_nothing_is_rounded_before_a_wider_result(op):
    with installed_too((backend.plugin(),)):
        case = f"ops/{op}/{IMPL}/bfloat16/{WIDER}"
        session = prepare("interpreted", Selection([op], cases=[case]))
        judge(list(map(session.run, session.cases)))


@pytest.mark.slow
@pytest.mark.parametrize("op", KERNELS)
def test_a_kernel_conforms_in_all_samples(op):
    judge(run(op, "full", EVERY_SAMPLE))
    judge(run(op, "smoke", FIRST_SAMPLE))


@pytest.mark.parametrize("op", [op for op in KERNELS if CONTRACTS[op].rowwise])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_has_the_bits_it_has_alone(op, dtype):
    """Wherever it stands, and however many are beside it."""
    contract = CONTRACTS[op]
    sample = next(iter(contract.samples()))
    args = sample.make(dtype, torch.device(testing.HOST))
    args = cancelling(regroup.new_rows(contract, args, ROWS, sample.name))
    with testing.installed(backend.plugin()), accel.use_accelerator("interpreted"):
        whole = regroup.by_row(call(op, args), ROWS)
        for first, stop in ((0, 1), (ROWS // 2, ROWS // 2 + 1), (16, ROWS), (1, 18)):
            part = regroup.take(contract, args, first, stop)
            found = regroup.by_row(call(op, part), stop - first)
            assert same_bits(found, tuple(result[first:stop] for result in whole))


def call(op, args):
    """The op's results by its kernel."""
    contract = CONTRACTS[op]
    count = contract.tensor_count
    options = dict(zip(list(contract.parameters)[count:], args[count:]))
    with accel.ops.use(f"{op}={IMPL}"):
        return each(getattr(accel.ops, op)(*args[:count], **options))
