"""Two ranks that share a model's layers answer their prompts together, and each gets what it would
get alone, bit for bit."""

import pytest
import sharing
import torch
from agreement import assert_agree
from joining import joined
from measures import seeded
from sharing_ways import OTHERS, seen_by_hooks

import accel

# Name of the model, config, what is asked for.
CASES = {
    f"{name} {dtype}": (f"{name} {dtype}", {}, {})
    for name in sharing.ODD_ONES
    for dtype in sharing.DTYPES
} | {
    "PEFT": ("llama with PEFT bf16", {}, {}),
    "PEFT on one weight for three": ("gpt2 with PEFT fp32", {}, {}),
    "DeepSpeed-Chat's": ("opt with Chat bf16", {}, {}),
    "experts": ("mixtral bf16", {}, {}),
    "whole norms": ("olmo2 bf16", {}, {}),
    "slopes": ("bloom fp32", {}, {}),
    "without the adapter": ("llama with PEFT fp32", {}, {"adapter": None}),
    "fused": ("llama with PEFT fp32", {"exact": False, "fuse_lora": True}, {}),
    "greedy": ("odd llama fp32", {}, {"do_sample": False, "seed": None}),
    "several": ("odd llama fp32", {}, {"num_return_sequences": 3, "output_scores": True,
                                       "output_logits": True, "top_k": 0}),
    "processed": ("odd llama fp32", {}, {"repetition_penalty": 1.3, "top_p": 0.9,
                                         "temperature": 0.7, "no_repeat_ngram_size": 2}),
    "checked": ("odd llama fp32", {"check_exact": True, "micro_batch_size": 1}, {}),
    "in waves": ("odd llama fp32", {"kv_cache_bytes": 2 * 2 * 3 * 16 * 4 * 64}, {}),
}  # fmt: skip


def work(rank, port, found):
    with joined(rank, port, seconds=180):
        made = {case: sharing.rolled(n, rank, 2, config, **asked)
                for case, (n, config, asked) in CASES.items()}  # fmt: skip
        made |= {make.__name__: make(rank) for make in OTHERS}
        torch.save(made, found / str(rank))


@pytest.fixture(scope="module")
def found(in_two_processes):
    """What each of the ranks has made."""
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_each_rank_gets_what_it_would_get_alone_to_the_bit(found, case, rank):
    name, config, asked = CASES[case]
    roll, scored = found[rank][case]
    if config.get("exact", True):
        assert torch.equal(scored, roll.logprobs)
    want, _ = sharing.rolled(name, rank, 1, config, **asked)
    if asked.get("seed", 0) is None:  # of torch's own
        want = type(want)(**{**vars(want), "seed": roll.seed})
    sharing.same_rollout(roll, want)


def test_a_rank_without_prompts_helps_the_other(found):
    ids = sharing.prompts(0)[0]
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    want = alone.generate(ids, return_logprobs=True, **sharing.SAMPLED)
    for turn, (none, one) in enumerate(((0, 1), (1, 0))):
        sharing.same_rollout(found[one]["without_prompts"][turn], want)
        idle = found[none]["without_prompts"][turn]
        assert idle.sequences.shape == ((0, 0), (0, 3))[turn]
        assert idle.logprobs.shape == (0, 0)
        assert idle.attention_mask.shape == idle.sequences.shape


def test_a_prompt_that_two_ranks_have_is_two_samples(found):
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    ids = seeded((1, 5)).repeat(2, 1)
    both = alone.generate(ids, return_logprobs=True, **sharing.SAMPLED)
    numbered = alone.generate(ids, sample_ids=[4, 5], **sharing.SAMPLED)
    assert not torch.equal(both.sequences[0], both.sequences[1])
    for rank in range(2):
        roll, mine = found[rank]["the_same_prompt"]
        new = roll.logprobs.shape[1]
        assert torch.equal(roll.sequences[0], both.sequences[rank, : 5 + new])
        assert torch.equal(roll.logprobs[0], both.logprobs[rank, :new])
        assert not both.attention_mask[rank, 5 + new :].any()
        assert torch.equal(mine[0], numbered[rank, : mine.shape[1]])


def test_ranks_may_be_a_dimension_of_a_mesh(found):
    for rank in range(2):
        want, _ = sharing.rolled("odd llama fp32", rank, 1)
        assert torch.equal(found[rank]["of_a_chosen_group"], want.sequences)


def test_deepspeeds_names_share_as_its_configuration_says(found):
    for rank in range(2):
        want, _ = sharing.rolled("odd llama fp32", rank, 1)
        plain, _, grouped, _ = found[rank]["under_deepspeeds_names"]
        sharing.same_rollout(plain, want)
        sharing.same_rollout(grouped, want)
    seeds = [found[rank]["under_deepspeeds_names"][1::2] for rank in range(2)]
    assert seeds[0] == seeds[1]


def test_without_a_seed_the_first_ranks_serves(found):
    one, other = (found[rank]["without_seeds"] for rank in range(2))
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    torch.manual_seed(0)
    assert one.seed == other.seed == alone.plan.model.generate.new_seed()
    for rank, roll in enumerate((one, other)):
        sharing.same_rollout(roll, sharing.rolled("odd llama fp32", rank, 1, seed=one.seed)[0])


def test_one_rank_stops_all(found):
    for rank in range(2):
        roll = found[rank]["stopped"]
        assert roll.aborted
        assert roll.logprobs.shape[1] == 3


def test_copies_share_with_the_same_ranks(found):
    for rank in range(2):
        same, tokens = found[rank]["copied"]
        assert same == [True, True]
        assert torch.equal(tokens, sharing.rolled("odd llama fp32", rank, 1)[0].sequences)


def test_what_was_trained_generates_as_it_is_scored(found):
    for rank in range(2):
        (first, second), tokens = found[rank]["in_training"]
        for made, scored in (first, second):
            assert torch.equal(made, scored)
        assert not torch.equal(first[0], second[0])
        assert tokens == 2 * first[0].numel()


def test_parameters_may_be_sharded_over_the_ranks(found):
    for rank in range(2):
        roll, scored = found[rank]["sharded"]
        sharing.same_rollout(roll, sharing.rolled("odd llama fp32", rank, 1)[0])
        assert torch.equal(scored[:, -roll.logprobs.shape[1] :], roll.logprobs)


def test_sums_over_ranks_agree_but_for_roundings(found):
    ours = 0
    for rank in range(2):
        for roll, scored in found[rank]["summed"].values():
            assert_agree(roll.logprobs, scored)
            ours += not torch.equal(roll.logprobs, scored)
    assert ours, "some bit of so many differs, or nothing was summed"


@pytest.mark.parametrize("sums", [False, True], ids=["gathers", "sums"])
def test_the_plan_says_how_often_ranks_speak(found, sums):
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    both = [sharing.prompts(rank) for rank in range(2)]
    width = max(ids.shape[1] for ids, _ in both)
    ids = torch.cat([torch.nn.functional.pad(i, (width - i.shape[1], 0)) for i, _ in both])
    mask = torch.cat([torch.nn.functional.pad(m, (width - m.shape[1], 0)) for _, m in both])
    alone.generate(ids, mask, **sharing.GREEDY)
    kept = []
    for rank in range(2):
        calls, said, size = found[rank]["spoken"][sums]
        each = 2 * (2 if sums else 4) + 1
        assert calls == each * sharing.NEW
        assert f"keeps 2, 1 heads. {each} collectives a forward" in said
        assert ("partial products" in said) is sums
        kept.append(size)
    whole = alone.plan.model.generate.cache.bytes
    assert kept == [whole * 2 // 3, whole // 3]


def test_hooks_see_whole_results(found):
    for rank in range(2):
        for name, (tokens, shapes) in found[rank]["watched"].items():
            alone = accel.HybridEngine(sharing.made(name))
            want, widths = seen_by_hooks(alone, *sharing.prompts(rank))
            assert torch.equal(tokens, want)
            assert shapes == widths


# -- what goes wrong ---------------------------------------------------------------------------


def test_ranks_that_were_asked_for_something_else_say_so_and_go_on(found):
    says = ["max_new_tokens is 3 on rank 0, 4 on rank 1", "seed is 1 on rank 0, 2 on rank 1",
            "adapter is 'active' on rank 0, None on rank 1",
            "sample_ids is None on rank 0, given on rank 1",
            "top_k is 6 on rank 0, 5 on rank 1"]  # fmt: skip
    for rank in range(2):
        errors, tokens = found[rank]["asked_for_something_else"]
        for (error, message), words in zip(errors, says, strict=True):
            assert error == "RankError"
            assert words in message
        assert torch.equal(tokens, sharing.rolled("odd llama fp32", rank, 1)[0].sequences)


def test_what_one_rank_is_refused_all_hear_of(found):
    own = [("OpArgumentError", "empty: [0, 1]"), ("OpArgumentError", "found [7]"),
           ("OpArgumentError", "found [2, 7]")]  # fmt: skip
    (others, tokens), (errors, _) = (found[rank]["one_cannot"] for rank in range(2))
    for told, error, (kind, words) in zip(others, errors, own):
        assert error[0] == kind
        assert words in error[1]
        assert told[0] == "RankError"
        assert "rank 1 of the tensor-parallel group cannot take part" in told[1]
        assert words in told[1]
    assert others[3] == errors[3]
    assert "no rank of the tensor-parallel group has any" in errors[3][1]
    assert torch.equal(tokens, sharing.rolled("odd llama fp32", 0, 1)[0].sequences)


def test_what_is_not_shared_is_refused_by_name(found):
    for rank in range(2):
        for name, (error, message) in found[rank]["not_shared"].items():
            assert error == "UnsupportedCapability"
            assert f"inference_tp_size=2 does not serve {name}:" in message


def test_an_adapter_on_one_rank_is_no_rollout(found):
    for rank in range(2):
        error, message = found[rank]["an_adapter_on_one"]
        assert error == "RankError"
        assert "LoRA layers and their adapters is [] on rank 0" in message


def test_where_one_rank_raises_the_other_is_told_in_time(found):
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    for rank, want in enumerate(("RankError", "ValueError")):
        error, forwards, unchanged, scored, kept = found[rank]["one_raises"]
        assert error[0] == want
        assert forwards == 3
        assert unchanged
        assert kept == 0, "the cache was given back"
        assert torch.equal(scored, alone.logprobs(seeded((1, 4))).detach())
    message = found[0]["one_raises"][0][1]
    assert "rank 0 waited for a gather of activations from ranks [1] of its" in message
