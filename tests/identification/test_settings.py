"""Settings of `identify`: strict, single names for all of them, profiles that yield to what is said."""

import pytest

from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.scores import ScoreSettings
from trace_transfer.identification.settings import Compute, IdentifySettings, WarmStartSettings
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


def test_single_names_find_their_part():
    names = [one.name for one in singles(IdentifySettings)]
    assert len(names) == len(set(names))  # none is of two parts
    chosen = IdentifySettings.of(epochs=2, replicates=2, alpha=0.3, tokens_at_once=100)
    assert chosen.warm_start.train.epochs == 2
    assert chosen.warm_start.replicates == 2
    assert chosen.score.alpha == 0.3
    assert chosen.compute == Compute(tokens_at_once=100)


def test_profiles_yield_to_what_is_given():
    assert IdentifySettings.of("paper").score == ScoreSettings(l2="norm", fisher_size="sum")
    assert IdentifySettings.of("authors-code").score.ratio == 0.1
    assert IdentifySettings.of("authors-code", ratio=0.2, fisher="example").score == ScoreSettings(
        ratio=0.2, zero_delta="cosine-0"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epoch": 2}, "epoch: no such setting; did you mean epochs"),
        ({"replicates": 3}, "replicates: found 3, expected less than or equal to 2"),
        ({"too_long": "drop"}, "too_long: 'drop' is none of cut, leave-out"),
        ({"method": "lff"}, "method: 'lff' is none of lf, cs, l2, fisher, snr, fisher-base; did you mean lf"),
        ({"ratio": 0.0}, "ratio: found 0.0, expected greater"),
    ],
)
def test_what_cannot_be_used_is_named(given, told):
    with pytest.raises(UserError, match=told):
        IdentifySettings.of(**given)


def test_how_often_checkpoints_are_written_is_not_recorded():
    assert "checkpoint_minutes" not in WarmStartSettings().recorded()
    assert WarmStartSettings(train=TrainSettings(epochs=3)).recorded()["epochs"] == 3
