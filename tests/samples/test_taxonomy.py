import pytest

from omnimix.core import registry
from omnimix.samples.taxonomy import LABEL, MODALITIES, PARADIGMS, PLACES, SAMPLE, coverage


def ours():
    cards = [registry.info(name) for name in registry.methods(level="samples")]
    return {card.name: card for card in cards if card.package == "omnimix"}


def test_every_method_has_its_place():
    assert sorted(PLACES) == sorted(ours())


@pytest.mark.parametrize("name", sorted(PLACES))
def test_places_are_of_the_vocabulary(name):
    place, card = PLACES[name], ours()[name]
    assert place.sample in SAMPLE
    assert place.label in LABEL
    assert place.modality in MODALITIES
    assert place.paradigm
    assert set(place.paradigm) <= set(PARADIGMS)
    assert (place.modality,) == card.inputs
    assert ("regression" in place.paradigm) == (card.tasks == ("regression",))
    if getattr(card.factory(), "operation", None) is not None and place.label in ("attention score", "saliency token"):
        method = card.factory()
        assert method.labels is not None or method.labels_from_output or not method.operation.labels_follow


def test_coverage_holds_every_method_once_an_axis():
    found = coverage()
    for axis, classes in (("sample", SAMPLE), ("label", LABEL)):
        assert tuple(found[axis]) == classes
        assert sorted(name for names in found[axis].values() for name in names) == sorted(PLACES)
    assert found["sample"]["generating"] == []
    assert found["sample"]["K samples"] == ["mosaic"]


def test_the_mixers_of_openmixup_are_here():
    """Its names, as ours; of its 25, MergeMix and the label policy TL-Align are not."""
    theirs = {
        *("mixup", "cutmix", "manifold-mixup", "fmix", "smoothmix", "gridmix", "resizemix", "saliencymix", "augmix"),
        *("attentivemix", "puzzle-mix", "alignmixup", "snapmix", "guidedmixup", "automix", "samix", "adautomix"),
        *("transmix", "tokenmix", "mixpro", "smmix", "decoupled-mixup", "sumix"),
    }
    assert len(theirs) == 23
    assert theirs <= set(PLACES)
