"""What cannot be continued is refused in one line."""

import pytest
import torch

from builders import save, tiny_language_model, tiny_tokenizer
from klqlit.models.critic import SharedCritic
from klqlit.models.restoring import check_fits, vocabulary
from runs import make_data, make_module, make_trainer


@pytest.fixture(scope="module")
def checkpoint(quitter_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("restoring")
    trainer = make_trainer(folder, max_epochs=1)
    trainer.fit(make_module(quitter_dir), make_data())
    trainer.save_checkpoint(folder / "at.ckpt")
    return folder / "at.ckpt"


def go_on(checkpoint, path, **options):
    make_trainer(checkpoint.parent).fit(
        make_module(path, **options), make_data(), ckpt_path=checkpoint, weights_only=True
    )


def test_a_policy_of_another_shape(checkpoint, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_language_model("gpt_neox", tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    path = save(tmp_path, model, tokenizer)
    with pytest.raises(
        ValueError, match=r"holds another model: \d+ weights do not fit \(.* is \[\d+, 16\] there and \["
    ):
        go_on(checkpoint, path)


def test_another_critic(checkpoint, quitter_dir):
    with pytest.raises(ValueError, match=r"holds another model: \d+ weights do not fit \(critic\..* is only there"):
        go_on(checkpoint, quitter_dir, critic=SharedCritic)


def test_another_tokenizer_of_the_same_size(checkpoint, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_language_model("gpt_neox", tokenizer)
    words = tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<fill>"')
    other = type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(words), eos_token="<eos>")
    assert len(other) == len(tokenizer)
    assert vocabulary(other) != vocabulary(tokenizer)
    with pytest.raises(ValueError, match="saved with another tokenizer, whose ids stand for other tokens"):
        go_on(checkpoint, save(tmp_path, model, other))


def test_names_and_shapes_are_counted():
    one = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    check_fits(one, {name: value + 1 for name, value in one.items()})
    with pytest.raises(ValueError, match=r"3 weights .* \(a is \[2, 3\] there and \[3, 2\] here; b is only there\)"):
        check_fits(one, {"a": torch.zeros(3, 2), "c": torch.zeros(1)})
