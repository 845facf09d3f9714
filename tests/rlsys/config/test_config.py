"""Loading of configs: YAML, overrides, validation and error messages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlsys.config.checks import find_conflicts
from rlsys.config.files import known_keys, load_config, save_config
from rlsys.config.schema import Config, ConfigError
from rlsys.config.section import Section
from rlsys.config.values import parse_text
from rlsys.data.tasks import FAMILIES

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "launch" / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_without_a_file() -> None:
    assert load_config(None) == Config()


def test_file_sets_only_the_keys_it_names(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "a.yaml", "seed: 3\nrl:\n  beta: 0.5\n"))
    assert (config.seed, config.rl.beta, config.rl.steps) == (3, 0.5, Config().rl.steps)


def test_empty_file_gives_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "a.yaml", "# nothing yet\n")) == Config()


def test_later_overrides_take_precedence_over_earlier_ones_and_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "rl: {steps: 5, beta: 0.5}\n")
    config = load_config(path, ["rl.steps=6", "rl.steps=7", "seed=9"])
    assert (config.rl.steps, config.rl.beta, config.seed) == (7, 0.5, 9)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rl.refill=false", lambda c: c.rl.refill is False),
        ("learner.lr=3e-6", lambda c: c.learner.lr == 3e-6),  # YAML reads this as text, pydantic as a number
        ("rollout.cpus=null", lambda c: c.rollout.cpus is None),
        ("data.responses=[2, 4]", lambda c: c.data.responses == (2, 4)),
        ("run.dir=runs/a=b", lambda c: c.run.dir == Path("runs/a=b")),
        ("model.path=owner/name", lambda c: c.model.path == "owner/name"),
        ("data.train=tasks:train", lambda c: c.data.train == Path("tasks:train")),
        # Text fields take what was written.
        ("run.dir=runs/exp #3", lambda c: c.run.dir == Path("runs/exp #3")),
        ("run.dir=2024-01-01", lambda c: c.run.dir == Path("2024-01-01")),
        ("run.dir= a: b", lambda c: c.run.dir == Path(" a: b")),
        ("model.path=007", lambda c: c.model.path == "007"),
        ("model.path=no", lambda c: c.model.path == "no"),
        ("model.path=null", lambda c: c.model.path == "null"),
        ('model.path="quoted"', lambda c: c.model.path == '"quoted"'),
        ("data.exclude=1e3", lambda c: c.data.exclude == Path("1e3")),
        ("data.exclude=~", lambda c: c.data.exclude is None),
        ("data.families=[010, yes, 'a #3', null]", lambda c: c.data.families == ("010", "yes", "a #3", "null")),
        # Numbers and switches are read as such, not as YAML's octals, sexagesimals or truths.
        ("seed=010", lambda c: c.seed == 10),
        ("learner.lr=1e-4", lambda c: c.learner.lr == 1e-4),
        ("learner.zero_stage=3", lambda c: c.learner.zero_stage == 3),
        ("rl.refill=off", lambda c: c.rl.refill is False),
        ("rl={steps: 010}", lambda c: c.rl.steps == 10),
    ],
)
def test_override_is_parsed_by_the_type_of_its_field(override: str, read) -> None:
    assert read(load_config(None, [override]))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("rl.stepz", "rl.steps"), ("rollout.temprature", "rollout.temperature"), ("learnr", "learner"), ("modle", "model")],
)
def test_unknown_key_suggests_the_closest_known_key(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"override '{key}=1'.*unknown key {key}.*Did you mean {nearest}\\?"):
        load_config(None, [f"{key}=1"])
    section, dot, name = key.partition(".")
    path = write(tmp_path / "mine.yaml", yaml.safe_dump({section: {name: 1}} if dot else {section: 1}))
    with pytest.raises(ConfigError, match=f"mine.yaml: unknown key {key}.*Did you mean {nearest}\\?"):
        load_config(path)


def test_unknown_key_without_a_close_match_refers_to_the_list() -> None:
    with pytest.raises(ConfigError, match="rlsys config show"):
        load_config(None, ["qqqqqqqq=1"])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("rl.steps=many", "rl.steps"),
        ("rl.steps=-1", "rl.steps"),
        ("rl.group_size=2.5", "rl.group_size"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("rollout.top_p=1.5", "rollout.top_p"),
        ("learner.zero_stage=4", "learner.zero_stage"),
        ("model.dtype=float8", "model.dtype"),
        ("rl=3", "rl"),
        ("data.responses=[2, x]", "data.responses.1"),
        ("rl.steps=1:30", "rl.steps"),
        ("seed=true", "seed"),
        ("rl.beta=nan", "rl.beta"),
        ("run.dir=", "run.dir"),
        ("data.families=sum", "data.families"),
    ],
)
def test_invalid_override_reports_override_key_and_value(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert message.startswith(f"override {override!r}: {key}: ") and "got " in message


def test_invalid_value_in_a_file_reports_the_file_despite_valid_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "rl: {beta: -1}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: rl\.beta: "):
        load_config(path, ["rl.steps=3"])


def test_text_fields_in_a_file_are_verbatim(tmp_path: Path) -> None:
    text = (
        "seed: 010\nrun: {dir: 2024-01-01}\nmodel:\n  path: yes\nprompt: {template: 'a #3'}\nrollout: {cpus: null}\ndata: {exclude: 1.0}\n"
    )
    config = load_config(write(tmp_path / "a.yaml", text))
    assert (config.seed, config.run.dir, config.model.path, config.prompt.template) == (10, Path("2024-01-01"), "yes", "a #3")
    assert config.rollout.cpus is None and config.data.exclude == Path("1.0")
    with pytest.raises(ConfigError, match="model.path"):
        load_config(write(tmp_path / "b.yaml", "model: {path: }\n"))
    with pytest.raises(ConfigError, match=r"c\.yaml: not valid YAML(.|\n)*the key steps appears twice"):
        load_config(write(tmp_path / "c.yaml", "rl: {steps: 1, steps: 2}\n"))


def test_explicit_keys_override_merged_keys(tmp_path: Path) -> None:
    text = "data:\n  train:\n  - &first {path: a.jsonl, weight: 2}\n  - {<<: *first, path: b.jsonl}\n  - {<<: *first, path: c.jsonl}\n"
    train = load_config(write(tmp_path / "a.yaml", text)).data.train
    assert [(str(source.path), source.weight) for source in train] == [("a.jsonl", 2), ("b.jsonl", 2), ("c.jsonl", 2)]


@pytest.mark.parametrize("text", ["data:\n  train: &a [*a]\n", "rl: &a {steps: *a}\n", "[" * 3000])
def test_unbounded_yaml_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize("override", ["learner.betas=[2,3]", "learner.betas=[0.9,1]", "learner.betas=[-0.1,0.9]", "seed=4294967296"])
def test_out_of_range_numbers_are_rejected(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(None, [override])


def test_tilde_expands_to_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(None, ["run.dir=~/runs/a", "model.path=~/models/a", "data.train=~/a.jsonl", "data.heldout=[~/b.jsonl]"])
    found = (config.run.dir, config.model.path, config.data.train, config.data.heldout[0].path)
    assert list(map(str, found)) == [f"/home/someone/{name}" for name in ("runs/a", "models/a", "a.jsonl", "b.jsonl")]
    assert load_config(None, ["run.dir=a~/b"]).run.dir == Path("a~/b")


def test_yaml_types_apply_to_fields_that_accept_any_value() -> None:
    assert parse_text("{thinking: no, depth: 010, name: a}", dict[str, Any]) == {"thinking": False, "depth": 8, "name": "a"}
    assert parse_text("{prompt: 007}", dict[str, str]) == {"prompt": "007"}
    assert parse_text("a: b", Path | tuple[Path, ...]) == "a: b"
    assert parse_text("[1, 2]", Path | tuple[Path, ...]) == ["1", "2"]
    assert parse_text("5", int | str) == 5


def test_valid_settings_are_kept_in_the_rest_of_an_error() -> None:
    wrong = ["rl.stepz=1", "rl.steps=-1", "seed", "data.responses=[x, y]", "data.level=2", "rl.beta=0.5", "nothing=1"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, wrong)
    assert len(caught.value.problems) == 6
    rest = caught.value.rest
    assert (rest.data.level, rest.rl.beta, rest.rl.steps, rest.data.responses) == (2, 0.5, Config().rl.steps, Config().data.responses)


def test_all_problems_of_a_source_list_are_reported() -> None:
    sources = "[{path: a.jsonl, weight: -1, formt: x}, {path: b.jsonl, weight: y, format: nope}, {format: z}]"
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"data.train={sources}", "data.heldout=[{path: [1]}, {path: h.jsonl, weight: 0}]"])
    message = "\n".join(caught.value.problems)
    train = ("train.0.weight", "Did you mean data.train.0.format?", "train.1.weight", "train.2.path: required")
    for words in (*train, "heldout.0.path", "heldout.1.weight"):
        assert message.count(words) == 1, (words, message)
    assert len(caught.value.problems) == 6
    with pytest.raises(ConfigError, match="leave weight out; 2 sources are called a"):
        load_config(None, ["data.heldout=[{path: a.jsonl, weight: 2, name: a}, {path: b.jsonl, name: a}]"])


def test_valid_parts_of_an_invalid_source_are_kept() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["data.train=[{path: a.jsonl, weight: -1, format: nope}, b.jsonl]"])
    assert len(caught.value.problems) == 1
    first, second = caught.value.rest.data.sources("train")
    assert (first.path, first.format, first.weight, second.path) == (Path("a.jsonl"), "nope", 1.0, Path("b.jsonl"))


def test_single_source_needs_no_list(tmp_path: Path) -> None:
    several = load_config(None, ["data.train=[{path: x.jsonl, format: shp, columns: {labels: l}}]"])
    alone = load_config(None, ["data.train={path: x.jsonl, format: shp, columns: {labels: l}}"])
    in_a_file = load_config(write(tmp_path / "a.yaml", "data: {train: {path: x.jsonl, format: shp}}"), ["data.train.columns={labels: l}"])
    assert alone.data == several.data == in_a_file.data
    save_config(alone, tmp_path / "b.yaml")
    assert load_config(tmp_path / "b.yaml") == alone
    with pytest.raises(ConfigError, match=r"data\.train\.formt\. Did you mean data\.train\.format\?"):
        load_config(None, ["data.train={path: x.jsonl, formt: shp}"])


def test_duplicate_source_names_are_reported_with_their_paths() -> None:
    with pytest.raises(ConfigError, match=r"2 sources are called a \(x/one\.jsonl, y/two\.jsonl\): .*\{path: y/two\.jsonl, name: a-2\}"):
        load_config(None, ["data.train=[{path: x/one.jsonl, name: a}, {path: y/two.jsonl, name: a}]"])


def test_key_without_section_suggests_all_sections_that_have_it() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean prompt\.max_tokens or rollout\.max_tokens or "):
        load_config(None, ["max_tokens=3"])


def test_compiled_layers_reject_zero_3() -> None:
    with pytest.raises(ConfigError, match=r"'learner.layers=compiled'.*learner.layers: .*zero_stage 0, 1 or 2"):
        load_config(None, ["learner.layers=compiled", "learner.zero_stage=3"])
    assert load_config(None, ["learner.layers=compiled"]).learner.layers == "compiled"


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["rl.steps=-1", "rl.betta=1"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("override", ["rl.steps", "=3", "rl.steps=[1", "seed.deep=1"])
def test_malformed_override_is_quoted(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=1", override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("rl: [", "not valid YAML"), ("- a\n- b\n", "expected sections"), ("just words", "expected sections")],
)
def test_file_that_is_not_a_config_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{expected}"):
        load_config(write(tmp_path / "mine.yaml", text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    config = load_config(
        None, ["rl.steps=7", "learner.betas=[0.8, 0.9]", "data.families=[a, '010']", "learner.lr=1e-7", "run.dir=runs/x #3"]
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_assignments_are_validated() -> None:
    with pytest.raises(ValidationError):
        Config().rl.steps = -1


def test_known_keys_match_the_config() -> None:
    tree = Config().model_dump()
    expected = set(tree) | {f"{name}.{key}" for name, section in tree.items() if isinstance(section, dict) for key in section}
    nested = [("prompt", "scores"), ("run", "timeouts_s"), ("rft", "teacher")]
    assert set(known_keys()) == expected | {f"{outer}.{inner}.{key}" for outer, inner in nested for key in tree[outer][inner]}


def test_nested_sections_are_set_and_validated() -> None:
    assert load_config(None, ["prompt.scores.single=[1, 10]"]).prompt.scores.single == (1, 10)
    with pytest.raises(ConfigError, match="unknown key prompt.scores.number.*Did you mean prompt.scores.numbers"):
        load_config(None, ["prompt.scores.number=decimal"])
    with pytest.raises(ConfigError, match="with lowest < highest"):
        load_config(None, ["prompt.scores.range=[10, 1]"])


def sections() -> list[type[Section]]:
    """Config and the section types inside it."""
    types = [info.annotation for info in Config.model_fields.values()]
    return [Config, *(kind for kind in types if isinstance(kind, type) and issubclass(kind, Section))]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_setting_has_a_help_text(section: type[Section]) -> None:
    silent = [name for name, info in section.model_fields.items() if not info.description and info.annotation not in sections()]
    assert silent == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_ready_made_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.run.dir == Path("runs") / path.stem  # two of them never write in one folder
    assert set(config.data.families) <= set(FAMILIES)


def test_training_rows_can_be_a_mixture(tmp_path):
    path = tmp_path / "mix.yaml"
    sources = "[{path: x/a.jsonl, format: trl_preference, weight: 2}, y/a.jsonl, b.parquet]"
    path.write_text(f"data:\n  train: {sources}\n  format: skywork\n")
    config = load_config(path, ["data.train.2.weight=0.5", "data.train.2.name=010", "data.heldout=[tasks:heldout, h.jsonl]"])
    train = [(source.name, source.format, source.weight) for source in config.data.sources("train")]
    assert train == [("x/a.jsonl", "trl_preference", 2), ("y/a.jsonl", "skywork", 1), ("010", "skywork", 0.5)]
    assert [one.name for one in config.data.sources("heldout")] == ["tasks:heldout", "h"]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[{path: a.jsonl, wieght: 2}]", "unknown key data.train.0.wieght"),
        ("data.train=[{path: a.jsonl, weight: 0}]", "data.train.0.weight: Input should be greater than 0"),
        ("data.train=[]", "an empty list"),
        ("data.train=[a.jsonl, a.jsonl]", "2 sources are called a.jsonl (a.jsonl, a.jsonl)"),
        ("data.heldout=[{path: a.jsonl, weight: 2}, b.jsonl]", "leave weight out"),
        ("data.train.0.weight=2", "data.train"),
    ],
)
def test_invalid_mixture_is_rejected(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, [override])


def test_a_run_folder_is_not_a_url():
    """A path would drop one of its slashes, and a folder called `s3:` would appear."""
    with pytest.raises(
        ConfigError, match=r"run\.dir: s3://bucket/run is a URL, expected a folder; for a copy .* set run.copy_to=s3://bucket/run"
    ):
        load_config(None, ["run.dir=s3://bucket/run"])


@pytest.mark.parametrize(
    "url", ["s3://AKIA:geheim%2F1@bucket/run", "abfs://run@account.host/place?client_secret=geheim", "abfs://a.host/b?x=1&sig=geheim"]
)
def test_keys_in_the_url_of_a_copy_are_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match=r"run\.copy_to: .*without a key in it.* AWS_SECRET_ACCESS_KEY") as error:
        load_config(None, [f"run.copy_to={url}"])
    assert "geheim" not in str(error.value) and "***" in str(error.value)


def test_the_key_in_an_endpoint_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="base URL without a key in it") as error:
        load_config(None, ["rft.teacher.url=https://me:geheim@host/v1"])
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/run?region=eu&endpoint_override=127.0.0.1:9000", "abfs://run@account.host/a:b", "file:///a:b@c"]
)
def test_other_urls_of_a_copy_are_accepted(url):
    assert load_config(None, [f"run.copy_to={url}"]).run.copy_to == url


def test_a_deterministic_run_sets_what_it_requires_and_refuses_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "run: {deterministic: on}\nrollout: {max_tokens: 7, cpus: null}\n")
    for config in (load_config(path), load_config(None, ["run.deterministic=true", "rollout.max_tokens=7"])):
        assert (config.model.dtype, config.rollout.cpus, config.learner.cpus, config.rollout.max_num_seqs) == ("float32", 1, 1, 1)
        assert config.rollout.max_tokens == 7 and find_conflicts(config, "train") == []
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert Config().rollout.cpus is None
    others = ["model.dtype=bfloat16", "rl.staleness=1", "learner.cpus=2", "rollout.max_num_seqs=32"]
    found = find_conflicts(load_config(None, ["run.deterministic=true", *others]), "train")
    assert sorted(problem.partition(":")[0] for problem in found) == sorted(others)
    assert any("only `rlsys train` and `rlsys sft`" in problem for problem in find_conflicts(config, "meta-rm"))
