"""Contracts: samples, bad inputs, and that the quick check agrees with the thorough one."""

import functools

import pytest
import torch
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from accel import testing
from accel.contracts import CONTRACTS, LINEAR
from accel.errors import OpArgumentError
from accel.op_builder import FAMILIES

HOST = torch.device(testing.HOST)
F32 = torch.float32
BAD = [(op, bad) for op, contract in CONTRACTS.items() for bad in contract.bad_inputs()]

each_op = pytest.mark.parametrize("op", CONTRACTS)
each_bad = pytest.mark.parametrize(("op", "bad"), BAD, ids=[f"{op}-{b.name}" for op, b in BAD])


def tensors(contract, args):
    return args[: contract.tensor_count]


def fits(contract, args):
    try:
        return contract.fits(*tensors(contract, args))
    except AttributeError:
        return False


@each_op
def test_samples_fit_and_are_accepted(op):
    contract = CONTRACTS[op]
    names = [sample.name for sample in contract.samples()]
    assert len(names) == len(set(names))
    for sample in contract.samples():
        for dtype in contract.tolerance:
            args = sample.make(dtype, HOST)
            contract.check(*args)
            assert fits(contract, args), sample.name


def results(contract, args):
    """The reference's, one or several, as a tuple."""
    found = contract.reference(*args)
    return found if contract.result_count > 1 else (found,)


def differ(ones, twos):
    return any(one.dtype != two.dtype or not torch.equal(one, two) for one, two in zip(ones, twos))


def matters(contract, args, less):
    try:
        contract.check(*less)
        return differ(results(contract, args), results(contract, less))
    except OpArgumentError:  # without it the others make no sense
        return True


# How much is held at once is seen by memory alone.
OF_MEMORY = {("tiled_mlp", "tile_rows")}


@each_op
def test_every_argument_matters_in_some_sample(op):
    contract = CONTRACTS[op]
    made = [sample.make(torch.bfloat16, HOST) for sample in contract.samples()]
    for index, (name, parameter) in enumerate(contract.parameters.items()):
        if parameter.default is not parameter.empty and (op, name) not in OF_MEMORY:
            without = [(*args[:index], parameter.default, *args[index + 1 :]) for args in made]
            assert any(matters(contract, *both) for both in zip(made, without)), name


@each_op
def test_a_sample_depends_on_its_name_alone(op):
    for sample in CONTRACTS[op].samples():
        for one, two in zip(sample.make(F32, HOST), sample.make(torch.float64, HOST)):
            if isinstance(one, torch.Tensor):
                assert_agree(one, two.to(one.dtype))


@each_op
def test_the_fake_has_the_shape_and_dtype_of_the_result(op):
    contract = CONTRACTS[op]
    for sample in contract.samples():
        args = sample.make(F32, HOST)
        promised = contract.fake(*args)
        fakes = promised if contract.result_count > 1 else (promised,)
        for real, fake in zip(results(contract, args), fakes, strict=True):
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype), sample.name


@each_op
def test_the_schema_names_the_reference_s_arguments(op):
    contract = CONTRACTS[op]
    schema = torch._C.parse_schema(f"{op}{contract.schema}")
    assert [a.name for a in schema.arguments] == list(contract.parameters)
    for argument, parameter in zip(schema.arguments, contract.parameters.values()):
        if parameter.default is parameter.empty:
            assert not argument.has_default_value()
        else:
            assert argument.default_value == parameter.default
    assert contract.family in FAMILIES
    assert set(contract.options) <= set(contract.parameters)


# -- bad inputs --------------------------------------------------------------------------------


@each_bad
def test_a_bad_input_is_refused_by_the_check(op, bad):
    with pytest.raises(OpArgumentError, match=bad.says) as caught:
        CONTRACTS[op].check(*bad.make(F32, HOST))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value).startswith(f"{op}: ")


@each_bad
def test_a_bad_input_that_fits_is_bad_in_what_fits_does_not_see(op, bad):
    contract = CONTRACTS[op]
    args = bad.make(F32, HOST)
    if fits(contract, args):
        count = contract.tensor_count
        odd_device = len({t.device for t in args[:count] if t is not None}) > 1
        odd_dtype = not contract.key(args).dtype.is_floating_point
        good_options = next(iter(contract.samples())).make(F32, HOST)[count:]
        assert odd_device or odd_dtype or args[count:] != good_options


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def plainly(call, op, args):
    return call(op, args)


def warm(call, op, args):
    """After a good call of the same dtype has been bound."""
    call(op, next(iter(CONTRACTS[op].samples())).make(F32, HOST))
    return call(op, args)


def recording(call, op, args):
    count = CONTRACTS[op].tensor_count
    args = [
        a.requires_grad_() if i < count and a is not None and a.is_floating_point() else a
        for i, a in enumerate(args)
    ]
    return call(op, args)


def watched(call, op, args):
    with Watch():
        return call(op, args)


def batched(call, op, args):
    return torch.vmap(lambda x: call(op, (x, *args[1:])))(args[0][None])


@each_bad
@pytest.mark.parametrize("way", [plainly, warm, recording, watched, batched])
def test_a_bad_input_is_refused_at_the_door_whichever_way_it_comes(
    op, bad, way, call, torch_serves
):
    with pytest.raises(OpArgumentError, match=bad.says):
        way(call, op, bad.make(F32, HOST))


# -- fits and check ----------------------------------------------------------------------------

own = None
dtypes = st.sampled_from([own] * 8 + [F32, torch.float64, torch.int32])
sizes = st.integers(0, 3)


@functools.cache
def good_arguments(op):
    """Per sample the tensors' shapes and dtypes, None for one left out, and the options."""
    count = CONTRACTS[op].tensor_count
    made = [sample.make(F32, torch.device("meta")) for sample in CONTRACTS[op].samples()]
    return [
        ([a if a is None else (tuple(a.shape), a.dtype) for a in args[:count]], args[count:])
        for args in made
    ]


@st.composite
def arguments(draw, contract):
    """Tensors that fit, most of the time; else with a shape, a rank or a dtype gone wrong. And
    the options of the sample they are made like."""
    made = []
    parameters = contract.parameters.values()
    like, options = draw(st.sampled_from(good_arguments(contract.name)))
    for good, parameter in zip(like, parameters):
        if good is None or (parameter.default is None and draw(st.booleans())):
            made.append(None)
            continue
        shape, dtype = good
        odd = draw(
            st.sampled_from(
                [shape, (*shape, 2), shape[:-1], (*shape[:-1], draw(sizes)),
                 (draw(sizes), *shape[1:]), shape[1:]]
            )
        )  # fmt: skip
        changed = odd if draw(st.sampled_from([False, False, True])) else shape
        made.append(torch.empty(changed, dtype=draw(dtypes) or dtype, device="meta"))
    return made, options


def accepts(contract, args):
    try:
        contract.check(*args)
    except OpArgumentError:
        return False
    return True


@each_op
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_does_not_fit_is_refused_and_what_is_accepted_fits(op, data):
    contract = CONTRACTS[op]
    given_tensors, options = data.draw(arguments(contract))
    defaults = [p.default for p in list(contract.parameters.values())[contract.tensor_count :]]
    # What some options would make good fits: a seed left out that another p does not need.
    accepted = any(accepts(contract, (*given_tensors, *those)) for those in (options, defaults))
    floating = contract.key(given_tensors).dtype.is_floating_point
    assert accepted == (bool(contract.fits(*given_tensors)) and floating)


def test_the_cost_of_a_product_counts_multiplications_and_additions():
    cost = LINEAR.cost(torch.empty(7, 3, 5), torch.empty(11, 5), None, None, None)
    assert cost.flops == 2 * 21 * 11 * 5
    assert cost.bytes == 4 * (21 * 5 + 11 * 5 + 21 * 11)
