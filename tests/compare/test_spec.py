import inspect

import pytest

from omnimix.compare.arguments import check_types
from omnimix.compare.spec import (
    Settings,
    Spec,
    canonical,
    cost,
    create,
    fingerprint,
    parse_seeds,
    parse_specs,
    parse_value,
    settings,
    write_value,
)
from omnimix.core import registry
from omnimix.core.method import Method
from omnimix.core.search import Choice
from omnimix.samples.pairing import PairsWithoutMixing, ResamplingOnly


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("0.2", 0.2),
        (".50", 0.5),
        ("1e-3", 0.001),
        ("1e+3", 1000),
        ("-1", -1),
        ("True", True),
        ("none", None),
        ("block1", "block1"),
        ("input+block1", ("input", "block1")),
        ("64+32", (64, 32)),
    ],
)
def test_values_are_typed_and_read_back_from_their_canonical_text(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)
    assert parse_value(write_value(value)) == value


def test_equal_specs_have_one_text():
    spec = Spec.parse(" mixup:per_sample=True:alpha=0.20 ")
    assert str(spec) == "mixup:alpha=0.2:per_sample=true"
    assert Spec.parse("mixup:alpha=32.0") == Spec.parse("mixup:alpha=32")
    assert str(Spec.parse("timm:resnet18:pretrained=true")) == "timm:resnet18:pretrained=true"
    assert Spec.parse("timm:resnet18").name == "timm:resnet18"


@pytest.mark.parametrize("text", ["mixup:alpha=", "mixup:=2", "mixup:alpha=1:alpha=2", "", "a b", "mixup:alpha=1:oops"])
def test_malformed_specs_are_refused(text):
    with pytest.raises(ValueError):
        Spec.parse(text)


def test_lists_of_methods():
    assert [str(s) for s in parse_specs("erm, mixup:alpha=0.2,c-mixup")] == ["erm", "mixup:alpha=0.2", "c-mixup"]
    with pytest.raises(ValueError, match="twice"):
        parse_specs("mixup:alpha=1,mixup:alpha=1.0")
    with pytest.raises(ValueError, match="at least one"):
        parse_specs(" , ")


def test_create_lays_the_users_parameters_over_defaults():
    method = create(Spec.parse("mixup:alpha=3"), {"alpha": 2, "per_sample": True})
    assert (method.ratio.alpha, method.ratio.per_sample) == (3, True)


def test_one_value_becomes_a_sequence_where_one_is_declared():
    assert create(Spec.parse("manifold-mixup:taps=block1")).taps == ("block1",)
    assert create(Spec.parse("manifold-mixup:taps=input+block1")).taps == ("input", "block1")
    assert create(Spec.parse("manifold-mixup:taps=none")).taps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixpu", "did you mean 'mixup'"),
        ("mixup:alpah=1", "did you mean 'alpha'"),
        ("mixup:zzz=1", "no parameter 'zzz'"),
        ("mixup:alpha=-1", "alpha must be"),
        ("mixup:alpha=big", "alpha must be"),
    ],
)
def test_unknown_names_and_parameters_are_refused_with_near_matches(text, message):
    with pytest.raises(ValueError, match=message):
        create(Spec.parse(text))


def test_seeds_are_a_count_or_a_list():
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("3,5,7") == (3, 5, 7)
    assert parse_seeds("4,") == (4,)
    for wrong in ("0", "", "a", "1,1", "-2,3"):
        with pytest.raises(ValueError, match="seeds"):
            parse_seeds(wrong)


def test_the_baseline_is_erm_or_the_first_or_the_one_asked_for():
    assert str(settings(data="x", methods=("mixup", "erm")).baseline_spec) == "erm"
    assert str(settings(data="x", methods=("mixup", "cutmix")).baseline_spec) == "mixup"
    assert str(settings(data="x", methods=("erm", "mixup:alpha=2"), baseline="mixup:alpha=2.0").baseline_spec) == (
        "mixup:alpha=2"
    )
    with pytest.raises(ValueError, match="not among"):
        settings(data="x", methods=("erm",), baseline="mixup")


def test_settings_are_checked_frozen_and_hashable():
    for wrong in ({"epochs": 0}, {"label_noise": 1.5}, {"lr": -1}, {"nonsense": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings(data="x", **wrong)
    one = settings(data="x", methods=("erm",))
    assert hash(one) == hash(Settings(data="x", methods=("erm",)))
    with pytest.raises(ValueError):
        one.data = "y"


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert canonical({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2, "b": 2})
    with pytest.raises(ValueError):
        canonical(float("nan"))


@pytest.mark.parametrize(
    "text",
    [
        "erm@2x",
        "erm@1.5x",
        "erm@1.2345678x",
        "erm@0.00001x",
        "erm@20000000x",
        "c-mixup:bandwidth=2@pairs",
        "selective-mixup@resampling",
    ],
)
def test_variants_are_part_of_a_spec(text):
    assert str(Spec.parse(text)) == text
    assert Spec.parse(text) != Spec.parse(text.partition("@")[0])
    assert create(Spec.parse(text))


def test_one_time_the_epochs_is_no_variant_and_other_marks_belong_to_values():
    assert Spec.parse("erm@1x") == Spec.parse("erm")
    assert Spec.parse("erm@2.0x") == Spec.parse("erm@2x")
    for text in ("timm:r18:weights=/me@lab/w.st", "timm:r18:weights=w@best.safetensors"):
        assert str(Spec.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("erm@0x", "'0x' must be a number > 0"),
        ("erm@.x", "'.x' must be a number > 0"),
        ("mixup@pairs", "mixup@pairs: Mixup does not select partners"),
        ("co-mixup@pairs", "co-mixup@pairs: CoMixup does not select partners"),
        ("c-mixup@pear", "no control 'pear'; there are: pairs, resampling"),
        ("regmix-regression@pairs", "give k as a number"),
    ],
)
def test_variants_that_cannot_be_made_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        create(Spec.parse(text))


def expanded(*methods, **more):
    return settings(data="x", methods=methods, **more).expanded({}).methods


def test_controls_stand_behind_every_method_that_selects_partners():
    assert expanded("erm", "mixup", "c-mixup:bandwidth=2", "regmix-regression:k=3", controls=True) == (
        "erm", "mixup", "c-mixup:bandwidth=2", "c-mixup:bandwidth=2@pairs", "c-mixup:bandwidth=2@resampling",
        "regmix-regression:k=3", "regmix-regression:k=3@pairs", "regmix-regression:k=3@resampling",
    )  # fmt: skip
    assert expanded("selective-mixup", "selective-mixup@pairs", "lisa:p=0.2", controls=True) == (
        "selective-mixup", "selective-mixup@pairs", "selective-mixup@resampling",
        "lisa:p=0.2", "lisa:p=0.2@pairs", "lisa:p=0.2@resampling",
    )  # fmt: skip
    assert expanded("erm", "c-mixup") == ("erm", "c-mixup")
    assert expanded("erm", "co-mixup", "mixstyle", controls=True) == ("erm", "co-mixup", "mixstyle")
    with pytest.raises(ValueError, match=r"controls of regmix-regression: .*give k as a number"):
        expanded("regmix-regression", controls=True)


def test_the_controls_train_as_their_names_say():
    pairs, resampling = (create(Spec.parse(f"c-mixup:bandwidth=2@{name}")) for name in ("pairs", "resampling"))
    assert isinstance(pairs, PairsWithoutMixing)
    assert isinstance(resampling, ResamplingOnly)
    assert pairs.pairing.bandwidth == resampling.pairing.bandwidth == 2
    assert (cost(Spec.parse("c-mixup@pairs"), pairs), cost(Spec.parse("c-mixup@resampling"), resampling)) == (2, 1)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("erm", 1),
        ("co-mixup", 2),
        ("resampling", 1),
        ("resampling:method=regmixup", 2),
        ("lisa:control=pairs", 2),
        ("selective-mixup@resampling", 1),
        ("c-mixup:batch=true@pairs", 2),  # the guests among whom it chooses are passed forward too
        ("mixstyle:pairing=crossdomain@pairs", 1),  # both samples are in the batch
        ("regmix-regression:k=3@pairs", 2),
    ],
)
def test_the_cost_is_that_of_what_is_passed_forward(text, times):
    spec = Spec.parse(text)
    assert cost(spec, create(spec)) == times


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixup:per_sample=flase", "per_sample must be true or false, got 'flase'"),
        ("mixup:per_sample=1", "per_sample must be true or false, got 1"),
        ("mixup:alpha=big", "alpha must be a number, got 'big'"),
        ("mixup:alpha=true", "alpha must be a number, got True"),
        ("mixup:alpha=1+2", r"alpha must be a number, got \(1, 2\)"),
        ("mixup:alpha=none", "alpha must be a number, got None"),
        ("mixup:k=2.5", "k must be an integer, got 2.5"),
        ("mixup:target=hard", "target must be 'two-part' or 'soft' or none, got 'hard'"),
        ("c-mixup:kernel=box", "kernel must be 'gaussian' or 'tophat', got 'box'"),
        ("manifold-mixup:taps=3", "taps must be a name .several joined by .. or none, got .3,."),
        ("decoupled-mixup:operation=cutmix", "operation must be none, got 'cutmix'"),
        ("gridmix:holes=2+x", "holes must be an integer .several joined by .., got .2, 'x'."),
    ],
)
def test_a_value_must_be_of_the_declared_type(text, message):
    with pytest.raises(ValueError, match=f"{text.partition(':')[0]}.*{message}"):
        create(Spec.parse(text))


def test_values_of_the_declared_type_are_taken():
    for text in (
        "mixup:alpha=2:per_sample=true:target=none",
        "manifold-mixup:taps=block1",
        "puzzle-mix:blocks=4:scale=1+2",
        "regmix-regression:k=global",
        "gridmix:holes=2+4",
        "c-mixup:bandwidth=none:batch=false",
        "early-stopped-mixup:label_ratio=0.5",
        "noisy-mixup:alpha=2",
    ):
        if text.partition(":")[0] in registry.methods():
            create(Spec.parse(text))


def test_every_default_and_every_declared_choice_is_of_the_declared_type():
    for name in registry.methods():
        card = registry.info(name)
        given = {key: value for key, value in card.parameters.items() if value is not inspect.Parameter.empty}
        check_types(card.factory, given)
        for key, within in card.search.items():
            for value in within.values if isinstance(within, Choice) else (within.low,):
                check_types(card.factory, {key: value})


def test_a_plug_in_declares_controls_of_its_own():
    class Chooser(Method):
        """Selects in a way of its own."""

        def controls(self):
            return {"without-it": Method()}

    registry.register("test-chooser", paper="none")(Chooser)
    try:
        assert expanded("erm", "test-chooser", controls=True) == ("erm", "test-chooser", "test-chooser@without-it")
        assert type(create(Spec.parse("test-chooser@without-it"))) is Method
    finally:
        registry._methods.pop("test-chooser")


def test_equal_compute_adds_erm_for_every_cost_once():
    assert expanded("erm", "regmixup", "regmixup:alpha=3", equal_compute=True) == (
        "erm", "regmixup", "regmixup:alpha=3", "erm@2x",
    )  # fmt: skip
    assert expanded("erm", "regmixup@2x", "selective-mixup@pairs", equal_compute=True)[-2:] == ("erm@2x", "erm@4x")
    assert expanded("erm", "mixup", equal_compute=True) == ("erm", "mixup")
    assert "no row of equal compute" in settings(data="x", methods=("erm", "mixup"), equal_compute=True).variants[0]
    once = settings(data="x", methods=("erm", "regmixup", "c-mixup"), equal_compute=True, controls=True).expanded({})
    assert once.expanded({}) == once
    assert len(once.variants) == 2


def test_evaluations_take_the_place_of_epochs():
    for other, named in (
        ({"epochs": 3}, "epochs"),
        ({"equal_compute": True}, "equal_compute"),
        ({"methods": ("erm", "erm@2x")}, "erm@2x"),
    ):
        with pytest.raises(ValueError, match=f"evaluations = 100 decides .*; leave out {named}"):
            settings(data="x", evaluations=100, **other)
