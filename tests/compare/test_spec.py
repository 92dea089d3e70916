import pytest

from omnimix.compare.spec import (
    Settings,
    Spec,
    canonical,
    create,
    fingerprint,
    parse_seeds,
    parse_specs,
    parse_value,
    settings,
    write_value,
)


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
