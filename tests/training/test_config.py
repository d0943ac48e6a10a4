import dataclasses
import json

import pytest

from errors import InputError
from training.config import Config, Network, Optimizer, Parallel, flatten
from training.recipes import RECIPES
from training.run import main, parse
from typed_json import parse_json


def test_without_arguments_it_is_the_sample_recipe() -> None:
    assert parse([]) == RECIPES["sample"]()


def test_any_field_can_be_set_with_or_without_a_named_recipe() -> None:
    assert parse(["--epochs", "3"]).epochs == 3
    config = parse(["cifar10", "--data", "/d", "--parallel.model", "2", "--optimizer.schedule", "cosine"])
    assert (config.recipe, config.data, config.parallel.model) == ("cifar10", "/d", 2)
    assert config.optimizer == dataclasses.replace(RECIPES["cifar10"]().optimizer, schedule="cosine")
    assert parse(["--augmentation.lighting", "off"]).augmentation.lighting == "off"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_survives_the_checkpoint_s_json(name: str) -> None:
    recipe = RECIPES[name]()
    assert recipe.recipe == name
    assert parse_json(Config, json.dumps(dataclasses.asdict(recipe)), "config") == recipe


def test_alexnet_paper_is_the_text_of_2012() -> None:
    config = RECIPES["alexnet-paper"]()
    assert (config.image_size, config.batch_size, config.epochs) == (224, 128, 90)
    assert config.network == Network(dropout_form="2012")
    network = config.architecture()
    assert (network.first_kernel, network.first_stride, network.lrn) == (11, 4, "paper")
    assert (network.dropout, network.init) == (0.5, "paper")
    assert config.optimizer == Optimizer(0.01, 0.9, 5e-4, "plateau", momentum_form="2012")
    assert config.mean == "image"
    assert (config.augmentation.lighting, config.augmentation.flip, config.units) == ("paper", True, "grey")


def test_tables_by_layer_and_by_epoch_can_be_set() -> None:
    config = parse(["--optimizer.freeze", "conv1", "3", "conv2", "5", "--optimizer.layer-lr-scale", "fc8", "0.1"])
    assert (config.optimizer.freeze, config.optimizer.layer_lr_scale) == ({"conv1": 3, "conv2": 5}, {"fc8": 0.1})
    script = ["--optimizer.schedule", "piecewise", "--optimizer.warmup-epochs", "0"]
    config = parse([*script, "--optimizer.milestones", "2", "0.1", "4", "0.01"])
    assert config.optimizer.milestones == {2: 0.1, 4: 0.01}


def test_a_table_that_is_set_replaces_the_recipe_s() -> None:
    run_2010 = ["--optimizer.milestones", "23", "1e-3", "51", "1e-4", "78", "1e-5", "--optimizer.freeze"]
    optimizer = parse(
        ["alexnet-2012", *run_2010, "--optimizer.layer-milestones", "conv1", "3", "1", "conv1", "4", "2"]
    ).optimizer
    assert (optimizer.milestones, optimizer.freeze) == ({23: 1e-3, 51: 1e-4, 78: 1e-5}, {})
    assert optimizer.layer_milestones == {"conv1": {3: 1.0, 4: 2.0}}
    assert optimizer.bias_milestones == RECIPES["alexnet-2012"]().optimizer.bias_milestones
    none = ["--optimizer.milestones", "--optimizer.bias-milestones", "--optimizer.layer-milestones"]
    assert parse(["alexnet-2012", *none, "--optimizer.schedule", "geometric"]).optimizer.milestones == {}


@pytest.mark.parametrize("words", [["conv1"], ["conv1", "3", "conv2"], ["conv1", "three"]])
def test_a_table_with_half_a_row_or_a_wrong_type_gets_code_2(
    words: list[str],
) -> None:
    with pytest.raises(InputError, match="LAYER EPOCH"):
        parse(["--optimizer.freeze", *words])


def test_alexnet_2012_is_run_145_where_it_differs_from_the_text() -> None:
    config = RECIPES["alexnet-2012"]()
    network = config.architecture()
    assert (network.lrn, network.order1, network.order2) == ("code-2012", "lrn-pool-act", "act-lrn-pool")
    assert (network.spatial_norm, network.init, network.dropout_form) == (True, "code-2012", "2012")
    assert (config.augmentation.granularity, config.augmentation.lighting) == ("chunk", "code-2012")
    assert (config.optimizer.bias_lr_scale, config.optimizer.bias_decay, config.mean) == (2.0, False, "image")
    assert (config.batch_size, config.optimizer.momentum_form, config.precision) == (128, "2012", "float32")


def test_alexnet_owt_is_what_its_docstring_says() -> None:
    config = RECIPES["alexnet-owt"]()
    assert (config.precision, config.compile, config.units) == ("bfloat16", "auto", "torchvision")
    assert config.optimizer.learning_rate == 0.01 * config.batch_size / 128
    assert (config.optimizer.schedule, config.optimizer.warmup_epochs > 0) == ("cosine", True)
    assert (config.optimizer.ema_decay > 0, config.label_smoothing > 0) == (True, True)
    assert (config.augmentation.crop_region, config.augmentation.crop_size) == ("whole-image", "random")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epoch 3", r"--epoch is unknown; did you mean --epochs\? python -m training.run sample --help lists all"),
        ("cifar10 --lr 1", "--lr is unknown; did you mean --optimizer.learning-rate or --optimizer.lr-ratio"),
        ("--wd=1e-4", r"--wd=1e-4 is unknown; did you mean --optimizer.weight-decay\?"),
        ("--optimizer.learningrate 3", "did you mean --optimizer.learning-rate "),
        ("sample --xyzzy 1", "--xyzzy is unknown; python -m training.run sample --help lists all$"),
        ("sample cifar10", "cifar10 is unknown"),
        ("--epochs many", r"--epochs: .*'many'; --epochs INT Passes over the train split. \(default: 8\)$"),
        ("--epochs", "Missing value for argument '--epochs'"),
        ("--device tpu", r"invalid choice 'tpu' for argument '--device'. Expected one of \('auto', 'cpu', 'cuda'\)"),
    ],
)
def test_what_the_parser_refuses_is_one_line_with_the_nearest_field(arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse(arguments.split())
    assert "\n" not in str(error.value)


def test_a_recipe_and_resume_together_are_refused() -> None:
    with pytest.raises(InputError, match="recipe is cifar10: --resume goes on with the run's own; leave"):
        main(["cifar10", "--resume", "0123"])


def test_help_without_a_recipe_names_them_and_a_recipe_s_help_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (([], ["[RECIPE]", *RECIPES]), (["cifar10"], ["--optimizer.learning-rate FLOAT"])):
        with pytest.raises(SystemExit, match="0"):
            parse([*arguments, "--help"])
        text = capsys.readouterr().out
        assert all(part in text for part in said)


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="recipe is 'alexnet'; use sample, cifar10, "):
        parse(["alexnet"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs is 0; use a whole number from 1"),
        (["--crop", "300"], "crop is 300: it is above short_side; use at most 256"),
        (["--parallel.model", "0"], "parallel.model is 0; use a whole number from 1"),
        (["--network.dropout", "1.0"], "network.dropout is 1.0; use 0 up to"),
        (["--label-smoothing", "1.0"], "label_smoothing is 1.0; use 0 up to"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate is -1.0; use a finite number above 0"),
        (["--augmentation.lighting", "dim"], "lighting"),
    ],
)
def test_values_out_of_range_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(arguments)
    assert message in str(error.value)


def test_json_with_an_unknown_or_missing_field_is_refused() -> None:
    values = dataclasses.asdict(RECIPES["sample"]())
    with pytest.raises(InputError, match="config is not valid: bach_size is unknown"):
        parse_json(Config, json.dumps({**values, "bach_size": 1}), "config")
    with pytest.raises(InputError, match="short_side is missing"):
        parse_json(Config, json.dumps({n: value for n, value in values.items() if n != "short_side"}), "config")


def test_flatten_names_every_field_once() -> None:
    flat = flatten(Config(recipe="r", short_side=64, epochs=1, parallel=Parallel(data=2)))
    assert flat["parallel.data"] == 2
    assert flat["optimizer.momentum"] == 0.9
    scripted = flatten(RECIPES["alexnet-2012"]())
    assert scripted["optimizer.layer_milestones.conv1.67"] == 1e-5
    assert not any(isinstance(value, dict) for value in (*flat.values(), *scripted.values()))
