"""A recipe's settings reach the method they are for, and no other."""

from __future__ import annotations

import pytest

from curerec import models
from curerec.bench.recipe import load_bench
from curerec.bench.search import with_settings
from curerec.cli.inputs import recipe_for
from curerec.config import parse
from curerec.errors import ConfigError
from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig
from curerec.methods.teachers import TUNING
from curerec.methods.unlearn import SmallRequests, UnlearnConfig
from curerec.recipe import ModelConfig, Recipe
from curerec.recipes import load_recipe
from curerec.recommender.bases import make_nano
from curerec.recommender.storage import load_base
from made_catalogue import made_catalogue


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


def test_settings_of_methods_that_share_a_section_are_over_it():
    """They were read, kept with the recommender, and given to nobody."""
    shared = {"npo": {"beta": 0.2, "check_every": 6}, "cure": {"update": {"lr": 1e-4, "push": 2.0}}}
    mine = {
        "ga_kl": {"retain_weight": 3.0, "beta": 0.3},
        "npo": {"lr": 0.01},
        "random_groups": {"update": {"push": 4.0}},
    }
    recipe = parse(Recipe, {**shared, "methods": mine}, where="test")
    plain = parse(Recipe, shared, where="test")
    changed = {"ga_kl": {"retain_weight": 3.0, "beta": 0.3}, "npo": {"lr": 0.01}}
    for name, values in changed.items():
        assert recipe.config_of(name) == plain.config_of(name).model_copy(update=values)
    twin, cure = recipe.config_of("random_groups"), recipe.config_of("cure")
    assert (twin.update.push, twin.update.lr) == (4.0, 1e-4)
    assert cure == recipe.config_of("random_modules") == plain.config_of("cure")
    wrong = {"ga_kl": {"epochs": 2}, "random_groups": {"push": 2.0}, "retrain": {"lr": 1.0}}
    for name, settings in wrong.items():
        with pytest.raises(ConfigError, match=rf"methods\.{name}"):
            parse(Recipe, {"methods": {name: settings}}, where="test").config_of(name)


def test_a_key_of_a_part_leaves_the_part_s_others_as_the_method_has_them():
    """E2URec's teacher with another rate had the batches, epochs and schedule of a fine-tuning."""
    recipe = parse(Recipe, {"methods": {"e2urec": {"teacher": {"lr": 5e-4}}}}, where="test")
    assert recipe.config_of("e2urec").teacher == TUNING.model_copy(update={"lr": 5e-4})


def test_settings_of_a_method_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="scrubb"):
        parse(Recipe, {"methods": {"scrubb": {}}}, where="test")


def test_settings_of_another_recipe_leave_what_was_trained_and_the_machine():
    mine = parse(
        Recipe,
        {"model": {"kind": "full"}, "split": {"train": 9}, "seed": 3, "runtime": {"checkpoint": True}},
        where="test",
    )
    quick = load_recipe("quick")
    found = mine.with_settings_of(quick)
    assert (found.cure, found.npo, found.methods) == (quick.cure, quick.npo, quick.methods)
    for part in ("data", "split", "model", "request", "runtime", "seed"):
        assert getattr(found, part) == getattr(mine, part)
    with pytest.raises(ConfigError, match="an adapter"):
        mine.with_settings_of(load_recipe("lora"))


def test_the_size_of_the_small_model_is_written_only_where_it_was_chosen():
    assert "nano" not in Recipe().model_dump(mode="json")["model"]
    sized = parse(Recipe, {"model": {"nano": {"layers": 6, "heads": 8}}}, where="test")
    written = sized.model_dump(mode="json")
    assert written["model"]["nano"] == {"width": 64, "layers": 6, "heads": 8, "mlp": 176}
    assert parse(Recipe, written, where="test") == sized and sized.digest != Recipe().digest


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"base": "smollm2-135m", "nano": {"layers": 3}}, "other bases have their own"),
        ({"nano": {"width": 60, "heads": 4}}, "multiple of twice the heads"),
    ],
)
def test_a_size_that_no_model_has_is_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        parse(Recipe, {"model": model}, where="test")


def test_a_base_of_another_size_has_a_folder_of_its_own(tmp_path):
    seen = []

    def made(shape):
        return make_nano(
            ["A Film", "Another"], {}, lambda m, *_: seen.append(m), seed=0, shape=shape, cache=tmp_path
        )

    usual, deep = made(None), made({"layers": 3, "heads": 2})
    assert usual != deep and made({"layers": 3, "heads": 2}) == deep and len(seen) == 2
    assert seen[1].config.num_hidden_layers == 3 and load_base(deep)[0].config.num_attention_heads == 2


def test_another_base_by_option_leaves_the_small_models_size_behind(tmp_path):
    sized = tmp_path / "deep.yaml"
    sized.write_text("model: {base: nano, nano: {layers: 3}}\n")
    assert recipe_for(str(sized), "nano", None).model.nano.layers == 3
    other = recipe_for(str(sized), "smollm2-135m", None)
    assert parse(Recipe, other.model_dump(mode="json"), where="card") == other


@pytest.mark.parametrize(
    ("own", "model", "share"),
    [
        (None, "nano", 0.4), (None, "nano-0123456789ab", 0.4), (None, "some/folder", 0.0),
        ("extends: demo", "some/folder", 0.0), ("extends: demo\nsplit: {train: 9}", "owner/name", 0.0),
        ("extends: demo\nmodel: {base: some/folder}", None, 0.0), ("extends: demo", None, 0.4),
        ("extends: demo\nsplit: {public_share: 0.3}", "some/folder", 0.3),
        ("extends: between.yaml", "some/folder", 0.2), ("extends: lora", "some/folder", 0.0),
    ],
)  # fmt: skip
def test_no_users_are_kept_for_a_base_that_is_not_made_of_them(own, model, share, tmp_path, capsys):
    (tmp_path / "between.yaml").write_text("extends: quick\nsplit: {public_share: 0.2}\n")
    (tmp_path / "own.yaml").write_text(f"{own}\n")
    found = recipe_for("demo" if own is None else str(tmp_path / "own.yaml"), model, None)
    assert found.split.public_share == share and found.split.train in (9, 7000, 12000)
    told = "no users are kept for the base" in capsys.readouterr().out
    assert told is (share == 0 and own != "extends: lora")


#: What an adapter on a base that knows nothing of the task has otherwise than the demo (docs/method.md).
OF_ADAPTERS = {
    ("tau",): 0.5,
    ("saliency",): 0.1,
    ("rolled_back",): None,
    ("kept",): {"forget": 1.0, "retain": 1.0, "shared": 1.0},
    ("project",): None,
    ("update", "push"): 1.5,
    ("update", "check_every"): 20,
    ("update", "looks"): "steps",
    ("update", "pace_from"): "original",
    ("update", "open_gap"): None,
    ("update", "projection"): None,
    ("update", "anchor"): None,
    ("update", "small", "open_gap"): None,
    ("update", "small", "rolled_back"): None,
    ("update", "small", "anchor"): None,
}


def flat(values, at=()):
    """Settings that are not None by their path; ``kept`` as one."""
    found = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key != "kept"
        found |= flat(value, (*at, key)) if nested else {(*at, key): value}
    return set_alone(found)


def set_alone(found):
    """Those that are not None."""
    return {path: value for path, value in found.items() if value is not None}


@pytest.mark.parametrize("name", ["lora", "e2urec"])
def test_ready_recipes_have_the_settings_in_force(name):
    """All but the rates, which go with training's, and what is an adapter's own."""
    ready = load_recipe(name)
    demo, mine = flat(load_recipe("demo").cure.model_dump()), flat(ready.cure.model_dump())
    rates = {
        ("update", "lr"): ready.model.tuning.lr / 2,
        ("update", "small", "lr"): ready.model.tuning.lr / 4,
    }
    assert mine == set_alone({**demo, **OF_ADAPTERS, **rates})


def test_quick_is_the_demo_with_fewer_prompts():
    quick, demo = load_recipe("quick"), load_recipe("demo")
    fewer = {"retain_batch_size": 24, "lr": 6e-4, "push": 1.5, "check_size": 150}
    fewer |= {"check_every": 20, "looks": "steps", "pace_from": "original"}
    assert flat(quick.cure.model_dump()) == set_alone(
        {**flat(demo.cure.model_dump()), **{("update", key): value for key, value in fewer.items()}}
    )
    for name in ("split", "model", "request", "npo"):
        assert getattr(quick, name) == getattr(demo, name)


def test_the_language_models_bench_has_an_adapters_settings():
    """And batches of its own, for a model of 1,200 prompts."""
    bench = load_bench("smollm2")
    cure = flat(bench.setting("ml-100k", "smollm2-135m", ask=bench.requests[0]).cure.model_dump())
    demo = flat(load_recipe("demo").cure.model_dump())
    own = {("update", "lr"): 1e-3, ("update", "small", "lr"): 5e-4, ("update", "retain_batch_size"): 24}
    assert cure == set_alone({**demo, **OF_ADAPTERS, **own})


@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
@pytest.mark.parametrize(
    ("name", "bench_name"),
    [
        ("demo", "nano"),
        ("demo", "nano_searched"),
        ("lora", "paper"),
        ("demo", "smollm2"),
        ("e2urec", None),
        ("quick", None),
    ],
)
def test_other_rules_on_the_same_losses_run_in_the_same_loop(name, bench_name, method):
    """Else a table compares loops: damping and a gradient of all of D_f are worth more than most rules.

    What is projected, gradients or steps, is of the rule: theirs are those of their papers. Nor have they
    the anchor, which holds back those that start far from where they are to end, and rate and push are each
    rule's own, as are push and steps of small requests (docs/experiments.md).
    """

    def alike(recipe):
        ours, theirs = recipe.cure.update, recipe.config_of(method)
        fields = set(type(ours).model_fields) - {"projection", "anchor", "small", "lr", "push"}
        assert all(getattr(theirs, field) == getattr(ours, field) for field in fields)
        assert (theirs.projection, theirs.anchor) == (None, None)
        for_small = set(type(ours.small).model_fields) - {"anchor", "push", "max_steps"}
        assert all(getattr(theirs.small, field) == getattr(ours.small, field) for field in for_small)

    alike(load_recipe(name))
    if bench_name is None:
        return
    bench = load_bench(bench_name)
    for data in bench.datasets:
        for model, of in bench.models.items():
            inside = bench.setting(data, model, ask=bench.requests[0], seed=bench.seeds[0])
            alike(inside)
            if not of.change:  # what holds for every method leaves these as the recipe has them
                assert inside.config_of(method) == load_recipe(name).config_of(method)
    if bench.search is None:  # `nano` searches nothing
        return
    points = bench.search.grids
    if method in points or bench_name != "smollm2":
        assert points[method] == {k.removeprefix("update."): v for k, v in points["cure"].items()}


def test_other_rules_have_one_set_of_settings_for_small_requests():
    demo = load_recipe("demo")
    first, *others = [demo.config_of(name).small for name in ("weighted_sum", "pcgrad", "cagrad", "gru")]
    assert first.max_steps and first.push and all(other == first for other in others)


def test_a_recipe_has_what_it_extends_but_for_its_own(tmp_path):
    (tmp_path / "ours.yaml").write_text("extends: lora\nsplit: {train: 500}\nmodel: {lora: {r: 4}}\n")
    lora, ours = load_recipe("lora"), load_recipe(str(tmp_path / "ours.yaml"))
    adapter = lora.model.lora.model_copy(update={"r": 4})
    changed = {
        "split": lora.split.model_copy(update={"train": 500}),
        "model": lora.model.model_copy(update={"lora": adapter}),
    }
    assert ours == lora.model_copy(update=changed) and ours != lora


def test_a_recipe_that_extends_none_has_the_defaults_but_for_its_own(tmp_path):
    """With other steps `cure` forgot by NPO's loss, and training with other epochs had other batches."""
    (tmp_path / "ours.yaml").write_text("cure: {update: {max_steps: 7}}\nmodel: {tuning: {epochs: 3}}\n")
    ours, plain = load_recipe(str(tmp_path / "ours.yaml")), Recipe()
    assert ours.cure.update == plain.cure.update.model_copy(update={"max_steps": 7})
    assert ours.model.tuning == plain.model.tuning.model_copy(update={"epochs": 3})


def test_a_part_given_in_python_has_the_field_s_defaults_but_for_its_own():
    """It had those of its class: `cure` forgot by NPO's loss, and the teacher of E2URec had other batches."""
    given = CureConfig(update={"max_steps": 7, "small": {"below": 0.03}})
    small = SmallRequests(below=0.03)
    assert given.update == CureConfig().update.model_copy(update={"max_steps": 7, "small": small})
    assert CureConfig(update=UnlearnConfig()).update.forget_loss == "npo"  # what is whole stays what it is
    teacher = METHODS["e2urec"][1](teacher={"lr": 5e-4}).teacher
    assert teacher == TUNING.model_copy(update={"lr": 5e-4})
    deep = parse(Recipe, {"cure": {"update": {"lr": 0.1}}}, where="test").cure
    assert deep == CureConfig(update={"lr": 0.1}) and deep.update.forget_loss == "rewind"
    with pytest.raises(ConfigError, match=r"cure\.update\.steps"):
        parse(Recipe, {"cure": {"update": {"steps": 7}}}, where="test")
    with pytest.raises(ConfigError, match=r"cure\.update: Input should be"):
        parse(Recipe, {"cure": {"update": None}}, where="test")


STEPS = {"update": {"projection": "preconditioned", "optimizer": "sgd"}}
NO_USE = [
    ("cure", STEPS, "cure.update: .*projection .* use optimizer adamw"),
    ("cure", {"update": {"paced": True}}, "cure.update: .*paced .* use schedule linear"),
    ("cure", {"update": {"alpha": 3.0}}, "cure.update: .*alpha .* forget_loss teacher"),
    ("cure", {"rolled_back": 0.2}, "cure: .*rolled_back .* lower kept"),
    (
        "cure",
        {"update": {"open_gap": 0.2}, "kept": {"shared": 1.0}},
        r"cure: .*update\.open_gap .* lower kept",
    ),
    ("npo", {"damping": 0.1, "optimizer": "sgd"}, "npo: .*damping .* use optimizer adamw"),
    ("finetune", {"damping": 0.1, "optimizer": "sgd"}, "damping .* use optimizer adamw"),
    ("wise", {"damping": 0.1}, "damping .* leave it 0"),
    ("ngdiff", {"damping": 0.1}, "damping .* leave it 0"),
    ("gru", {"retain_weight": 2.0}, "retain_weight .* set descend_retain"),
    ("pcgrad", {"paced": True}, "paced .* leave it false"),
]


@pytest.mark.parametrize(("section", "values", "said"), NO_USE)
def test_settings_that_cannot_act_where_they_stand_are_refused(section, values, said):
    """They were taken, and nothing came of them."""
    where = {section: values} if section in ("cure", "npo") else {"methods": {section: values}}
    with pytest.raises(ConfigError, match=said):
        parse(Recipe, where, where="test").config_of(section)


def test_where_they_can_act_they_are_taken():
    loop = {"schedule": "linear", "paced": True, "damping": 0.1, "projection": "preconditioned"}
    given = {
        "cure": {"update": {**loop, "open_gap": 0.1}, "rolled_back": 0.2, "kept": {"forget": 0.5}},
        "npo": {"forget_loss": "teacher", "alpha": 3.0},
        "methods": {"gru": {"retain_weight": 2.0, "descend_retain": True}},
    }
    recipe = parse(Recipe, given, where="test")
    assert recipe.config_of("gru").retain_weight == 2.0
    assert parse(Recipe, recipe.model_dump(mode="json"), where="test") == recipe


def test_a_search_may_try_what_cannot_act_at_some_points_of_its_grid():
    """A recipe that paces is searched with a constant rate as well."""
    update = {"schedule": "linear", "paced": True, "damping": 0.1}
    config = parse(Recipe, {"methods": {"pcgrad": update}}, where="test").config_of("pcgrad")
    point = {"schedule": "constant", "optimizer": "sgd"}
    assert with_settings(config, point) == config.model_copy(update=point)


CONFIGS = dict.fromkeys(kind for _, kind in METHODS.values() if kind)  # in one order in every process


@pytest.mark.parametrize("kind", [Recipe, ModelConfig, *CONFIGS])
def test_what_is_written_is_read_as_it_was(kind):
    """Keys of later versions are left out while they are None: no default of a part may be anything else."""
    for field in kind.model_fields.values():
        for name in getattr(field.default, "added", ()):
            assert getattr(field.default, name) is None


def test_a_recipe_that_is_extended_is_seen_from_the_one_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "first.yaml").write_text("extends: demo\nseed: 3\nsplit: {train: 900}\n")
    (tmp_path / "deep" / "second.yaml").write_text("extends: ../first.yaml\nsplit: {train: null}\n")
    monkeypatch.chdir(tmp_path)
    found = load_recipe("deep/second.yaml")
    assert found.seed == 3 and found.split.train is None
    assert found.cure == load_recipe("demo").cure and "extends" not in found.model_dump()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": "extends: a.yaml\n"}, "extends itself"),
        ({"a": "extends: b.yaml\n", "b": "extends: a.yaml\n"}, "extends itself"),
        ({"a": "extends: nowhere\n"}, "neither a file nor a recipe"),
        ({"a": "extends: [demo, lora]\n"}, "extends is no name"),
        ({"a": "extends: b.yaml\n", "b": "- demo\n"}, r"b\.yaml: is not a mapping"),
        ({"a": "extends: b.yaml\n", "b": "seed: {\n"}, r"b\.yaml: is not YAML"),
        ({"a": "extends: b.yaml\n", "b": "splitt: {train: 5}\n"}, r"b\.yaml: does not fit \(splitt"),
        ({"a": "extends: demo\nsplitt: {train: 5}\n"}, r"a\.yaml: does not fit \(splitt"),
        ({"a": "extends: demo\nsplit: {trein: 5}\n"}, "split.trein"),
    ],
)
def test_what_cannot_be_extended_is_said(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_base_that_saw_other_histories_has_a_folder_of_its_own(monkeypatch):
    """A base pre-trained on prompts of another length is another base."""
    seen = []
    monkeypatch.setattr(models.bases, "make_nano", lambda titles, about, *_, **__: seen.append(about))
    data = made_catalogue(24)
    for split in ({}, {"history": 3}, {"history": 4}):
        split = {"public_share": 0.4, **split}
        models.base_folder(data, parse(Recipe, {"split": split}, where="test"))
    assert len({str(about) for about in seen}) == 3
    assert seen[0]["split"] == {"seed": 0, "public_share": 0.4}  # those made before keep their names
