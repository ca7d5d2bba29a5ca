"""Rows are dealt to steps, micro-batches and ranks so that nothing depends on the split."""

import json
from itertools import chain

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel
from tokenizers import processors

from builders import tiny_tokenizer
from klqlit.data.batching import plan_step, plan_steps, split
from klqlit.data.columns import TableSource
from klqlit.data.supervised import CompletionDataModule, PreferenceDataModule, pack
from klqlit.tokenising import encode_completions, encode_prompts

# Packing and tokenising


def test_pack_pads_prompts_left_and_completions_right():
    packed = pack([[1, 2], [3]], [[4], [5, 6, 7]], pad=0)
    assert packed.prompt_tokens.tolist() == [[1, 2], [0, 3]]
    assert packed.prompt_mask.tolist() == [[True, True], [False, True]]
    assert packed.tokens.tolist() == [[4, 0, 0], [5, 6, 7]]
    assert packed.mask.tolist() == [[True, False, False], [True, True, True]]


def test_the_mask_goes_by_length_where_pad_is_eos():
    tokenizer = tiny_tokenizer(pad_token="<eos>")
    rows = encode_completions(tokenizer, [" a", " bread"], limit=9)
    packed = pack([[5], [5]], rows, tokenizer.pad_token_id)
    assert packed.mask.sum(dim=1).tolist() == [len(row) for row in rows]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)


def test_a_completion_that_is_cut_stays_open():
    tokenizer = tiny_tokenizer()
    whole = encode_completions(tokenizer, [" How do I bake bread?"], limit=99)[0]
    assert encode_completions(tokenizer, [" How do I bake bread?"], limit=len(whole))[0] == whole
    assert encode_completions(tokenizer, [" How do I bake bread?"], limit=3)[0] == whole[:3]
    assert tokenizer.eos_token_id not in whole[:-1]


def test_prompts_keep_what_opens_them_and_lose_the_eos_that_closes_them():
    tokenizer = tiny_tokenizer()
    bread = tokenizer("bread")["input_ids"]
    assert encode_prompts(tokenizer, ["bread", "bread<eos>"]) == [bread, [*bread, tokenizer.eos_token_id]]
    # Some tokenizers open and close every text by themselves.
    frame = processors.TemplateProcessing(single="<pad> $A <eos>", special_tokens=[("<pad>", 1), ("<eos>", 0)])
    tokenizer.backend_tokenizer.post_processor = frame
    assert tokenizer("bread")["input_ids"] == [1, *bread, 0]
    assert encode_prompts(tokenizer, ["bread"]) == [[1, *bread]]
    assert encode_completions(tokenizer, ["bread"], limit=9) == [[*bread, 0]]


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="the prompt '' has no token"):
        encode_prompts(tiny_tokenizer(), [""])


# Dealing


def test_a_short_last_piece_joins_the_one_before():
    assert split(range(5), 2, least=1) == [range(0, 2), range(2, 4), range(4, 5)]
    assert [list(piece) for piece in split(range(5), 2, least=2)] == [[0, 1], [2, 3, 4]]
    assert split([7], 2, least=2) == [[7]]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=4, max_size=70),
    batch_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    ranks=st.integers(1, 4),
)
def test_every_row_is_dealt_once_and_ranks_run_in_step(lengths, batch_size, accumulate, ranks):
    order = list(reversed(range(len(lengths))))
    steps = plan_steps(order, lengths, batch_size=batch_size, accumulate=accumulate, ranks=ranks)
    assert sorted(row for step in steps for rows in step for row in rows) == sorted(order)
    assert all(len(step) == accumulate for step in steps[:-1])
    assert len(steps[-1]) <= accumulate
    for step in steps:
        dealt = [[rows[rank::ranks] for rows in step] for rank in range(ranks)]
        assert all(rows for rank in dealt for rows in rank)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=24, max_size=24),
    sizes=st.sampled_from([(4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)]),
)
def test_a_step_has_the_same_rows_however_it_is_split(lengths, sizes):
    batch_size, accumulate, ranks = sizes
    whole = plan_steps(range(24), lengths, batch_size=8, accumulate=1, ranks=1)
    parts = plan_steps(range(24), lengths, batch_size=batch_size, accumulate=accumulate, ranks=ranks)
    assert [[row for rows in step for row in rows] for step in parts] == [list(step[0]) for step in whole]


def test_neighbours_are_of_like_length():
    assert plan_step(range(4), [3, 9, 4, 8], batch_size=2, ranks=1) == [[1, 3], [2, 0]]
    with pytest.raises(ValueError, match="2 rows cannot be dealt to 3 devices"):
        plan_step(range(2), [1, 1], batch_size=2, ranks=3)


# Data modules under a trainer


class Recorder(L.LightningModule):
    """Notes the batches it is given."""

    def __init__(self, max_positions=None):
        super().__init__()
        self.tokenizer = tiny_tokenizer()
        self.max_positions = max_positions
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def source(tmp_path):
    rows = [
        {"prompt": f"{i} " * (1 + i % 3), "completion": f" {i}" * (1 + i % 4), "chosen": " yes" * i, "rejected": " no"}
        for i in range(1, 22)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return TableSource(str(tmp_path / "rows.json"), validation_rows=3)


def fit(module, data, tmp_path, *, ckpt_path=None, **options):
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False} | options
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def prompts(module, batches):
    """The prompts of batches, as text, batch by batch."""
    sides = [batch.sequences for batch in batches]
    return [[module.tokenizer.decode(t[m]) for t, m in zip(s.prompt_tokens, s.prompt_mask, strict=True)] for s in sides]


def test_every_row_is_seen_once_an_epoch_in_another_order_each_time(source, tmp_path):
    module = Recorder()
    fit(module, CompletionDataModule(source, batch_size=4), tmp_path, max_epochs=2)
    train = sorted(row["prompt"] for row in source.rows("train"))
    epochs = [prompts(module, module.seen[:5]), prompts(module, module.seen[5:])]
    assert [sorted(chain(*epoch)) for epoch in epochs] == [train, train]
    assert epochs[0] != epochs[1]
    held = sorted(row["prompt"] for row in source.rows("validation"))
    assert sorted(chain(*prompts(module, module.validated[:1]))) == held
    again, other = Recorder(), Recorder()
    fit(again, CompletionDataModule(source, batch_size=4), tmp_path)
    fit(other, CompletionDataModule(source, batch_size=4, seed=1), tmp_path)
    assert prompts(again, again.seen) == epochs[0]
    assert prompts(other, other.seen) != epochs[0]


def test_completions_are_what_the_row_says_and_their_tokens_are_counted_by_step(source, tmp_path):
    module = Recorder()
    fit(module, CompletionDataModule(source, batch_size=2), tmp_path, accumulate_grad_batches=2)
    expected = {row["prompt"]: row["completion"] + "<eos>" for row in source.rows("train")}
    for batch in module.seen:
        s = batch.sequences
        texts = [module.tokenizer.decode(t[m]) for t, m in zip(s.tokens, s.mask, strict=True)]
        assert texts == [expected[prompt] for prompt in prompts(module, [batch])[0]]
    counts = [int(batch.sequences.mask.sum()) for batch in module.seen]
    # 18 rows: four steps of two micro-batches of two rows, and a last step of one.
    steps = [counts[i : i + 2] for i in range(0, 9, 2)]
    assert [batch.tokens for batch in module.seen] == [sum(step) for step in steps for _ in step]


def test_a_step_that_an_early_end_cuts_counts_only_what_is_seen(source, tmp_path):
    module = Recorder()
    fit(module, CompletionDataModule(source, batch_size=2), tmp_path, accumulate_grad_batches=2, limit_train_batches=3)
    counts = [int(batch.sequences.mask.sum()) for batch in module.seen]
    assert [batch.tokens for batch in module.seen] == [counts[0] + counts[1], counts[0] + counts[1], counts[2]]


def test_a_run_that_never_validates_needs_no_held_out_rows(source, tmp_path):
    module, data = Recorder(), CompletionDataModule(source, batch_size=2)
    rows = source.rows
    source.rows = lambda split: rows(split) if split == "train" else []
    fit(module, data, tmp_path, limit_val_batches=0)
    assert len(module.seen) == 9
    with pytest.raises(ValueError, match="TableSource has no validation rows"):
        fit(module, data, tmp_path)


def test_pairs_share_their_prompts(source, tmp_path):
    module = Recorder()
    fit(module, PreferenceDataModule(source, batch_size=4), tmp_path)
    for batch in module.seen:
        assert torch.equal(batch.chosen.prompt_tokens, batch.rejected.prompt_tokens)
        lengths = [len(module.tokenizer(" no")["input_ids"]) + 1] * len(batch)
        assert batch.rejected.mask.sum(dim=1).tolist() == lengths
    assert [batch.pairs for batch in module.seen] == [4, 4, 4, 4, 2]


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_run_sees_what_the_whole_run_would_have_seen(source, tmp_path, stop, recwarn):
    def data():
        return CompletionDataModule(source, batch_size=2)

    # Nine batches an epoch, two to a step: steps of 2, 2, 2, 2 and 1.
    options = {"accumulate_grad_batches": 2, "max_epochs": 3, "enable_checkpointing": True}
    whole, first, second = Recorder(), Recorder(), Recorder()
    fit(whole, data(), tmp_path, **options)
    every = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=1)
    fit(first, data(), tmp_path, **options, max_steps=stop, callbacks=[every])
    fit(second, data(), tmp_path, **options, ckpt_path=every.best_model_path)
    seen = prompts(whole, whole.seen)
    assert len(seen) == 27
    assert prompts(first, first.seen) == seen[: len(first.seen)]
    assert prompts(second, second.seen) == seen[len(first.seen) :]
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


def test_the_rest_of_an_epoch_is_dealt_as_it_began(source, tmp_path):
    every = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    first = {"max_epochs": 1, "enable_checkpointing": True, "callbacks": [every]}
    fit(Recorder(), CompletionDataModule(source, batch_size=2), tmp_path, **first)
    changed = CompletionDataModule(source, batch_size=3)
    with pytest.raises(ValueError, match=r"stands in the middle of its epoch.*data.batch_size was 2 and is 3"):
        fit(Recorder(), changed, tmp_path, max_epochs=2, ckpt_path=tmp_path / "step=4.ckpt")
    again = Recorder()
    fit(again, CompletionDataModule(source, batch_size=3), tmp_path, max_epochs=2, ckpt_path=tmp_path / "step=9.ckpt")
    assert len(again.seen) == 6


def test_long_rows_are_cut_and_counted_in_one_line(source, tmp_path, caplog):
    module = Recorder()
    with caplog.at_level("INFO"):
        fit(module, CompletionDataModule(source, batch_size=4, max_prompt_tokens=3, max_completion_tokens=5), tmp_path)
    ids = [module.tokenizer(row["prompt"])["input_ids"] for row in source.rows("train")]
    long = sum(len(row) > 3 for row in ids)
    ends = [len(module.tokenizer(row["completion"])["input_ids"]) + 1 > 5 for row in source.rows("train")]
    assert 0 < long < 18
    assert 0 < sum(ends) < 18
    assert f"train: of 18 rows, {long} prompts had more than 3 tokens and were shortened, {sum(ends)} c" in caplog.text
    assert max(batch.sequences.prompt_mask.sum(dim=1).max() for batch in module.seen) == 3
    assert max(batch.sequences.mask.sum(dim=1).max() for batch in module.seen) == 5


def test_overfitting_sees_the_same_batches_every_epoch(source, tmp_path):
    module = Recorder()
    fit(module, CompletionDataModule(source, batch_size=2), tmp_path, overfit_batches=2, max_epochs=2)
    assert prompts(module, module.seen[:2]) == prompts(module, module.seen[2:])


@pytest.mark.parametrize("name", ["batch_size", "max_prompt_tokens", "max_completion_tokens"])
def test_sizes_must_be_positive(source, name):
    with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
        CompletionDataModule(source, **{name: 0})


def test_rows_without_the_completions_are_refused(tmp_path):
    (tmp_path / "prompts.json").write_text('["a", "b"]')
    data = PreferenceDataModule(TableSource(str(tmp_path / "prompts.json")))
    with pytest.raises(ValueError, match="needs 'chosen' and 'rejected' in every row, but train row 1 "):
        fit(Recorder(), data, tmp_path)


def test_rows_longer_than_the_model_reads_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"a train row has \d+ tokens, but the model reads at most 8: lower max"):
        fit(Recorder(max_positions=8), CompletionDataModule(source), tmp_path)


def test_other_modules_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="CompletionDataModule feeds SupervisedFinetuning or RewardModelling, not B"):
        fit(BoringModel(), CompletionDataModule(source), tmp_path)
