"""A recipe's settings reach the method they are for, and no other."""

from __future__ import annotations

import pytest

from curerec.config import parse
from curerec.errors import ConfigError
from curerec.methods import METHODS
from curerec.recipe import Recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_a_configuration_of_its_kind(name):
    config, kind = Recipe().config_of(name), METHODS[name][1]
    assert config is None if kind is None else isinstance(config, kind)


def test_settings_by_name():
    recipe = parse(Recipe, {"methods": {"scrub": {"epochs": 2}, "gru": {"ema": 0.5}}}, where="test")
    assert recipe.config_of("scrub").epochs == 2 and recipe.config_of("gru").ema == 0.5
    assert recipe.config_of("cagrad").c == 0.5
    with pytest.raises(ConfigError, match=r"methods\.rome"):
        parse(Recipe, {"methods": {"rome": {"epochs": 2}}}, where="test").config_of("rome")


def test_settings_of_a_method_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="scrubb"):
        parse(Recipe, {"methods": {"scrubb": {}}}, where="test")
