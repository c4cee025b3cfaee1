"""Settings of `identify`: strict, single names for all of them, profiles that yield to what is said."""

import pytest

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.scores import ScoreSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import settings_schema, singles
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings


@pytest.mark.parametrize("kind", [IdentifySettings, MapSettings, StreamSettings, EvaluateSettings, RepresentSettings])
def test_every_setting_has_a_default_that_it_may_have_and_a_sentence(kind):
    for one in singles(kind):
        assert one.default in settings_schema(kind)[one.name].get("enum", [one.default]), one.name
        assert one.field.description.endswith((".", ")")), one.name
    assert kind.of() == kind()


def test_profiles_yield_to_what_is_given():
    assert IdentifySettings.of("paper").score == ScoreSettings(unit="tensors", l2="norm", fisher_size="sum")
    assert IdentifySettings.of("authors-code").score.ratio == 0.1
    assert IdentifySettings.of("authors-code", ratio=0.2, fisher="example").score == ScoreSettings(
        unit="tensors", ratio=0.2, zero_delta="cosine-0"
    )
