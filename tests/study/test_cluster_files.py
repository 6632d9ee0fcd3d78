"""The launch files: what Ray, KubeRay and bash say of them without a cloud, and runs of them as far as that goes.

Amazon's API is simulated, downloads and Slurm's commands are replaced by scripts; Ray and the study are real.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from checkout import ROOT
from launch_files import FILES, LAUNCHER, PLACEHOLDER, RAY_SETTINGS, VALUES, filled, free_port, launcher
from pages import GUIDE, blocks, inline_code, lines_of_words
from studies import MARK, SPACE, Study
from tiny_study import assignments, python
from waiting import HANG_SECONDS, wait_until

from search_spaces import get_space
from study.options import parse_options
from study.plan import override
from study.scheduling.placement import SHARES
from trainables.storage.store import _checkpoint

util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray has moved its checks of launch files")


# --- what is to be filled in ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHER)
def test_what_is_to_be_filled_in_stands_at_the_top(name: str) -> None:
    top, metadata, below = re.split(r"^(?=metadata:|provider:)", (FILES / name).read_text(), flags=re.MULTILINE)
    assert PLACEHOLDER.search(metadata)
    assert not PLACEHOLDER.search(top + below)
    assert f"grep '<[A-Z]' study/cluster/{name}" in top


def test_the_guide_explains_every_placeholder() -> None:
    asked = {match for path in FILES.glob("*.yaml") for match in PLACEHOLDER.findall(path.read_text())}
    rows = [line.split("|")[1] for line in GUIDE.read_text().splitlines() if line.startswith("| `<")]
    assert asked == {name for row in rows for name in PLACEHOLDER.findall(row)}


def test_the_guide_names_every_file() -> None:
    for path in FILES.iterdir():
        assert f"`{path.name}`" in GUIDE.read_text()


def as_many_cpus_as_trials(resources: Mapping[str, float]) -> bool:
    """Return whether a node's CPUs allow as many trials as may share its GPUs."""
    return resources["GPU"] >= 1 and resources["CPU"] >= resources["GPU"] / min(SHARES)


# --- Ray's cluster launcher -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launch_file(name: str) -> None:
    config = util.prepare_config(launcher(name))
    util.validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == config["max_workers"] > 0
    assert as_many_cpus_as_trials(types["gpu"]["resources"])
    assert "spot" in json.dumps(types["gpu"]["node_config"]).lower()
    assert "spot" not in json.dumps(types["head"]["node_config"]).lower(), "a lost head ends the sweep"
    assert config["provider"]["cache_stopped_nodes"] is False
    assert 0 < config["idle_timeout_minutes"] <= 15
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("path", [["max_worker"], ["available_node_types", "gpu", "max_nodes"], ["auth", "user"]])
def test_ray_refuses_a_misspelt_field(path: list[str]) -> None:
    config = util.prepare_config(launcher("aws.yaml"))
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        util.validate_config(config)


def check_against_google(document: str, name: str, value: Any, path: str) -> None:
    """Check a value against the description of an API that Google's client brings along."""
    googleapiclient = pytest.importorskip("googleapiclient")
    documents = Path(googleapiclient.__file__).with_name("discovery_cache") / "documents"
    schemas = json.loads((documents / document).read_text())["schemas"]

    def check(value: Any, schema: Mapping[str, Any], path: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = {"object": dict, "array": list, "boolean": bool, "string": (str, int), "integer": int}[schema["type"]]
        assert isinstance(value, kind), path
        assert value in schema.get("enum", [value]), path
        for each in value if isinstance(value, list) else []:
            check(each, schema["items"], f"{path}[]")
        for name, each in value.items() if isinstance(value, dict) else []:
            assert name in schema["properties"], f"{path}.{name}"
            check(each, schema["properties"][name], f"{path}.{name}")

    check(value, {"$ref": name}, path)


def test_google_knows_every_field_of_the_instances() -> None:
    for name, kind in launcher("gcp.yaml")["available_node_types"].items():
        check_against_google("compute.v1.json", "Instance", kind["node_config"], name)


class Ssh:
    """In the place of ``subprocess``: notes the commands that Ray would run on a node."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def check_call(self, command: list[str], **_: Any) -> int:
        self.commands.append(command[-1])
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        self.commands.append(command[-1])
        return b""


@pytest.mark.slow
def test_ray_up_on_simulated_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ray up`` up to the ssh commands: roles, keys, security group, an on-demand head; then spot workers."""
    moto = pytest.importorskip("moto")
    import boto3
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    with moto.mock_aws():
        ec2, iam = boto3.client("ec2", VALUES["REGION"]), boto3.client("iam", VALUES["REGION"])
        for role in ("study-head", "study-worker"):
            iam.create_instance_profile(InstanceProfileName=role)
        config = launcher("aws.yaml", AMI=ec2.describe_images()["Images"][0]["ImageId"])
        config = commands._bootstrap_config(config, no_config_cache=True)
        ssh = Ssh()
        commands.get_or_create_head_node(config, "aws.yaml", False, False, True, None, _runner=ssh)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        tags = {"ray-node-kind": "worker", "ray-user-node-type": "gpu", "ray-launch-config": "-", "ray-node-name": "-"}
        worker = provider.create_node(config["available_node_types"]["gpu"]["node_config"], tags, 1)

        def instances() -> list[tuple[str, str, str]]:
            found = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
            return sorted(
                (each["InstanceType"], each.get("InstanceLifecycle", "on demand"), each["State"]["Name"])
                for each in found
            )

        assert instances() == [("g6.2xlarge", "spot", "running"), ("m7i.large", "on demand", "running")]
        (group,) = ec2.describe_security_groups(GroupNames=["ray-autoscaler-sparse-symmetry"])["SecurityGroups"]
        open_to_all = [rule["FromPort"] for rule in group["IpPermissions"] if rule["IpRanges"]]
        assert open_to_all == [22]
        provider.terminate_nodes(list(worker))
        assert [state for *_, state in instances()] == ["terminated", "running"]
    text = "\n".join(ssh.commands)
    assert text.index("/.ray/auth_token") < text.index("ray_bootstrap_config.yaml") < text.index("study.env")
    assert text.index("study.env") < text.index("bash ~/set-up-node.sh") < text.index("ray start --head")
    assert """RAY_OVERRIDE_RESOURCES='"'"'{"CPU":0}'""" in text


FAKE_CURL = """#!/bin/sh
cat <<'END'
import pathlib, sys
pip = pathlib.Path(sys.prefix, "bin", "pip")
pip.write_text('#!/bin/sh\\necho "$@" >> ~/pip.log; touch "$(dirname "$0")/installed by $(basename ~)"\\n')
pip.chmod(0o755)
END
"""
UBUNTU_BASHRC = "case $- in *i*) ;; *) return;; esac\n"


class NewNode:
    """A home directory as on a machine that has just started, with replaced downloads."""

    def __init__(self, folder: Path, name: str) -> None:
        self.home = folder / name
        (self.home / ".ray").mkdir(parents=True)
        tools = folder / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "curl").write_text(FAKE_CURL)
        (tools / "curl").chmod(0o755)
        path = f"{tools}:{Path(sys.executable).parent}"
        (self.home / ".bashrc").write_text(f"{UBUNTU_BASHRC}export PATH={path}:$PATH\n")
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }

    def run(self, command: str) -> str:
        """Run a command as Ray does on a node, and return what it prints."""
        from ray.autoscaler._private.command_runner import _with_interactive

        line = " ".join(_with_interactive(command))
        done = subprocess.run(line, shell=True, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def set_up(self, config: Mapping[str, Any]) -> None:
        for place, source in config["file_mounts"].items():
            if not source.startswith("~"):
                shutil.copy(ROOT / source, self.home / place.removeprefix("~/"))
        for command in config["setup_commands"]:
            self.run(command)

    def installed(self) -> list[str]:
        """Return the arguments of each call of pip."""
        return (self.home / "pip.log").read_text().splitlines()


def tagged(repository: Path, *tags: str) -> None:
    """Make a repository for nodes to clone: the project's versions of packages, and a commit for each tag."""
    git = ["git", "-C", str(repository), "-c", "user.name=-", "-c", "user.email=-", "-c", "commit.gpgsign=false"]
    repository.mkdir()
    shutil.copy(ROOT / "constraints.txt", repository)
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run([*git, *command], check=True)
    for tag in tags:
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "-"], check=True)
        subprocess.run([*git, "tag", tag], check=True)


def test_setting_up_nodes(tmp_path: Path) -> None:
    """The commands that Ray runs on a new head, on a worker, on both again, and on a head of another version."""
    repository, bucket = tmp_path / "repository", tmp_path / "bucket"
    tagged(repository, "v1", "v2")
    (bucket / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (bucket / "data" / "cifar-10-batches-py" / "data_batch_1").write_text("images")
    (bucket / "installed").mkdir()  # an object store has no folders to be made
    configs = {}
    for version in ("v1", "v2"):
        text = filled("aws.yaml", REPOSITORY_URL=str(repository), GIT_TAG_OR_COMMIT=version)
        configs[version] = yaml.safe_load(text.replace("s3://bucket", f"file://{bucket}"))
    head, worker = NewNode(tmp_path, "head"), NewNode(tmp_path, "worker")
    for node in (head, worker, worker):
        node.set_up(configs["v1"])
    (library,) = worker.installed()
    assert library.endswith(f" -c {worker.home}/study/constraints.txt s3fs"), "what it needs to read the bucket"
    library, project = head.installed()
    assert library.endswith(f" -c {head.home}/study/constraints.txt s3fs")
    assert project.endswith(f" -c {head.home}/study/constraints.txt -e {head.home}/study[s3] ray[default] boto3")
    for node in (head, worker):
        assert (node.home / "study-env" / "bin" / "installed by head").exists()
        assert (node.home / "data" / "cifar-10-batches-py" / "data_batch_1").read_text() == "images"
        assert (node.home / ".bashrc").read_text().count("study.env") == 1
        variables = dict(line.split("=", 1) for line in node.run("env").splitlines() if "=" in line)
        assert RAY_SETTINGS.items() <= variables.items()
        assert variables["RAY_AUTH_MODE"] == "token"
        assert node.run("command -v python").strip() == str(node.home / "study-env" / "bin" / "python")
    head.set_up(configs["v2"])
    assert head.installed() == [library, project, library, project]
    assert len(list((bucket / "installed").iterdir())) == 2


def test_clouds_set_up_nodes_alike() -> None:
    aws, gcp = (launcher(name) for name in LAUNCHER)
    commands = json.dumps(aws["setup_commands"])
    for of_aws, of_gcp in {"s3://": "gs://", "s3fs boto3": "gcsfs google-api-python-client"}.items():
        commands = commands.replace(of_aws, of_gcp)
    assert json.loads(commands) == gcp["setup_commands"]
    for name in ("file_mounts", "head_start_ray_commands", "worker_start_ray_commands", "idle_timeout_minutes"):
        assert aws[name] == gcp[name]


# --- buckets ----------------------------------------------------------------------------------------------------------
def rules_of_buckets() -> tuple[dict[str, Any], dict[str, Any]]:
    aws, gcp = (json.loads((FILES / f"lifecycle-{cloud}.json").read_text()) for cloud in ("aws", "gcp"))
    return aws, gcp


def test_clouds_understand_the_rules_for_buckets() -> None:
    """Against the descriptions of their APIs that the clients of Amazon and Google bring along."""
    pytest.importorskip("botocore")
    from botocore.session import Session
    from botocore.validate import validate_parameters

    aws, gcp = rules_of_buckets()
    shape = Session().get_service_model("s3").shape_for("BucketLifecycleConfiguration")
    validate_parameters(aws, shape)
    check_against_google("storage.v1.json", "Bucket", {"lifecycle": gcp}, "bucket")


def test_buckets_forget_checkpoints_and_unfinished_uploads_but_no_results() -> None:
    aws, gcp = rules_of_buckets()
    for rule in aws["Rules"]:
        assert rule["Status"] == "Enabled"
    forgotten = {rule["Filter"]["Prefix"] for rule in aws["Rules"] if "Expiration" in rule}
    (deletion,) = [rule["condition"] for rule in gcp["rule"] if rule["action"]["type"] == "Delete"]
    assert forgotten == set(deletion["matchesPrefix"])
    storages = {place for words in study_commands() for place in words if re.match(r"(s3|gs)://", place)}
    (prefix,) = {urlsplit(place).path.strip("/") for place in storages}
    checkpoints = _checkpoint("0" * 64).partition("/")[0]
    assert forgotten == {f"{prefix}/{checkpoints}/", "installed/"}
    assert any(rule.get("AbortIncompleteMultipartUpload") and not rule["Filter"]["Prefix"] for rule in aws["Rules"])
    assert {"type": "AbortIncompleteMultipartUpload"} in [rule["action"] for rule in gcp["rule"]]
    (creation,) = [line for line in GUIDE.read_text().split("gcloud ") if line.startswith("storage buckets create")]
    assert "--soft-delete-duration 0" in creation


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for Ray's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


HEAD = "f" * 51 + "00000"
"""What Ray's provider of simulated machines calls the head."""
LAST_ONE_OUT = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(0.2)
"""


def _with_processes_for_machines(config: dict[str, Any], address: str) -> dict[str, Any]:
    head, gpu = (config["available_node_types"][name] | {"node_config": {}} for name in ("head", "gpu"))
    return {
        **config,
        **{name: [] for name in config if name.endswith("_commands")},
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD,
            "launch_multiple": True,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",  # the provider's name for it
        "available_node_types": {
            "ray.head.default": head,
            "gpu": gpu | {"resources": {"CPU": 1}, "max_workers": 2},
        },
        "idle_timeout_minutes": 0.1,
        "file_mounts": {},
        "auth": {},
    }


@pytest.mark.slow
def test_sweep_on_a_cluster_that_has_no_worker_yet(tmp_path: Path, short_path: Path) -> None:
    """The node types of aws.yaml, but machines are processes: Ray's autoscaler starts them, and ends them when idle."""
    from ray.util import get_node_ip_address

    study, address = Study(tmp_path), f"{get_node_ip_address()}:{free_port()}"
    config = _with_processes_for_machines(util.prepare_config(launcher("aws.yaml")), address)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        **RAY_SETTINGS,
        MARK: study.mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={address.rpartition(':')[2]}"]
    start += ["--num-cpus=0", "--include-dashboard=false", f"--temp-dir={short_path}"]
    settings = [f"--set={each}" for each in assignments(get_space(SPACE))]
    where = ["--storage", str(tmp_path / "outputs"), "--address", address, "--gpus-per-trial", "0"]
    try:
        start += [f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
        subprocess.run(start, env=environment, check=True, timeout=HANG_SECONDS)
        driver = python("-m", "study.run", "--space", SPACE, *settings, *where, env=environment)
        out, err = driver.communicate(timeout=HANG_SECONDS)
        assert driver.returncode == 0, (out, err)
        assert "waiting for room" in err
        assert "0 were published before" in out
        watch = python("-c", LAST_ONE_OUT, address, env=environment)
        out, err = watch.communicate(timeout=HANG_SECONDS)
        assert watch.returncode == 0, (out, err)
    finally:
        study.kill_all()


# --- machines with ssh ------------------------------------------------------------------------------------------------
def test_the_guide_sets_what_ray_reads_at_its_start() -> None:
    lines = [words for text in blocks(GUIDE.read_text(), "sh") for words in lines_of_words(text)]
    (exported,) = [words[1:] for words in lines if words[:1] == ["export"] and "RAY_AUTH_MODE=token" in words]
    assert RAY_SETTINGS.items() <= dict(word.split("=") for word in exported).items()


# --- KubeRay ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(filled("kuberay-rayjob.yaml"))
    return job


def test_ray_derives_the_node_types_from_the_rayjob(rayjob: dict[str, Any]) -> None:
    """As Ray's autoscaler does in the head's pod."""
    kuberay = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    cluster = {"metadata": {"name": "sweep", "namespace": "default"}, "spec": rayjob["spec"]["rayClusterSpec"]}
    config = kuberay._derive_autoscaling_config_from_ray_cr(cluster)
    util.validate_config(config)
    head, gpu = config["available_node_types"]["headgroup"], config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"]) == (0, 8, 1)
    assert as_many_cpus_as_trials(gpu["resources"])


def test_the_rayjob_ends_and_is_tried_again(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]


def test_pods_of_the_rayjob(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    for pod in pods:
        (container,), (data,) = pod["containers"], pod["initContainers"]
        assert {each["name"]: each["value"] for each in container["env"]}.items() >= RAY_SETTINGS.items()
        assert container["envFrom"] == data["envFrom"] == [{"secretRef": {"name": "study-storage", "optional": True}}]
        assert container["image"] == data["image"]
        assert container["volumeMounts"] == data["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
        compile(data["args"][0], "initContainer", "exec")
    tolerated = {each["key"] for each in pods[1]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated
    assert "tolerations" not in pods[0], "the head does not run on spot nodes"


def test_the_tracking_server_is_where_the_rayjob_looks(rayjob: dict[str, Any]) -> None:
    claim, service, deployment = yaml.safe_load_all(filled("mlflow.yaml"))
    pod = deployment["spec"]["template"]
    port = service["spec"]["ports"][0]["port"]
    assert f"--tracking-uri http://{service['metadata']['name']}:{port} " in rayjob["spec"]["entrypoint"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == port


@pytest.mark.slow
def test_the_tracking_server_answers_to_its_names_only(tmp_path: Path) -> None:
    """Its command line as in the manifest, but for the place of its files and the interface."""
    *_, deployment = yaml.safe_load_all(filled("mlflow.yaml"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    port = free_port()
    words = [word.replace("/mlflow/", f"{tmp_path}/") for word in (*container["command"], *container["args"])]
    words = [*words, "--host=127.0.0.1", f"--port={port}"]
    server = python("-m", *words)
    try:
        wait_until(lambda: _status(port, "/health", "any") == 200, "the server does not come up", server)
        question = "/api/2.0/mlflow/experiments/search?max_results=1"
        hosts = ("mlflow:5000", "mlflow", "localhost:5000", "example.com")
        assert [_status(port, question, host) for host in hosts] == [200, 200, 200, 403]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate(timeout=HANG_SECONDS)


def _status(port: int, path: str, host: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def test_the_image_has_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dockerfile = (FILES / "Dockerfile").read_text()
    (copied,) = re.findall(r"^COPY (.*) \S+$", dockerfile, flags=re.MULTILINE)
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert set(copied.split()) == {*needed, "constraints.txt"}
    extras = {extra for name in ("Dockerfile", *LAUNCHER) for extra in _extras((FILES / name).read_text())}
    assert extras == {"s3", "gcs"} <= project["project"]["optional-dependencies"].keys()


def test_the_image_finds_the_driver_where_google_s_nodes_mount_it() -> None:
    lines = (FILES / "Dockerfile").read_text().splitlines()
    (settings,) = (line.split()[1:] for line in lines if line.startswith("ENV "))
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in settings
    assert lines.index("FROM python:3.12-slim") < lines.index("ENV " + " ".join(settings)) < lines.index("USER study")


def _extras(text: str) -> Iterator[str]:
    for extras in re.findall(r"requirements\[([a-z0-9,]+)\]", text):
        yield from extras.split(",")
    yield from re.findall(r"set-up-node\.sh (\w+)fs ", text)


def test_all_nodes_have_the_same_packages(rayjob: dict[str, Any]) -> None:
    """The versions of ``constraints.txt``, wherever packages are installed."""
    texts = [(FILES / name).read_text() for name in ("Dockerfile", "set-up-node.sh")]
    texts += blocks(GUIDE.read_text(), "sh") + inline_code(GUIDE.read_text())
    lines = [line for text in texts for line in text.splitlines() if "pip install" in line and "--no-deps" not in line]
    assert len(lines) > 4
    assert [line for line in lines if not re.search(r" -c \S*constraints\.txt ", line)] == []
    assert f"ray=={rayjob['spec']['rayClusterSpec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().split()


# --- command lines ----------------------------------------------------------------------------------------------------
def study_commands() -> list[list[str]]:
    """Return the arguments of every ``python -m study.run`` in the launch files and their guide."""
    job = yaml.safe_load(filled("kuberay-rayjob.yaml"))["spec"]["entrypoint"]
    usage = re.search(r"sbatch .*slurm\.sh (--space .*) \[options of study\.run\]", (FILES / "slurm.sh").read_text())
    assert usage is not None
    scripts = [job, f"python -m study.run {usage[1]}", *blocks(GUIDE.read_text(), "sh")]
    commands = []
    for words in (words for script in scripts for words in lines_of_words(script)):
        for word in words:  # quoted, for another machine
            if word.startswith("python -m study.run "):
                commands.append(shlex.split(word)[3:])
        if "study.run" in words:
            commands.append(words[words.index("study.run") + 1 :])
        if "study/cluster/slurm.sh" in words:
            commands.append(words[words.index("study/cluster/slurm.sh") + 1 :])
    return [[re.sub(r"^(DIR|NAME)$", SPACE, word) for word in words] for words in commands]


def test_commands_are_understood() -> None:
    commands = study_commands()
    assert len(commands) >= 6
    for words in commands:
        end = next((place for place, word in enumerate(words) if re.fullmatch(r"\||&&|;|\d?>.*", word)), len(words))
        options = parse_options(words[:end], "study.run", "")
        override(get_space(options.space), options.set)


@pytest.mark.parametrize("text", [(FILES / "slurm.sh").read_text(), *blocks(GUIDE.read_text(), "sh")])
def test_bash_can_read_it(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
