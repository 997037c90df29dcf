"""lora_linear and logprob: what is true of them and of no other op."""

import math

import pytest
import torch
from agreement import assert_agree
from torch.utils._python_dispatch import TorchDispatchMode

from accel import ops, torch_impls
from accel.contracts import LINEAR, LOGPROB, LORA_LINEAR, vocabulary
from accel.testing import HOST

F64, BF16 = torch.float64, torch.bfloat16
INF = math.inf
HERE = torch.device(HOST)

SAMPLES = [(c, s) for c in (LORA_LINEAR, LOGPROB) for s in c.samples()]
each_sample = pytest.mark.parametrize(
    ("contract", "sample"), SAMPLES, ids=[f"{c.name}-{s.name}" for c, s in SAMPLES]
)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of three rows by seven columns."""
    monkeypatch.setattr(vocabulary, "BLOCK_ROWS", 3)
    monkeypatch.setattr(vocabulary, "TILE_BYTES", 3 * 7 * 4)


@pytest.fixture(params=["reference", "torch"])
def logprob(request):
    """The reference, or the implementation over eager torch, with the schema's defaults."""
    kernel = LOGPROB.reference
    if request.param == "torch":
        kernel = torch_impls._KERNELS["logprob"]
    return lambda *args, **kwargs: kernel(*LOGPROB.bind(args, kwargs))


def drawn(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def head(rows=7, hidden=12, vocabulary=20, dtype=F64):
    """x, ids, w, b"""
    ids = torch.arange(rows) * 5 % vocabulary
    return drawn(rows, hidden, dtype=dtype), ids, drawn(vocabulary, hidden, dtype=dtype, seed=1), (
        drawn(vocabulary, dtype=dtype, seed=2)
    )  # fmt: skip


def leaves(args):
    floats = lambda a: isinstance(a, torch.Tensor) and a.is_floating_point()  # noqa: E731
    return [a.detach().requires_grad_() if floats(a) else a for a in args]


def gradients(contract, args, which=(True, True)):
    """(the contract's gradients, those of autograd through its reference), where there are any;
    ``which`` of two results gradients come from."""
    args = leaves(args)
    results = contract.reference(*args)
    results = results if isinstance(results, tuple) else (results,)
    kept = [i for i in range(len(results)) if which[i]]
    grads = {i: drawn(*results[i].shape, dtype=results[i].dtype, seed=i) for i in kept}
    grad = tuple(map(grads.get, range(len(results))))
    needs = [isinstance(a, torch.Tensor) and a.requires_grad for a in args]
    kept_results = {"results": results} if contract.keeps_results else {}
    found = contract.backward(grad if len(results) > 1 else grad[0], needs, *args, **kept_results)
    assert len(found) == len(args)
    inputs = [a for a, need in zip(args, needs) if need]
    wanted = torch.autograd.grad([results[i] for i in kept], inputs, list(grads.values()))
    return [g for g, need in zip(found, needs) if need], wanted


@each_sample
def test_gradients_are_those_of_the_reference(contract, sample):
    for found, wanted in zip(*gradients(contract, sample.make(F64, HERE)), strict=True):
        assert_agree(found, wanted)


# -- lora_linear -------------------------------------------------------------------------------


def adapted(rank, dtype):
    return (
        drawn(5, 64, dtype=dtype), drawn(9, 64, dtype=dtype, seed=1),
        drawn(rank, 64, dtype=dtype, seed=2), drawn(9, rank, dtype=dtype, seed=3),
    )  # fmt: skip


def test_an_adapter_of_rank_nought_changes_nothing():
    x, w, lora_a, lora_b = adapted(0, BF16)
    for kernel in (LORA_LINEAR.reference, torch_impls._KERNELS["lora_linear"]):
        y = kernel(*LORA_LINEAR.bind((x, w, lora_a, lora_b)))
        assert torch.equal(y, LINEAR.reference(x, w))


@pytest.mark.parametrize("kind", ["reference", "torch"])
def test_nothing_is_rounded_before_the_sum(kind):
    """The adapter all but cancels the product: what is left has the digits that roundings of the
    product, of the inner product or of the adapter's share to bfloat16 would have taken."""
    x, w, lora_a, _ = adapted(9, BF16)
    lora_b = torch.eye(9, dtype=BF16)
    lora_a = (-w.float() * (1 + 2**-7)).to(BF16)  # a neighbour of -w or so
    kernel = LORA_LINEAR.reference if kind == "reference" else torch_impls._KERNELS["lora_linear"]
    y = kernel(*LORA_LINEAR.bind((x, w, lora_a, lora_b)))
    exact = x.double() @ (w.double() + lora_a.double()).t()
    assert (y - exact).abs().max() < 2**-8 * exact.abs().max()
    rounded = (x @ w.t()) + (x @ lora_a.t()) @ lora_b.t()
    assert (rounded - exact).abs().max() > 2**-8 * exact.abs().max()


def test_the_scale_is_the_adapters_alone():
    x, w, lora_a, lora_b = adapted(3, F64)
    b = drawn(9, seed=4)
    y = LORA_LINEAR.reference(x, w, lora_a, lora_b, b, scale=-2.5)
    merged = w - 2.5 * lora_b @ lora_a
    assert_agree(y, x @ merged.t() + b)


# -- logprob -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16, F64], ids=str)
def test_hidden_rows_and_their_logits_give_the_same_bits(dtype):
    x, ids, w, b = head(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    logits = LINEAR.reference(x, w, b, out_dtype=wide)
    adjustment = {"scale": 1.7, "softcap": 3.0, "temperature": 0.6}
    for options in ({}, adjustment):
        fused = LOGPROB.reference(x, ids, w, b, **options)
        for one, other in zip(fused, LOGPROB.reference(logits, ids, **options)):
            assert one.dtype is wide
            assert torch.equal(one, other)


def test_logprob_and_entropy_are_what_torch_calls_so(logprob):
    z, ids = drawn(6, 50), torch.arange(6)
    chosen, entropy = logprob(z, ids)
    known = torch.distributions.Categorical(logits=z)
    assert_agree(chosen, known.log_prob(ids))
    assert_agree(entropy, known.entropy())


def test_the_entropy_of_equal_logits_is_the_logarithm_of_their_number(logprob):
    for height in (0.0, 1e4, -1e4):
        chosen, entropy = logprob(torch.full((2, 64), height), torch.tensor([0, 63]))
        assert_agree(entropy, torch.full((2,), math.log(64)), operations=8)
        assert_agree(chosen, -entropy, operations=8)


def test_one_of_one_is_certain(logprob):
    chosen, entropy = logprob(torch.tensor([[123.0]]), torch.tensor([0]))
    assert (chosen.item(), entropy.item()) == (0.0, 0.0)


def test_scale_then_softcap_then_temperature(logprob):
    z, ids = drawn(6, 50), torch.arange(6)
    together = logprob(z, ids, scale=3.0, softcap=2.0, temperature=0.5)
    for one, other in zip(together, logprob(2.0 * torch.tanh(z * 3.0 / 2.0) / 0.5, ids)):
        assert_agree(one, other)


def test_defaults_change_no_bit(logprob):
    z, ids = drawn(6, 50, dtype=torch.float32), torch.arange(6)
    for one, other in zip(logprob(z, ids), logprob(z, ids, scale=1.0, temperature=1.0)):
        assert torch.equal(one, other)


def test_a_logit_of_minus_infinity_is_of_no_probability(logprob):
    z = torch.tensor([[1.0, -INF, 2.0, -INF]] * 2)
    chosen, entropy = logprob(z, torch.tensor([0, 1]))
    without = logprob(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert chosen[0] == without[0][0]
    assert chosen[1] == -INF
    assert entropy.tolist() == [without[1].item()] * 2


def test_minus_infinity_has_a_gradient_of_numbers():
    z = torch.tensor([[1.0, -INF, 2.0, -INF]] * 2, dtype=F64)
    (found,), (wanted,) = gradients(LOGPROB, LOGPROB.bind((z, torch.tensor([0, 1]))))
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted)
    # Of filtered logits nothing flows but to the id itself.
    assert found[0, [1, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("which", [(True, False), (False, True)], ids=["logprob", "entropy"])
@pytest.mark.usefixtures("small_tiles")
def test_one_result_may_have_no_gradient(which):
    for args in (LOGPROB.bind(head()), LOGPROB.bind((drawn(4, 20), torch.arange(4)))):
        for found, wanted in zip(*gradients(LOGPROB, args, which), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("torch_serves")
def test_either_result_alone_can_be_differentiated():
    for result in (0, 1):
        x, ids, w, b = head()
        mine = leaves((x, ids, w, b))
        theirs = leaves((x, ids, w, b))
        ops.logprob(*mine, temperature=0.5)[result].sum().backward()
        LOGPROB.reference(*theirs, temperature=0.5)[result].sum().backward()
        for one, other in zip(mine, theirs):
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad)


def test_tiles_cover_all_logits_once_within_their_bytes(monkeypatch):
    monkeypatch.setattr(vocabulary, "TILE_BYTES", 240)
    monkeypatch.setattr(vocabulary, "BLOCK_ROWS", 4)
    for rows, width in ((0, 5), (1, 0), (3, 20), (4, 21), (9, 100)):
        seen = torch.zeros(rows, width)
        for block in vocabulary.blocks(rows):
            for columns in vocabulary.tiles(len(seen[block]), width):
                seen[block, columns] += 1
                assert seen[block, columns].numel() <= 60
        assert (seen == 1).all()
    # A column at a time where not even one fits.
    assert len(list(vocabulary.tiles(1000, 4))) == 4


class Largest(TorchDispatchMode):
    """The most elements that an operation's result has in memory."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, torch.Tensor):
                held = one.untyped_storage().nbytes() // one.element_size()
                self.elements = max(self.elements, held)
        return made


def tiled(options):
    """Results and gradients over eager torch, and the most elements of a tensor on the way."""
    args = LOGPROB.bind(head(rows=40, hidden=3), options)
    needs = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in args]
    grads = drawn(40, seed=5), drawn(40, seed=6)
    with Largest() as largest:
        results = torch_impls._KERNELS["logprob"](*args)
        back = LOGPROB.backward(grads, needs, *args, results=results)
    return [*results, *(g for g in back if g is not None)], largest.elements


@pytest.mark.parametrize("options", [{}, {"scale": 2.0, "softcap": 1.5, "temperature": 0.7}])
def test_tiles_give_what_all_logits_give_and_hold_less(options, small_tiles, monkeypatch):
    parts, fewer = tiled(options)
    monkeypatch.undo()
    whole, all_logits = tiled(options)
    for one, other in zip(parts, whole, strict=True):
        assert_agree(one, other)
    assert all_logits == 40 * 20
    assert fewer == 40 * 3  # x itself


def test_the_gradient_of_a_weight_is_summed_in_fp32(monkeypatch):
    """1 and many times 2^-9: in bfloat16 the sum would stay 1."""
    monkeypatch.setattr(vocabulary, "BLOCK_ROWS", 1)
    rows = 301
    x = torch.full((rows, 1), 2.0**-9, dtype=BF16)
    x[0] = 1.0
    w, ids = torch.zeros(2, 1, dtype=BF16), torch.zeros(rows, dtype=torch.int64)
    args = LOGPROB.bind((x, ids, w))
    grads = torch.full((rows,), 2.0), None
    needs = (False, False, True, False)
    _, _, dw, *_ = LOGPROB.backward(grads, needs, *args, results=LOGPROB.reference(*args))
    assert_agree(dw[0], torch.tensor([1 + 300 / 512], dtype=BF16), operations=1)


@pytest.mark.parametrize("id", [-1, 20])
def test_an_id_beyond_the_vocabulary_is_an_error(logprob, id):
    x, ids, w, b = head()
    ids[3] = id
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        logprob(x, ids, w, b)
