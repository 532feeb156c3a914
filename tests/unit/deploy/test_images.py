"""What can be known of the images without building them: each instruction is read and held against the repository."""

from __future__ import annotations

import fnmatch
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping

import pytest
from packaging import requirements, utils, version

from deploy.images import locks

DOCKERFILE = (locks.HERE / "Dockerfile").read_text()
BAKE = (locks.HERE / "docker-bake.hcl").read_text()
IGNORED = (locks.HERE / "Dockerfile.dockerignore").read_text()
PROGRAMS = {"server": "tms-server", "sidecar": "tms-sidecar", "worker": "tms-worker", "worker-cuda": "tms-worker"}
PROJECT = tomllib.loads((locks.ROOT / "pyproject.toml").read_text())


def instructions() -> Iterator[tuple[str, str]]:
    """Each instruction with its arguments, lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def stages() -> Mapping[str, tuple[str, list[tuple[str, str]]]]:
    """Base and instructions of each stage by its name."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions():
        if name == "FROM":
            words = [word for word in rest.split() if not word.startswith("--")]
            base, _, stage = words
            current = []
            found[stage] = (base, current)
        else:
            current.append((name, rest))
    return found


def inherited(stage: str) -> list[tuple[str, str]]:
    """Instructions of a stage after those of the stages that it begins with."""
    base, own = stages()[stage]
    return [*(inherited(base) if base in stages() else []), *own]


def bases(stage: str) -> str:
    base = stages()[stage][0]
    return bases(base) if base in stages() else base


def test_every_source_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = [line.removeprefix("!") for line in IGNORED.splitlines() if line.startswith("!")]
    for name, (_, own) in stages().items():
        for instruction, rest in own:
            if instruction != "COPY":
                continue
            *sources, _ = [word for word in shlex.split(rest) if not word.startswith("--")]
            origin = re.search(r"--from=(\S+)", rest)
            if origin:
                assert origin[1] in stages(), f"{name}: no stage {origin[1]}"
                continue
            for source in sources:
                assert (locks.ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), f"{source} is ignored"


def test_nothing_else_is_sent_to_the_builder() -> None:
    assert "*" in IGNORED.splitlines()
    copies = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    copied = {source for sources in copies for source in sources}
    for line in IGNORED.splitlines():
        if line.startswith("!"):
            assert any(fnmatch.fnmatch(source, line[1:]) for source in copied), f"{line} is not needed"


@pytest.mark.parametrize(("stage", "program"), PROGRAMS.items())
def test_an_image_is_a_console_script_for_an_ordinary_user(stage: str, program: str) -> None:
    assert program in PROJECT["project"]["scripts"]
    done = inherited(stage)
    entry = [rest for name, rest in done if name == "ENTRYPOINT"]
    assert entry == [f'["{program}"]']  # as a list: signals reach the program itself
    assert not [rest for name, rest in done if name == "CMD"]
    (user,) = [rest for name, rest in done if name == "USER"]
    assert user == "65532:65532"
    assert any(name == "ENV" and "PATH=/opt/tms/bin:" in rest for name, rest in done)
    assert any(name == "LABEL" and "org.opencontainers.image.licenses" in rest for name, rest in done)


def test_bases_are_pinned_by_tag() -> None:
    pinned = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    for stage in stages():
        argument = re.fullmatch(r"\$\{(\w+)\}", bases(stage))
        assert argument
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", pinned[argument[1]])


def test_the_python_of_the_images_is_the_one_that_the_lock_files_were_cut_for() -> None:
    (image,) = (
        rest.split(":")[1] for name, rest in instructions() if name == "ARG" and rest.startswith("PYTHON_IMAGE")
    )
    python = version.Version(image.split("-")[0])
    assert f"{python.major}.{python.minor}" == "3.11"


def test_packages_are_installed_by_hash_alone() -> None:
    for name, rest in instructions():
        if name == "RUN" and "pip" in rest and "install" in rest:
            for command in rest.split("&&"):
                if " install " in command and "pip " in command and "apt-get" not in command:
                    assert "--require-hashes -r " in command or command.strip().endswith("--no-deps /wheels/*.whl")


@pytest.mark.parametrize("image", locks.EXTRAS)
def test_the_lock_of_an_image_is_cut_from_the_projects(image: str) -> None:
    assert (locks.HERE / f"{image}.lock").read_text() == locks.text(image), "run `python -m deploy.generate`"


@pytest.mark.parametrize(("image", "extra"), locks.EXTRAS.items())
def test_the_lock_of_an_image_has_all_that_its_extra_names(image: str, extra: str) -> None:
    locked = locks.entries((locks.HERE / f"{image}.lock").read_text())
    for name in locks.needed(extra):
        assert "--hash=sha256:" in locked[name]
    named = [requirements.Requirement(each) for each in PROJECT["project"]["optional-dependencies"][extra]]
    wanted = {utils.canonicalize_name(each.name) for each in named} - {"tms"}
    assert wanted <= locked.keys()


def test_the_wheel_is_built_by_what_the_project_asks_for() -> None:
    locked = locks.entries((locks.HERE / "build.lock").read_text())
    for told in PROJECT["build-system"]["requires"]:
        wanted = requirements.Requirement(told)
        found = re.match(r"\S+==(\S+)", locked[utils.canonicalize_name(wanted.name)])
        assert found
        assert found[1] in wanted.specifier


def test_the_wheels_packages_are_all_copied() -> None:
    copied = {rest.split()[0] for name, rest in stages()["wheel"][1] if name == "COPY"}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied


def test_bake_builds_every_image_under_the_name_that_the_chart_asks_for() -> None:
    targets = dict(re.findall(r'^target "([a-z-]+)" \{\n(.*?)^\}', BAKE, re.MULTILINE | re.DOTALL))
    groups = dict(re.findall(r'^group "([a-z-]+)" \{\n\s*targets = \[(.*?)\]', BAKE, re.MULTILINE))
    for members in groups.values():
        assert {each.strip(' "') for each in members.split(",")} <= targets.keys()
    for stage in PROGRAMS:
        assert re.search(rf'target\s*= "{stage}"', targets[stage])
    (dockerfile,) = re.findall(r'dockerfile = "(.*)"', BAKE)
    assert (locks.ROOT / dockerfile).is_file()
    tags = {tag.replace("${PREFIX}", "") for tag in re.findall(r'tags\s*= \["(.*?)"\]', BAKE)}
    assert tags == {f"tms/{each}:${{TAG}}" for each in ("server", "sidecar", "worker")} | {"tms/worker:${TAG}-cuda"}
    for parents in re.findall(r"inherits\s*= \[(.*?)\]", BAKE):
        assert {each.strip(' "') for each in parents.split(",")} <= targets.keys()


def test_the_version_is_one_everywhere() -> None:
    number = PROJECT["project"]["version"]
    chart = (pathlib.Path(locks.ROOT) / "deploy/helm/tms/Chart.yaml").read_text()
    assert f'appVersion: "{number}"' in chart
    assert f'default = "{number}"' in BAKE
