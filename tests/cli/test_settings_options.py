"""Settings from options and from a file: options win, and all that is wrong is told with where it stands."""

import json

import click
import pytest
from click.testing import CliRunner

from trace_transfer.cli.settings_options import setting_options
from trace_transfer.errors import UserError
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.training.settings import StreamSettings


@click.command()
@setting_options(StreamSettings)
def train(settings):
    click.echo(json.dumps(settings.recorded()))


@click.command()
@setting_options(IdentifySettings, profiles="x")
def identify(settings):
    click.echo(json.dumps(settings.recorded()))


def called(command, *arguments):
    return CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)


def test_a_file_and_options_that_win(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(
        "epochs: 2\nlearning_rate: 1e-4\norder: [law, math]\noptimizer_args: {betas: [0.9, 0.95]}\n"
        "learning_rate_of: {mlp: 3e-5}\nno_decay: norm\ndeepspeed: {wall_clock_breakdown: true}\n"
    )
    options = ("--config", file, "--epochs", 5, "--learning-rate-of", "attention=1e-6", "--optimizer-args", "eps=1e-7")
    expected = StreamSettings.of(
        epochs=5, learning_rate=1e-4, order=("law", "math"), optimizer_args={"eps": 1e-7},
        learning_rate_of={"attention": 1e-6}, no_decay=("norm",), deepspeed={"wall_clock_breakdown": True},
    )  # fmt: skip
    assert json.loads(called(train, *options).output) == json.loads(json.dumps(expected.recorded()))


def test_a_profile_in_the_file_or_beside_it(tmp_path):
    file = tmp_path / "identify.yaml"
    file.write_text("profile: authors-code\nratio: 0.2\n")
    for options, profile in (((), "authors-code"), (("--profile", "paper"), "paper")):
        found = json.loads(called(identify, "--config", file, *options).output)
        assert found == json.loads(json.dumps(IdentifySettings.of(profile, ratio=0.2).recorded()))


def test_all_that_is_wrong_is_told_with_where_it_stands(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("epohcs: 2\nbatch_size: many\nlora_rank: 0\nlearning_rate_of: {mlp: fast}\nspecial: math\n")
    with pytest.raises(UserError, match="settings that cannot be used") as caught:
        called(train, "--config", file, "--lora-rank", 4, "--warmup", 2.0)
    assert str(caught.value).split("\n  - ")[1:] == [
        f"{file}: epohcs: no such setting; did you mean epochs?",
        f"{file}: learning_rate_of['mlp']: found 'fast', expected a valid number, unable to parse string as a number",
        f"{file}: batch_size: found 'many', expected a valid integer, unable to parse string as an integer",
        "warmup: found 2.0, expected less than 1",
        f"{file}: special: 'math' is for method dmt only",
    ]
    file.write_text("- epochs\n")
    with pytest.raises(UserError, match=r"train.yaml: found a list, expected settings"):
        called(train, "--config", file)
