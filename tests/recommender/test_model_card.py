"""What a saved recommender tells a reader: true, whole, and without a person in it."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from curerec.recommender import model_card, storage
from made_commands import rows


@pytest.mark.parametrize("which", ["full", "lora", "new", "retrains"])
def test_a_folder_s_readme_says_what_its_card_does(made_path, which):
    folder = {
        "full": made_path.full,
        "lora": made_path.lora,
        "new": made_path.new / "recommender",
        "retrains": made_path.retrains[0],
    }[which]
    card, text = storage.read_card(folder), (folder / model_card.FILE).read_text()
    assert text == model_card.model_card(card)
    head = ModelCard(text).data.to_dict()
    assert head["library_name"] == ("peft" if card["kind"] == "lora" else "transformers")
    assert ("machine-unlearning" in head["tags"]) == (which == "new")
    for value in (card["base"]["sha256"], card["data"]["fingerprint"], card["weights_sha256"]):
        assert value in text
    deleted = text.split("## What was deleted")[1].split("##")[0]
    if which == "new":
        assert card["unlearned"][0]["request"] in deleted and "`cure`" in deleted
    elif which == "retrains":
        assert card["without"] in deleted
    else:
        assert deleted.strip() == "Nothing."
    assert "More Information Needed" not in text  # the form that peft leaves to be filled in
    words = set(text.replace("`", " ").split())
    assert not words & {name for user, item, *_ in rows() for name in (user, item)}


def test_a_name_cannot_end_its_cell():
    card = {"answers": [1, 2], "base": {"name": "a`|\n# b"}, "template": "likes", "weights_sha256": "0"}
    assert "`a# b`" in model_card.model_card(card) and "\n# b" not in model_card.model_card(card)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/eve/base", "base"),
        ("./bases/base", "base"),
        ("owner/base", "owner/base"),
        ("nano-1", "nano-1"),
    ],
)
def test_a_base_is_named_without_the_folder_that_it_lies_in(name, shown):
    """The card is made to be handed out."""
    card = {"answers": [1, 2], "base": {"name": name}, "template": "likes", "weights_sha256": "0"}
    text = model_card.model_card(card)
    assert f"fine-tuning of `{shown}`," in text and f"| Base | `{shown}`," in text and "home" not in text


def test_what_was_trained_anew_is_not_told_as_an_update():
    card = {"answers": [1, 2], "base": {"name": "b"}, "template": "likes", "weights_sha256": "0"}
    text = model_card.model_card(
        {**card, "unlearned": [{"method": "cure", "request": "ab"}, {"method": "retrain"}]}
    )
    assert "1. `cure`, request `ab`\n2. trained anew" in text
