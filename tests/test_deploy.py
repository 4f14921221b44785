"""The shipped files agree with the code, with each other and with docs/deployment.md."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")

from typer.testing import CliRunner

from clues.cli.program import app
from clues.config import ComputeSettings, validate
from clues.network.children import Child
from clues.network.edge import edge_configuration
from clues.network.keys import make_authority, make_server_certificate
from clues.network.settings import CoordinatorSettings, JoinSettings, load_join

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
INSTALLED = Path("/etc/clues")
pytestmark = pytest.mark.skipif(not DEPLOY.exists(), reason="deploy/ is not beside the tests")


def coordinator() -> CoordinatorSettings:
    """The shipped file as it is read where it belongs."""
    content = yaml.safe_load((DEPLOY / "coordinator.yaml").read_text())
    settings = validate(CoordinatorSettings, content, where="coordinator.yaml")
    files = {name: INSTALLED / getattr(settings, name) for name in ("ca", "certificate", "key")}
    return settings.model_copy(update=files)


def test_the_shipped_nginx_file_is_what_clues_edge_prints():
    expected = edge_configuration(coordinator(), folder=None)
    assert (DEPLOY / "nginx.conf").read_text() == expected, "run: clues edge, and store it"


def test_nginx_takes_the_shipped_file(tmp_path):
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
        pytest.skip("no nginx on this machine")
    make_authority(tmp_path / "keys")
    make_server_certificate(tmp_path / "keys", ["fl.example.org"], authority=tmp_path / "keys")
    part = (DEPLOY / "nginx.conf").read_text().replace(str(INSTALLED), str(tmp_path))
    (tmp_path / "part.conf").write_text(part)
    whole = f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\ninclude part.conf;\n}}\n"
    (tmp_path / "nginx.conf").write_text(whole)
    command = ["nginx", "-t", "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
    command += ["-c", str(tmp_path / "nginx.conf")]
    with Child("nginx -t", command, log=tmp_path / "out") as child:
        assert child.process.wait(20) == 0, child.output()


def test_the_shipped_silo_file_is_read(tmp_path):
    text = (DEPLOY / "silo.yaml").read_text()
    for name in ("ca.crt", "keys/hospital-a.key", "rows.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "hospital-a.yaml").write_text("name: hospital-a\ndata: rows.jsonl\ndomain: m\n")
    (tmp_path / "silo.yaml").write_text(text)
    assert load_join(tmp_path / "silo.yaml").silo.name == "hospital-a"
    assert validate(CoordinatorSettings, {**_content("coordinator.yaml")}, where="").names


def _content(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_both_sides_speak_of_the_same_address_and_hospitals():
    silo = _content("silo.yaml")
    assert silo["coordinator"] == coordinator().public
    assert Path(silo["key"]).stem in coordinator().names
    assert set(silo) <= set(JoinSettings.model_fields)
    port = coordinator().public.rpartition(":")[2]
    compose = _content("compose.coordinator.yaml")["services"]["coordinator"]
    assert compose["ports"] == [f"{port}:{port}"]


@pytest.mark.parametrize(
    ("file", "service"),
    [("compose.coordinator.yaml", "coordinator"), ("compose.silo.yaml", "silo")],
)
def test_containers_call_verbs_that_exist_and_may_do_nothing_else(file, service):
    content = _content(file)["services"][service]
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    _called(content["command"])


def test_the_image_copies_what_it_installs_and_takes_another_build_of_torch():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.M)
    names = [name for line in copied for name in line.split()]
    assert [name for name in names if not (ROOT / name).exists()] == []
    built_with = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE"}
    assert built_with <= set(names), "the package cannot be built in the image"
    assert '${TORCH_INDEX:+--index-url "$TORCH_INDEX"}' in text
    gpu = _content("compose.cuda.yaml")["services"]
    assert set(gpu) <= set(_content("compose.silo.yaml")["services"]), "it adds to no service"


@pytest.mark.parametrize("name", ["clues-coordinator.service", "clues-silo.service"])
def test_units_call_verbs_that_exist(name):
    text = (DEPLOY / name).read_text()
    [command] = re.findall(r"^ExecStart=/opt/clues/bin/clues (.*)$", text, re.M)
    _called(shlex.split(command))


def _called(arguments: list[str]) -> None:
    """A verb with options that exist and a file that does not: it must get as far as the file."""
    file = f"/nowhere/{Path(arguments[-1]).name}"
    result = CliRunner().invoke(app, [*arguments[:-1], file])
    assert "there is no such file" in str(result.exception), result.output


@pytest.mark.parametrize("name", ["clues-coordinator.service", "clues-silo.service"])
def test_systemd_takes_the_units(name, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd on this machine")
    text = (DEPLOY / name).read_text()
    # The program of the unit need not be installed where it is tested.
    program = tmp_path / "clues"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / name
    unit.write_text(text.replace("/opt/clues/bin/clues", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert name not in done.stderr, done.stderr


def test_the_page_shows_the_shipped_files_and_verbs_that_exist():
    page = (ROOT / "docs" / "deployment.md").read_text()
    for name in ("coordinator.yaml", "silo.yaml"):
        assert (DEPLOY / name).read_text() in page, f"{name} has changed"
    for name in sorted(p.name for p in DEPLOY.iterdir() if p.suffix != ".pyc"):
        assert name in page or name == "__pycache__", f"{name} is not mentioned"
    verbs = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    verbs |= {g.name for g in app.registered_groups}
    called = set(re.findall(r"^(?:\S*/)?clues (\w+)", page, re.M))
    assert called
    assert called <= verbs


def test_the_slurm_file_is_a_script_that_closes_what_it_opens():
    path = DEPLOY / "slurm/silo.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert "export RAY_AUTH_MODE=token" in text
    assert "umask 077" in text
    assert "--include-dashboard=false" in text
    named = set(re.findall(r"compute\.(\w+)=", text))
    assert named <= set(ComputeSettings.model_fields), "no such settings"


def test_the_kubernetes_file_lets_nobody_in_but_its_own_pods():
    cluster, policy = yaml.safe_load_all((DEPLOY / "kuberay/silo.yaml").read_text())
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert groups[0]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert (
        policy["spec"]["podSelector"]["matchLabels"]["ray.io/cluster"]
        == cluster["metadata"]["name"]
    )


def test_the_page_names_the_ports_of_the_slurm_file():
    text = (DEPLOY / "slurm/silo.sbatch").read_text()
    page = (ROOT / "docs/deployment.md").read_text()
    for port in re.findall(r"\$\{\w*PORT:=(\d+)\}|PORT:=(\d+)", text):
        assert next(filter(None, port)) in page
